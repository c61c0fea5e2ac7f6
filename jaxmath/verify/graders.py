"""The graders by name; `verify.grader` chooses one, and every kept verdict is kept with that name.

strict: the reward; see `grade`.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxmath.verify import grade, verdict

Grade = Callable[[str, str], verdict.Verdict]


class Grader(NamedTuple):
    """How to grade a whole response, and a bare answer: (gold, text) → verdict."""

    response: Grade
    answer: Grade


GRADERS: dict[str, Grader] = {
    "strict": Grader(grade.grade_response, grade.grade_answer),
}
