"""What an evaluation asks, without a model to ask."""

import pytest

from jaxmath import config as config_lib
from jaxmath.data import examples
from jaxmath.data.records import Problem
from jaxmath.runs import benchmark_tasks, evaluate, process_scores

from . import tiny


def config(shared, output="x", **changes):
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(shared / "data/tokenizer/qwen2.5")},
        "benchmark_folder": str(shared / "data/eval"),
        "benchmarks": ["amc"],
        "model": tiny.MODEL | {"max_positions": 4096},
        "decode": tiny.DECODE | {"max_prompt_tokens": 1024},
    }
    return config_lib.from_dict(evaluate.EvalRun, fields | changes)


def test_a_benchmark_is_asked_as_it_was_published(shared):
    (task,) = benchmark_tasks.build(config(shared, benchmarks=["aqua"]))
    assert (task.prompt_style, task.max_tokens) == ("qwen25-math-cot", 2048)
    assert task.examples_for(task.problems[0]) == examples.EXAMPLES["choice"]


def test_a_base_model_is_asked_in_each_benchmarks_own_text_style(shared):
    asked = config(shared, benchmarks=["gsm8k", "math500"], prompt_style="base", limit=2)
    gsm8k, math500 = benchmark_tasks.build(asked)
    assert (gsm8k.prompt_style, math500.prompt_style) == ("question-answer", "problem-solution")
    assert gsm8k.examples_for(gsm8k.problems[0]) == examples.EXAMPLES["word"]
    assert math500.examples_for(math500.problems[1]) == examples.EXAMPLES["competition"][:4]


@pytest.mark.parametrize(("few_shot", "shown"), [(0, 0), (2, 2), (None, 5)])
def test_the_number_of_examples_is_an_option(shared, few_shot, shown):
    (task,) = benchmark_tasks.build(config(shared, benchmarks=["sat_math"], few_shot=few_shot))
    assert {len(task.examples_for(problem)) for problem in task.problems} == {shown}


def test_examples_from_a_training_file_come_before_every_question(shared):
    source = {"source": str(shared / "data/train/gsm8k_train.jsonl"), "num": 8}
    asked = config(shared, benchmarks=["gsm8k", "amc"], limit=3, few_shot=source)
    tasks = benchmark_tasks.build(asked)
    shown = {task.examples_for(problem) for task in tasks for problem in task.problems}
    (drawn,) = shown
    assert len(drawn) == 8 and all("\\boxed{" in example.solution for example in drawn)


def test_published_limits_bend_to_the_models_positions(shared, capsys):
    asked = config(shared, benchmarks=["math500", "amc", "gsm8k"], limit=1)
    assert [task.max_tokens for task in benchmark_tasks.build(asked)] == [3072, 3072, 2048]
    printed = capsys.readouterr().err
    assert "math500: responses of up to 3072 tokens where 8192 were published" in printed
    assert "gsm8k" not in printed
    long = config(shared, benchmarks=["math500"], model=tiny.MODEL | {"max_positions": 16384})
    assert benchmark_tasks.build(long)[0].max_tokens == 8192
    stated = config(shared, max_tokens=99)
    assert benchmark_tasks.build(stated)[0].max_tokens == 99


def test_a_prompt_and_its_response_fit_a_row_of_the_reward_model(shared):
    sampled = {"num_samples": 2, "sampling": {"temperature": 1.0}, "prm": {"init_from": "x"}}
    asked = config(shared, benchmarks=["math500"], limit=1, **sampled)
    process_scores.check_room(asked, benchmark_tasks.build(asked))
    longer = config(shared, limit=1, max_tokens=3073, **sampled)
    with pytest.raises(config_lib.ConfigError, match="prompt of amc .* may have 4097 tokens"):
        process_scores.check_room(longer, benchmark_tasks.build(longer))


def test_a_server_knows_its_own_limits(shared):
    engine = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    (task,) = benchmark_tasks.build(config(shared, benchmarks=["math500"], engine=engine))
    assert task.max_tokens == 8192


def test_which_answer_is_the_reference():
    problem = Problem("p", "?", "142", extra={"eval_answer": "142.0"})
    assert benchmark_tasks.gold_of(problem, "answer") == "142"
    assert benchmark_tasks.gold_of(problem, "eval_answer") == "142.0"
    assert benchmark_tasks.gold_of(Problem("p", "?", "7"), "eval_answer") == "7"


def test_the_reference_answers_of_the_original_evaluation(shared):
    (task,) = benchmark_tasks.build(config(shared, gold="eval_answer"))
    assert {p.answer for p in task.problems} != {p.answer for p in task.graded()}
    assert all(p.answer.endswith(".0") for p in task.graded())
    assert not any(p.answer.endswith(".0") for p in task.problems)


def test_questions_come_back_from_the_folder(shared, tmp_path):
    (task,) = benchmark_tasks.build(config(shared))
    benchmark_tasks.keep_questions(task, tmp_path)
    assert list(benchmark_tasks.read_questions(tmp_path, "amc").values()) == task.problems
