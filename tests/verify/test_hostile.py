"""Model text is untrusted: nothing in it runs, and nothing in it takes long."""

import time

import pytest

from jaxmath.verify import grade, verdict

CALLS = [
    "__import__('os').system('touch {marker}')",
    "open('{marker}','w').write('x')",
    "exec(\"open('{marker}','w')\")",
    "eval(\"open('{marker}','w')\")",
    "(lambda: open('{marker}','w'))()",
    "[c for c in ().__class__.__base__.__subclasses__()][0](open('{marker}','w'))",
    'f\'{{open(chr(47)+"{marker}","w")}}\'',
    "(y := open('{marker}','w'))",
    "getattr(__builtins__, 'open')('{marker}', 'w')",
    "sympify(\"open('{marker}','w')\")",
    "$(touch {marker})",
    "`touch {marker}`",
    "; touch {marker} #",
    "\\immediate\\write18{{touch {marker}}}",
    "\\input{{{marker}}}",
]
WRAPPERS = [
    "{}",
    r"\pi + {}",
    r"\text{{{}}}",
    r"\operatorname{{{}}}",
    r"\mathrm{{{}}}(1)",
    r"\begin{{pmatrix}} {} & 1 \end{{pmatrix}}",
    r"\begin{{pmatrix}} 1 \\ {} \end{{pmatrix}}",
    r"[{}, 1]",
    r"x = {}",
    r"\frac{{{}}}{{2}}",
    r"1_{{{}}}",
    r"\sqrt[{}]{{2}}",
    r"\{{{}, 2\}}",
]


def test_nothing_a_model_writes_is_executed(tmp_path):
    marker = tmp_path / "marker"
    golds = ["5", r"\pi", r"\begin{pmatrix} 1 & 1 \end{pmatrix}", "[1, 2]"]
    for call in CALLS:
        for wrapper in WRAPPERS:
            payload = wrapper.format(call.format(marker=marker))
            for gold in golds:
                assert not grade.grade_answer(gold, payload).is_right
                assert not grade.grade_response(gold, rf"\boxed{{{payload}}}").is_right
                grade.grade_answer(payload, gold)
    assert list(tmp_path.iterdir()) == []


BOMBS = {
    "tower": "9^9^9^9^9",
    "factorial": "(10^{10})!",
    "factorials": "((((5!)!)!)!)",
    "binomial": r"\binom{10^9}{5\cdot10^8}",
    "exponentials": r"\exp(\exp(\exp(100)))",
    "sine": r"\sin(10^{1000})",
    "degree": "(x+1)^{1000000}",
    "digits": "9" * 100_000,
    "digits in range": "9" * 4000,
    "exponent": "1e9999",
    "nested brackets": "(" * 5000 + "1" + ")" * 5000,
    "nested brackets in range": "(" * 2000 + "1" + ")" * 2000,
    "nested fractions": r"\frac{1}{1+" * 800 + "1" + "}" * 800,
    "nested roots": r"\sqrt{" * 500 + "2" + "}" * 500,
    "nested sines": r"\sin " * 700 + "1",
    "signs": "-" * 3000 + "1",
    "matrix": r"\begin{matrix}" + "1&" * 1500 + r"\end{matrix}",
    "long list": ",".join(map(str, range(1000))),
    "long sum": "+".join(rf"\sqrt{{{n}}}" for n in range(2, 150)),
    "many symbols": "+".join(f"x_{{{n}}}" for n in range(300)),
    "megabyte": "x+" * 500_000,
    "nul": "\x001\x00",
    "surrogate": "\ud800",
    "bidirectional": "\u202e6\u202c",
    "units": "5 " + "cm " * 1000,
    "commas": "1" + ",111" * 1000,
    "braces": "{" * 2000 + "1x" + "}" * 2000,
    "backslashes": "\\" * 4000,
    "bars": "|x" * 1000,
    "plus minus": r"\pm 1" * 500,
    "and": "1 and " * 600,
    "gamma": r"8 x^{2}! y^{2} \sqrt{5}",
    "combining": "e\u0301" * 1000,
    "divisions": "1/" * 1999 + "1",
    "degrees": "1" + "^\\circ" * 500,
    "factorials in a row": "1" + "! !" * 1000,
    "hyperbolic": r"\cosh(10^6)",
    "root of high index": r"\sqrt[1000000]{2}",
    "logarithms": r"\log(\log(\log(\log 10)))",
    "products of letters": "abc" * 400,
    "open boxes": r"\boxed{" * 500,
    "turned brackets": "]" + "1,2[" * 800,
    "nested texts": r"\text{" * 600 + "5" + "}" * 600,
    "matrices in matrices": r"\begin{pmatrix}" * 200 + "5" + r"\end{pmatrix}" * 200,
    "decimals": "3." + "1" * 4000,
    "long numbers in a long formula": "0."
    + "3" * 990
    + "".join(rf"+\sin({n}x)\arctan({n}x)" for n in range(2, 40)),
    "gamma of a long number": "(x+0." + "3" * 990 + ")!",
    "ligature": "\ufdfa" * 4000,
}


@pytest.mark.parametrize("gold", ["5", r"\sqrt{2}", "(1,2)", "x+1"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_end_soon_with_a_verdict(gold, bomb):
    start = time.process_time()
    result = grade.grade_answer(gold, bomb)
    assert result.outcome is verdict.Outcome.WRONG
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{" * 150_000,
        r"\boxed" * 150_000,
        r"\boxed{4}" * 100_000 + r"\boxed{1}",
        r"\boxed{" * 100_000 + "5" + "}" * 100_000,
        r"\boxed{" + "{" * 500_000,
        "answer" + " " * 500_000,
        "the answer is " * 70_000,
        "the answer is " + "$" * 500_000,
        "答案是" * 200_000,
        "#### " * 200_000,
        "\0" * 10**6,
    ],
)
def test_long_responses_are_read_in_linear_time(response):
    start = time.process_time()
    assert not grade.grade_response("1", response).is_right
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    "unit", [" ", "\n", "{", "}", "\\", "$", ",", "1,", "1 ", "(", "\u0301", "①", "ﷺ", "é"]
)
def test_a_megabyte_of_anything_neither_hides_an_answer_nor_is_one(unit):
    filler = unit * (1_000_000 // len(unit))
    start = time.process_time()
    assert not grade.grade_answer("5", filler).is_right
    assert grade.grade_response("5", filler + r" \boxed{5}").is_right
    assert grade.grade_response("5", r"\boxed{5} " + filler).is_right
    assert time.process_time() - start < 6.0


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        (r"\sqrt{%d}", r"\sqrt{%d}"),
        ("(%d,1)", "(%d,1.0)"),
        ("x^{%d}+1", "1+x^{%d}"),
    ],
)
def test_long_lists_are_matched_in_any_order(gold, pred):
    golds, preds = ([form % n for n in range(2, 50)] for form in (gold, pred))
    start = time.process_time()
    assert grade.grade_answer(",".join(golds), ",".join(preds[::-1])).is_right
    assert not grade.grade_answer(",".join(golds), ",".join(preds[:0:-1] + [pred % 99])).is_right
    assert time.process_time() - start < 2.0


def test_marks_that_cannot_be_seen():
    assert grade.grade_answer("12", "1\u200b2").is_right
    assert grade.grade_answer("12", "\u206612\u2069").is_right
    assert not grade.grade_answer("12", "\u202e21\u202c").is_right
    assert not grade.grade_answer("12", "1\x002").is_right
    assert not grade.grade_answer("5", "5\u0338").is_right
    assert not grade.grade_response("5", "\\box\u200bed{5}").is_right
