"""A uvicorn server that finishes what it has begun before it goes.

The first signal makes it refuse new calls (503) while running ones end, for a grace time; then what
is left is told so, and the server stops. A second signal does not wait.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from types import FrameType

import uvicorn

from jaxmath.serve.app import Service, make_app

CLOSING_S = 5  # for the last responses to reach their clients


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
      ValueError: the address is in use, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {host} port {port} ({reason}); choose others") from None


class Server(uvicorn.Server):
    """Serves until a signal; `run([bind(host, port)])` returns once all is finished."""

    def __init__(self, service: Service, grace_s: float):
        config = uvicorn.Config(
            make_app(service),
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSING_S,
        )
        super().__init__(config)
        self._service, self._grace_s = service, grace_s
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come. uvicorn's own handler would raise it again at the end."""
        self.drain(0.0 if self._service.draining else self._grace_s)

    def drain(self, grace_s: float) -> None:
        """Refuses new calls from here on, and stops when the last is done or after `grace_s`."""
        self._service.draining = True
        self._deadline = time.monotonic() + grace_s

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None and not self.should_exit:
            worker = self._service.worker
            overdue = time.monotonic() >= self._deadline
            if overdue:
                worker.abandon()
            self.should_exit = overdue or worker.num_waiting == 0
        return await super().on_tick(counter)
