"""`synth`: a teacher answers questions, the verifier keeps the right answers as SFT records.

    output/
      shards/samples-00000.jsonl …   every response with its verdict, a shard of questions at a time
      sft.jsonl                      the kept ones: id, messages, ground_truth
      summary.json                   counts, pass-rate histogram

A shard appears whole or not at all, and a sample depends on (seed, question, sample index) alone:
killed at any moment and started again, a run ends with the same rows.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from typing import Any

import jax

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import prompts, records, tokenizer
from jaxmath.decode import decoder, remote, sampling
from jaxmath.model.config import ModelConfig
from jaxmath.runs import respond, session
from jaxmath.runs.progress import Progress
from jaxmath.verify import pool, verdict


@dataclasses.dataclass(frozen=True)
class SynthRun:
    """One synthesis job.

    init_from: the teacher. engine: or a server that has one; of `model`, `decode` and `mesh` only
      `decode.max_prompt_tokens` then has a say.
    prompt_style: how the teacher is asked; sft_style: how the kept rows are put, and `null` for the
      same style.
    num_samples: responses per question. max_kept_tokens: longer responses are not kept; null keeps
      all that ended by themselves.
    shard_questions: questions per shard, the unit of resumption.
    """

    output: str
    tokenizer: tokenizer.TokenizerConfig
    data: records.DataConfig
    decode: decoder.DecodeConfig
    init_from: str | None = None
    engine: remote.EngineConfig = remote.EngineConfig()
    model: ModelConfig | None = None
    prompt_style: str = "intellect-synth"
    sft_style: str | None = "intellect-sft"
    num_samples: int = 2
    max_kept_tokens: int | None = None
    shard_questions: int = 1024
    seed: int = 0
    sampling: sampling.SamplingConfig = sampling.SamplingConfig(temperature=0.9, max_tokens=8192)
    verify: pool.VerifyConfig = pool.VerifyConfig()
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.engine.is_local and self.init_from is None:
            raise ValueError("init_from is null; name the teacher, or a server in engine")
        for field in ("num_samples", "shard_questions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        for style in (self.prompt_style, self.sft_style or self.prompt_style):
            prompts.prompt_messages(style, "")


def plan(config: SynthRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    return respond.plan(config) | {"tokens per response, at most": config.sampling.max_tokens}


def run(config: SynthRun) -> session.Report:
    """Samples what is missing, then writes `sft.jsonl` and `summary.json` from all shards."""
    folder = session.open_folder(config, "synth")
    shards_folder = folder / "shards"
    shards_folder.mkdir(exist_ok=True)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    problems = records.read_problems(config.data, folder / "rejects.jsonl")
    _check_same_job(config, problems, shards_folder)
    session.record(folder, config, "synth")
    questions, by_id, dropped = respond.questions(
        tokens, config.prompt_style, problems, config.decode.max_prompt_tokens, "synth"
    )
    size = config.shard_questions
    shards = [questions[i : i + size] for i in range(0, len(questions), size)]
    paths = [shards_folder / f"samples-{i:05d}.jsonl" for i in range(len(shards))]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        _sample(config, tokens, by_id, {paths[i]: shards[i] for i in missing}, len(questions))
    return _collect(config, tokens, folder, paths, by_id, len(dropped))


def _check_same_job(config: SynthRun, problems, folder: pathlib.Path) -> None:
    """Shards of one folder must come from one configuration and the same questions."""
    same = {
        k: v
        for k, v in config_lib.to_dict(config).items()
        if k not in ("output", "mesh", "verify", "sft_style", "max_kept_tokens")
    }
    if config.engine.is_local:
        del same["engine"]
    else:
        same["engine"] = {"kind": config.engine.kind, "model": config.engine.model}
    same["decode"] = {"max_prompt_tokens": config.decode.max_prompt_tokens}
    same["questions"] = config_lib.fingerprint([[p.id, p.problem, p.answer] for p in problems])
    path = folder / "job.json"
    if not path.exists():
        session.write_atomic(path, json.dumps(same, indent=2) + "\n")
        return
    other = json.loads(path.read_text())
    changed = sorted(k for k in same.keys() | other.keys() if same.get(k) != other.get(k))
    if changed:
        raise config_lib.ConfigError(
            f"{folder.parent} holds samples made with another {', '.join(changed)}; use that "
            "configuration, or another output folder"
        )


def _sample(config: SynthRun, tokens, by_id, work, num_questions: int) -> None:
    done = num_questions - sum(len(questions) for questions in work.values())
    seeded = dataclasses.replace(config.sampling, seed=config.seed)
    with (
        pool.VerifierPool(config.verify) as verifier,
        respond.responders(config, tokens, verifier, logprobs=False) as responder_for,
        Progress(
            "synth",
            num_questions * config.num_samples,
            "responses",
            initial=done * config.num_samples,
        ) as progress,
    ):
        responder = responder_for(
            seeded,
            lambda i: respond.prompt_text(tokens, config.prompt_style, by_id[i]),
        )
        for path, questions in work.items():
            rows = []
            for response in responder.answer(questions, range(config.num_samples)):
                progress.update(1, response.num_tokens)
                rows.append(_row(response, by_id[response.question], config))
            rows.sort(key=lambda row: (row["problem_id"], row["sample"]))
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            if jax.process_index() == 0:
                session.write_atomic(path, text)


def _row(response: respond.Response, problem: records.Problem, config: SynthRun) -> dict[str, Any]:
    return {
        "prompt": problem.problem,
        "response": response.text,
        "problem_id": response.question,
        "ground_truth": problem.answer,
        "correct": response.verdict.outcome == verdict.Outcome.RIGHT,
        "sample": response.sample,
        "source_id": problem.id,
        "outcome": str(response.verdict.outcome),
        "rule": response.verdict.rule,
        "num_tokens": response.num_tokens,
        "finish_reason": response.finish_reason,
    }


def _collect(config: SynthRun, tokens, folder, paths, by_id, num_dropped) -> session.Report:
    counts: collections.Counter[str] = collections.Counter()
    right: collections.Counter[int] = collections.Counter()
    asked: set[int] = set()
    style = config.sft_style or config.prompt_style
    lines = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            fate = _fate(row, config.max_kept_tokens)
            counts[fate] += 1
            asked.add(row["problem_id"])
            right[row["problem_id"]] += row["correct"]
            if fate != "kept":
                continue
            number = row["problem_id"] * config.num_samples + row["sample"]
            question = by_id[row["problem_id"]].problem
            answer = {"role": "assistant", "content": row["response"]}
            record = {
                "id": f"math_problem_{number}",
                "messages": [*prompts.prompt_messages(style, question), answer],
                "ground_truth": row["ground_truth"],
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    histogram = collections.Counter(right[question] for question in asked)
    total = max(counts.total(), 1)
    summary = {
        "responses": counts.total(),
        **{fate: counts[fate] for fate in FATES},
        "prompts_too_long": num_dropped,
        "accuracy": sum(right.values()) / total,
        "questions_by_right_answers": {str(k): histogram[k] for k in range(config.num_samples + 1)},
    }
    target = folder / "sft.jsonl"
    if jax.process_index() == 0:
        session.write_atomic(target, "".join(lines))
        session.write_atomic(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return session.Report(summary, (str(target),))


FATES = ("kept", "wrong", "no_answer", "too_long", "unparseable_gold", "timeout", "error")


def _fate(row: dict[str, Any], max_kept_tokens: int | None) -> str:
    """Why a response is not kept, or "kept". One that was cut off never is, even if right."""
    if row["outcome"] != verdict.Outcome.RIGHT:
        return row["outcome"]
    cut = row["finish_reason"] == "length"
    if cut or (max_kept_tokens is not None and row["num_tokens"] > max_kept_tokens):
        return "too_long"
    return "kept"
