"""Every row once: whatever is killed, suspended, damaged or started twice."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxmath.data import claims, shards

WORKER = pathlib.Path(__file__).with_name("shard_worker.py")
ROOT = WORKER.parents[2]


def start(verb, folder, **options):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [sys.executable, str(WORKER), verb, str(folder), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def working(folder, count=1, **options):
    """Workers that begin at the same time, once all have imported what they need."""
    processes = [start("work", folder, **options) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes if count > 1 else processes[0]


def finish(process):
    """How many rows a worker made."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return int(output)


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(folder):
    found = sorted(folder.glob("shards/samples-*.jsonl"))
    return [json.loads(line) for path in found for line in path.read_bytes().splitlines()]


def names(num_questions, num_samples):
    return [(i, j) for i in range(num_questions) for j in range(num_samples)]


def test_death_at_any_operation_leaves_what_ends_in_the_same_bytes(tmp_path):
    output, _ = start("crash", tmp_path).communicate(timeout=120)
    found = dict(line.split() for line in output.splitlines())
    assert len(found) > 60  # moments at which it died, and one at which it did not
    assert len(set(found.values())) == 1
    assert [shards.name_of(row) for row in rows(tmp_path / "1")] == names(4, 2)


JOB = {"shards": 30, "questions": 5, "samples": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files that one undisturbed worker leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(working(folder, **JOB)) == 600
    return contents(folder)


def test_two_workers_killed_at_twenty_random_moments_end_with_the_same_bytes(whole, tmp_path):
    draw = random.Random(2026)
    for _ in range(10):
        workers = working(tmp_path, 2, **JOB, row_s=0.01)
        for worker in workers:
            time.sleep(draw.uniform(0, 0.1))
            worker.send_signal(signal.SIGKILL)
        for worker in workers:
            worker.communicate()
            assert worker.returncode == -signal.SIGKILL  # none was done before
    left = finish(working(tmp_path, **JOB))
    assert 0 < left < 600  # and what was done before the kills was not done again
    assert contents(tmp_path) == whole


def test_workers_share_the_work_and_do_none_of_it_twice(whole, tmp_path):
    made = [finish(worker) for worker in working(tmp_path, 3, **JOB, row_s=0.004)]
    assert sum(made) == 600 and sorted(made)[1] > 0  # the third may have come late
    assert contents(tmp_path) == whole


def test_the_shard_of_a_dead_host_is_taken_over_after_its_lease(whole, tmp_path):
    dead = working(tmp_path, **JOB, machine="elsewhere", row_s=0.05, lease_s=0.5)
    while not (left := list(tmp_path.glob("shards/journals/*.journal"))):
        time.sleep(0.01)
    dead.kill()
    dead.communicate()
    kept = left[0].read_bytes().count(b"\n")
    began = time.monotonic()
    assert finish(working(tmp_path, **JOB, lease_s=0.5)) == 600 - kept > 580
    assert time.monotonic() - began > 0.5
    assert contents(tmp_path) == whole


def test_a_worker_that_wakes_up_after_its_lease_doubles_nothing(tmp_path):
    # Its rows differ from those of the worker that took over: whoever is first is the one.
    job = {"shards": 2, "questions": 10, "samples": 2, "lease_s": 0.4}
    sleeper = working(tmp_path, **job, machine="a", flavour="late", row_s=0.08)
    while not (started := list(tmp_path.glob("shards/journals/*.journal"))):
        time.sleep(0.01)
    sleeper.send_signal(signal.SIGSTOP)
    kept = started[0].read_bytes().count(b"\n")
    assert finish(working(tmp_path, **job, machine="b", flavour="early")) == 40 - kept
    before = contents(tmp_path)
    sleeper.send_signal(signal.SIGCONT)
    finish(sleeper)
    assert contents(tmp_path) == before
    found = rows(tmp_path)
    assert [shards.name_of(row) for row in found] == names(20, 2)
    assert sum("late" in row["response"] for row in found) == kept < 20


# --- inside one process ---------------------------------------------------------------------------


def made(shard, samples=3, outcome="right"):
    return {
        (i, j): {"problem_id": i, "sample": j, "outcome": outcome}
        for i in (2 * shard, 2 * shard + 1)
        for j in range(samples)
    }


@pytest.fixture
def store(tmp_path):
    found = shards.Shards(tmp_path / "shards", 3)
    for shard in range(3):
        assert found.commit(shard, made(shard), {"note": shard})
    return found


def test_a_shard_is_named_for_its_bytes_and_recorded(store):
    record = store.record(1)
    path = store.folder / record.file
    assert record.sha256.startswith(path.stem.rpartition("-")[2])
    assert (record.rows, record.outcomes, record.facts) == (6, {"right": 6}, {"note": 1})
    assert list(store.rows(record)) == list(made(1).values())
    assert store.missing() == [] and store.verify() == []


def test_the_manifest_sums_the_records(store):
    store.commit(2, made(2), {})
    store.write_manifest()
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert (manifest["num_shards"], manifest["num_done"], manifest["rows"]) == (3, 3, 18)
    assert manifest["outcomes"] == {"right": 18}
    assert [shard["shard"] for shard in manifest["shards"]] == [0, 1, 2]
    sizes = (path.stat().st_size for path in store.folder.glob("*.jsonl"))
    assert manifest["bytes"] == sum(sizes)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-10], "bytes, expected"),
        (lambda data: data.replace(b"right", b"wrong", 1), "has the digest"),
        (lambda data: b"", "has 0 bytes"),
    ],
)
def test_a_damaged_shard_is_named_and_made_again(store, damage, said):
    record = store.record(1)
    path = store.folder / record.file
    before = contents(store.folder)
    path.write_bytes(damage(path.read_bytes()))
    (fault,) = shards.Shards(store.folder, 3).verify()
    assert path.name in fault and said in fault
    assert store.missing() == [1]
    with claims.Claims(store.folder / "claims", 60) as held:
        asked = []

        def work(shard, done):
            asked.append(shard)
            return shards.Work(set(made(shard)), made(shard).values(), {"note": shard})

        shards.fill(store, held, work)
        assert asked == [1] and store.verify() == []
        store.tidy(held)
    (store.folder / "manifest.json").unlink()
    assert contents(store.folder) == before


def test_a_damaged_shard_may_come_out_otherwise_the_second_time(store):
    old = store.folder / store.record(0).file
    old.write_bytes(b"rotten")
    assert len(store.verify()) == 1 and not old.exists()
    assert store.commit(0, made(0, outcome="wrong"), {})
    assert store.record(0).outcomes == {"wrong": 6} and store.verify() == []


def test_a_record_that_cannot_be_read_is_written_again(store):
    (store.folder / "samples-00002.json").write_text('{"shard": 2, "fi')
    assert store.missing() == [2] and "cannot be read" in store.verify()[0]
    assert store.commit(2, made(2), {"note": 2})
    assert store.missing() == [] and store.verify() == []


def test_a_shard_that_comes_second_changes_nothing(store):
    before = contents(store.folder)
    assert not store.commit(0, made(0, outcome="wrong"), {})
    assert store.commit(0, made(0), {"note": 0})  # the same rows are no news
    assert contents(store.folder) == before


def test_only_whole_lines_of_a_journal_count(tmp_path):
    store = shards.Shards(tmp_path, 1)
    journal = shards.Journal(store.journals, 0)
    for row in made(0).values():
        journal.add(row)
    journal.close()
    (path,) = store.journals.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"right", b"wrong") + lines[2] + lines[3][:-9])
    assert list(store.journaled(0)) == [(0, 0), (0, 2)]
    assert store.journaled(1) == {}


def test_rows_that_never_came_are_no_shard(tmp_path):
    store = shards.Shards(tmp_path / "shards", 1)
    rows = list(made(0).values())
    with (
        claims.Claims(tmp_path / "claims", 60) as held,
        pytest.raises(AssertionError, match="5 of"),
    ):
        shards.fill(store, held, lambda shard, done: shards.Work(set(made(0)), rows[:5], {}))
    assert store.missing() == [0] and len(store.journaled(0)) == 5
