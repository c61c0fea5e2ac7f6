"""Sums and counts → one printed line, `metrics.jsonl` and TensorBoard.

A compiled step returns `{"group/name": Mean | scalar}`. A `Mean` stays a sum and a count until it
is read, so that averages over micro-batches, steps or hosts weigh every token once. Nothing here
waits for the device until `fetch`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that is still a sum: add two and the weights are right."""

    total: Any  # f32[]
    count: Any  # f32[]

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        count = float(self.count)
        return float(self.total) / count if count else math.nan


Metrics = Mapping[str, Any]


def fetch(metrics: Metrics) -> dict[str, float]:
    """All metrics as floats, moved from the device together."""
    host = jax.device_get(dict(metrics))
    return {
        name: value.value() if isinstance(value, Mean) else float(np.asarray(value))
        for name, value in host.items()
    }


def print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class MetricWriter:
    """Appends rows to `folder/metrics.jsonl`, prints a line, mirrors to TensorBoard and wandb.

    A row is `{"step": int, "group/name": float, ...}`. On opening, rows past `resume_step` and a
    torn last row are dropped, so that a restarted run leaves one row for each step. Only process 0
    writes.

    Args:
      folder: the run folder.
      resume_step: the step that was restored; rows with a larger step are replaced by the rerun.
      show: metric names to print, in order; others go to the files alone.
      tensorboard: also write TensorBoard event files to `folder/tensorboard`.
      wandb_project: also log to this wandb project; needs the package `wandb`.
      echo: takes the printed line; None prints nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        resume_step: int = 0,
        show: tuple[str, ...] = (),
        tensorboard: bool = True,
        wandb_project: str | None = None,
        echo: Callable[[str], None] | None = print_line,
    ):
        self.show, self.echo = show, echo
        self.main = jax.process_index() == 0
        self.path = pathlib.Path(folder) / "metrics.jsonl"
        self._file = self._tensorboard = self._wandb = None
        if not self.main:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_rows_after(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(pathlib.Path(folder) / "tensorboard"), purge_step=resume_step + 1
            )
        if wandb_project:
            try:
                import wandb
            except ImportError:
                raise ValueError(
                    f"wandb_project is {wandb_project!r} but the package wandb is not installed; "
                    "pip install wandb, or set it to null"
                ) from None
            self._wandb = wandb.init(project=wandb_project, dir=str(folder), resume="allow")

    def write(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Writes one row and prints one line; returns the row's values as floats."""
        values = fetch(metrics)
        if not self.main:
            return values
        # JSON has no NaN: a number that is not finite is written as text, and read back as such.
        row = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        if self.echo is not None:
            shown = [f"{name} {values[name]:.4g}" for name in self.show if name in values]
            self.echo(" ".join(["step", str(step), *shown]))
        return values

    def close(self) -> None:
        for sink in (self._file, self._tensorboard):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._tensorboard = self._wandb = None


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; a torn last row is left out."""
    rows = []
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _drop_rows_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row["step"] <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(scratch, path)
