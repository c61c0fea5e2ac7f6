import json
import re
from fractions import Fraction

import pytest

from jaxmath.data import problems, records, tokenizer
from jaxmath.runs import problems as problems_run

TOKEN = re.compile(r"\d+|[-+*/()x]")


def evaluate(text, x=None):
    """Value of an expression over + - * / ( ), integers and x; 3x and 3(…) multiply."""
    tokens = TOKEN.findall(text)
    assert "".join(tokens) == text, text

    def peek():
        return tokens[0] if tokens else None

    def total():
        value = product()
        while peek() in ("+", "-"):
            value = value + product() if tokens.pop(0) == "+" else value - product()
        return value

    def product():
        value = atom()
        while peek() is not None and peek() not in ("+", "-", ")"):
            sign = tokens.pop(0) if peek() in ("*", "/") else "*"
            value = value / atom() if sign == "/" else value * atom()
        return value

    def atom():
        token = tokens.pop(0)
        if token == "-":
            return -atom()
        if token == "(":
            value = total()
            assert tokens.pop(0) == ")"
            return value
        return Fraction(x) if token == "x" else Fraction(int(token))

    value = total()
    assert not tokens, text
    return value


def read_answer(text):
    match = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    if match:
        value = Fraction(int(match[2]), int(match[3]))
        assert value.denominator == int(match[3]) > 1  # in lowest terms
        return -value if match[1] else value
    return Fraction(int(text))


@pytest.fixture(scope="module")
def generated():
    return problems.generate(6000, 512, seed=0)


def test_every_line_of_every_solution_is_true(generated):
    for problem in [*generated[0], *generated[1]]:
        *steps, last = problem.solution.split("\n")
        answer = read_answer(problem.answer)
        assert last == f"\\boxed{{{problem.answer}}}" and steps
        for step in steps:
            sides = [evaluate(side, x=answer) for side in step.split("=")]
            assert len(sides) >= 2 and len(set(sides)) == 1, (problem.problem, step)


def test_expressions_and_equations_have_the_answer_they_say(generated):
    checked = 0
    for problem in generated[0]:
        answer = read_answer(problem.answer)
        if problem.problem.startswith("Compute "):
            text = problem.problem.removeprefix("Compute ").removesuffix(".")
            assert evaluate(text) == answer
        elif problem.problem.startswith("Solve "):
            left, right = problem.problem.removeprefix("Solve ").removesuffix(".").split("=")
            assert evaluate(left, answer) == evaluate(right, answer)
            assert evaluate(left, answer + 1) != evaluate(right, answer + 1)
        else:
            continue
        checked += 1
    assert checked > 4000


# What each story asks, read off its sentence by a rule of the test's own.
STORIES = [
    (r"\w+ has (\d+) (\w+) and gets (\d+) more\. How many \2 now\?", lambda a, _, b: a + b),
    (r"\w+ had (\d+) (\w+) and lost (\d+)\. How many \2 are left\?", lambda a, _, b: a - b),
    (
        r"\w+ has (\d+) (\w+) and buys (\d+) bags of (\d+)\. How many \2 now\?",
        lambda a, _, b, c: a + b * c,
    ),
    (
        r"\w+ buys (\d+) (\w+) at (\d+) dollars each and pays (\d+)\. How much change\?",
        lambda a, _, b, c: c - a * b,
    ),
    (
        r"\w+ has (\d+) (\w+), loses (\d+), finds (\d+) and shares them among (\d+)\."
        r" How many each\?",
        lambda a, _, b, c, d: Fraction(a - b + c, d),
    ),
    (
        r"\w+ has (\d+) (\w+), gets (\d+) bags of (\d+) and sells (\d+) bags of (\d+)\."
        r" How many \2 now\?",
        lambda a, _, b, c, d, e: a + b * c - d * e,
    ),
    (
        r"\w+ has (\d+) (\w+), gets (\d+) bags of (\d+) and buys (\d+) bags of (\d+)\."
        r" How many \2 now\?",
        lambda a, _, b, c, d, e: a + b * c + d * e,
    ),
]


def test_stories_have_the_answer_they_say(generated):
    told = [0] * len(STORIES)
    for problem in generated[0]:
        if problem.extra["template"] == "word":
            matches = [(i, re.fullmatch(p, problem.problem)) for i, (p, _) in enumerate(STORIES)]
            ((story, match),) = [(i, m) for i, m in matches if m]
            values = [int(v) if v.isdigit() else v for v in match.groups()]
            assert STORIES[story][1](*values) == read_answer(problem.answer)
            assert read_answer(problem.answer) >= 0
            told[story] += 1
    assert min(told) > 0


def test_splits_are_disjoint_and_without_repeats(generated):
    train, test = generated
    texts = [p.problem for p in [*train, *test]]
    assert len(train) == 6000 and len(test) == 512
    assert len(set(texts)) == len(texts)
    assert len({p.id for p in [*train, *test]}) == len(texts)


def test_every_level_and_template_appears(generated):
    cells = {(level, name) for level in problems.LEVELS for name in problems.TEMPLATES}
    for split in generated:
        assert {(p.extra["level"], p.extra["template"]) for p in split} == cells


def test_the_seed_decides(generated):
    assert problems.generate(200, 512, seed=0)[1] == generated[1]
    assert problems.generate(200, 50, seed=7) == problems.generate(200, 50, seed=7)
    assert problems.generate(200, 50, seed=7) != problems.generate(200, 50, seed=8)


def test_levels_can_be_chosen_and_do_not_run_dry_in_silence(monkeypatch):
    train, test = problems.generate(300, 30, seed=0, levels=(1, 3))
    assert {p.extra["level"] for p in [*train, *test]} == {1, 3}
    with pytest.raises(ValueError, match="levels are \\(6,\\)"):
        problems.generate(1, 1, seed=0, levels=(6,))
    monkeypatch.setattr(problems, "TEMPLATES", {"products": problems.TEMPLATES["products"]})
    with pytest.raises(ValueError, match="no new problem of levels \\(1,\\)"):
        problems.generate(1_000_000, 1, seed=0, levels=(1,))


def test_run_writes_records_and_a_tokenizer(tmp_path):
    config = problems_run.ProblemsConfig(str(tmp_path / "set"), num_train=3000, num_test=100)
    report = problems_run.run(config)
    summary = report.summary
    assert report.artefacts == (str(tmp_path / "set"),)
    names = {p.name for p in (tmp_path / "set").iterdir()}
    assert names == {"train.jsonl", "test.jsonl", "tokenizer"}
    assert summary["num_train"] == 3000 and summary["num_test"] == 100

    row = json.loads((tmp_path / "set/train.jsonl").read_text().split("\n")[0])
    keys = {"id", "problem", "solution", "answer", "level", "source", "template"}
    assert set(row) == keys
    cfg = records.DataConfig(str(tmp_path / "set"), max_reject_fraction=0)
    train, _ = problems.generate(3000, 100, seed=0)
    assert records.read_problems(cfg) == train

    tok = tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(tmp_path / "set/tokenizer")))
    assert tok.vocab_size == summary["vocab_size"] <= 512
    for problem in train:
        assert len(tok.encode(problem.problem)) <= 40
        assert len(tok.encode(problem.solution)) <= 60

    before = {p: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    problems_run.run(config)
    assert {p: p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()} == before


def test_a_share_of_the_training_solutions_is_terse():
    full, full_test = problems.generate(400, 50, seed=3)
    terse, terse_test = problems.generate(400, 50, seed=3, terse_fraction=0.25)
    assert terse_test == full_test
    shortened = [a for a, b in zip(terse, full, strict=True) if a != b]
    assert 70 <= len(shortened) <= 130
    assert all(p.solution == f"\\boxed{{{p.answer}}}" for p in shortened)
    assert [p.problem for p in terse] == [p.problem for p in full]
