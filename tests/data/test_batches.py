import numpy as np
import pytest

from jaxmath.data import batches, records, tokenizer
from jaxmath.data.batches import SftData, SftExample

CHAT = records.Conversation(
    "c",
    (
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": "2."},
        {"role": "user", "content": "And 2+2?"},
        {"role": "assistant", "content": "It is 4."},
    ),
)


def make_examples(num=40, seed=0):
    """Examples whose tokens are all distinct, so that any token tells where it came from."""
    rng, examples, first = np.random.default_rng(seed), [], 1
    for _ in range(num):
        length = int(rng.integers(2, 17))
        mask = np.arange(length) >= rng.integers(1, length)
        examples.append(SftExample(np.arange(first, first + length, dtype=np.int32), mask))
        first += length
    return examples


def segments(batch):
    """Every (row, segment): its slice of the row."""
    for b, ids in enumerate(batch.segment_ids_BT):
        for segment in range(1, ids.max() + 1):
            (where,) = np.nonzero(ids == segment)
            assert (np.diff(where) == 1).all()
            yield b, slice(where[0], where[-1] + 1)


def encoded(tok, conversation, max_tokens):
    """The one example."""
    [example], _ = batches.encode_conversations(tok, [conversation], max_tokens)
    return example


@pytest.mark.parametrize("name", ["qwen_tulu", "qwen_chatml"])
def test_example_is_the_chat_and_its_mask(name, request):
    tok = request.getfixturevalue(name)
    example = encoded(tok, CHAT, 100)
    [(ids, mask)] = tok.encode_chats_with_mask([CHAT.messages])
    assert example.tokens.dtype == np.int32 and example.tokens.tolist() == ids.tolist()
    assert example.loss_mask.dtype == bool and example.loss_mask.tolist() == mask.tolist()
    assert (example.tokens[example.loss_mask] == tok.eos_ids[0]).sum() == 2


def test_truncation_is_on_the_right_and_takes_the_eos(qwen_tulu):
    whole = encoded(qwen_tulu, CHAT, 100)
    num = len(whole.tokens) - 1
    cut = encoded(qwen_tulu, CHAT, num)
    assert cut.tokens.tolist() == whole.tokens[:num].tolist()
    assert (cut.tokens[cut.loss_mask] == qwen_tulu.eos_ids[0]).sum() == 1
    assert cut.loss_mask.sum() == whole.loss_mask.sum() - 1


def test_conversations_without_a_target_are_dropped_and_counted(small):
    long_question = ({"role": "user", "content": "9" * 50}, {"role": "assistant", "content": "9"})
    length = len(small.encode_chat(CHAT.messages))
    examples, counts = batches.encode_conversations(
        small, [CHAT, records.Conversation("long", long_question), CHAT], length
    )
    assert len(examples) == 2 and len(examples[0].tokens) == length
    assert counts == batches.EncodeCounts(
        num_read=3, num_kept=2, num_truncated=1, num_without_target=1
    )
    examples, counts = batches.encode_conversations(small, [CHAT], length - 1)
    assert counts.num_truncated == 1
    alone = encoded(small, CHAT, length - 1)
    assert examples[0].tokens.tolist() == alone.tokens.tolist()
    assert examples[0].loss_mask.tolist() == alone.loss_mask.tolist()


def test_the_first_token_is_never_a_target(small, tmp_path):
    file = tmp_path / "assistant_only.jinja"
    file.write_text(
        "{% for m in messages if m.role == 'assistant' %}{{ m.content + eos_token }}{% endfor %}"
    )
    tok = tokenizer.Tokenizer(tokenizer.TokenizerConfig(small.config.path, str(file)))
    example = encoded(tok, CHAT, 100)
    assert example.loss_mask.tolist() == [False] + [True] * (len(example.tokens) - 1)


def test_plan_fits_each_example_once():
    lengths = np.random.default_rng(1).integers(1, 65, size=500)
    rows = batches.plan_rows(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(lengths[row].sum() <= 64 for row in rows)
    assert batches.plan_rows([3, 5, 2, 6], 8) == [[3, 2], [1, 0]]
    with pytest.raises(ValueError, match="example 1 has 9 tokens, a row holds 8"):
        batches.plan_rows([8, 9], 8)


def test_a_row_has_at_most_so_many_segments():
    lengths = np.random.default_rng(1).integers(1, 33, size=500)
    rows = batches.plan_rows(lengths, 64, max_segments=3)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(lengths[row].sum() <= 64 for row in rows)
    assert max(map(len, rows)) == 3 < max(map(len, batches.plan_rows(lengths, 64)))
    data = SftData(make_examples(), 32, 4, "token_mean", seed=0, max_segments=2)
    assert max(data.batch_at(step).segment_ids_BT.max() for step in range(5)) == 2


def test_lengths_with_a_long_tail_fill_their_rows():
    """Chains of thought: half of them short, a few up to the limit."""
    draws = np.random.default_rng(0).lognormal(np.log(600), 1.0, 5000)
    lengths = np.clip(draws, 16, 4096).astype(int)
    rows = batches.plan_rows(lengths, 4096)
    assert sorted(i for row in rows for i in row) == list(range(5000))
    assert lengths.sum() / (len(rows) * 4096) >= 0.99
    assert batches.plan_rows(lengths, 4096) == rows


def test_a_host_builds_the_rows_it_holds():
    data = SftData(make_examples(), 32, 4, "sequence_mean", seed=0)
    whole = data.batch_at(1)
    for part in ([0], [1, 2], [3, 0]):
        for one, other in zip(data.batch_at(1, part), whole, strict=True):
            assert (one == other[part]).all()
    assert data.tokens_at(1) == (whole.segment_ids_BT > 0).sum()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_batch_holds_the_examples_and_nothing_else(pack, reduction):
    examples = make_examples()
    by_first_token = {int(e.tokens[0]): e for e in examples}
    data = SftData(examples, 32, 4, reduction, seed=3, pack=pack)
    for step in range(data.steps_per_epoch):
        batch = data.batch_at(step)
        assert batch.tokens_BT.shape == batch.loss_weights_BT.shape == (4, 32)
        assert [a.dtype for a in batch] == [np.int32, np.int32, np.int32, np.float32]
        padding = batch.segment_ids_BT == 0
        assert all((a[padding] == 0).all() for a in batch)
        found = list(segments(batch))
        for b, where in found:
            example = by_first_token[int(batch.tokens_BT[b, where.start])]
            weights = batch.loss_weights_BT[b, where]
            assert (batch.tokens_BT[b, where] == example.tokens).all()
            assert (batch.positions_BT[b, where] == np.arange(len(example.tokens))).all()
            assert ((weights > 0) == example.loss_mask).all() and weights[0] == 0
            expected = example.loss_mask.sum() if reduction == "token_mean" else 1
            assert np.isclose(weights.sum(), expected)
            assert len(set(weights[weights > 0])) == 1
        if not pack:
            assert len(found) == 4 and (batch.segment_ids_BT <= 1).all()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("batch_rows", [1, 3, 7, 64])
def test_every_example_comes_once_an_epoch(pack, batch_rows):
    data = SftData(make_examples(), 32, batch_rows, "token_mean", seed=0, pack=pack)
    num_rows, num_epochs = len(data.rows), 3
    stream = [row for step in range(data.num_steps(num_epochs)) for row in data.rows_at(step)]
    orders = []
    for epoch in range(num_epochs):
        order = [i for row in stream[epoch * num_rows : (epoch + 1) * num_rows] for i in row]
        assert sorted(order) == list(range(40))
        orders.append(tuple(order))
    assert len(set(orders)) == num_epochs  # each epoch in another order


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    examples = make_examples()
    first, second = (SftData(examples, 32, 4, "token_mean", seed=5) for _ in range(2))
    later = first.batch_at(7)  # not asked for in order
    for step in range(7):
        second.batch_at(step)
    assert all((a == b).all() for a, b in zip(later, second.batch_at(7), strict=True))
    other = SftData(examples, 32, 4, "token_mean", seed=6)
    assert first.rows_at(0) != other.rows_at(0)


def test_fill_is_the_share_of_positions_with_a_token():
    data = SftData(make_examples(), 32, 1, "token_mean", seed=0)
    used = sum((data.batch_at(s).segment_ids_BT > 0).sum() for s in range(data.steps_per_epoch))
    assert data.fill == used / (len(data.rows) * 32) and data.fill > 0.9
    assert data.fill > 2 * SftData(make_examples(), 32, 1, "token_mean", 0, pack=False).fill


def test_gsm8k_train_fills_rows_of_1024_with_the_real_tokenizer(qwen_tulu, shared):
    cfg = records.DataConfig(str(shared / "data/train/gsm8k_train.jsonl"), max_reject_fraction=0)
    conversations = records.read_conversations(cfg, "intellect-sft")
    assert len(conversations) == 7473
    examples, counts = batches.encode_conversations(qwen_tulu, conversations, 1024)
    assert counts.num_kept == 7473 and counts.num_truncated == 0
    data = SftData(examples, 1024, 16, "sequence_mean", seed=0)
    assert data.fill >= 0.95


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="no example to train on"):
        SftData([], 8, 1, "token_mean", 0)
    with pytest.raises(ValueError, match="reduction is 'mean'"):
        SftData(make_examples(), 32, 1, "mean", 0)
    with pytest.raises(ValueError, match="batch_rows must be at least 1"):
        SftData(make_examples(), 32, 0, "token_mean", 0)


def test_prompt_order_is_a_permutation_by_seed_and_epoch():
    order = batches.prompt_order(100, seed=1, epoch=0)
    assert sorted(order) == list(range(100))
    assert (order == batches.prompt_order(100, seed=1, epoch=0)).all()
    assert (order != batches.prompt_order(100, seed=1, epoch=1)).any()
    assert (order != batches.prompt_order(100, seed=2, epoch=0)).any()
