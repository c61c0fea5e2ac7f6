import json
import os
import subprocess
import sys
import threading

import pytest

from jaxmath.data import claims


@pytest.fixture
def one(tmp_path):
    with claims.Claims(tmp_path / "claims", 60) as held:
        yield held


def other(one, lease_s=60, machine="another"):
    return claims.Claims(one.folder, lease_s, machine)


def write(one, name, **owner):
    """A claim of a process that is not there any more."""
    fields = {"host": "h", "machine": one.machine, "pid": os.getpid(), "started": "1"}
    (one.folder / name).write_text(json.dumps(fields | owner))


def test_a_claim_is_held_by_one_and_given_back(one):
    with one.hold("7") as ours, other(one).hold("7") as theirs:
        assert ours and not theirs
        assert one.owner("7").startswith(f"pid {os.getpid()} on ")
    assert list(one.folder.iterdir()) == [] and one.owner("7") is None
    with other(one).hold("7") as theirs:
        assert theirs


def test_names_do_not_run_into_each_other(one):
    with one.hold("1") as first, one.hold("10") as second, one.hold("11") as third:
        assert first and second and third


def test_of_many_at_once_one_gets_it(one):
    got, barrier = [], threading.Barrier(8)

    def ask():
        mine = other(one)
        barrier.wait()
        if (path := mine._take("3")) is not None:
            got.append(path)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_dead_process_of_this_machine_is_known_at_once(one):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write(one, "3.0", pid=process.pid, started=claims.started(process.pid))
    with one.hold("3") as ours:
        assert not ours
    process.kill()
    while claims.started(process.pid) is not None:  # dead, if not yet waited for
        pass
    with one.hold("3") as ours:
        assert ours
    process.communicate()


def test_another_process_with_an_old_number_is_not_its_owner(one):
    write(one, "3.0")
    with one.hold("3") as ours:
        assert ours


def test_a_claim_from_elsewhere_lasts_until_its_lease_is_over(one, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    write(one, "3.4", machine="elsewhere")
    for seconds, expected in ((0, False), (59, False), (2, True)):
        now[0] += seconds
        with one.hold("3") as ours:
            assert ours == expected
            if ours:
                assert (one.folder / "3.5").exists() and (one.folder / "3.4").exists()


def test_a_touched_claim_is_alive(one, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    write(one, "3.0", machine="elsewhere")
    for beat in range(5):
        os.utime(one.folder / "3.0", ns=(beat, beat))
        with one.hold("3") as ours:
            assert not ours
        now[0] += 59


def test_a_living_worker_touches_what_it_holds(tmp_path):
    with claims.Claims(tmp_path, 0.2) as held, held.hold("3"):
        path = tmp_path / "3.0"
        os.utime(path, ns=(1, 1))
        waited = threading.Event()
        for _ in range(200):
            if path.stat().st_mtime_ns > 1:
                break
            waited.wait(0.02)
        assert path.stat().st_mtime_ns > 1


def test_a_half_written_claim_is_somebodys(one):
    (one.folder / "3.0").write_text('{"host": "h", "pi')
    with one.hold("3") as ours:
        assert not ours
    assert one.owner("3") is None


def test_what_the_dead_left_is_cleared(one):
    write(one, "3.0", machine="elsewhere")
    write(one, "3.1", machine="elsewhere")
    one.clear("3")
    assert list(one.folder.iterdir()) == []
