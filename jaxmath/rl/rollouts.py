"""Which prompts a step trains on, and their responses as one fixed-shape batch. NumPy only.

    prompts ─generate_and_grade→ groups ─accuracy filter, refill→ P groups ─to_batch→ RolloutBatch

A group is one prompt with its R responses and their verdicts. How text is made and graded is the
caller's business: `collect` gets a function for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmath.verify.verdict import Outcome

# Limits are compared with this slack: 4 · 0.2 and 1 / 5 round to different sides of the same
# number.
ACCURACY_SLACK = 1e-6


class StarvedError(ValueError):
    """The accuracy filter let too few prompts through."""


class Prompt(NamedTuple):
    """A prompt as the decoder sees it; `id` finds the problem and its answer again."""

    id: int
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response, its EOS included if it has one.

    outcome_reward: 1.0 right, 0.0 wrong, between for partly right; None where grading failed.
    logprobs: f32[len(tokens)], natural log, of the distribution that was sampled from; or None.
    """

    tokens: tuple[int, ...]
    outcome_reward: float | None
    logprobs: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    prompt: Prompt
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How a step's rollouts are made and chosen; the defaults are INTELLECT-MATH's.

    num_prompts: P, prompts in a training batch. num_responses: R, responses per prompt.
    min_accuracy, max_accuracy: a prompt is kept if the mean outcome of its responses lies between,
      both included; with 4 binary outcomes that is 1, 2 or 3 right.
    filter_truncated: drop a prompt if any of its responses is `max_response_tokens` long.
    max_rounds: give up on a step after so many rounds of generation.
    """

    num_prompts: int = 256
    num_responses: int = 4
    min_accuracy: float = 0.2
    max_accuracy: float = 0.8
    filter_truncated: bool = False
    max_rounds: int = 64
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 3072

    def __post_init__(self):
        counts = ("num_prompts", "num_responses", "max_rounds")
        for field in (*counts, "max_prompt_tokens", "max_response_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        if not self.min_accuracy <= self.max_accuracy:
            raise ValueError(
                f"min_accuracy {self.min_accuracy} is above max_accuracy {self.max_accuracy}; "
                "no prompt could be kept"
            )


class RolloutBatch(NamedTuple):
    """Prompt and response side by side, padded on the right; rows contiguous by prompt, B = P · R.

    positions count from 0 in each row, segment ids are 1 on tokens and 0 on padding. The mask is 1
    on the response up to and including its first EOS; a response without one counts to its end.
    """

    tokens_BT: Any  # i32
    positions_BT: Any  # i32
    segment_ids_BT: Any  # i32
    response_mask_BT: Any  # f32
    outcome_reward_B: Any  # f32
    old_logprob_BT: Any = None  # f32, of the policy that sampled, recomputed by the trainer
    decoder_logprob_BT: Any = None  # f32, the same as the decoder saw them; to measure the mismatch


class Collected(NamedTuple):
    groups: tuple[Group, ...]  # num_prompts of them, or none if the prompts ran out
    buffer: tuple[Prompt, ...]  # to be handed to the next call
    stats: dict[str, float]
    exhausted: bool  # the prompts ran out before the batch was full


def outcome_reward(outcome: Outcome) -> float | None:
    """1.0 right, 0.0 wrong or no answer; None where the fault is ours, which is never a reward."""
    return None if outcome.is_fault else float(outcome is Outcome.RIGHT)


def sort_out(group: Group, config: RolloutConfig) -> str:
    """Why a group is not trained on: "ungraded", "truncated", "too_hard", "too_easy"; or "kept".

    A group with a response that could not be graded is left out whole: its baseline would be wrong.
    """
    rewards = [sample.outcome_reward for sample in group.samples]
    if len(rewards) < config.num_responses or None in rewards:
        return "ungraded"
    if config.filter_truncated and any(
        len(sample.tokens) >= config.max_response_tokens for sample in group.samples
    ):
        return "truncated"
    accuracy = sum(rewards) / len(rewards)
    if accuracy < config.min_accuracy - ACCURACY_SLACK:
        return "too_hard"
    if accuracy > config.max_accuracy + ACCURACY_SLACK:
        return "too_easy"
    return "kept"


def collect(
    next_prompts: Callable[[], Sequence[Prompt]],
    generate_and_grade: Callable[[list[Prompt]], Sequence[Group]],
    config: RolloutConfig,
    buffer: Sequence[Prompt] = (),
) -> Collected:
    """Generates until `num_prompts` groups pass the filter.

    The first round takes up to `num_prompts` prompts of the buffer in front of the fresh ones. Of
    the groups beyond `num_prompts` only the prompts are kept, in the buffer: the next step's policy
    answers them again, so that no response is older than its policy. A prompt that comes twice,
    from the buffer and among the fresh ones of a new epoch, is asked once a step: its second
    answers would be the same samples. When the prompts run out, the unfinished batch is thrown away
    and the buffer survives, as in the released loop.

    Args:
      next_prompts: the loader's next batch of prompts, empty when there are no more.
      generate_and_grade: prompts → their groups, in the same order.
    Raises:
      StarvedError: `max_rounds` rounds did not fill the batch.
    """
    num_prompts = config.num_prompts
    again, buffer = list(buffer[:num_prompts]), tuple(buffer[num_prompts:])
    kept: list[Group] = []
    counts = dict.fromkeys(("kept", "too_easy", "too_hard", "truncated", "ungraded"), 0)
    rewards: list[float] = []
    asked: set[int] = set()
    rounds, exhausted = 0, False
    while len(kept) < num_prompts:
        if rounds == config.max_rounds:
            raise StarvedError(
                f"{rounds} rounds kept {len(kept)} of the {num_prompts} prompts a step needs "
                f"({counts}); widen min_accuracy and max_accuracy, change the problems, or raise "
                "max_rounds"
            )
        fresh = list(next_prompts())
        if not fresh:
            exhausted, buffer = True, (*again, *buffer)
            break
        prompts = {p.id: p for p in again + fresh if p.id not in asked}
        asked |= prompts.keys()
        for group in generate_and_grade(list(prompts.values())) if prompts else ():
            fate = sort_out(group, config)
            counts[fate] += 1
            rewards += [s.outcome_reward for s in group.samples if s.outcome_reward is not None]
            if fate == "kept":
                kept.append(group)
        again, rounds = [], rounds + 1
    groups = () if exhausted else tuple(kept[:num_prompts])
    surplus = () if exhausted else tuple(group.prompt for group in kept[num_prompts:])
    buffer = tuple({prompt.id: prompt for prompt in (*buffer, *surplus)}.values())
    trained = [s.outcome_reward for group in groups for s in group.samples]
    stats = {f"rollout/{fate}": float(count) for fate, count in counts.items()}
    stats |= {
        "rollout/rounds": float(rounds),
        "rollout/buffered": float(len(buffer)),
        "rollout/accuracy": float(np.mean(rewards)) if rewards else float("nan"),
        "rollout/accuracy_kept": float(np.mean(trained)) if trained else float("nan"),
    }
    return Collected(groups, buffer, stats, exhausted)


def response_length(tokens: Sequence[int], eos_ids: Collection[int]) -> int:
    """Tokens up to and including the first EOS; all of them where there is none."""
    return next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), len(tokens))


def to_batch(
    groups: Sequence[Group],
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    pad_id: int,
    eos_ids: Collection[int],
) -> RolloutBatch:
    """Groups → arrays [B, max_prompt_tokens + max_response_tokens]; what follows an EOS is padding.

    `old_logprob_BT` is left None, for the trainer to fill. `decoder_logprob_BT` is None unless
    every sample has its log-probabilities.

    Raises:
      ValueError: a prompt or a response longer than its limit; nothing is ever cut.
    """
    rows = [(group.prompt, sample) for group in groups for sample in group.samples]
    shape = (len(rows), max_prompt_tokens + max_response_tokens)
    tokens_BT = np.full(shape, pad_id, np.int32)
    segment_ids_BT = np.zeros(shape, np.int32)
    mask_BT = np.zeros(shape, np.float32)
    decoder_BT = np.zeros(shape, np.float32)
    for i, (prompt, sample) in enumerate(rows):
        start, length = len(prompt.tokens), response_length(sample.tokens, eos_ids)
        if start > max_prompt_tokens or length > max_response_tokens:
            raise ValueError(
                f"prompt {prompt.id} has {start} tokens and a response of {length}; the limits are "
                f"{max_prompt_tokens} and {max_response_tokens}: raise them or drop the prompt"
            )
        stop = start + length
        tokens_BT[i, :stop] = (*prompt.tokens, *sample.tokens[:length])
        segment_ids_BT[i, :stop] = 1
        mask_BT[i, start:stop] = 1.0
        if sample.logprobs is not None:
            decoder_BT[i, start:stop] = sample.logprobs[:length]
    complete = all(sample.logprobs is not None for _, sample in rows)
    positions_BT = np.where(segment_ids_BT > 0, np.arange(shape[1], dtype=np.int32)[None, :], 0)
    return RolloutBatch(
        tokens_BT=tokens_BT,
        positions_BT=positions_BT.astype(np.int32),
        segment_ids_BT=segment_ids_BT,
        response_mask_BT=mask_BT,
        outcome_reward_B=np.array([s.outcome_reward for _, s in rows], np.float32),
        decoder_logprob_BT=decoder_BT if complete else None,
    )
