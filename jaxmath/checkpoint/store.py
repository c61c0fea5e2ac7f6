"""CheckpointStore: numbered steps of any pytree on disk, through Orbax.

What Orbax gives: asynchronous, atomic saves (written beside, then renamed), restore onto any mesh.
What this adds, because Orbax does not do it:

  digests     a flipped bit on disk would load silently; every array and the metadata carry a digest
  fallback    a damaged newest step is set aside (`damaged/`, never deleted), the one before is used
  strictness  missing, extra, mis-shaped arrays and other dtypes (Orbax casts) are errors by name
  retention   newest `keep_last` and best `keep_best`; a metric that is not finite ranks worst
  a lock      two processes saving into one folder overwrite each other without a word

Trees are stored flat, {"params/layers/wq_DNH": array}: see `trees`.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax

from jaxmath.checkpoint import digest, lock, trees
from jaxmath.checkpoint.errors import CheckpointError, CheckpointMismatch

log = logging.getLogger(__name__)

TRASH = "trash"  # steps are renamed into it before they are deleted: deletion is not atomic
DAMAGED = "damaged"
# An array is stored in one piece up to this size: what is one piece is written from where it lies,
# parts are copied first. But a shard is read by reading every piece it touches.
PIECE_BYTES = 2**30
BATCH_BYTES = (
    256 * 2**20
)  # restored at a time, or one array: Orbax holds it two or three times over


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    save_every: steps between saves; the runs also save at their end.
    keep_last: newest steps kept. keep_best: steps with the best metric kept besides.
    best_mode: whether a larger ("max") or smaller ("min") metric is better.
    """

    save_every: int = 100
    keep_last: int = 2
    keep_best: int = 0
    best_mode: Literal["max", "min"] = "max"

    def __post_init__(self):
        if self.save_every < 1:
            raise ValueError(f"save_every is {self.save_every}; expected at least 1")
        if self.keep_last < 1:
            raise ValueError(f"keep_last is {self.keep_last}; expected at least 1 (the newest)")
        if self.keep_best < 0:
            raise ValueError(f"keep_best is {self.keep_best}; expected 0 (none) or more")
        if self.best_mode not in ("max", "min"):
            raise ValueError(f"best_mode is {self.best_mode!r}; expected 'max' or 'min'")


class Restored(NamedTuple):
    """tree: as the abstract tree, filled. meta: as saved. step: where it comes from."""

    tree: trees.Tree
    meta: dict[str, Any]
    step: int


class CheckpointStore:
    """The checkpoints of one run. Use as a context manager, or call `close`.

    Args:
      folder: made if absent; one writer at a time.
      config: what to keep.
      read_only: takes no lock and changes nothing, for readers beside a running writer.

    Raises:
      CheckpointLocked: another process writes to the folder.
      CheckpointError: the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: CheckpointConfig | None = None,
        *,
        read_only: bool = False,
    ):
        self.folder = pathlib.Path(folder).absolute()
        self.config = config or CheckpointConfig()
        self.read_only = read_only
        self._primary = jax.process_index() == 0
        self._lock = None
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no such checkpoint folder; check the path")
        if not read_only:
            self._lock = lock.acquire(self.folder) if self._primary else None
            self._empty_trash()
        try:
            self._manager = self._open()
            self._metrics = {step: self._read_metric(step) for step in self.all_steps()}
        except BaseException:
            self._unlock()
            raise

    def _open(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            create=not self.read_only,
            cleanup_tmp_directories=not self.read_only,
            todelete_subdir=None if self.read_only else TRASH,
            preservation_policy=self,
        )
        handlers = {  # without compression: weights do not shrink, and zstd costs time and memory
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "meta": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def all_steps(self) -> list[int]:
        """Steps on disk, ascending by number."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest step, by number; None in an empty folder."""
        return max(self._manager.all_steps(), default=None)

    # --- saving -------------------------------------------------------------------------------

    def save(
        self, step: int, tree: trees.Tree, meta: dict[str, Any], metric: float | None = None
    ) -> None:
        """Starts saving; returns once the arrays may be donated. A save in flight is awaited first.

        Args:
          step: larger than every step in the folder.
          tree: any pytree of arrays, typed PRNG keys and numbers.
          meta: JSON values: data position, resolved config, metrics so far, ….
          metric: ranks this step for `keep_best`; None or not finite ranks worst.

        Raises:
          CheckpointError: this save cannot start, or the one before it failed.
        """
        import orbax.checkpoint as ocp

        if self.read_only:
            raise CheckpointError(f"{self.folder}: opened read-only; open it for writing to save")
        self.wait()
        self._empty_trash()
        if (latest := self.latest_step()) is not None and step <= latest:
            raise CheckpointError(
                f"{self.folder}: step {step} is not after the newest saved step {latest}; "
                "resume from that step, or use a new folder"
            )
        flat = trees.as_arrays(trees.flatten(tree))
        leaves, keys = trees.to_data(flat)
        found = digest.digests(leaves)
        document = {
            "step": step,
            "metric": metric if metric is not None and math.isfinite(metric) else None,
            "leaves": {
                path: {
                    "dtype": str(x.dtype),
                    "shape": list(x.shape),
                    "digest": found[path],
                    "key_impl": keys.get(path),
                }
                for path, x in flat.items()
            },
            "meta": meta,
        }
        save_args = {path: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES) for path in leaves}
        self._metrics[step] = document["metric"]
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(leaves, save_args=save_args),
                    meta=ocp.args.JsonSave(_seal(document)),
                ),
            )
        except Exception as error:
            raise self._failed(f"saving step {step}", error) from error

    def wait(self) -> None:
        """Blocks until the save in flight is on disk.

        Raises:
          CheckpointError: it failed; the steps before it are intact.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed("an asynchronous save", error) from error

    def _failed(self, what: str, error: Exception) -> CheckpointError:
        self._manager = self._open()  # the old one still counts the failed step
        return CheckpointError(
            f"{self.folder}: {what} failed ({_line(error)}); earlier steps are intact; "
            "check free space and permissions"
        )

    def close(self) -> None:
        """Waits for the save in flight, then releases the folder. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's preservation policy: which of the steps, in ascending order, stay."""
        steps = [info.step for info in checkpoints]
        sign = 1 if self.config.best_mode == "max" else -1
        ranked = [step for step in steps if self._metrics.get(step) is not None]
        ranked.sort(
            key=lambda step: (sign * self._metrics[step], step)
        )  # ties: the newer is better
        best = ranked[len(ranked) - min(self.config.keep_best, len(ranked)) :]
        keep = {*sorted(steps)[-self.config.keep_last :], *best}
        return [step in keep for step in steps]

    # --- restoring ----------------------------------------------------------------------------

    def restore(
        self, abstract: trees.Tree, step: int | None = None, *, subtree: str = ""
    ) -> Restored:
        """The newest intact step (or exactly `step`), placed by the shardings of `abstract`.

        Args:
          abstract: pytree of ShapeDtypeStruct with shardings (without one: the first device).
          step: None tries from the newest to the oldest, passing over damaged ones with a warning.
          subtree: restore only what lies under this path, as in "policy/params"; `abstract` is then
            that part. Otherwise the stored and the wanted arrays must be the same set.

        Raises:
          CheckpointMismatch: the step holds other arrays, shapes or dtypes; nothing is restored.
          CheckpointError: no step, or no intact step; lists the reason for each.
        """
        self.wait()
        steps = self.all_steps()[::-1] if step is None else [step]
        if not steps or (step is not None and step not in self.all_steps()):
            raise self._absent(step)
        wanted = trees.flatten(abstract)
        damaged: dict[int, str] = {}
        for candidate in steps:
            try:
                leaves, document = self._read(candidate, wanted, subtree)
            except (CheckpointMismatch, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # not a fault of the files
            except Exception as error:
                damaged[candidate] = _line(error)
                log.warning("%s: step %d is damaged: %s", self.folder, candidate, _line(error))
                continue
            # Only now is it certain that the reader works and the files were at fault.
            self._set_aside(damaged)
            tree = jax.tree.structure(abstract).unflatten(leaves)
            return Restored(tree, document["meta"], candidate)
        reasons = "; ".join(f"step {k}: {reason}" for k, reason in damaged.items())
        raise CheckpointError(f"{self.folder}: no intact checkpoint ({reasons})")

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The `meta` saved with a step (default: the newest readable), without its arrays."""
        return self.describe(step)[0]

    def describe(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """`meta`, and path → {"dtype", "shape", "digest"} of every array, of a step.

        step: None is the newest whose metadata can be read.

        Raises:
          CheckpointError: no such step, or its metadata is damaged.
        """
        steps = self.all_steps()[::-1] if step is None else [step]
        if not set(steps) & set(self.all_steps()):
            raise self._absent(step)
        for candidate in steps:
            try:
                document = self._document(candidate)
                return document["meta"], document["leaves"]
            except Exception as error:
                log.warning("%s: step %d is damaged: %s", self.folder, candidate, _line(error))
        raise CheckpointError(f"{self.folder}: no step with readable metadata among {steps}")

    def _absent(self, step: int | None) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: no step {'' if step is None else step} saved here; "
            f"steps present: {self.all_steps() or 'none'}"
        )

    def _read(
        self, step: int, wanted: dict[str, Any], subtree: str
    ) -> tuple[list[jax.Array], dict[str, Any]]:
        """The arrays of one step in the order of `wanted`, checked, and its metadata."""
        import orbax.checkpoint as ocp

        document = self._document(step)
        wanted = {"/".join(filter(None, (subtree, path))): x for path, x in wanted.items()}
        inside = lambda path: not subtree or f"{path}/".startswith(f"{subtree}/")  # noqa: E731
        stored = {path: x for path, x in document["leaves"].items() if inside(path)}
        trees.check(f"{self.folder}: step {step}", wanted, stored)
        leaves: dict[str, jax.Array] = {}
        like = {path: trees.abstract_data(x) for path, x in wanted.items()}
        for batch in trees.batches(like, BATCH_BYTES):
            args = ocp.args.PyTreeRestore(
                item=batch,
                restore_args=ocp.checkpoint_utils.construct_restore_args(batch),
                partial_restore=True,  # of what `check` has found complete
            )
            part = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
            found = digest.digests(part)
            if wrong := [path for path in part if found[path] != stored[path]["digest"]]:
                raise CheckpointError(f"content differs from its digest: {trees.some(wrong)}")
            leaves.update(part)
            if sum(x.nbytes for x in part.values()) > BATCH_BYTES // 8:
                gc.collect()  # Orbax leaves the buffers it read into in reference cycles
        return [trees.from_data(leaves[path], stored[path]) for path in wanted], document

    def _document(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return _unseal(self._manager.restore(step, args=args)["meta"])

    def _read_metric(self, step: int) -> float | None:
        try:
            return self._document(step)["metric"]
        except Exception as error:  # a damaged step must not keep the store from opening
            log.warning("%s: step %d has unreadable metadata: %s", self.folder, step, _line(error))
            return None

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if self.read_only or not damaged:
            return
        if self._primary:
            for step in damaged:
                target = self.folder / DAMAGED / f"{step}-{time.time_ns()}"
                target.parent.mkdir(exist_ok=True)
                os.rename(self.folder / str(step), target)
                log.warning("%s: step %d moved to %s", self.folder, step, target)
        self._manager.reload()

    def _empty_trash(self) -> None:
        if self._primary:
            for path in (self.folder / TRASH).glob("*"):
                shutil.rmtree(path, ignore_errors=True)


# --- metadata ---------------------------------------------------------------------------------


def _seal(document: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(document, sort_keys=True)
    except TypeError as error:
        raise CheckpointError(f"meta must hold JSON values only ({error})") from None
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    text = sealed["text"]
    if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
        raise CheckpointError("metadata differs from its digest")
    return json.loads(text)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
