"""What is read back is what was tokenised, and only for the same inputs."""

import json

import numpy as np
import pytest

from jaxmath.data import batches, records, token_cache, tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    rows = [
        {"id": str(n), "problem": f"What is {n}+1?", "solution": f"It is {n + 1}." * (n % 7 + 1)}
        for n in range(60)
    ]
    lines = [json.dumps(row) for row in rows] + ["no row"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config_of(file, **changes):
    return records.DataConfig(str(file), max_reject_fraction=0.1, **changes)


@pytest.fixture(scope="module")
def encoded(file, small):
    conversations = records.read_conversations(config_of(file))
    return batches.encode_conversations(small, conversations, 60)


@pytest.fixture(scope="module")
def cache(file, small, encoded, tmp_path_factory):
    key = token_cache.key_of(config_of(file), "plain", small, 60)
    made = token_cache.TokenCache(tmp_path_factory.mktemp("cache"), key)
    assert not made.exists()
    made.write(*encoded, "a reject\n")
    return made


def test_the_same_examples_come_back(cache, encoded):
    examples, counts = encoded
    assert cache.exists()
    stored, stored_counts, rejects = cache.read()
    assert (stored_counts, rejects) == (counts, "a reject\n") and counts.num_truncated > 0
    listed = batches.InMemory(examples)
    assert stored.checksum == listed.checksum
    np.testing.assert_array_equal(stored.lengths, listed.lengths)
    for one, other in zip(stored.take([7, 3, 59]), listed.take([7, 3, 59]), strict=True):
        assert one.tokens.dtype == np.int32 and one.loss_mask.dtype == bool
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.loss_mask, other.loss_mask)


def test_batches_do_not_tell_where_examples_come_from(cache, encoded):
    ours, theirs = (
        batches.SftData(examples, 128, 4, "sequence_mean", seed=0)
        for examples in (cache.read()[0], encoded[0])
    )
    assert ours.steps_per_epoch == theirs.steps_per_epoch > 3
    for step in (0, 3):
        for one, other in zip(ours.batch_at(step), theirs.batch_at(step), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_key_tells_everything_that_changes_a_token(file, small, tmp_path):
    def key(file=file, style="plain", tok=small, max_tokens=60, **data):
        return token_cache.key_of(config_of(file, **data), style, tok, max_tokens)

    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert key(copy) == key()  # moved or touched, it is the same file
    copy.write_bytes(file.read_bytes().replace(b"+1?", b"+2?", 1))
    other = tokenizer.Tokenizer(tokenizer.TokenizerConfig(small.config.path, "tulu"))
    changed = [
        key(copy), key(style="qwen25-math-cot"), key(tok=other), key(max_tokens=61), key(limit=5)
    ]  # fmt: skip
    assert len({key(), *changed}) == len(changed) + 1


def test_a_damaged_data_set_is_named(cache, encoded, tmp_path):
    broken = token_cache.TokenCache(tmp_path, "key")
    broken.write(*encoded)
    (broken.path / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="delete it, and it is written anew"):
        broken.read()


def test_a_folder_that_cannot_be_written_is_named(encoded, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="token_cache .* choose another folder"):
        token_cache.TokenCache(tmp_path / "file", "key").write(*encoded)
