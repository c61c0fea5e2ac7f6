import pytest

from jaxmath.data import difficulty


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is $1+1$?", "2", "keep"),
        ("In the figure, find $x$.", "2", "figure"),
        ("FIGURE it out: 1+1?", "2", "figure"),  # the word, whatever it means
        ("Prove that $x=1$.", "1", "proof"),
        ("Show that 2 is even.", "2", "proof"),
        ("How does 2 improve on 1?", "1", "proof"),  # as in the original: no word boundary
        ("Is it A. 1, B. 2 or C. 3?", "B", "choice"),
        ("Is it A: 1, B: 2 or C: 3?", "B", "choice"),
        ("Is it (A) 1 (B) 2 (C) \\underline{3}?", "B", "choice"),  # blanks are not looked for
        ("Is it (A) 1 or (B) 2?", "B", "answer_without_digit"),  # two marks make no choice
        ("$1+1=\\underline{\\quad}$", "2", "blank"),
        ("Solve for $x$ in terms of $y$.", "y", "answer_without_digit"),
        ("Which (A) figure (B) fits (C) here?", "A", "figure"),
    ],
)
def test_the_rules_of_the_first_stage(question, answer, expected):
    assert difficulty.s1(question, answer) == expected
