"""The pool outlives hangs and crashes, keeps order, and charges no item for time in the queue."""

import os
import pathlib
import subprocess
import sys
import time

import hostile_graders
import pytest

from jaxmath.verify import graders, pool, process, verdict

Outcome = verdict.Outcome
NAYSAYER = graders.Grader(hostile_graders.never, hostile_graders.never)


def outcomes(verdicts):
    return [v.outcome for v in verdicts]


def open_pool(**settings):
    config = pool.VerifyConfig(**({"num_workers": 2, "timeout_s": 0.3} | settings))
    return pool.VerifierPool(config, {"strict": hostile_graders.OBEDIENT})


@pytest.fixture(scope="module")
def workers():
    """One pool for the tests that do no lasting harm; it must outlive all of them."""
    with open_pool() as opened:
        yield opened


def test_answers_come_back_in_order(workers):
    pairs = [(str(n), str(n if n % 3 else -1)) for n in range(200)]
    expected = [Outcome.RIGHT if n % 3 else Outcome.WRONG for n in range(200)]
    verdicts = workers.grade(pairs)
    assert outcomes(verdicts) == expected
    assert [v.gold for v in verdicts] == [gold for gold, _ in pairs]
    assert {v.rule for v in verdicts} == {"response"}
    assert {v.rule for v in workers.grade_answers(pairs)} == {"answer"}


def test_a_hung_item_times_out_and_its_neighbours_do_not(workers):
    before = workers.num_restarts, workers.num_retries
    pairs = [(str(n), "hang" if n in (5, 6) else str(n)) for n in range(60)]
    verdicts = workers.grade(pairs)
    for n, result in enumerate(verdicts):
        assert result.outcome is (Outcome.TIMEOUT if n in (5, 6) else Outcome.RIGHT)
    assert verdicts[5].rule == "no verdict within 0.3 s of work, twice"
    assert (workers.num_restarts, workers.num_retries) == (before[0] + 4, before[1] + 2)


def test_a_hang_in_c_code_is_ended_too(workers):
    verdicts = workers.grade([("1", "1"), ("1", "hang-in-c"), ("2", "2")])
    assert outcomes(verdicts) == [Outcome.RIGHT, Outcome.TIMEOUT, Outcome.RIGHT]


def test_a_sleeper_is_ended_by_the_clock():
    with open_pool(num_workers=1, timeout_s=0.05) as opened:
        verdicts = opened.grade([("1", "sleep 60"), ("2", "2")])
    assert outcomes(verdicts) == [Outcome.TIMEOUT, Outcome.RIGHT]
    assert verdicts[0].rule == "no verdict within 1.5 s by the clock, twice"


def test_a_worker_that_dies_twice_over_one_item_is_an_error_and_nothing_else_is_lost(workers):
    pairs = [(str(n), "die" if n == 7 else str(n)) for n in range(30)]
    verdicts = workers.grade(pairs)
    assert [n for n, v in enumerate(verdicts) if v.outcome is not Outcome.RIGHT] == [7]
    assert verdicts[7].outcome is Outcome.ERROR
    assert verdicts[7].rule == "worker died twice (exit code 3)"


@pytest.mark.parametrize("fault", ["die", "hang", "raise"])
def test_an_item_that_failed_by_chance_is_tried_again(workers, tmp_path, fault):
    before = workers.num_retries
    text = f"once {tmp_path / 'done'} {fault}"
    verdicts = workers.grade([("1", "1"), ("x", text), ("2", "2")])
    assert outcomes(verdicts) == [Outcome.RIGHT] * 3
    assert (tmp_path / "done").exists()
    assert workers.num_retries == before + 1


def test_what_a_grader_raises_is_an_error_not_a_wrong_answer(workers):
    before = workers.num_restarts
    verdicts = workers.grade([("1", "raise"), ("1", "recurse"), ("1", "allocate"), ("1", "1")])
    assert outcomes(verdicts) == [Outcome.ERROR] * 3 + [Outcome.RIGHT]
    assert [v.rule.split(":")[0] for v in verdicts[:3]] == [
        "KeyError",
        "RecursionError",
        "MemoryError",
    ]
    assert workers.num_restarts == before


def test_one_worker_a_core_by_default():
    assert pool.VerifyConfig().num_workers is None
    assert 1 <= process.num_cores() <= os.cpu_count()


def test_time_in_the_queue_and_asleep_is_not_charged():
    # 12 items of 0.4 s on 2 workers take 2.4 s in all, far beyond the limit of 0.2 s for each
    with open_pool(timeout_s=0.2) as opened:
        assert outcomes(opened.grade([("x", "sleep 0.4")] * 12)) == [Outcome.RIGHT] * 12
        assert opened.num_retries == 0


def test_a_grader_is_chosen_by_name_for_each_call():
    config = pool.VerifyConfig(num_workers=1, timeout_s=1.0)
    with pool.VerifierPool(config, {"strict": hostile_graders.OBEDIENT, "no": NAYSAYER}) as opened:
        assert opened.grade([("1", "1")])[0].outcome is Outcome.RIGHT
        assert opened.grade([("1", "1")], "no")[0].outcome is Outcome.WRONG
        assert opened.grade_answers([("1", "1")], grader="no")[0].rule == "never"
        with pytest.raises(ValueError, match="one of strict, no; got 'yes'"):
            opened.grade([("1", "1")], "yes")


def test_submit_and_poll_never_wait_and_drain_waits_for_all(workers):
    start = time.monotonic()
    for n in range(10):
        workers.submit(("key", n), str(n), "sleep 0.8" if n == 0 else str(n))
    early = workers.poll()
    assert time.monotonic() - start < 0.5
    assert (
        workers.grade([("a", "a")])[0].outcome is Outcome.RIGHT
    )  # a call between does not take them
    done = dict(early + workers.drain())
    assert done.keys() == {("key", n) for n in range(10)}
    assert set(outcomes(done.values())) == {Outcome.RIGHT}
    assert workers.poll() == [] == workers.drain()


def test_submitting_long_texts_to_busy_workers_does_not_wait():
    with open_pool(timeout_s=30.0) as opened:
        opened.submit("first", "1", "hang")
        opened.submit("second", "1", "hang")
        start = time.monotonic()
        for n in range(20):
            opened.submit(n, "1", "x" * 10**6)
            opened.poll()
        assert time.monotonic() - start < 1.0


def test_text_that_is_no_string_is_refused_at_the_door(workers):
    with pytest.raises(TypeError, match="must be str, got str, int"):
        workers.grade([("1", "1"), ("1", 1)])
    assert workers.drain() == []
    assert outcomes(workers.grade([("2", "2")])) == [Outcome.RIGHT]


def test_workers_do_not_import_jax(workers):
    assert workers.grade([("1", "modules")])[0].rule == "False"


def test_importing_the_pool_does_not_import_jax():
    code = (
        "import sys, jaxmath.verify.pool; sys.exit('jax' in sys.modules or 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_workers_that_cannot_start_end_the_wait():
    config = pool.VerifyConfig(num_workers=1)
    with (
        pool.VerifierPool(config, {"strict": hostile_graders.Unstartable()}) as broken,
        pytest.raises(RuntimeError, match="died while starting"),
    ):
        broken.grade([("1", "1")])


def test_closing_does_not_wait_for_a_hung_item():
    with open_pool(num_workers=1, timeout_s=60.0) as opened:
        opened.submit(0, "1", "hang")
        time.sleep(0.5)
        start = time.monotonic()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "settings",
    [
        {"grader": "kind"},
        {"num_workers": 0},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"memory_mb": 1},
        {"batch_size": 0},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        pool.VerifyConfig(**settings)


def test_real_grading_of_bombs_among_honest_answers():
    bombs = ["9^9^9^9^9", "(10^{10})!", "\\boxed{" * 1000, "(" * 3000, "\ud800", "x" * 10**6]
    pairs = []
    for n in range(300):
        pairs.append((f"{n}/7", rf"thus \boxed{{\frac{{{n}}}{{7}}}}"))
        if n % 50 == 0:
            pairs.append(("1", rf"\boxed{{{bombs[n // 50]}}}"))
    with pool.VerifierPool(pool.VerifyConfig(num_workers=2)) as opened:
        verdicts = opened.grade(pairs)
        assert opened.num_restarts == 0
    for (gold, _), result in zip(pairs, verdicts, strict=True):
        assert result.is_right == (gold != "1")
        assert not result.outcome.is_fault


def test_hostile_items_among_honest_ones_change_no_honest_verdict(shared):
    """A small version of the mix in scripts/bench_verify.py, which fails by its exit code."""
    root = pathlib.Path(__file__).parents[2]
    command = ["scripts/bench_verify.py", str(shared / "data/grader/cases.jsonl")]
    command += ["--hostile", "250", "--honest", "1000", "--graders", "strict", "--timeout-s", "0.5"]
    found = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert "| strict | 1000 | 250 | 0 |" in found.stdout
    assert "2 timeout" in found.stdout and "3 error" in found.stdout
