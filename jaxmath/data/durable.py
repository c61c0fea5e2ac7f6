"""Files that are whole or absent whenever a process dies, and by whom a file was left half made.

Everything is written beside its place under a name of this process alone, brought to the disk, and
then put into place in one step: over what stands there (`replacing`, `replace`), or only if nothing
does (`publish`), which of several processes or hosts on one file system exactly one achieves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import BinaryIO

SCRATCH = ".tmp"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write; it takes the place of `path` at the end, and vanishes upon an exception."""
    scratch = _scratch(path)
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace(path: pathlib.Path, data: bytes) -> None:
    """`path` is the old file or the new one, whenever the process dies."""
    with replacing(path) as file:
        file.write(data)


def publish(path: pathlib.Path, data: bytes) -> bool:
    """Creates `path` with all of `data`; False, and nothing is changed, where something stands.

    Raises:
      ValueError: the file system has no hard links, which make this one step.
    """
    scratch = _scratch(path)
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise ValueError(
                f"{path.parent}: the file system there has no hard links, by which workers agree "
                "who was first; choose an output on a POSIX file system (local, NFS, Lustre)"
            ) from None
        raise
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def sync_folder(folder: pathlib.Path) -> None:
    """Brings the names in a folder to the disk, where its file system knows how."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def remove_scratch(folder: pathlib.Path) -> None:
    """Removes what processes of this host that are no more were writing in `folder`."""
    for path in folder.glob(f".*{SCRATCH}"):
        host, _, pid = path.name.removesuffix(SCRATCH).rpartition("@")[2].rpartition("-")
        if host == _host() and pid.isdigit() and not is_running(int(pid)):
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of that number runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _scratch(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}@{_host()}-{os.getpid()}{SCRATCH}")


def _host() -> str:
    return socket.gethostname()
