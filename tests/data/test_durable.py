import os
import subprocess
import sys

import pytest

from jaxmath.data import durable


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_in_one_step(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with durable.replacing(path) as file:
        file.write(b"new, and longer")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new, and longer" and names(tmp_path) == ["f"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), durable.replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and names(tmp_path) == ["f"]


def test_the_first_to_publish_is_the_one(tmp_path):
    path = tmp_path / "f"
    assert durable.publish(path, b"first")
    assert not durable.publish(path, b"second")
    assert path.read_bytes() == b"first" and names(tmp_path) == ["f"]


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ValueError, match="has no hard links"):
        durable.publish(tmp_path / "f", b"data")
    assert names(tmp_path) == []


def test_only_what_the_dead_of_this_host_were_writing_is_removed(tmp_path):
    code = "import sys, os; from jaxmath.data import durable as d; import pathlib; "
    code += "d._scratch(pathlib.Path(sys.argv[1])).write_bytes(b'half'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "dead")])
    ours = durable._scratch(tmp_path / "ours")
    ours.write_bytes(b"half")
    (tmp_path / ".theirs@elsewhere-1.tmp").write_bytes(b"half")
    (tmp_path / "kept.tmp").write_bytes(b"a file like any other")
    assert len(names(tmp_path)) == 4
    durable.remove_scratch(tmp_path)
    assert names(tmp_path) == sorted([".theirs@elsewhere-1.tmp", ours.name, "kept.tmp"])
