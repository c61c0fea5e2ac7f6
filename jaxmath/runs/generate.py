"""`generate`: prompts in, text out; without grading."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import prompts, records, tokenizer
from jaxmath.decode import decoder, sampling
from jaxmath.model.config import ModelConfig
from jaxmath.runs import models, respond, session
from jaxmath.runs.progress import Progress


@dataclasses.dataclass(frozen=True)
class GenerateRun:
    """One generation job.

    data: questions; null for the one-off `--prompt` alone. num_samples: responses to each.
    output: receives responses.jsonl: id, sample, prompt, response, num_tokens, finish_reason and
      logprob.
    """

    output: str
    tokenizer: tokenizer.TokenizerConfig
    init_from: str
    decode: decoder.DecodeConfig
    data: records.DataConfig | None = None
    model: ModelConfig | None = None
    prompt_style: str = "qwen25-math-cot"
    num_samples: int = 1
    seed: int = 0
    sampling: sampling.SamplingConfig = sampling.SamplingConfig()
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; expected at least 1")
        prompts.prompt_messages(self.prompt_style, "")


def plan(config: GenerateRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    facts = models.plan(config, session.make_mesh(config))
    return facts | {"tokens per response, at most": config.sampling.max_tokens}


def run(config: GenerateRun) -> session.Report:
    """Answers every question of `config.data`; writes `responses.jsonl`."""
    if config.data is None:
        raise config_lib.ConfigError("data is null; name a file of questions, or use --prompt")
    folder = session.open_folder(config, "generate")
    session.record(folder, config, "generate")
    problems = records.read_problems(config.data, folder / "rejects.jsonl")
    rows = _answer(config, problems)
    rows.sort(key=lambda row: (row.pop("place"), row["sample"]))
    path = folder / "responses.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    session.write_atomic(pathlib.Path(path), text)
    return session.Report({"responses": len(rows)}, (str(path),))


def answer(config: GenerateRun, question: str) -> str:
    """The text of one response to one question."""
    return _answer(config, [records.Problem("prompt", question, "")])[0]["response"]


def _answer(config: GenerateRun, problems: list[records.Problem]) -> list[dict[str, Any]]:
    mesh = session.make_mesh(config)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    questions, by_id, dropped = respond.questions(
        tokens, config.prompt_style, problems, config.decode.max_prompt_tokens, "generate"
    )
    if not questions:
        raise ValueError(f"no prompt to answer: {dropped[0].reason}; raise max_prompt_tokens")
    seeded = dataclasses.replace(config.sampling, seed=config.seed)
    rows = []
    total = len(questions) * config.num_samples
    with jax.set_mesh(mesh), Progress("generate", total, "responses") as progress:
        model = models.load(config, mesh)
        responder = respond.Responder(model.config, config.decode, seeded, tokens, mesh, None)
        responder.set_model(model)
        for response in responder.answer(questions, range(config.num_samples)):
            progress.update(1, len(response.tokens))
            problem = by_id[response.question]
            rows.append(
                {
                    "place": response.question,
                    "id": problem.id,
                    "sample": response.sample,
                    "prompt": problem.problem,
                    "response": response.text,
                    "num_tokens": len(response.tokens),
                    "finish_reason": response.finish_reason,
                    "logprob": float(response.logprobs.sum()),
                }
            )
    return rows
