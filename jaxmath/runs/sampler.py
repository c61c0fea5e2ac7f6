"""What PRIME trains on, asked for: prompts in, groups of graded responses out."""

import collections
import time

from jaxmath.rl import rollouts
from jaxmath.runs import respond
from jaxmath.verify import verdict

REPLACEMENTS = 2**30  # samples drawn in place of others are numbered from here


class Sampler:
    """Prompts → groups of graded responses, for `rollouts.collect`.

    A prompt may come back in a later step. Its samples are then numbered on, so that they are new.
    A response on which the verifier failed is left out and another one drawn in its place, once;
    should that fail too, the group is short, and `rollouts` leaves it out.
    """

    def __init__(self, responder: respond.Responder, gold: dict[int, str], num_responses: int):
        self.responder, self.gold, self.num_responses = responder, gold, num_responses
        self.begin(0)

    def begin(self, step: int) -> None:
        """Starts a step's accounts."""
        self.step = step
        self.seconds = 0.0
        self.num_tokens = 0
        self.outcomes = dict.fromkeys(verdict.Outcome, 0)

    def __call__(self, asked: list[rollouts.Prompt]) -> list[rollouts.Group]:
        start = time.monotonic()
        unique = {prompt.id: prompt for prompt in asked}.values()
        questions = [respond.Question(p.id, p.tokens, self.gold[p.id]) for p in unique]
        first = self.step * self.num_responses
        found: dict[int, dict[int, rollouts.Sample]] = {q.id: {} for q in questions}
        failed = self._answer(questions, range(first, first + self.num_responses), found)
        if failed:
            again = [question for question in questions if question.id in failed]
            most = max(failed.values())
            self._answer(again, range(REPLACEMENTS + first, REPLACEMENTS + first + most), found)
        self.seconds += time.monotonic() - start
        return [
            rollouts.Group(
                prompt,
                tuple(found[prompt.id][i] for i in sorted(found[prompt.id])[: self.num_responses]),
            )
            for prompt in unique
        ]

    def _answer(
        self,
        questions: list[respond.Question],
        samples: range,
        found: dict[int, dict[int, rollouts.Sample]],
    ) -> collections.Counter[int]:
        """Adds the graded responses to `found`; returns by question how many the verifier failed
        on. An unreadable reference is none of these: another response would not help."""
        failed: collections.Counter[int] = collections.Counter()
        for response in self.responder.answer(questions, samples):
            self.num_tokens += len(response.tokens)
            outcome = response.verdict.outcome
            self.outcomes[outcome] += 1
            reward = rollouts.outcome_reward(outcome)
            if reward is not None:
                found[response.question][response.sample] = rollouts.Sample(
                    response.tokens, reward, response.logprobs
                )
            elif outcome is not verdict.Outcome.UNPARSEABLE_GOLD:
                failed[response.question] += 1
        return failed

    def metrics(self) -> dict[str, float]:
        """Responses of the step by the outcome of their grading."""
        return {f"verify/{outcome}": float(count) for outcome, count in self.outcomes.items()}
