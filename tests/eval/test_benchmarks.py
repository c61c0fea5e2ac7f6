"""Every benchmark by name, from a folder and from the hub."""

import json

import datasets
import pytest

from jaxmath.data import prompts
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


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_style_exists(name):
    benchmark = benchmarks.BENCHMARKS[name]
    assert prompts.prompt_messages(benchmark.prompt_style, "1 + 1?")[-1]["role"] == "user"


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
