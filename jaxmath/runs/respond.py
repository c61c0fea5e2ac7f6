"""Questions → sampled and graded responses: a decoder, or a server, and the verifier side by side.

A response is handed to the verifier's workers as soon as its last token is there, while the others
are still being decoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmath.data import prompts, records, tokenizer
from jaxmath.decode import decoder, remote, sampling
from jaxmath.decode.requests import Completion, Request, Update
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.runs import models, session
from jaxmath.verify import pool, verdict

Name = tuple[int, int]  # question id, sample


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
    tokens: tuple[int, ...] | None  # with the stop token, if it ended on one; None from a server
    num_tokens: int
    logprobs: np.ndarray | None  # f32, natural log, of the distribution that was sampled from
    text: str  # without special tokens
    finish_reason: str  # "stop", or "length": cut at the token limit
    verdict: verdict.Verdict


class Responder:
    """Decoder, tokenizer and verifier pool of one run; `answer` is all it does.

    Args:
      verifier: an open pool, or None to leave responses ungraded (`verdict` is then NO_ANSWER with
        rule "not graded").
      weights: of the decoder, see `models.decoder_weights`; None waits for `set_model`.

    verify_wait_s: seconds spent waiting for verdicts after decoding had ended, over all answers.
    """

    def __init__(
        self,
        config: ModelConfig,
        decode: decoder.DecodeConfig,
        sample: sampling.SamplingConfig,
        tokens: tokenizer.Tokenizer,
        mesh: Mesh,
        verifier: pool.VerifierPool | None,
        weights: qwen2.DecodeParams | None = None,
    ):
        self.verifier = verifier
        self.verify_wait_s = 0.0
        self.decoder = decoder.Decoder(
            config,
            decode,
            sample,
            tokens.eos_ids,
            mesh,
            detokenize=tokens.decode,
            weights=weights,
        )
        session.say(self.decoder.memory.table())

    def set_model(self, model: qwen2.Qwen2) -> None:
        """Takes new weights: cast, cut into layers and laid out for decoding."""
        self.decoder.load(model)

    def release(self) -> None:
        """Lets the weights go, until the next `set_model`."""
        self.decoder.release()

    def answer(
        self,
        questions: Iterable[Question],
        samples: Iterable[int],
        done: Collection[Name] = (),
        on_update: Callable[[Update], None] | None = None,
    ) -> Iterator[Response]:
        """`samples` responses to each question, in the order in which their verdicts arrive.

        Args:
          done: (question id, sample) that are not asked for.
          on_update: called with what each chunk adds to a response.
        """
        questions = list(questions)
        asked = _requests(questions, samples, done)
        completions = self.decoder.generate(asked, on_update=on_update)
        return _graded(map(_ungraded, completions), questions, self.verifier, self._waited)

    def _waited(self, seconds: float) -> None:
        self.verify_wait_s += seconds


class RemoteResponder:
    """As `Responder`, with a server in place of the decoder; its responses have no token ids.

    Args:
      prompt_text: question id → prompt as text, for servers that do not take token ids.
    """

    def __init__(
        self,
        config: remote.EngineConfig,
        sample: sampling.SamplingConfig,
        prompt_text: Callable[[int], str],
        verifier: pool.VerifierPool | None,
        logprobs: bool,
    ):
        self.verifier = verifier
        self.engine = remote.RemoteEngine(
            config, sample, lambda request: prompt_text(request.prompt_id), logprobs=logprobs
        )

    def answer(
        self, questions: Iterable[Question], samples: Iterable[int], done: Collection[Name] = ()
    ) -> Iterator[Response]:
        questions = list(questions)
        replies = self.engine.generate(_requests(questions, samples, done))
        return _graded(map(_from_server, replies), questions, self.verifier)


@contextlib.contextmanager
def responders(
    config: Any, tokens: tokenizer.Tokenizer, verifier: pool.VerifierPool, *, logprobs: bool
) -> Iterator[Callable[..., Responder | RemoteResponder]]:
    """A function (sampling, prompt_text) → responder: of the run's model, loaded once, or server.

    logprobs: ask a server for them; the decoder has them anyhow.
    """
    if not config.engine.is_local:
        yield lambda sample, prompt_text: RemoteResponder(
            config.engine, sample, prompt_text, verifier, logprobs
        )
        return
    mesh = session.make_mesh(config)
    with jax.set_mesh(mesh):
        shape, weights = models.model_config(config), models.decoder_weights(config, mesh)
        yield lambda sample, prompt_text: Responder(
            shape, config.decode, sample, tokens, mesh, verifier, weights
        )


def plan(config: Any) -> dict[str, Any]:
    """Facts for `--dry-run` about what will answer."""
    if config.engine.is_local:
        return models.plan(config, session.make_mesh(config))
    engine = config.engine
    return {"engine": f"{engine.model} at {engine.base_url}, {engine.concurrency} at a time"}


def _requests(
    questions: list[Question], samples: Iterable[int], done: Collection[Name]
) -> list[Request]:
    samples = list(samples)
    return [
        Request(question.id, sample, question.tokens)
        for question in questions
        for sample in samples
        if (question.id, sample) not in done
    ]


def _graded(
    responses: Iterator[Response],
    questions: list[Question],
    verifier: pool.VerifierPool | None,
    on_wait: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Response]:
    """The responses with their verdicts, as these arrive; if no more come, those that have come.

    on_wait: told the seconds spent waiting for the last verdicts.
    """
    if verifier is None:
        yield from responses
        return
    gold = {question.id: question.gold for question in questions}
    waiting: dict[Name, Response] = {}
    failure = None
    try:
        for response in responses:
            name = (response.question, response.sample)
            waiting[name] = response
            verifier.submit(name, gold[response.question], response.text)
            for done, result in verifier.poll():
                yield _response(waiting.pop(done), result)
    except remote.EngineError as error:
        failure = error
    start = time.monotonic()
    last = verifier.drain()
    on_wait(time.monotonic() - start)
    for done, result in last:
        yield _response(waiting.pop(done), result)
    if failure is not None:
        raise failure


UNGRADED = verdict.Verdict(verdict.Outcome.NO_ANSWER, "not graded")


def _response(response: Response, result: verdict.Verdict) -> Response:
    return dataclasses.replace(response, verdict=result)


def _ungraded(completion: Completion) -> Response:
    return Response(
        completion.prompt_id,
        completion.sample,
        tuple(completion.tokens),
        len(completion.tokens),
        completion.logprobs,
        completion.text,
        completion.finish_reason,
        UNGRADED,
    )


def _from_server(reply: remote.Reply) -> Response:
    return Response(
        reply.prompt_id,
        reply.sample,
        None,
        reply.num_tokens,
        reply.logprobs,
        reply.text,
        reply.finish_reason,
        UNGRADED,
    )


def prompt_text(tokens: tokenizer.Tokenizer, style: str, problem: records.Problem) -> str:
    """How a problem is asked, as the model sees it."""
    return prompts.prompt_text(tokens, style, problem.problem)


def questions(
    tokens: tokenizer.Tokenizer,
    style: str,
    problems: list[records.Problem],
    max_prompt_tokens: int,
    what: str,
    examples_for: Callable[[records.Problem], Sequence[prompts.Example]] = prompts.no_examples,
) -> tuple[list[Question], dict[int, records.Problem], list[prompts.Dropped]]:
    """Problems as questions numbered by their place in the list; too long ones are left out.

    Args:
      examples_for: what is shown before a problem.

    Returns:
      The questions, problem by question id, and the dropped problems with reasons.
    """
    kept, dropped = prompts.filter_prompts(tokens, style, problems, max_prompt_tokens, examples_for)
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
