"""A worker without a model: fills shards with made-up rows, slowly, or dies at a chosen moment.

python shard_worker.py work FOLDER …   says "ready", waits for a line, works, says how many
                                       rows it made
python shard_worker.py crash FOLDER    for k = 1, 2, …: a process that dies at its k-th operation
                                       on the file system, then one that finishes; prints k and a
                                       digest of what it left
"""

import argparse
import hashlib
import itertools
import os
import pathlib
import signal
import time

from jaxmath.data import claims, shards


def row(question, sample, flavour=""):
    number = int.from_bytes(hashlib.sha256(f"{question} {sample}".encode()).digest()[:4], "little")
    return {
        "problem_id": question,
        "sample": sample,
        "outcome": "right" if number % 3 else "wrong",
        "response": f"{number} \u2028 {flavour}" * 5,
    }


def rows_of(args, shard):
    size = args.questions
    return [
        row(shard * size + i, j, args.flavour) for i in range(size) for j in range(args.samples)
    ]


def fill(args, folder):
    """Fills the folder; how many rows it took."""
    made = 0

    def work(shard, done):
        def missing():
            nonlocal made
            for new in rows_of(args, shard):
                if shards.name_of(new) not in done:
                    time.sleep(args.row_s)
                    made += 1
                    yield new

        names = {shards.name_of(new) for new in rows_of(args, shard)}
        return shards.Work(names, missing(), {"note": "made up"})

    store = shards.Shards(folder / "shards", args.shards)
    with claims.Claims(store.folder / "claims", args.lease_s, args.machine) as held:
        shards.fill(store, held, work, poll_s=0.02)
        with held.hold("collect") as ours:
            if ours:
                store.tidy(held)
                store.write_manifest()
                held.clear("collect")
    return made


def digest(folder):
    """Of the names and contents of all files of a finished folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        found.update(path.read_bytes() if path.is_file() else b"a folder")
    return found.hexdigest()


OPERATIONS = ("open", "write", "fsync", "link", "replace", "unlink", "mkdir", "rmdir", "close")


def die_at(moment):
    """The process is killed as it begins its `moment`-th operation; a write is done by half."""
    count = itertools.count(1)

    def dying(original, is_write):
        def operation(*args, **kwargs):
            if next(count) == moment:
                if is_write:
                    original(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, dying(getattr(os, name), name == "write"))


def in_child(action):
    """Exit status of a process that performs `action`; -9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash(args):
    os.fsync = lambda handle: None  # a kill, unlike a power cut, loses nothing that was written
    for moment in itertools.count(1):
        folder = args.folder / str(moment)
        folder.mkdir(parents=True)

        def killed(folder=folder, moment=moment):
            die_at(moment)
            fill(args, folder)

        status = in_child(killed)
        assert status in (0, -signal.SIGKILL), status
        if status != 0:
            assert in_child(lambda folder=folder: fill(args, folder)) == 0
        print(moment, digest(folder), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("work", "crash"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--row-s", type=float, default=0.0)
    parser.add_argument("--lease-s", type=float, default=60.0)
    parser.add_argument("--machine")
    parser.add_argument("--flavour", default="")
    arguments = parser.parse_args()
    if arguments.verb == "crash":
        crash(arguments)
    else:
        print("ready", flush=True)
        input()
        print(fill(arguments, arguments.folder), flush=True)
