"""Questions of a benchmark are found however they are set; formulas of speech are not."""

import json
import random
import time

import pytest

from jaxmath.data import decontaminate, records
from jaxmath.data.decontaminate import BenchmarkQuestion, DecontaminateConfig
from jaxmath.data.records import DataConfig

FROG = (
    "Flora the frog starts at 0 on the number line and makes a sequence of jumps to the right. In"
    " any one jump Flora leaps a positive integer distance $m$ with probability $\\frac{1}{2^m}$."
    " What is the probability that Flora will eventually land at 10?"
)


def index(*texts, benchmark="b", **fields):
    found = (BenchmarkQuestion(benchmark, str(i), text) for i, text in enumerate(texts))
    return decontaminate.Benchmarks(found, DecontaminateConfig(**fields))


def rule(text, *texts, **fields):
    """The rule by which a question is left out, or None."""
    found = [match.rule for match in index(*texts, **fields).matches(text) if match.left_out]
    return found[0] if found else None


@pytest.mark.parametrize(
    "text",
    [
        FROG,
        FROG.upper(),
        FROG.replace(" ", "  ").replace("$", ""),
        FROG.replace("\\frac", "\\dfrac").replace(",", ";"),
        FROG.replace("$m$", "$\\mathrm{m}$").replace("10?", "\\left( 10 \\right)?"),
        FROG.replace("$m$", "\U0001d45a"),  # a mathematical italic m
    ],
)
def test_the_same_text_is_found_in_other_dress(text):
    assert rule(text, "What is 1+1?", FROG) == "same text"


def test_short_questions_are_the_same_only_as_a_whole():
    assert rule("What is $1 + 1$ ?", "What is $1+1$?") == "same text"
    assert rule("What is $1 - 1$?", "What is $1+1$?") is None
    assert rule("What is $1+1$? And then?", "What is $1+1$?") is None


def test_a_question_inside_another_is_found_by_its_words():
    wrapped = "Here is a riddle about frogs. " + FROG + " Give the answer as a fraction."
    (match,) = index(FROG).matches(wrapped)
    assert (match.rule, match.benchmark, match.benchmark_id) == ("n-gram", "b", "0")
    assert match.ngram == "flora the frog starts at 0 on the number line and makes a"
    assert match.common == 1.0 and match.left_out
    assert rule(FROG, wrapped) == "n-gram"


def test_a_shared_phrase_is_listed_and_not_left_out():
    phrase = "can be written as $m/n$, where $m$ and $n$ are relatively prime positive integers."
    one = f"The area of a triangle with sides 13, 14 and 15 and of its circle {phrase}"
    two = f"For how many cats do dogs bark at night when it rains on Sundays? The chance {phrase}"
    (match,) = index(one).matches(two)
    assert 0.3 < match.common < 0.6 and not match.left_out
    assert rule(two, one, min_common=0.0) == "n-gram"


def test_a_phrase_of_many_questions_of_one_benchmark_counts_for_nothing():
    phrase = "can be written as m over n where m and n are relatively prime positive integers find"
    several = [f"Number {i} {phrase} m plus n" for i in range(5)]
    assert index(*several).matches(f"Something else {phrase} it") == []
    assert len(index(*several[:4]).matches(f"Something else {phrase} it")) == 4
    assert rule(several[2], *several) == "same text"


def test_chinese_is_compared_by_characters():
    question = "袋中有4个红球和3个黄球，现从中任取两个球，求取出的两个球都是红球的概率。"
    assert rule(question.replace("，", ", ").replace("。", "."), question) == "same text"
    assert rule("甲说：" + question, question) == "n-gram"
    assert rule("小明有4个红球，小红有3个黄球，一共有几个球？", question) is None


def common_by_table(left, right):
    row = [0] * (len(right) + 1)
    for word in left:
        last = row
        row = [0]
        for i, other in enumerate(right):
            row.append(last[i] + 1 if word == other else max(row[-1], last[i + 1]))
    return row[-1]


def test_the_longest_common_subsequence_is_that_of_the_plain_algorithm():
    draw = random.Random(0)
    for _ in range(200):
        left, right = ([draw.choice("abcd") for _ in range(draw.randrange(30))] for _ in range(2))
        assert decontaminate.common_words(left, right) == common_by_table(left, right)


def write(path, *texts):
    lines = [json.dumps({"id": str(i), "problem": text}) for i, text in enumerate(texts)]
    path.write_text("".join(line + "\n" for line in lines))
    return DataConfig(str(path))


def test_each_file_of_a_folder_is_a_benchmark(tmp_path):
    write(tmp_path / "one.jsonl", FROG)
    write(tmp_path / "two.jsonl", FROG, "What is 1+1?")
    config = DecontaminateConfig(
        {"all": DataConfig(str(tmp_path)), "f": write(tmp_path / "two.jsonl", FROG, "?1")}
    )
    found = decontaminate.Benchmarks(decontaminate.read(config), config)
    assert found.counts() == {"all/one": 1, "all/two": 2, "f": 2}
    assert [(m.benchmark, m.benchmark_id) for m in found.matches(FROG)] == [
        ("all/one", "0"),
        ("all/two", "0"),
        ("f", "0"),
    ]


def test_a_benchmark_that_is_not_there_is_an_error(tmp_path):
    config = DecontaminateConfig({"gone": DataConfig(str(tmp_path / "gone.jsonl"))})
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file"):
        list(decontaminate.read(config))


@pytest.mark.parametrize("fields", [{"ngram_words": 3}, {"min_common": 1.5}])
def test_settings_that_cannot_be_meant_are_refused(fields):
    with pytest.raises(ValueError, match="expected"):
        DecontaminateConfig(**fields)


# --- the overlaps that are known between the sets in shared/data ----------------------------------


@pytest.fixture(scope="module")
def overlaps(shared):
    """(set, benchmark) → ids of the pairs that count as the same."""

    def find(name, benchmark, rules=("same text", "n-gram")):
        data = shared / "data"
        config = DecontaminateConfig({"b": DataConfig(str(data / benchmark))})
        found = decontaminate.Benchmarks(decontaminate.read(config), config)
        return {
            (id, match.benchmark_id)
            for id, text in records.read_questions(DataConfig(str(data / name)))
            for match in found.matches(text)
            if match.left_out and match.rule in rules
        }

    return find


@pytest.mark.parametrize(
    ("name", "benchmark", "count"),
    [
        ("eval/amc23.jsonl", "eval/amc83.jsonl", 40),
        ("eval/aime24.jsonl", "eval/aime22_24.jsonl", 30),
        ("eval/gaokao2024_I.jsonl", "eval/gaokao2024_II.jsonl", 1),
        ("eval/amc83.jsonl", "eval/gaokao2023en.jsonl", 8),
    ],
)
def test_the_same_texts_in_two_benchmarks_are_found(overlaps, name, benchmark, count):
    assert len(overlaps(name, benchmark, ["same text"])) == count


def test_the_same_texts_in_training_data_are_found(overlaps):
    train, rest = "train/math_train.jsonl", "train/math_test_minus_500.jsonl"
    olympiad = "eval/olympiadbench.jsonl"
    assert {"olympiadbench/2791", "olympiadbench/2890"} <= {
        id for _, id in overlaps(train, olympiad)
    }
    assert "olympiadbench/2713" in {id for _, id in overlaps(rest, olympiad)}
    assert len({id for _, id in overlaps(train, rest, ["same text"])}) >= 2
    assert not overlaps(train, "eval/math500.jsonl", ["same text"])


def test_a_question_is_compared_in_well_under_a_millisecond(shared):
    config = DecontaminateConfig({"all": DataConfig(str(shared / "data/eval"))})
    found = decontaminate.Benchmarks(decontaminate.read(config), config)
    texts = records.read_questions(DataConfig(str(shared / "data/train/gsm8k_train.jsonl")))[:2000]
    began = time.process_time()
    for _, text in texts:
        found.matches(text)
    assert (time.process_time() - began) / len(texts) < 5e-4
