"""Properties over real references: the same answer written otherwise is right, another one close by
is wrong."""

import pytest
import respellings

from jaxmath.verify import grade

MAX_PAIRS = 80  # per respelling


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


def test_every_reference_equals_itself(golds):
    assert [gold for gold in golds if not grade.grade_answer(gold, gold).is_right] == []
