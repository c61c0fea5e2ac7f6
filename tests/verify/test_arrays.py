"""Matrices and cases."""

import pytest

from jaxmath.verify import grade

COLUMN = r"\begin{pmatrix}1/2\\1\end{pmatrix}"
CASES = r"\begin{cases} x+1 & x>0 \\ 0 & x\le 0\end{cases}"


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        (COLUMN, r"\frac12\begin{pmatrix}1\\2\end{pmatrix}"),
        (COLUMN, r"\frac{1}{2} \cdot \begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
        (COLUMN, r"-\begin{pmatrix}-0.5\\-1\end{pmatrix}"),
        (COLUMN, r"A=\left[\begin{array}{c}0.5\\[2pt]1\\\end{array}\right]"),
        (CASES, r"\begin{cases} x+1, & \text{if } x>0 \\ 0, & x\le 0\end{cases}"),
        (CASES, r"\left\{\begin{array}{ll} 0 & x\le 0 \\ 1+x & x>0\end{array}\right."),
        ("x=1,y=2", r"\begin{cases}x=1\\y=2\end{cases}"),
        ("(1,2)", r"\left\{\begin{array}{l}x=1\\y=2\end{array}\right."),
    ],
)
def test_one_array_in_two_spellings(gold, pred):
    assert grade.grade_answer(gold, pred).is_right
    assert grade.grade_answer(pred, gold).is_right


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        (COLUMN, r"2\begin{pmatrix}1/2\\1\end{pmatrix}"),
        (COLUMN, r"\begin{pmatrix}1/2\\1\end{pmatrix}^T"),
        (COLUMN, r"\begin{pmatrix}1/2&1\end{pmatrix}"),
        (COLUMN, COLUMN + "+" + COLUMN),
        (COLUMN, r"\begin{pmatrix}1/2\\1"),
        (CASES, r"\begin{cases} x+1 & x\ge0 \\ 0 & x< 0\end{cases}"),
        ("x=1,y=2", r"\begin{cases}x=2\\y=1\end{cases}"),
    ],
)
def test_two_arrays(gold, pred):
    assert not grade.grade_answer(gold, pred).is_right
