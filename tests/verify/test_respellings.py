"""Properties over real references: the same answer written otherwise is right, another one close by
is wrong."""

import re

import pytest
import respellings

from jaxmath.verify import answers, equivalence, grade, normalize

MAX_PAIRS = 80  # per respelling
FORMULA = re.compile(r"\d|\\frac|\\sqrt|\^")


@pytest.fixture(scope="module")
def golds(shared) -> list[str]:
    return respellings.references(shared)


def pairs(golds: list[str], respell) -> list[tuple[str, str]]:
    """References and what a respelling makes of them, spread over all to which it applies."""
    found = [(gold, text) for gold in golds if (text := respell(gold)) and text != gold]
    return found[:: -(-len(found) // MAX_PAIRS)] if found else []


def graded_right(gold: str, text: str) -> bool:
    return grade.grade_response(gold, f"Therefore the answer is $\\boxed{{{text}}}$.").is_right


@pytest.mark.parametrize("name", respellings.SAME)
def test_the_same_answer_written_otherwise_is_right(golds, name):
    found = pairs(golds, respellings.SAME[name])
    assert found
    assert [pair for pair in found if not graded_right(*pair)] == []


@pytest.mark.parametrize("name", respellings.OTHER)
def test_another_answer_close_by_is_wrong(golds, name):
    found = pairs(golds, respellings.OTHER[name])
    assert found
    assert [pair for pair in found if graded_right(*pair)] == []


def test_references_with_formulas_are_read_as_mathematics(golds):
    """Words equal themselves whatever is understood of them. Dates, and a set given by a property,
    are words still."""
    read = {gold: grade.read(normalize.canonical(grade.unboxed(gold))) for gold in golds}
    formulas = [gold for gold in golds if FORMULA.search(gold)]
    assert len(formulas) > 4000
    assert len([gold for gold in formulas if isinstance(read[gold], answers.Words)]) <= 4
    assert [gold for gold in golds if not equivalence.same(read[gold], read[gold])] == []
