import pytest

from jaxmath.data import tokenizer


@pytest.fixture(scope="session")
def qwen_tulu(shared):
    """Qwen2.5's tokenizer as INTELLECT-MATH's SFT used it."""
    folder = str(shared / "data/tokenizer/qwen2.5")
    return tokenizer.Tokenizer(tokenizer.TokenizerConfig(folder, "tulu", "<|im_end|>"))


@pytest.fixture(scope="session")
def qwen_chatml(shared):
    folder = str(shared / "data/tokenizer/qwen2.5")
    return tokenizer.Tokenizer(tokenizer.TokenizerConfig(folder, "chatml", "<|im_end|>"))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A tokenizer of a few hundred ids, trained here."""
    texts = [f"user\nWhat is {n}+{n + 1}?\nassistant\n\\boxed{{{2 * n + 1}}}" for n in range(50)]
    return tokenizer.train_small(texts, tmp_path_factory.mktemp("small"), 300)
