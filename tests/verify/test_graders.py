"""What every named grader owes, whatever it counts as right."""

import time

import pytest

from jaxmath.verify import graders, pool, verdict

Outcome = verdict.Outcome
EVERY = pytest.mark.parametrize("name", graders.GRADERS)

CALLS = (
    "__import__('os').system('touch {marker}')",
    "open('{marker}','w').write('x')",
    "sympify(\"open('{marker}','w')\")",
    "(lambda: open('{marker}','w'))()*\\pi",
    "[open('{marker}','w')]",
    "Matrix([[open('{marker}','w')]])",
    "; touch {marker} #",
)
BOMBS = (
    "9^9^9^9^9",
    "9**9**9**9",
    "(10^{10})!",
    "((((5!)!)!)!)",
    r"\exp(\exp(\exp(100)))",
    "1e999999999",
    r"\pi" * 500,
    "f(" * 1000,
    "{," * 1900,
    "1!" * 1900,
    "-" * 3900,
    "^{2" * 1000,
    "1*" * 1900 + "1",
    "=1" * 1900,
    r"\text{" * 600,
    r"\frac{1}{" * 400,
    "(a+)+" * 700,
    "9" * 100_000,
    "{" * 1_000_000,
    "answer is " * 100_000,
    "\x00\u202e\ud800",
)


def test_the_config_knows_the_table():
    assert list(graders.GRADERS) == ["strict", "lenient", "prime", "qwen"]
    assert pool.VerifyConfig().grader == "strict"
    assert [pool.VerifyConfig(grader=name).grader for name in graders.GRADERS] == [*graders.GRADERS]


@EVERY
def test_the_plain_cases(name):
    grader = graders.GRADERS[name]
    assert grader.response("42", r"so it is $\boxed{42}$").is_right
    assert grader.response("42", r"so it is $\boxed{43}$").outcome is Outcome.WRONG
    assert grader.answer(r"\frac{1}{2}", "1/2").is_right
    assert grader.answer("", "1").outcome is Outcome.UNPARSEABLE_GOLD
    assert grader.answer("1", "").outcome is Outcome.NO_ANSWER


@EVERY
def test_nothing_a_model_writes_is_executed(name, tmp_path):
    grader = graders.GRADERS[name]
    for call in CALLS:
        text = call.format(marker=tmp_path / "marker")
        for gold in ("5", r"\pi", r"\begin{pmatrix}1\end{pmatrix}", "[1, 2]"):
            assert not grader.response(gold, rf"\boxed{{{text}}}").is_right
            assert not grader.response(gold, text).is_right
            grader.answer(text, gold)
    assert list(tmp_path.iterdir()) == []


@EVERY
@pytest.mark.parametrize("gold", [r"\sqrt{2}", r"\{1,2\}"])
def test_bombs_end_soon_with_a_verdict(name, gold):
    grader = graders.GRADERS[name]
    for bomb in BOMBS:
        for text in (bomb, rf"\boxed{{{bomb}}}"):
            start = time.process_time()
            outcome = grader.response(gold, text).outcome
            assert time.process_time() - start < 2.0, bomb[:20]
            assert outcome in (Outcome.WRONG, Outcome.NO_ANSWER), bomb[:20]
