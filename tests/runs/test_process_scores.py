"""An evaluation with a process reward model: tiny models, numbers from elsewhere."""

import dataclasses
import itertools
import json
import math
import re

import jax
import numpy as np
import pytest

from jaxmath import config as config_lib
from jaxmath.checkpoint import source, store
from jaxmath.data import tokenizer
from jaxmath.eval import journal, process_scores, votes
from jaxmath.eval.process_scores import StepLogprobs
from jaxmath.eval.samples import Sample
from jaxmath.runs import evaluate, models, session
from jaxmath.runs import process_scores as scoring

from . import tiny

SAMPLES, SCORES = "samples/seen.jsonl", "samples/prm/seen.jsonl"
SHAPE = {"row_tokens": 160, "batch_rows": 2}


@pytest.fixture(scope="module")
def sampled(data, model, tmp_path_factory):
    """A finished evaluation without process scores: eight questions, four samples each."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    evaluate.run(config(data, model, folder))
    return folder


def config(data, model, folder, **changes):
    problems = {"seen": {"path": str(data / "train.jsonl"), "limit": 8}}
    return tiny.eval_config(data, model, folder, problems=problems, num_samples=4, **changes)


def scored(data, model, sampled, folder, **changes):
    """Process scores of the same samples in a folder of their own."""
    (folder / "samples").mkdir(parents=True)
    for name in (SAMPLES, "samples/seen.job.json"):
        (folder / name).write_bytes((sampled / name).read_bytes())
    asked = config(data, model, folder, prm={"init_from": str(model)} | SHAPE | changes)
    evaluate.run(asked)
    return asked, {row.key: row for row in journal.read(StepLogprobs, folder / SCORES)}


def test_the_policy_under_itself_has_the_decoders_log_probabilities(data, model, sampled, tmp_path):
    _, found = scored(data, model, sampled, tmp_path, split="response", ref=str(model))
    rows = journal.read(Sample, sampled / SAMPLES)
    assert len(found) == len(rows) == 32
    close = 0
    for row in rows:
        (prm,), (ref,) = found[row.key].prm, found[row.key].ref
        assert prm == ref  # one program: the difference of φ and itself is 0, not noise
        # the text may be spelled in other tokens than were sampled
        close += prm == pytest.approx(row.logprob, abs=2e-3)
    assert close >= 24


def test_steps_by_the_plain_forward(data, model, sampled, tmp_path):
    """Row by row, not packed, and cut by hand at every "So" and "The"."""
    marks = re.compile(r"(?<!^)(?:So|The|=)")
    with pytest.MonkeyPatch.context() as patch:
        cut = lambda text: (m.start() for m in marks.finditer(text))  # noqa: E731
        patch.setitem(process_scores.SPLITS, "line", cut)
        _, found = scored(data, model, sampled, tmp_path, split="line")
    tokens = tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(data / "tokenizer")))
    mesh = session.make_mesh(None)
    params, _ = source.load_model(models.checkpoint_path(str(model)), mesh)
    num_steps = 0
    for row in journal.read(Sample, sampled / SAMPLES)[:3]:
        prompt = tokens.encode_rendered(row.prompt)
        ids, starts = tokens.encode_with_starts(row.response)
        if row.finish_reason == "stop":
            ids, starts = [*ids, tokens.eos_ids[0]], [*starts, len(row.response)]
        rows_BT = np.zeros((3, 1, SHAPE["row_tokens"]), np.int32)
        rows_BT[0, 0, : len(prompt) + len(ids)] = [*prompt, *ids]
        rows_BT[1, 0] = np.arange(SHAPE["row_tokens"])
        rows_BT[2, 0, : len(prompt) + len(ids)] = 1
        with jax.set_mesh(mesh):
            logprob_BT = jax.jit(lambda params, *rows: params.token_logprobs(*rows))(
                params, *rows_BT
            )
        logprob_T = np.asarray(logprob_BT)[0, len(prompt) :]
        borders = [0, *(m.start() for m in marks.finditer(row.response)), len(row.response) + 1]
        sums = []
        for begin, end in itertools.pairwise(borders):
            inside = [t for t, start in enumerate(starts) if begin <= start < end]
            if inside:
                sums.append(float(logprob_T[inside].sum()))
        assert found[row.key].prm == pytest.approx(sums, abs=1e-3)
        assert found[row.key].ref is None
        num_steps += len(sums)
    assert num_steps > 6


def test_scores_are_in_table_and_summary_and_not_computed_twice(
    data, model, sampled, tmp_path, monkeypatch
):
    asked, found = scored(data, model, sampled, tmp_path, split="token")
    (summary,) = json.loads((tmp_path / "summary.json").read_text())
    rows = journal.read(Sample, sampled / SAMPLES)
    score_of = {
        key: 0.001 * min(row.prm) for key, row in found.items()
    }  # min over steps, without a reference
    best = [max(rows[i : i + 4], key=lambda row: score_of[row.key]) for i in range(0, 32, 4)]
    assert summary["best_of"]["value"] == sum(r.outcome == "right" for r in best) / 8
    assert summary["weighted_vote"]["low"] <= summary["weighted_vote"]["value"]
    header = (tmp_path / "table.txt").read_text().splitlines()[0]
    assert "prm@k" in header and "vote" in header

    before = (tmp_path / SCORES).read_bytes()
    monkeypatch.setattr(scoring, "Scorer", None)  # neither loaded
    rule = {"beta": 1.0, "value": "cumulative", "aggregate": "sum"}
    again = dataclasses.replace(
        asked, prm=dataclasses.replace(asked.prm, rule=process_scores.ScoringRule(**rule))
    )
    evaluate.run(again)
    assert (tmp_path / SCORES).read_bytes() == before


def test_the_vote_is_weighted_by_the_rule(data, model, sampled, tmp_path):
    asked, found = scored(data, model, sampled, tmp_path, split="response")
    rows = journal.read(Sample, sampled / SAMPLES)
    weights = {}
    for row in rows[:4]:
        if row.pred is not None:
            x = 0.001 * found[row.key].prm[0]
            weights[row.pred] = weights.get(row.pred, 0) + 1 / (1 + math.exp(-x))
    kept = scoring.kept(tmp_path, "seen", asked.prm)
    (classes,) = votes.answer_classes([rows[:4]], lambda pairs: [a == b for a, b in pairs])
    if weights:
        winner = max(weights, key=weights.get)
        right = any(row.outcome == "right" for row in rows[:4] if row.pred == winner)
        assert votes.weighted_is_right(classes, kept) is right


def test_a_run_cut_off_ends_with_the_same_bytes(data, model, sampled, tmp_path):
    asked, _ = scored(data, model, sampled, tmp_path / "whole", ref=str(model))
    expected = (tmp_path / "whole" / SCORES).read_bytes()
    cut = dataclasses.replace(asked, output=str(tmp_path / "cut"))
    (tmp_path / "cut/samples").mkdir(parents=True)
    for name in (SAMPLES, "samples/seen.job.json"):
        (tmp_path / "cut" / name).write_bytes((sampled / name).read_bytes())
    with tiny.cut_after(scoring, "_batch", 2), pytest.raises(tiny.Cut):
        evaluate.run(cut)
    written = (tmp_path / "cut" / SCORES).read_bytes()
    assert 0 < written.count(b"\n") < 32
    (tmp_path / "cut" / SCORES).write_bytes(written[:-30])
    evaluate.run(cut)
    assert (tmp_path / "cut" / SCORES).read_bytes() == expected


def test_one_program_scores_every_batch_under_both_models(data, model, sampled, tmp_path):
    traces = []
    logprobs = scoring._logprobs

    def traced(*args):
        traces.append(1)
        return logprobs(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_logprobs", traced)
        scored(data, model, sampled, tmp_path, ref=str(model))
    assert len(traces) == 1


def test_the_reward_model_of_a_prime_run_is_taken(data, model, sampled, tmp_path):
    mesh = session.make_mesh(None)
    policy, _ = source.load_model(models.checkpoint_path(str(model)), mesh)
    prm = jax.tree.map(lambda x: 1.1 * x, policy)
    meta, _ = tiny.saved(model, 150)
    trained = tmp_path / "prime"
    with store.CheckpointStore(trained / "checkpoints") as checkpoints:
        checkpoints.save(1, {"policy": {"params": policy}, "prm": {"params": prm}}, meta)
    _, found = scored(
        data,
        model,
        sampled,
        tmp_path / "run",
        init_from=str(trained),
        ref=str(trained),  # of which the policy is taken
        split="response",
    )
    rows = journal.read(Sample, sampled / SAMPLES)
    assert all(found[row.key].prm[0] != found[row.key].ref[0] for row in rows)
    close = [found[row.key].ref[0] == pytest.approx(row.logprob, abs=2e-3) for row in rows]
    assert sum(close) >= 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_tokens": 80}, "prm.row_tokens is 80, but a prompt of seen .* may have 88 tokens"),
        ({"batch_rows": 0}, "batch_rows is 0; expected at least 1"),
        ({"split": "sentence"}, "prm.split: got 'sentence', expected one of step, line"),
        ({"rule": {"beta": -1.0}}, "beta is -1.0; expected a positive number"),
    ],
)
def test_scores_that_cannot_be_are_refused_before_sampling(data, model, tmp_path, changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        evaluate.run(config(data, model, tmp_path, prm={"init_from": "x"} | SHAPE | changes))
    assert not (tmp_path / SAMPLES).exists()


def test_scores_by_another_model_are_not_mixed_in(data, model, sampled, tmp_path):
    asked, _ = scored(data, model, sampled, tmp_path, ref=str(model))
    other = dataclasses.replace(asked, prm=dataclasses.replace(asked.prm, split="line"))
    with pytest.raises(config_lib.ConfigError, match="seen was scored with another prm.split;"):
        evaluate.run(other)
    without = dataclasses.replace(asked, prm=dataclasses.replace(asked.prm, ref=None))
    evaluate.run(without)  # which needs less than is there
