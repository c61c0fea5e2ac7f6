"""Worked examples: right, complete, and nobody's test question."""

import json
import re

import pytest

from jaxmath.data import examples
from jaxmath.data.examples import FewShotConfig
from jaxmath.verify import grade

ALL = [(subject, e) for subject, shown in examples.EXAMPLES.items() for e in shown]
SUM = re.compile(r"(?<![\d.^])(\d+(?:\.\d+)?(?: [-+×/] \d+(?:\.\d+)?)+) = (\d+(?:\.\d+)?)")
IDS = [f"{subject}-{i}" for i, (subject, _) in enumerate(ALL)]


def value(terms):
    """Of a chain such as `15 × 4 / 3` or `80 + 35`, one kind of operation at a time."""
    numbers = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", terms)]
    signs = re.findall(r" ([-+×/]) ", terms)
    assert set(signs) <= set("-+") or set(signs) <= set("×/"), terms
    total = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        total = {
            "+": total + number,
            "-": total - number,
            "×": total * number,
            "/": total / number,
        }[sign]
    return total


@pytest.mark.parametrize(("subject", "example"), ALL, ids=IDS)
def test_an_example_ends_with_its_answer_in_a_box(subject, example):
    _, _, after = example.solution.rpartition("\\boxed{")
    assert example.solution.count("\\boxed{") == 1 and len(after) < 40
    boxed = after[: after.rindex("}") + 1]
    if subject.startswith("choice"):
        assert re.match(r"[A-E]\}", boxed)


def test_the_sums_in_the_solutions_are_right():
    checked = 0
    for _, example in ALL:
        for terms, result in SUM.findall(example.solution):
            mixed = set(re.findall(r" ([-+×/]) ", terms))
            if mixed <= set("-+") or mixed <= set("×/"):
                assert value(terms) == pytest.approx(float(result), abs=0.005), example.solution
                checked += 1
    assert checked >= 25


ANSWERS = {
    "word": ["43", "115", "125", "72", "15", "22", "20", "15"],
    "competition": ["7", "\\sqrt{3}", "1/4", "3", "18"],
    "college": ["4", "5", "y = 2e^{3x}", "34/3"],
    "science": ["50", "2.48", "RT \\ln 2", "5"],
    "choice": list("CBDAE"),
    "word-zh": ["14", "46", "1000", "210", "36"],
    "school-zh": ["29", "-2", "2", "5/7", "\\sqrt{5}"],
    "choice-zh": list("BCDAB"),
}


def test_the_verifier_finds_the_answers():
    assert ANSWERS.keys() == examples.EXAMPLES.keys()
    for subject, answers in ANSWERS.items():
        for gold, example in zip(answers, examples.EXAMPLES[subject], strict=True):
            assert grade.grade_response(gold, example.solution).is_right, example.solution


def grams(text, n):
    """Runs of n words, or of n characters where there are no spaces."""
    words = re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_no_example_is_a_test_question(shared):
    ours = set().union(*(grams(example.question, 10) for _, example in ALL))
    for path in sorted((shared / "data" / "eval").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert not ours & grams(row["problem"], 10), row["id"]


# --- drawn from a file --------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    rows = [
        {"id": f"t{i}", "problem": f"{i} + 1 ?", "solution": f"So {i + 1}", "answer": str(i + 1)}
        for i in range(6)
    ]
    rows[1]["solution"] = "So $\\boxed{2}$."
    del rows[2]["solution"]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_drawn_examples_have_a_box(source):
    found = {e.question: e.solution for e in examples.draw(FewShotConfig(source, num=5))}
    assert "2 + 1 ?" not in found and len(found) == 5  # which has no solution
    assert found["1 + 1 ?"] == "So $\\boxed{2}$."
    assert found["0 + 1 ?"] == "So 1\nThe answer is $\\boxed{1}$."


def test_a_draw_depends_on_its_seed_alone(source):
    one, same, other = (examples.draw(FewShotConfig(source, 3, seed=s)) for s in (0, 0, 1))
    assert one == same != other


def test_a_question_that_is_asked_is_no_example(source):
    found = examples.draw(FewShotConfig(source, num=4), asked=["0+1?"])
    assert "0 + 1 ?" not in {e.question for e in found}
    with pytest.raises(ValueError, match=r"4 of 6 rows have a solution .* few_shot.num is 5"):
        examples.draw(FewShotConfig(source, num=5), asked=["0+1?"])


def test_no_examples_is_said_otherwise(source):
    with pytest.raises(ValueError, match="num is 0; expected at least 1"):
        FewShotConfig(source, num=0)
