"""Questions → sampled and graded responses: the decoder and the verifier side by side.

A response is handed to the verifier's workers as soon as its last token is there, while the others
are still being decoded.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath.data import prompts, records, tokenizer
from jaxmath.decode import generate, sampling
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.verify import pool, verdict


class Question(NamedTuple):
    """A prompt and the answer it is graded by; `id` seeds its samples and is unique in a run."""

    id: int
    tokens: tuple[int, ...]
    gold: str


@dataclasses.dataclass(frozen=True)
class Response:
    """One sampled and graded response."""

    question: int
    sample: int
    tokens: tuple[int, ...]  # with the stop token, if it ended on one
    logprobs: np.ndarray  # f32, natural log, of the distribution that was sampled from
    text: str  # without special tokens
    finish_reason: str  # "stop", or "length": cut at the token limit
    verdict: verdict.Verdict


class Responder:
    """Decoder, tokenizer and verifier pool of one run; `answer` is all it does.

    Args:
      verifier: an open pool, or None to leave responses ungraded (`verdict` is then NO_ANSWER with
        rule "not graded").
    """

    def __init__(
        self,
        config: ModelConfig,
        decode: generate.DecodeConfig,
        sample: sampling.SamplingConfig,
        tokens: tokenizer.Tokenizer,
        mesh: Mesh,
        verifier: pool.VerifierPool | None,
    ):
        self.tokenizer, self.mesh, self.verifier = tokens, mesh, verifier
        self.generator = generate.Generator(config, decode, sample, tokens.eos_ids, mesh)
        self.params: qwen2.DecodeParams | None = None

    def set_model(self, model: qwen2.Qwen2) -> None:
        """Takes new weights: cast, cut into layers and laid out for decoding."""
        self.params = None  # let go of the old ones first
        self.params = self.generator.decode_params(model)

    def answer(self, questions: Iterable[Question], samples: Iterable[int]) -> Iterator[Response]:
        """`samples` responses to each question, in the order in which their verdicts arrive."""
        assert self.params is not None, "set_model comes first"
        questions, samples = list(questions), list(samples)
        gold = {question.id: question.gold for question in questions}
        requests = [
            generate.Request(question.id, sample, question.tokens)
            for question in questions
            for sample in samples
        ]
        waiting: dict[tuple[int, int], tuple[generate.Completion, str]] = {}
        for completion in self.generator.generate(self.params, requests):
            text = self.tokenizer.decode(completion.tokens)
            key = (completion.prompt_id, completion.sample)
            if self.verifier is None:
                yield _response(completion, text, UNGRADED)
                continue
            waiting[key] = (completion, text)
            self.verifier.submit(key, gold[completion.prompt_id], text)
            for done, result in self.verifier.poll():
                yield _response(*waiting.pop(done), result)
        if self.verifier is not None:
            for done, result in self.verifier.drain():
                yield _response(*waiting.pop(done), result)


UNGRADED = verdict.Verdict(verdict.Outcome.NO_ANSWER, "not graded")


def _response(completion: generate.Completion, text: str, result: verdict.Verdict) -> Response:
    return Response(
        completion.prompt_id,
        completion.sample,
        tuple(completion.tokens),
        completion.logprobs,
        text,
        completion.finish_reason,
        result,
    )


def questions(
    tokens: tokenizer.Tokenizer,
    style: str,
    problems: list[records.Problem],
    max_prompt_tokens: int,
    what: str,
) -> tuple[list[Question], dict[int, records.Problem], list[prompts.Dropped]]:
    """Problems as questions numbered by their place in the list; too long ones are left out.

    Returns:
      The questions, problem by question id, and the dropped problems with reasons.
    """
    kept, dropped = prompts.filter_prompts(tokens, style, problems, max_prompt_tokens)
    place = {problem.id: i for i, problem in enumerate(problems)}
    out = [Question(place[p.problem.id], p.tokens, p.problem.answer) for p in kept]
    if dropped and jax.process_index() == 0:
        print(
            f"{what}: {len(dropped)} of {len(problems)} prompts are longer than "
            f"{max_prompt_tokens} tokens and left out, first: {dropped[0].id} "
            f"({dropped[0].reason})",
            file=sys.stderr,
        )
    return out, dict(enumerate(problems)), dropped
