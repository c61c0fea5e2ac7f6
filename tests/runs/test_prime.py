"""PRIME runs: what they report, and that being cut off leaves no trace."""

import collections
import dataclasses
import time

import jax
import pytest

from jaxmath import config as config_lib
from jaxmath.data.tokenizer import Tokenizer, TokenizerConfig
from jaxmath.rl import rollouts
from jaxmath.runs import prime, prime_programs, respond, sampler, session
from jaxmath.verify.verdict import Outcome, Verdict

from . import tiny

DOCUMENTED = {
    "actor/pg_loss",
    "actor/ppo_kl",
    "actor/pg_clipfrac",
    "actor/grad_norm",
    "actor/lr",
    "reward_model/prm_loss",
    "reward_model/dpo_acc",
    "reward_model/grad_norm",
    "critic/score/mean",
    "critic/advantages/mean",
    "response_length/mean",
    "response_length/max",
    "rollout/accuracy",
    "rollout/rounds",
    "rollout/buffered",
    "verify/right",
    "verify/timeout",
    "verify/error",
    "verify/unparseable_gold",
    "actor/kl_ref",
    "actor/entropy",
    "mismatch/logprob_abs_mean",
    "mismatch/logprob_abs_max",
    "mismatch/kl",
    "mismatch/effective_sample_size",
    "perf/gen_tokens_per_s",
    "perf/update_tokens_per_s",
    "timing_s/gen",
    "timing_s/verify",
    "timing_s/old_logprob",
    "timing_s/ref",
    "timing_s/prm",
    "timing_s/adv",
    "timing_s/policy",
    "timing_s/sync",
    "timing_s/wait",
    "timing_s/step",
}


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    """Four steps at one go."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    prime.run(tiny.prime_config(data, model, folder))
    return folder


def untimed(row):
    return {k: v for k, v in row.items() if not k.startswith(("perf/", "timing_s/"))}


def test_four_steps_equal_two_save_restore_two(data, model, whole, tmp_path, capfd):
    config = tiny.prime_config(data, model, tmp_path)
    with tiny.cut_after(prime, "one_step", 3), pytest.raises(tiny.Cut):
        prime.run(config)  # the third step is lost: it was not saved
    halfway, _ = tiny.saved(tmp_path, 2)
    assert halfway["loader"] == [0, 12] and len(halfway["buffer"]) == 4
    capfd.readouterr()
    prime.run(config)
    assert "restored step 2" in capfd.readouterr().err

    (meta, leaves), (expected_meta, expected) = (
        tiny.saved(folder, 4) for folder in (tmp_path, whole)
    )
    assert leaves == expected
    for model_name in ("policy", "prm"):
        assert f"{model_name}/params/embed_VD" in leaves
        assert any(path.startswith(f"{model_name}/opt_state/") for path in leaves)
    assert (meta["loader"], meta["buffer"]) == (expected_meta["loader"], expected_meta["buffer"])
    ours, theirs = (tiny.rows(folder / "metrics.jsonl") for folder in (tmp_path, whole))
    assert [row["step"] for row in ours] == [1, 2, 3, 4]
    assert [untimed(row) for row in ours] == [untimed(row) for row in theirs]


def test_fewer_steps_then_more_are_the_same_run(data, model, whole, tmp_path):
    prime.run(tiny.prime_config(data, model, tmp_path, steps=3))
    prime.run(tiny.prime_config(data, model, tmp_path, steps=4))
    assert tiny.saved(tmp_path, 4)[1] == tiny.saved(whole, 4)[1]


def test_a_finished_run_has_nothing_left_to_do(data, model, whole):
    before = tiny.checkpoints(whole), (whole / "metrics.jsonl").read_bytes()
    with tiny.cut_after(prime, "one_step", 0):
        report = prime.run(tiny.prime_config(data, model, whole))
    assert (tiny.checkpoints(whole), (whole / "metrics.jsonl").read_bytes()) == before
    assert report.summary["steps"] == 4


def test_metrics_carry_the_names_people_know(whole):
    rows = tiny.rows(whole / "metrics.jsonl")
    for row in rows:
        assert row.keys() >= DOCUMENTED
        # Groups whose responses all fared alike have no advantage, and then no gradient.
        assert (row["actor/grad_norm"] > 0) == (row["critic/advantages/max"] > 0)
        assert row["reward_model/grad_norm"] > 0
        assert row["timing_s/step"] >= row["timing_s/gen"] > 0
        phases = sum(v for k, v in row.items() if k.startswith("timing_s/"))
        assert phases == pytest.approx(2 * row["timing_s/step"], rel=1e-3)  # they are the step
        assert 1 <= row["response_length/mean"] <= row["response_length/max"] <= 32
    assert any(row["actor/grad_norm"] > 0 for row in rows)
    assert 0 < sum(row["critic/score/mean"] for row in rows) / 4 < 1


def test_decoder_and_trainer_agree_on_log_probabilities(whole):
    gaps = [row["mismatch/logprob_abs_mean"] for row in tiny.rows(whole / "metrics.jsonl")]
    assert max(gaps) < 1e-4, gaps


def test_policy_and_prm_start_alike_and_part(model, whole):
    start = tiny.saved(model, 150)[1]["params/embed_VD"]
    leaves = tiny.saved(whole, 4)[1]
    policy, prm = leaves["policy/params/embed_VD"], leaves["prm/params/embed_VD"]
    assert len({repr(start), repr(policy), repr(prm)}) == 3


def test_problems_that_run_out_end_the_run_with_a_checkpoint(data, model, tmp_path, capfd):
    short = {"path": str(data / "train.jsonl"), "limit": 13}
    config = tiny.prime_config(
        data, model, tmp_path, data=short, steps=9, checkpoint={"save_every": 100}
    )
    report = prime.run(config)
    assert "the problems ran out in step 3" in capfd.readouterr().err
    meta, _ = tiny.saved(tmp_path, 2)
    assert report.summary["steps"] == 2 and meta["loader"] == [1, 0]


def test_another_set_of_problems_is_refused(data, model, whole):
    other = {"path": str(data / "train.jsonl"), "limit": 31}
    with pytest.raises(ValueError, match="another data"):
        prime.run(tiny.prime_config(data, model, whole, data=other))


def test_another_reference_is_refused(data, whole):
    with pytest.raises(ValueError, match="another reference"):
        prime.run(tiny.prime_config(data, whole, whole))  # its own policy as it is now


def test_too_few_problems_for_a_round_are_refused(data, model, tmp_path):
    few = {"path": str(data / "train.jsonl"), "limit": 5}
    with pytest.raises(ValueError, match="5 usable prompts, fewer than the 6"):
        prime.run(tiny.prime_config(data, model, tmp_path, data=few))


def test_limits_of_decoder_and_algorithm_have_to_agree(data, model, tmp_path):
    with pytest.raises(config_lib.ConfigError, match="make them equal"):
        tiny.prime_config(data, model, tmp_path, rl={"max_prompt_tokens": 40})


# --- the order of prompts ---------------------------------------------------------------------


def drain(loader):
    """Prompt ids of every batch; [] marks the end of an epoch."""
    out = []
    while loader.epoch < loader.epochs:
        out.append([prompt.id for prompt in loader.next()])
    return out


def test_the_loader_goes_through_epochs_and_remembers_its_place():
    questions = [respond.Question(i, (i,), "") for i in range(7)]
    loader = prime.Loader(questions, seed=3, epochs=2, batch=2)
    seen = drain(loader)
    assert [len(batch) for batch in seen] == [2, 2, 2, 0, 2, 2, 2, 0]
    assert loader.next() == [] and loader.position == (2, 0)
    for epoch in (seen[:3], seen[4:7]):
        assert len(set(sum(epoch, []))) == 6
    assert seen[:3] != seen[4:7]

    loader = prime.Loader(questions, seed=3, epochs=2, batch=2)
    for served in range(len(seen)):
        resumed = prime.Loader(questions, seed=3, epochs=2, batch=2, position=loader.position)
        assert drain(resumed) == seen[served:]
        loader.next()


class Scripted:
    """Answers with the sample's number; every second one is right, unless `faults` (question,
    sample) says otherwise."""

    verify_wait_s = 0.0

    def __init__(self, faults=()):
        self.asked = collections.Counter()
        self.faults = dict(faults)

    def answer(self, questions, samples):
        for question in questions:
            for sample in samples:
                self.asked[question.id, sample] += 1
                outcome = Outcome.RIGHT if sample % 2 else Outcome.WRONG
                outcome = self.faults.get((question.id, sample), outcome)
                yield respond.Response(
                    question.id,
                    sample,
                    (sample,),
                    1,
                    None,
                    "",
                    "stop",
                    Verdict(outcome, "scripted"),
                )


def test_a_prompt_of_a_later_step_gets_new_samples():
    asker = sampler.Sampler(Scripted(), {1: "", 2: ""}, num_responses=3)
    prompts = [rollouts.Prompt(1, (5,)), rollouts.Prompt(2, (6,))]
    first = asker(prompts)
    asker.begin(1)
    second = asker(prompts)
    assert [group.prompt for group in first] == prompts
    tokens = [[sample.tokens[0] for sample in groups[0].samples] for groups in (first, second)]
    assert tokens == [[0, 1, 2], [3, 4, 5]]
    assert [sample.outcome_reward for sample in first[1].samples] == [0.0, 1.0, 0.0]


def test_a_prompt_asked_for_twice_is_one_group():
    responder = Scripted()
    asker = sampler.Sampler(responder, {1: ""}, num_responses=2)
    prompt = rollouts.Prompt(1, (5,))
    groups = asker([prompt, prompt])
    assert [group.prompt for group in groups] == [prompt]
    assert set(responder.asked.values()) == {1}


def test_a_response_the_verifier_failed_on_is_left_out_and_another_drawn():
    spare = sampler.REPLACEMENTS + 2
    responder = Scripted(
        {(1, 2): Outcome.TIMEOUT, (2, 3): Outcome.ERROR, (2, spare): Outcome.ERROR}
    )
    asker = sampler.Sampler(responder, {1: "", 2: "", 3: ""}, num_responses=2)
    asker.begin(1)
    groups = asker([rollouts.Prompt(i, (5,)) for i in (1, 2, 3)])
    tokens = [[sample.tokens[0] for sample in group.samples] for group in groups]
    assert tokens == [[3, spare], [2], [2, 3]]
    config = rollouts.RolloutConfig(num_responses=2)
    assert [rollouts.sort_out(group, config) for group in groups] == ["kept", "ungraded", "kept"]
    assert all(s.outcome_reward in (0.0, 1.0) for group in groups for s in group.samples)
    counts = asker.metrics()
    assert counts["verify/timeout"] == 1 and counts["verify/error"] == 2
    assert counts["verify/right"] + counts["verify/wrong"] == 5
    asker.begin(2)
    assert set(asker.metrics().values()) == {0.0}


def test_an_unreadable_reference_drops_its_group_and_draws_nothing_more():
    responder = Scripted({(1, sample): Outcome.UNPARSEABLE_GOLD for sample in range(2)})
    asker = sampler.Sampler(responder, {1: ""}, num_responses=2)
    (group,) = asker([rollouts.Prompt(1, (5,))])
    assert rollouts.sort_out(group, rollouts.RolloutConfig(num_responses=2)) == "ungraded"
    assert asker.metrics()["verify/unparseable_gold"] == 2
    assert len(responder.asked) == 2


class Grader:
    """Grades what it got when it is asked for the last time, and remembers what it got."""

    def __init__(self):
        self.got = []

    def submit(self, name, gold, text):
        self.got.append(name)

    def poll(self):
        return []

    def drain(self):
        time.sleep(0.05)
        return [(name, Verdict(Outcome.RIGHT, "late")) for name in self.got]


def test_a_response_goes_to_the_verifier_before_the_next_one_is_waited_for():
    grader = Grader()
    seen, waits = [], []

    def decoded():
        for sample in range(3):
            seen.append(len(grader.got))
            yield respond.Response(1, sample, (5,), 1, None, "", "stop", respond.UNGRADED)

    question = respond.Question(1, (5,), "")
    graded = list(respond._graded(decoded(), [question], grader, waits.append))
    assert seen == [0, 1, 2] and len(graded) == 3
    assert len(waits) == 1 and 0.05 <= waits[0] < 5


# --- without a PRM, and the threshold ---------------------------------------------------------

GRPO = {"prm": False, "advantage": "grpo", "tokens_per_microbatch": 320, "importance_cap": 2.0}


def test_a_run_without_a_prm_keeps_none_and_resumes(data, model, tmp_path):
    config = tiny.prime_config(data, model, tmp_path, rl=GRPO, steps=2)
    prime.run(config)
    meta, leaves = tiny.saved(tmp_path, 2)
    assert "reference" not in meta
    assert {path.split("/")[0] for path in leaves} == {"policy"}
    prime.run(tiny.prime_config(data, model, tmp_path, rl=GRPO, steps=3))
    rows = tiny.rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert not [name for name in row if name.startswith("reward_model/")]
        assert row["mismatch/truncated"] == 0.0 and "timing_s/prm" not in row
        assert row["mismatch/effective_sample_size"] == pytest.approx(1.0, abs=1e-4)


def test_a_decoder_that_disagrees_stops_the_run_at_its_step(data, model, tmp_path):
    config = tiny.prime_config(data, model, tmp_path, rl=GRPO | {"max_mismatch": 1e-12})
    with pytest.raises(prime.MismatchError, match="step 1: decoder and trainer differ by .*dtype"):
        prime.run(config)
    assert not tiny.rows(tmp_path / "metrics.jsonl")


@pytest.mark.nightly
def test_programs_are_called_as_often_as_they_say(data, model, tmp_path, monkeypatch):
    counts, make = collections.Counter(), prime_programs.make

    def counted(config, mesh):
        made = make(config, mesh)

        def count(name, fn):
            def call(*arguments):
                counts[name] += 1
                return fn(*arguments)

            return call

        parts = {name: count(name, fn) for name, fn in made.parts._asdict().items()}
        return dataclasses.replace(made, parts=type(made.parts)(**parts))

    monkeypatch.setattr(prime_programs, "make", counted)
    rl = {"temperature": 0.9, "kl_coef": 0.1, "prm_minibatch_size": 8}
    config = tiny.prime_config(data, model, tmp_path, rl=rl, ref_dtype="bfloat16", steps=1)
    prime.run(config)
    assert counts == make(config, session.make_mesh(config)).calls


@pytest.mark.nightly
@pytest.mark.parametrize("rl", [{}, {"prm": False, "kl_coef": 0.1}, {"prm_update": "none"}])
def test_programs_can_be_lowered_from_their_arguments(data, model, tmp_path, rl):
    config = tiny.prime_config(data, model, tmp_path, rl=rl, ref_dtype="bfloat16")
    mesh = session.make_mesh(config)
    with jax.set_mesh(mesh):
        programs = prime_programs.make(config, mesh)
        for name, arguments in programs.arguments.items():
            getattr(programs.parts, name).lower(*arguments)
    called = {"score", "mismatch", "advantages", "policy"}
    called |= {"prm"} if rl == {} else set()
    called |= {"like"} if rl.get("prm", True) else set()
    assert programs.arguments.keys() == called


def test_the_tokenizer_travels_with_the_checkpoint(data, whole):
    meta, _ = tiny.saved(whole, 4)
    travelled = Tokenizer(TokenizerConfig(str(whole / "checkpoints" / meta["tokenizer"])))
    original = Tokenizer(TokenizerConfig(str(data / "tokenizer")))
    assert travelled.eos_ids == original.eos_ids == tuple(meta["eos_ids"])
    assert travelled.encode("12 + 3") == original.encode("12 + 3")
