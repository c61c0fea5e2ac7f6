"""Every benchmark by name, from a folder and from the hub."""

import collections
import json

import datasets
import pytest

from jaxmath.data import examples, prompts
from jaxmath.data.records import Problem
from jaxmath.eval import benchmarks

NAMES = list(benchmarks.BENCHMARKS)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_loads_from_the_folder_with_all_its_rows(name, shared):
    problems = benchmarks.load(name, shared / "data" / "eval")
    assert len(problems) == benchmarks.BENCHMARKS[name].num_rows
    assert all(p.id and p.problem.strip() and p.answer.strip() for p in problems)
    assert len({p.id for p in problems}) == len(problems)


def test_the_published_row_counts():
    counts = {name: row.num_rows for name, row in benchmarks.BENCHMARKS.items()}
    published = {"math500": 500, "aime24": 30, "amc": 83, "minerva_math": 272, "gsm8k": 1319}
    assert {name: counts[name] for name in published} == published
    assert counts["olympiadbench"] == 675  # INTELLECT-MATH's 49.5 % is 334 of them


def test_a_row_keeps_its_text_and_its_further_fields(shared):
    first = benchmarks.load("math500", shared / "data" / "eval", limit=1)
    assert len(first) == 1
    assert first[0].id == "math500/test/algebra/4"
    assert first[0].problem == "If $2^8=4^x$, what is the value of $x$?"
    assert first[0].answer == "4"
    assert first[0].extra == {"subset": "Algebra", "level": 1}


def test_every_file_of_the_folder_is_a_benchmark(shared):
    files = {path.name for path in (shared / "data" / "eval").glob("*.jsonl")}
    assert {row.file for row in benchmarks.BENCHMARKS.values()} == files and len(files) == 20


@pytest.mark.parametrize("name", NAMES)
def test_every_style_and_every_example_exists(name):
    row = benchmarks.BENCHMARKS[name]
    assert prompts.prompt_messages(row.prompt_style, "1 + 1?")[-1]["role"] == "user"
    assert row.base_style in prompts.TEXT_STYLES
    assert len(examples.EXAMPLES[row.subject]) >= row.base_shots


def test_the_published_way_to_ask():
    rows = benchmarks.BENCHMARKS
    asked = {name: (row.prompt_style, row.max_tokens) for name, row in rows.items()}
    assert asked["math500"] == ("prime-eval", 8192)
    for name in ("olympiadbench", "aime24", "amc", "minerva_math"):
        assert asked[name] == ("prime-eval", 4096)
    for name in ("gsm8k", "aqua", "cmath", "gaokao2024_mix"):
        assert asked[name] == ("qwen25-math-cot", 2048)
    zh = {name for name, row in rows.items() if row.language == "zh"}
    assert zh == {"cmath", "cn_middle_school"} | {n for n in rows if "gaokao" in n} - {
        "gaokao2023en"
    }


def counts_of(problems, row, **how):
    """Number of examples → number of questions asked with so many."""
    return collections.Counter(len(row.examples_for(p, **how)) for p in problems)


@pytest.mark.parametrize(
    ("name", "chat", "base"),
    [
        ("aqua", {5: 254}, {5: 254}),
        ("sat_math", {5: 32}, {5: 32}),
        ("gaokao_math_qa", {5: 344, 0: 7}, {5: 351}),  # AD is no single letter
        ("gaokao2024_I", {5: 8, 0: 6}, {5: 14}),
        ("gaokao_math_cloze", {0: 118}, {5: 118}),  # one answer is a set called A
        ("gsm8k", {0: 1319}, {8: 1319}),
        ("math500", {0: 500}, {4: 500}),
    ],
)
def test_how_many_examples_are_shown(name, chat, base, shared):
    problems = benchmarks.load(name, shared / "data" / "eval")
    row = benchmarks.BENCHMARKS[name]
    assert counts_of(problems, row, base=False) == chat
    assert counts_of(problems, row, base=True) == base
    assert counts_of(problems, row, base=False, num=0) == {0: len(problems)}
    assert counts_of(problems, row, base=True, num=2) == {2: len(problems)}


def test_choices_are_shown_choices_in_their_language():
    row = benchmarks.BENCHMARKS["cn_middle_school"]
    choice, other = (Problem("p", "…", answer) for answer in ("C", "1/9"))
    assert row.examples_for(choice, base=False) == examples.EXAMPLES["choice-zh"][:5]
    assert row.examples_for(other, base=True) == examples.EXAMPLES["school-zh"][:5]
    assert (
        benchmarks.BENCHMARKS["aqua"].examples_for(choice, base=True, num=1)
        == (examples.EXAMPLES["choice"][:1])
    )


def test_more_examples_than_there_are_is_refused():
    row = benchmarks.BENCHMARKS["gsm8k"]
    with pytest.raises(ValueError, match="gsm8k.jsonl: 9 examples wanted, 8 are known of 'word'"):
        row.examples_for(Problem("p", "1 + 1?", "2"), base=True, num=9)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="math501.*expected one of math500, "):
        benchmarks.load("math501")


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit 0: expected at least 1"):
        benchmarks.load("math500", limit=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="math500.jsonl: no such file"):
        benchmarks.load("math500", tmp_path)


def test_a_benchmark_that_is_not_on_the_hub_asks_for_a_folder():
    with pytest.raises(ValueError, match="give a folder that has carp_en.jsonl"):
        benchmarks.load("carp_en")


def _write_aime24(folder, rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / "aime24.jsonl").write_text(text)


ROWS = [{"id": f"a/{i}", "problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(30)]


def test_a_short_file_is_refused(tmp_path):
    _write_aime24(tmp_path, ROWS[:29])
    with pytest.raises(ValueError, match="29 rows, expected the 30 of aime24"):
        benchmarks.load("aime24", tmp_path, limit=5)


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("{not json\n", "not JSON"),
        ({"id": "a/4", "problem": "4 + 1?"}, "no answer"),
        ({"id": "a/4", "problem": " ", "answer": "5"}, "problem is empty"),
        ({"id": "a/3", "problem": "4 + 1?", "answer": "5"}, "id 'a/3' was already at"),
    ],
)
def test_one_malformed_row_is_an_error_that_names_its_line(tmp_path, bad, reason):
    _write_aime24(tmp_path, [*ROWS[:4], bad, *ROWS[5:]])
    with pytest.raises(ValueError, match="aime24.jsonl:5: .*" + reason):
        benchmarks.load("aime24", tmp_path)


def _fake_hub(monkeypatch, expected, rows):
    """Stands in for the network only: the rows are a real `datasets.Dataset`."""

    def load_dataset(path, name=None, *, split):
        assert (path, name, split) == expected
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_gsm8k_from_the_hub_takes_the_number_after_the_hashes(monkeypatch):
    solution = "She sells 1,000 + 80.\n#### 1,080"
    rows = [{"question": f"q{i}", "answer": solution} for i in range(1319)]
    _fake_hub(monkeypatch, ("openai/gsm8k", "main", "test"), rows)
    problems = benchmarks.load("gsm8k", limit=3)
    assert [(p.id, p.problem, p.answer) for p in problems] == [
        ("gsm8k/1", "q0", "1080"),
        ("gsm8k/2", "q1", "1080"),
        ("gsm8k/3", "q2", "1080"),
    ]


def test_aime_from_the_hub_keeps_2024_and_drops_leading_zeros(monkeypatch):
    page = "https://artofproblemsolving.com/wiki/index.php/{}_AIME_I_Problems/Problem_1"
    rows = [
        {"id": i, "problem": f"p{i}", "answer": "025", "url": page.format(2022 + i // 30)}
        for i in range(90)
    ]
    _fake_hub(monkeypatch, ("AI-MO/aimo-validation-aime", None, "train"), rows)
    problems = benchmarks.load("aime24")
    assert [p.id for p in problems] == [f"aime24/{i}" for i in range(60, 90)]
    assert {p.answer for p in problems} == {"25"}
    assert len(benchmarks.load("aime22_24")) == 90


def test_amc_from_the_hub_reads_floats_as_whole_numbers(monkeypatch):
    rows = [{"id": i, "problem": f"p{i}", "answer": 142.0, "url": "u"} for i in range(83)]
    _fake_hub(monkeypatch, ("AI-MO/aimo-validation-amc", None, "train"), rows)
    assert {p.answer for p in benchmarks.load("amc")} == {"142"}


def test_olympiadbench_from_the_hub_joins_context_and_answers(monkeypatch):
    row = {"question": "Find $x$.", "context": None, "final_answer": ["$2$"]}
    rows = [{**row, "id": i} for i in range(674)]
    rows[1] = {**rows[1], "context": "Let $x$ be even.", "final_answer": ["$2$", "$4$"]}
    _fake_hub(monkeypatch, ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"), rows)
    problems = benchmarks.load("olympiadbench", limit=2)
    assert [(p.problem, p.answer) for p in problems] == [
        ("Find $x$.", "2"),
        ("Let $x$ be even.\nFind $x$.", "2,4"),
    ]


def test_aqua_from_the_hub_lists_its_choices(monkeypatch):
    row = {"question": "1 + 1?", "options": ["A)1", "B) 2 (two)"], "correct": "B"}
    _fake_hub(monkeypatch, ("deepmind/aqua_rat", "raw", "test"), [row] * 254)
    first = benchmarks.load("aqua", limit=1)[0]
    assert (first.problem, first.answer) == ("1 + 1?\nAnswer Choices: (A) 1 (B) 2 (two)", "B")


def test_gaokao2023en_from_the_hub_drops_the_two_rows_without_an_answer(monkeypatch):
    rows = [{"question": f"q{i}", "answer": " " if i in (167, 192) else "1"} for i in range(385)]
    _fake_hub(monkeypatch, ("MARIO-Math-Reasoning/Gaokao2023-Math-En", None, "train"), rows)
    assert len(benchmarks.load("gaokao2023en")) == 383


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"unique_id": "a", "question": "q", "answer": "1"}, "KeyError 'problem'"),
        ({"unique_id": "a", "problem": "q", "answer": " "}, "expected two texts"),
        ({"unique_id": "a", "problem": "q", "answer": None}, "AttributeError"),
    ],
)
def test_a_hub_row_of_another_shape_is_named(monkeypatch, row, reason):
    _fake_hub(monkeypatch, ("HuggingFaceH4/MATH-500", None, "test"), [row])
    with pytest.raises(ValueError, match=f"MATH-500/test:1: .*{reason}.*fields are unique_id"):
        benchmarks.load("math500")


def test_a_hub_data_set_of_another_length_is_refused(monkeypatch):
    rows = [{"unique_id": f"test/{i}", "problem": "q", "answer": "1"} for i in range(499)]
    _fake_hub(monkeypatch, ("HuggingFaceH4/MATH-500", None, "test"), rows)
    with pytest.raises(ValueError, match="499 rows, expected the 500"):
        benchmarks.load("math500")
