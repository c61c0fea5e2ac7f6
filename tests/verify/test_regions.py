"""Sets of reals: intervals, inequalities and what several of them leave."""

import pytest

from jaxmath.verify import answers, grade, reader, regions


def region(text: str):
    return answers.region(reader.read(text))


def test_intersection_keeps_the_tighter_bounds():
    assert regions.intersection(region("[0,2]"), region("(1,3)")) == region("(1,2]")
    assert regions.intersection(region("[0,1]"), region("[2,3]")) is None


def test_points_are_taken_out_in_any_order():
    points = [reader.read(text) for text in (r"\sqrt{2}", "1")]
    assert regions.without(points) == regions.without(points[::-1])
    assert len(regions.without(points).parts) == 3


SAME = [
    (r"\mathbb{R}\setminus\{1,2\}", r"(-\infty,1)\cup(1,2)\cup(2,\infty)"),
    (r"\mathbb{R}\setminus\{1,2\}", r"x \ne 2, 1"),
    (r"x \neq \pm 5", r"x\ne 5 \text{ and } x \ne -5"),
    ("(1,3)", r"x>1 \text{ and } x<3"),
    (r"(-\infty,-2)\cup(2,\infty)", r"(-\infty,-2) \text{ or } (2,\infty)"),
    (r"(-\infty,3)", r"\{x\in\mathbb{R} \mid x<3\}"),
    ("]0,1[", "(0,1)"),
    ("[0,1[", "[0,1)"),
    (r"]-\infty,2]", r"x\le 2"),
    (r"\{1,2\}\cup\{3\}", r"\{1,2,3\}"),
    (r"\mathbb{R}", r"\text{all real numbers}"),
    (r"x\ge 1", "[1,∞)"),
]
DIFFERENT = [
    (r"\mathbb{R}\setminus\{1,2\}", r"\mathbb{R}\setminus\{1\}"),
    (r"\mathbb{R}\setminus\{1\}", r"\mathbb{R}"),
    ("(1,3)", r"x>1 \text{ or } x<3"),
    ("(1,3)", r"x\ge 1 \text{ and } x<3"),
    ("[0,1[", "[0,1]"),
    (r"(-\infty,-2)\cup(2,\infty)", r"x<-2 \text{ and } x>2"),
    (r"(-\infty,-2)\cup(2,\infty)", r"|x|<2"),
    (r"\{1,2\}\cup\{3\}", r"\{1,2\}"),
    ("x>1", "y>1"),
    (r"x\ge1", "1"),
]


@pytest.mark.parametrize(("gold", "pred"), SAME)
def test_one_set_in_two_spellings(gold, pred):
    assert grade.grade_answer(gold, pred).is_right
    assert grade.grade_answer(pred, gold).is_right


@pytest.mark.parametrize(("gold", "pred"), DIFFERENT)
def test_two_sets(gold, pred):
    assert not grade.grade_answer(gold, pred).is_right
    assert not grade.grade_answer(pred, gold).is_right
