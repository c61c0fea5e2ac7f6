"""The graders by name; `verify.grader` chooses one, and every kept verdict is kept with that name.

strict     the reward: exact, see `grade`
lenient    strict, then last numbers, roundings, percents; an option of evaluation
prime      the reward of PRIME's and INTELLECT-MATH's RL code, to reproduce its numbers
qwen       the Qwen2.5-Math evaluation, likewise
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxmath.verify import grade, lenient, prime_grader, qwen_grader, verdict

Grade = Callable[[str, str], verdict.Verdict]


class Grader(NamedTuple):
    """How to grade a whole response, and a bare answer: (gold, text) → verdict."""

    response: Grade
    answer: Grade


GRADERS: dict[str, Grader] = {
    "strict": Grader(grade.grade_response, grade.grade_answer),
    "lenient": Grader(lenient.grade_response, lenient.grade_answer),
    "prime": Grader(prime_grader.grade_response, prime_grader.grade_answer),
    "qwen": Grader(qwen_grader.grade_response, qwen_grader.grade_answer),
}
