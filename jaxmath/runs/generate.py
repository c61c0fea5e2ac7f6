"""`generate`: prompts in, text out; without grading."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import prompts, records, tokenizer
from jaxmath.decode import decoder, requests, sampling
from jaxmath.model.config import ModelConfig
from jaxmath.runs import models, respond, session
from jaxmath.runs.progress import Progress
from jaxmath.serve import text as text_stream


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
    """Answers every question of `config.data`; `responses.jsonl` grows as responses end.

    When all are there it is sorted: equal runs leave equal files.
    """
    if config.data is None:
        raise config_lib.ConfigError("data is null; name a file of questions, or use --prompt")
    folder = session.open_folder(config, "generate")
    session.record(folder, config, "generate")
    problems = records.read_problems(config.data, folder / "rejects.jsonl")
    path, rows = folder / "responses.jsonl", []
    with path.open("w", encoding="utf-8") as file:
        for place, row in _answer(config, problems):
            rows.append((place, row["sample"], _line(row)))
            file.write(rows[-1][-1])
            file.flush()
    session.write_atomic(path, "".join(line for *_, line in sorted(rows)))
    return session.Report({"responses": len(rows)}, (str(path),))


def answer(config: GenerateRun, question: str, write: Callable[[str], Any]) -> None:
    """One response to one question; `write` gets its text piece by piece."""
    stream: list[text_stream.TextStream] = []  # made when the tokenizer is there

    def on_update(update: requests.Update) -> None:
        stream[0].push(update.tokens, update.logprobs)
        write(stream[0].release()[0])

    def on_start(tokens: tokenizer.Tokenizer) -> None:
        stream.append(text_stream.TextStream(tokens.decode, config.sampling.stop))

    one = dataclasses.replace(config, num_samples=1)
    problem = records.Problem("prompt", question, "")
    for _, row in _answer(one, [problem], on_start, on_update):
        write(stream[0].finish(row["response"])[0])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _answer(
    config: GenerateRun,
    problems: list[records.Problem],
    on_start: Callable[[tokenizer.Tokenizer], None] | None = None,
    on_update: Callable[[requests.Update], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place of the question, row), as responses end."""
    mesh = session.make_mesh(config)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    questions, by_id, dropped = respond.questions(
        tokens, config.prompt_style, problems, config.decode.max_prompt_tokens, "generate"
    )
    if not questions:
        raise ValueError(f"no prompt to answer: {dropped[0].reason}; raise max_prompt_tokens")
    if on_start is not None:
        on_start(tokens)
    seeded = dataclasses.replace(config.sampling, seed=config.seed)
    total = len(questions) * config.num_samples
    with jax.set_mesh(mesh), Progress("generate", total, "responses") as progress:
        responder = respond.Responder(
            models.model_config(config),
            config.decode,
            seeded,
            tokens,
            mesh,
            None,
            models.decoder_weights(config, mesh),
        )
        for response in responder.answer(questions, range(config.num_samples), on_update=on_update):
            progress.update(1, len(response.tokens))
            problem = by_id[response.question]
            yield (
                response.question,
                {
                    "id": problem.id,
                    "sample": response.sample,
                    "prompt": problem.problem,
                    "response": response.text,
                    "num_tokens": len(response.tokens),
                    "finish_reason": response.finish_reason,
                    "logprob": float(response.logprobs.sum()),
                },
            )
