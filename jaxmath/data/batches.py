"""Conversations to token rows of one shape, and which rows make which step.

Packing is planned once over the whole data set, so a batch is a pure function of the step number:
a run resumes from its step counter alone, on any number of hosts.
"""

import bisect
import collections
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from jaxmath.data.records import Conversation
from jaxmath.data.tokenizer import Tokenizer

Reduction = Literal["token_mean", "sequence_mean"]


@dataclasses.dataclass(frozen=True)
class SftExample:
    """One conversation. loss_mask[t] is true where token t is a target, predicted from before t.

    tokens: i32[T]; loss_mask: bool[T], false at 0.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray


class SftBatch(NamedTuple):
    """Rows of packed examples; the loss is sum(loss_weights · nll) / sum(loss_weights).

    tokens_BT: i32; 0 on padding.
    positions_BT: i32, from 0 in each segment; 0 on padding.
    segment_ids_BT: i32, 1, 2, … along a row; 0 on padding.
    loss_weights_BT: f32, of token t as a target; 0 on prompts, on padding and on the first token of
      a segment.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segment_ids_BT: np.ndarray
    loss_weights_BT: np.ndarray


class EncodeCounts(NamedTuple):
    """What happened to the conversations of a data set."""

    num_read: int
    num_kept: int
    num_truncated: int
    num_without_target: int


class Examples(Protocol):
    """The examples of a data set, wherever they are.

    lengths: i64[N], tokens of each. checksum: of all ids in their order.
    """

    lengths: np.ndarray
    checksum: int

    def take(self, indices: Sequence[int]) -> list[SftExample]:
        """These examples, in this order."""


class InMemory:
    """`Examples` from a list."""

    def __init__(self, examples: Sequence[SftExample]):
        self._examples = examples
        self.lengths = np.array([len(example.tokens) for example in examples], np.int64)

    @property
    def checksum(self) -> int:
        weighted = lambda ids: int(np.sum(ids.astype(np.int64) * np.arange(1, len(ids) + 1)))  # noqa: E731
        return sum(weighted(example.tokens) for example in self._examples)

    def take(self, indices: Sequence[int]) -> list[SftExample]:
        return [self._examples[index] for index in indices]


def encode_conversations(
    tokenizer: Tokenizer, conversations: Iterable[Conversation], max_tokens: int
) -> tuple[list[SftExample], EncodeCounts]:
    """Ids of whole chats, cut on the right at `max_tokens`; targets are assistant text and EOS.

    A chat that was cut has no EOS target (open-instruct `finetune.py`, as INTELLECT-MATH ran it).
    Examples are in order, those without any target left out and counted.
    """
    examples, num_read, num_truncated = [], 0, 0
    chats = (conversation.messages for conversation in conversations)
    for ids, mask in tokenizer.encode_chats_with_mask(chats):
        num_read += 1
        num_truncated += len(ids) > max_tokens
        tokens, loss_mask = ids[:max_tokens], mask[:max_tokens]
        loss_mask[:1] = False  # nothing comes before the first token
        if loss_mask.any():
            examples.append(SftExample(tokens, loss_mask))
    num_without = num_read - len(examples)
    return examples, EncodeCounts(num_read, len(examples), num_truncated, num_without)


def plan_rows(
    lengths: Sequence[int], row_tokens: int, max_segments: int | None = None
) -> list[list[int]]:
    """Best-fit decreasing: rows of indices whose lengths sum to at most `row_tokens`.

    Longest first, each into the fullest row that still holds it. Deterministic.

    Args:
      max_segments: of one row; None for as many as fit.

    Raises:
      ValueError: an example is longer than a row.
    """
    rows: list[list[int]] = []
    rows_by_room = collections.defaultdict(list)
    rooms: list[int] = []  # the distinct free lengths of rows that are not full, ascending
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        if length > row_tokens:
            raise ValueError(
                f"example {index} has {length} tokens, a row holds {row_tokens}; "
                "raise row_tokens or lower max_tokens"
            )
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms.pop(at)
        else:
            room, row = row_tokens, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        if left and len(rows[row]) != max_segments:
            if not rows_by_room[left]:
                bisect.insort(rooms, left)
            rows_by_room[left].append(row)
    return rows


class SftData:
    """Batches of a fixed shape [batch_rows, row_tokens] as a pure function of the step.

    The rows of one epoch after another, each epoch in its own order drawn from (seed, epoch), are
    one endless stream, of which step s takes rows s·batch_rows and on: every example comes exactly
    once an epoch, and none is dropped where an epoch does not divide into batches.

    steps_per_epoch: steps that cover an epoch, rounded up.
    fill: share of the positions of all rows that hold a token.
    """

    def __init__(
        self,
        examples: Sequence[SftExample] | Examples,
        row_tokens: int,
        batch_rows: int,
        reduction: Reduction,
        seed: int,
        pack: bool = True,
        max_segments: int | None = None,
    ):
        examples = InMemory(examples) if isinstance(examples, list | tuple) else examples
        if not len(examples.lengths):
            raise ValueError("no example to train on; every conversation was dropped or none read")
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
        if reduction not in ("token_mean", "sequence_mean"):
            raise ValueError(f"reduction is {reduction!r}, expected token_mean or sequence_mean")
        self._examples, self.num_examples = examples, len(examples.lengths)
        self.checksum = examples.checksum
        self.row_tokens, self.batch_rows = row_tokens, batch_rows
        self.reduction, self.seed = reduction, seed
        self.lengths = examples.lengths
        self.rows = plan_rows(self.lengths, row_tokens, max_segments if pack else 1)
        if not pack:
            self.rows.sort()
        self.steps_per_epoch = self.num_steps(1)
        self.num_tokens = int(self.lengths.sum())
        self.fill = self.num_tokens / (len(self.rows) * row_tokens)

    def num_steps(self, num_epochs: int) -> int:
        """Steps that cover `num_epochs` epochs, rounded up once at the end."""
        return -(-num_epochs * len(self.rows) // self.batch_rows)

    def rows_at(self, step: int) -> list[list[int]]:
        """Indices of the examples in each row of this step's batch."""
        rows = []
        stream = np.arange(step * self.batch_rows, (step + 1) * self.batch_rows)
        for epoch in np.unique(stream // len(self.rows)):
            order = prompt_order(len(self.rows), self.seed, int(epoch))
            places = stream[stream // len(self.rows) == epoch] % len(self.rows)
            rows.extend(self.rows[i] for i in order[places])
        return rows

    def tokens_at(self, step: int) -> int:
        """Tokens in this step's batch, padding not counted."""
        return sum(int(self.lengths[row].sum()) for row in self.rows_at(step))

    def batch_at(self, step: int, part: Sequence[int] | None = None) -> SftBatch:
        """The batch of step 0, 1, …, or the rows `part` of it: those that live on this host."""
        rows = self.rows_at(step)
        rows = rows if part is None else [rows[b] for b in part]
        shape = (len(rows), self.row_tokens)
        batch = SftBatch(
            *(np.zeros(shape, np.int32) for _ in range(3)),
            loss_weights_BT=np.zeros(shape, np.float32),
        )
        examples = iter(self._examples.take([index for row in rows for index in row]))
        for b, row in enumerate(rows):
            start = 0
            for segment in range(1, len(row) + 1):
                example = next(examples)
                end = start + len(example.tokens)
                batch.tokens_BT[b, start:end] = example.tokens
                batch.positions_BT[b, start:end] = np.arange(end - start)
                batch.segment_ids_BT[b, start:end] = segment
                batch.loss_weights_BT[b, start:end] = self._weights(example.loss_mask)
                start = end
        return batch

    def _weights(self, loss_mask: np.ndarray) -> np.ndarray:
        weights = loss_mask.astype(np.float32)
        return weights / weights.sum() if self.reduction == "sequence_mean" else weights


@functools.lru_cache(maxsize=8)  # drawn once an epoch, not once a step
def prompt_order(num: int, seed: int, epoch: int) -> np.ndarray:
    """i64[num]: a permutation of 0 … num-1 that depends on (num, seed, epoch) alone; read-only."""
    order = np.random.default_rng((seed, epoch)).permutation(num)
    order.flags.writeable = False
    return order
