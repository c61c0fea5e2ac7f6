"""Which worker has which piece of work, agreed upon through files in one shared folder.

    claims/00003.0    {"host": …, "pid": …, …}, touched by its owner as long as that lives

A claim is a file that only one process can create. Its owner touches it; one that nobody has
touched for `lease_s`, by the clock of whoever looks, belongs to a dead worker, and so does, at
once, one whose process on this same machine is no more. It is taken over by creating the next
generation (`00003.1`), which again only one process can do: no file that stands is ever replaced,
so a slow worker cannot undo a takeover it has not noticed.

Claims save work; they are not what keeps rows from being doubled. A worker that was suspended and
wakes up may still make what another has taken over: whoever commits first is then the one that
counts (`data/shards.py`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

from jaxmath.data import durable

BEATS_PER_LEASE = 10


class Claims:
    """The claims of one worker in `folder`; a context manager, which gives back what it holds.

    Args:
      lease_s: a claim that was not touched for so long is a dead worker's; longer than any pause of
        a living one, and than a network file system takes to show a change.
      machine: names the machine inside which process numbers mean the same; None finds it out.
    """

    def __init__(self, folder: pathlib.Path, lease_s: float, machine: str | None = None):
        self.folder, self.lease_s = folder, lease_s
        self.machine = this_machine() if machine is None else machine
        self._held: set[pathlib.Path] = set()
        self._seen: dict[str, tuple[int, float]] = {}  # file name → its mtime, since when
        self._lock = threading.Lock()
        self._end = threading.Event()

    def __enter__(self) -> Claims:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()
        for path in list(self._held):
            self._release(path)
        with contextlib.suppress(OSError):  # others hold some still
            self.folder.rmdir()

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Whether the claim is ours for the time of the block."""
        path = self._take(name)
        try:
            yield path is not None
        finally:
            if path is not None:
                self._release(path)

    def clear(self, name: str) -> None:
        """Removes what dead workers left of a claim whose work is done."""
        for path in self._generations(name):
            path.unlink(missing_ok=True)

    def owner(self, name: str) -> str | None:
        """Who holds a claim, for people; None if nobody does."""
        found = self._generations(name)
        owner = _read(found[-1])[0] if found else None
        return None if owner is None else f"pid {owner.get('pid')} on {owner.get('host')}"

    def _take(self, name: str) -> pathlib.Path | None:
        found = self._generations(name)
        if found and not self._is_dead(found[-1]):
            return None
        generation = _generation(found[-1]) + 1 if found else 0
        owner = {
            "host": socket.gethostname(),
            "machine": self.machine,
            "pid": os.getpid(),
            "started": started(os.getpid()),
        }
        path = self.folder / f"{name}.{generation}"
        self.folder.mkdir(parents=True, exist_ok=True)  # the last to leave removes it
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):
            return None
        with self._lock:
            self._held.add(path)
        with open(handle, "wb") as file:
            file.write(json.dumps(owner).encode())
        return path

    def _release(self, path: pathlib.Path) -> None:
        with self._lock:
            self._held.discard(path)
            path.unlink(missing_ok=True)

    def _generations(self, name: str) -> list[pathlib.Path]:
        found = [path for path in self.folder.glob(f"{name}.*") if path.suffix[1:].isdigit()]
        return sorted(found, key=_generation)

    def _is_dead(self, path: pathlib.Path) -> bool:
        owner, touched = _read(path)
        if touched is None:
            return True  # gone meanwhile
        if owner is not None and owner.get("machine") == self.machine:
            pid = owner.get("pid")
            if not durable.is_running(pid) or started(pid) != owner.get("started"):
                return True
        now = time.monotonic()
        seen, since = self._seen.get(path.name, (None, now))
        if seen != touched:
            self._seen[path.name] = touched, now
            return False
        return now - since >= self.lease_s

    def _beat(self) -> None:
        while not self._end.wait(self.lease_s / BEATS_PER_LEASE):
            with self._lock:
                for path in self._held:
                    with contextlib.suppress(OSError):  # removed by hand, or no room: go on
                        os.utime(path)


def _generation(path: pathlib.Path) -> int:
    return int(path.suffix[1:])


def _read(path: pathlib.Path) -> tuple[dict | None, int | None]:
    """The owner, None while it is being written, and when the file was touched last, in ns."""
    try:
        with path.open("rb") as file:  # opened: a network file system then looks afresh
            touched = os.fstat(file.fileno()).st_mtime_ns
            text = file.read()
    except FileNotFoundError:
        return None, None
    try:
        owner = json.loads(text)
        return (
            owner if isinstance(owner, dict) and isinstance(owner["pid"], int) else None
        ), touched
    except (ValueError, KeyError):
        return None, touched


def started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did: with it a number names one process.

    None for one that is dead and not yet buried by its parent, and where there is no /proc.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@functools.cache
def this_machine() -> str:
    """Host, its boot, and the namespace of its process numbers: equal only where those agree."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
