"""`convert` and the export stage: what comes out is what went in, and PyTorch agrees."""

import numpy as np
import pytest

from jaxmath import __main__ as cli
from jaxmath.data import batches, records, tokenizer
from jaxmath.model import qwen2
from jaxmath.runs import export, sft

from . import tiny

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def session_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as the session has it")


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    """A bfloat16 model in three shards, as `transformers` writes it."""
    import transformers

    folder = tmp_path_factory.mktemp("hf") / "model"
    config = transformers.Qwen2Config(
        vocab_size=300,
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=299,
        eos_token_id=299,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # which start as zeros and ones
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder


def tensors(folder):
    from safetensors import torch as safetensors

    return {
        k: v
        for path in folder.glob("*.safetensors")
        for k, v in safetensors.load_file(path).items()
    }


def test_in_and_out_again_is_bit_for_bit_the_same(hf_folder, tmp_path, capsys):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    assert cli.main(["convert", "import", str(hf_folder), str(checkpoint)]) == 0
    assert cli.main(["convert", "export", str(checkpoint), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    before, after = tensors(hf_folder), tensors(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), after[name].view(torch.int16)), name


def test_what_is_there_is_not_overwritten_unasked(hf_folder, tmp_path, capsys):
    checkpoint = str(tmp_path / "checkpoint")
    assert cli.main(["convert", "import", str(hf_folder), checkpoint]) == 0
    assert cli.main(["convert", "import", str(hf_folder), checkpoint]) == cli.INPUT
    assert "already holds a checkpoint" in capsys.readouterr().err
    out = tmp_path / "out"
    out.mkdir()
    assert cli.main(["convert", "export", checkpoint, str(out)]) == cli.INPUT
    assert list(out.iterdir()) == [] and "exists" in capsys.readouterr().err
    assert cli.main(["convert", "export", checkpoint, str(out), "--overwrite"]) == 0
    assert (out / "config.json").exists()


def test_a_source_that_is_not_there_is_one_line(tmp_path, capsys):
    assert cli.main(["convert", "import", str(tmp_path / "no"), str(tmp_path / "c")]) == cli.INPUT
    assert cli.main(["convert", "export", str(tmp_path / "no"), str(tmp_path / "o")]) == cli.INPUT
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("CheckpointError: " in line for line in lines)


def test_the_loss_of_an_exported_run_is_that_of_pytorch(data, model, tmp_path):
    import transformers

    out = tmp_path / "out"
    assert cli.main(["convert", "export", str(model), str(out)]) == 0
    tokens = tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(out)))
    conversations = records.read_conversations(
        records.DataConfig(str(data / "train.jsonl"), limit=16)
    )
    examples, _ = batches.encode_conversations(tokens, conversations, 96)
    torch_model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    nll, count = 0.0, 0
    with torch.no_grad():
        for example in examples:  # one by one: no packing, no padding
            logits = torch_model(torch.tensor(example.tokens[None].astype(np.int64))).logits[0]
            logprobs = torch.log_softmax(logits[:-1].double(), -1).numpy()
            targets = example.tokens[1:]
            mask = example.loss_mask[1:]
            nll -= logprobs[np.arange(len(targets)), targets][mask].sum()
            count += int(mask.sum())
    theirs = nll / count

    # Ours: the first loss of a run that starts from the export, packed into one batch.
    config = tiny.sft_config(
        data,
        tmp_path / "run",
        init_from=str(out),
        data={"path": str(data / "train.jsonl"), "limit": 16},
        loss_reduction="token_mean",
        batch_rows=len(batches.plan_rows([len(e.tokens) for e in examples], 96)),
        num_microbatches=1,
        max_steps=2,
    )
    sft.run(config)
    ours = tiny.rows(tmp_path / "run/metrics.jsonl")[0]["sft/loss"]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_export_stage_reopens_what_it_wrote(model, tmp_path):
    config = export.ExportRun(output=str(tmp_path), checkpoint=str(model))
    report = export.run(config)
    assert "config, tokenizer and logits agree" in report.summary["transformers"]
    folder = tmp_path / "huggingface"
    before = tiny.contents(folder)
    export.run(config)
    assert tiny.contents(folder) == before


def test_logits_that_differ_from_pytorch_are_an_error(model, tmp_path, monkeypatch):
    right = qwen2.Qwen2.logits
    monkeypatch.setattr(qwen2.Qwen2, "logits", lambda self, x: 1.01 * right(self, x))
    config = export.ExportRun(output=str(tmp_path), checkpoint=str(model))
    with pytest.raises(ValueError, match="logits of transformers and of jaxmath differ by"):
        export.run(config)
    assert (tmp_path / "huggingface/config.json").exists()  # left for inspection
