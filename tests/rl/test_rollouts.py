"""The filter's borders, refill and buffer, faults of the verifier, and the arrays."""

import numpy as np
import pytest

from jaxmath.rl import rollouts
from jaxmath.rl.rollouts import Group, Prompt, RolloutConfig, Sample
from jaxmath.verify.verdict import Outcome

EOS = 1


def group(prompt_id, rewards, lengths=None):
    lengths = lengths or [3] * len(rewards)
    samples = tuple(
        Sample((*[7] * (length - 1), EOS), reward)
        for reward, length in zip(rewards, lengths, strict=True)
    )
    return Group(Prompt(prompt_id, (5, 6)), samples)


class World:
    """Prompts 0, 1, 2, … in loader batches; `solved(id)` says how many of 4 responses are right."""

    def __init__(self, num_prompts, batch, solved):
        prompts = [Prompt(i, (5, 6)) for i in range(num_prompts)]
        self.batches = [prompts[i : i + batch] for i in range(0, num_prompts, batch)]
        self.solved, self.rounds = solved, []

    def next_prompts(self):
        return self.batches.pop(0) if self.batches else []

    def generate_and_grade(self, prompts):
        self.rounds.append([prompt.id for prompt in prompts])
        rewards = {p.id: [float(i < self.solved(p.id)) for i in range(4)] for p in prompts}
        return [Group(p, tuple(Sample((7, EOS), r) for r in rewards[p.id])) for p in prompts]

    def collect(self, config, buffer=()):
        return rollouts.collect(self.next_prompts, self.generate_and_grade, config, buffer)


def ids(groups_or_prompts):
    return [getattr(x, "prompt", x).id for x in groups_or_prompts]


def config(**fields):
    return RolloutConfig(**{"num_prompts": 4, "num_responses": 4} | fields)


# --- the filter


@pytest.mark.parametrize(
    ("right", "fate"), [(0, "too_hard"), (1, "kept"), (2, "kept"), (3, "kept"), (4, "too_easy")]
)
def test_four_binary_responses_keep_one_to_three_right(right, fate):
    rewards = [1.0] * right + [0.0] * (4 - right)
    assert rollouts.sort_out(group(0, rewards), config()) == fate


@pytest.mark.parametrize("n", [5, 10, 15, 20, 35])
@pytest.mark.parametrize("dtype", [float, np.float32])
def test_accuracies_of_exactly_a_fifth_and_four_fifths_are_kept(n, dtype):
    for right in (n // 5, 4 * n // 5):
        rewards = [dtype(1)] * right + [dtype(0)] * (n - right)
        assert rollouts.sort_out(group(0, rewards), config(num_responses=n)) == "kept"
    below = [dtype(1)] * (n // 5 - 1) + [dtype(0)] * (4 * n // 5 + 1)
    above = [dtype(1)] * (4 * n // 5 + 1) + [dtype(0)] * (n // 5 - 1)
    assert rollouts.sort_out(group(0, below), config(num_responses=n)) == "too_hard"
    assert rollouts.sort_out(group(0, above), config(num_responses=n)) == "too_easy"


@pytest.mark.parametrize("reward", [0.2, 0.8, np.float32(0.2), np.float32(0.8)])
def test_fractional_rewards_at_the_borders_are_kept(reward):
    assert rollouts.sort_out(group(0, [reward] * 4), config()) == "kept"
    assert rollouts.sort_out(group(0, [0.19] * 4), config()) == "too_hard"
    assert rollouts.sort_out(group(0, [0.81] * 4), config()) == "too_easy"


def test_truncated_responses_drop_the_group_only_when_asked():
    cut = group(0, [1.0, 0.0, 1.0, 0.0], lengths=[3, 8, 3, 3])
    assert rollouts.sort_out(cut, config(max_response_tokens=8)) == "kept"
    strict = config(max_response_tokens=8, filter_truncated=True)
    assert rollouts.sort_out(cut, strict) == "truncated"
    assert rollouts.sort_out(cut, config(max_response_tokens=9, filter_truncated=True)) == "kept"


@pytest.mark.parametrize("rewards", [[1.0, 0.0, None, 0.0], [None] * 4, [1.0, 0.0, 1.0]])
def test_a_response_that_could_not_be_graded_drops_its_group(rewards):
    assert rollouts.sort_out(group(0, rewards), config()) == "ungraded"


def test_only_right_is_rewarded_and_faults_are_no_reward():
    rewards = {outcome: rollouts.outcome_reward(outcome) for outcome in Outcome}
    assert rewards == {
        Outcome.RIGHT: 1.0,
        Outcome.WRONG: 0.0,
        Outcome.NO_ANSWER: 0.0,
        Outcome.UNPARSEABLE_GOLD: None,
        Outcome.TIMEOUT: None,
        Outcome.ERROR: None,
    }


# --- refill and buffer


def test_refill_keeps_order_and_buffers_the_surplus_prompts():
    world = World(12, 4, solved=lambda i: 2 if i % 4 else 0)  # 0, 4, 8 are too hard
    done = world.collect(config())
    assert world.rounds == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ids(done.groups) == [1, 2, 3, 5] and ids(done.buffer) == [6, 7]
    assert not done.exhausted
    assert done.stats["rollout/rounds"] == 2 and done.stats["rollout/too_hard"] == 2
    assert done.stats["rollout/buffered"] == 2 and done.stats["rollout/kept"] == 6
    np.testing.assert_allclose(done.stats["rollout/accuracy"], 12 / 32)
    np.testing.assert_allclose(done.stats["rollout/accuracy_kept"], 0.5)


def test_buffered_prompts_are_answered_and_filtered_again_first():
    world = World(12, 4, solved=lambda i: 4 if i == 100 else 2)
    buffer = (Prompt(100, (5,)), Prompt(101, (5,)))
    done = world.collect(config(), buffer)
    assert world.rounds == [[100, 101, 0, 1, 2, 3]]
    assert ids(done.groups) == [101, 0, 1, 2] and ids(done.buffer) == [3]
    assert done.stats["rollout/too_easy"] == 1


def test_at_most_one_batch_of_the_buffer_is_taken_per_step():
    world = World(8, 2, solved=lambda i: 2)
    buffer = tuple(Prompt(100 + i, (5,)) for i in range(7))
    done = world.collect(config(), buffer)
    assert world.rounds == [[100, 101, 102, 103, 0, 1]]
    assert ids(done.groups) == [100, 101, 102, 103] and ids(done.buffer) == [104, 105, 106, 0, 1]


def test_an_exhausted_loader_drops_the_unfinished_batch_and_keeps_the_buffer():
    world = World(6, 4, solved=lambda i: 2 if i < 3 else 0)
    waiting = tuple(Prompt(100 + i, (5,)) for i in range(5))
    done = world.collect(config(), waiting)
    assert world.rounds == [[100, 101, 102, 103, 0, 1, 2, 3], [4, 5]]
    assert done.exhausted and done.groups == () and ids(done.buffer) == [104]


def test_with_no_fresh_prompt_at_all_the_buffer_is_untouched():
    world = World(0, 4, solved=lambda i: 2)
    waiting = tuple(Prompt(100 + i, (5,)) for i in range(6))
    done = world.collect(config(), waiting)
    assert done.exhausted and done.buffer == waiting and world.rounds == []


def test_a_loader_that_ends_with_a_full_batch_is_not_exhausted():
    done = World(4, 4, solved=lambda i: 1).collect(config())
    assert not done.exhausted and ids(done.groups) == [0, 1, 2, 3] and done.buffer == ()


def test_too_many_rounds_stop_the_step_with_the_counts():
    world = World(100, 4, solved=lambda i: 4)
    with pytest.raises(rollouts.StarvedError, match="3 rounds kept 0 of the 4.*'too_easy': 12"):
        world.collect(config(max_rounds=3))


def test_ungraded_groups_are_counted_and_refilled():
    world = World(8, 4, solved=lambda i: 2)
    plain = world.generate_and_grade

    def flaky(prompts):
        groups = plain(prompts)
        return [
            Group(g.prompt, (Sample((7, EOS), None), *g.samples[1:])) if g.prompt.id == 1 else g
            for g in groups
        ]

    done = rollouts.collect(world.next_prompts, flaky, config(), ())
    assert ids(done.groups) == [0, 2, 3, 4] and done.stats["rollout/ungraded"] == 1


def test_a_prompt_both_buffered_and_fresh_stands_once_in_a_batch():
    world = World(8, 4, solved=lambda i: 2 if i < 7 else 0)
    buffer = (Prompt(2, (5, 6)), Prompt(5, (5, 6)))
    done = world.collect(config(num_prompts=6), buffer)
    # 2 comes again among the fresh ones of the first round, 5 among those of the second.
    assert world.rounds == [[2, 5, 0, 1, 3], [4, 6, 7]]
    assert ids(done.groups) == [2, 5, 0, 1, 3, 4] and ids(done.buffer) == [6]


def test_a_prompt_stands_once_in_the_buffer():
    world = World(5, 5, solved=lambda i: 2)
    waiting = tuple(Prompt(i, (5, 6)) for i in (7, 8, 3))
    done = world.collect(config(num_prompts=2), waiting)
    assert ids(done.groups) == [7, 8] and ids(done.buffer) == [3, 0, 1, 2, 4]


def test_a_round_of_known_prompts_asks_for_nothing():
    world = World(4, 2, solved=lambda i: 2 if i else 0)
    world.batches = [world.batches[0], world.batches[0], world.batches[1]]
    done = world.collect(config(num_prompts=3))
    assert world.rounds == [[0, 1], [2, 3]] and ids(done.groups) == [1, 2, 3]
    assert done.stats["rollout/rounds"] == 3


# --- the arrays


def to_batch(samples, prompt=(5, 6), **options):
    groups = [Group(Prompt(0, prompt), tuple(samples))]
    limits = {"max_prompt_tokens": 3, "max_response_tokens": 4, "pad_id": 0, "eos_ids": (EOS,)}
    return rollouts.to_batch(groups, **limits | options)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        ((8, 9, EOS), 3),  # its EOS included
        ((EOS,), 1),  # the first token is the EOS
        ((8, 9, 8, 9), 4),  # truncated: all ones
        ((8, EOS, 9, EOS), 2),  # the first EOS ends it
        ((8, 9, 8, EOS), 4),
    ],
)
def test_the_mask_ends_with_the_first_eos(tokens, length):
    batch = to_batch([Sample(tokens, 1.0)])
    expected = [0, 0] + [1] * length + [0] * (5 - length)
    np.testing.assert_array_equal(batch.response_mask_BT[0], expected)
    np.testing.assert_array_equal(batch.segment_ids_BT[0], [1, 1] + expected[2:])
    np.testing.assert_array_equal(batch.tokens_BT[0], [5, 6, *tokens[:length], *[0] * (5 - length)])
    counted = [*range(2 + length), *[0] * (5 - length)]
    np.testing.assert_array_equal(batch.positions_BT[0], counted)


def test_rows_are_contiguous_by_prompt_with_their_rewards_and_logprobs():
    groups = [
        Group(
            Prompt(i, (5,) * (i + 1)),
            tuple(
                Sample((8, EOS), float(r), np.array([-1.0 - i, -0.5 - r], np.float32))
                for r in range(2)
            ),
        )
        for i in range(2)
    ]
    batch = rollouts.to_batch(
        groups, max_prompt_tokens=2, max_response_tokens=3, pad_id=0, eos_ids=(EOS,)
    )
    np.testing.assert_array_equal(batch.outcome_reward_B, [0, 1, 0, 1])
    np.testing.assert_array_equal(
        batch.decoder_logprob_BT[[1, 2]], [[0, -1, -1.5, 0, 0], [0, 0, -2, -0.5, 0]]
    )
    assert batch.tokens_BT.dtype == np.int32 and batch.old_logprob_BT is None
    unknown = to_batch([Sample((8, EOS), 1.0), Sample((8,), 0.0, np.zeros(1, np.float32))])
    assert unknown.decoder_logprob_BT is None


def test_nothing_is_ever_cut():
    with pytest.raises(ValueError, match="prompt 0 has 4 tokens"):
        to_batch([Sample((EOS,), 1.0)], prompt=(5,) * 4)
    with pytest.raises(ValueError, match="a response of 5"):
        to_batch([Sample((8,) * 5, 1.0)])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_prompts": 0}, "num_prompts"),
        ({"num_responses": 0}, "num_responses"),
        ({"min_accuracy": 0.9}, "max_accuracy"),
    ],
)
def test_impossible_options_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        config(**fields)
