"""One writer per checkpoint folder, by `flock`: the kernel releases it when its owner dies."""

from __future__ import annotations

import fcntl
import os
import pathlib
import socket
import time
from typing import IO

from jaxmath.checkpoint.errors import CheckpointError, CheckpointLocked


def acquire(folder: pathlib.Path) -> IO[str]:
    """An open file that holds the folder's lock until closed, or until the process is gone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+")  # noqa: SIM115  open for as long as the store is
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written to ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "an unknown process"
        file.close()
        raise CheckpointLocked(
            f"{folder}: in use by {owner}; wait for it, stop it, or use another folder"
        ) from None
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
    file.flush()
    return file
