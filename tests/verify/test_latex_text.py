"""LaTeX as plain text: expected texts are those that pylatexenc 2.11 gave."""

import pytest

from jaxmath.verify import expression, latex_text


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{1}{2}", "1/2"),
        (r" \frac12", " 1/2"),
        (r"\frac{\sqrt{2}}{2}", "√(2)/2"),
        (r"\sqrt[3]{2}", "√(2)"),
        (r"\sqrt2", "√(2)"),
        (r"2\cdot 3", "2·3"),
        (r"\left(1,2\right]", "(1,2]"),
        (r"x^{2}", "x^2"),
        (r"\{1,2\}", "{1,2}"),
        (r"\text{ab c}", "ab c"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[ 1 2; 3 4 ]"),
        (r"5\; cm", "5  cm"),
        (r"\sin x", "sinx"),
        (r"30^\circ", "30^∘"),
        (r"\foo{x}", "x"),
        (r"\mbox{cm}", ""),
        (r"\dfrac{1}{2}", "12"),
        (r"50\%", "50%"),
        ("1 % a comment", "1 "),
        (r"\frac", "/"),
    ],
)
def test_the_text_of_a_formula(latex, text):
    assert latex_text.plain(latex) == text


def test_deep_nesting_is_refused():
    with pytest.raises(expression.Unreadable):
        latex_text.plain("{" * 3000)
