"""A progress bar with tokens/s and time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time

import jax
from tqdm import tqdm

QUIET_SECONDS = 20.0  # between two lines in a log file


class Progress:
    """Counts units (steps, responses) towards `total`, and tokens on the side.

    Use as a context manager. `print` writes a line without tearing the bar.
    """

    def __init__(self, what: str, total: int, unit: str, initial: int = 0):
        self.what, self.total, self.unit = what, total, unit
        self._done = self._initial = initial
        self._tokens = 0
        self._start = self._printed = time.monotonic()
        main = jax.process_index() == 0
        self._terminal = main and sys.stderr.isatty()
        self._lines = main and not self._terminal
        self._bar = tqdm(
            total=total, initial=initial, desc=what, unit=unit, disable=not self._terminal
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        if self._lines and exc[0] is None:
            self._line()
        self._bar.close()

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / max(time.monotonic() - self._start, 1e-9)

    def update(self, units: int = 1, tokens: int = 0) -> None:
        self._done += units
        self._tokens += tokens
        self._bar.update(units)
        if self._tokens:
            self._bar.set_postfix_str(f"{self.tokens_per_s:,.0f} tokens/s", refresh=False)
        if self._lines and time.monotonic() - self._printed > QUIET_SECONDS:
            self._line()

    def print(self, line: str) -> None:
        if self._terminal:
            tqdm.write(line, file=sys.stderr)
        elif self._lines:
            print(line, file=sys.stderr, flush=True)

    def _line(self) -> None:
        now = time.monotonic()
        self._printed = now
        made = self._done - self._initial
        line = f"{self.what}: {self._done}/{self.total} {self.unit}"
        if self._tokens:
            line += f", {self.tokens_per_s:,.0f} tokens/s"
        if made:
            left = (self.total - self._done) * (now - self._start) / made
            line += f", {left:.0f} s left"
        self.print(line)
