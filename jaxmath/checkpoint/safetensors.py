"""The safetensors file format, and folders of such files: read tensor by tensor, written in place.

A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the
data; nothing in it is code. A weights folder comes from strangers, so the header is checked in
full before a byte of data is believed. Tensors are read with plain file reads, some rows at a time:
pages of a memory map would count as memory of this process until the file is closed.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxmath.checkpoint.errors import CheckpointError

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # the limit of the reference implementation


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. start: byte offset in the file."""

    file: pathlib.Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Rows begin … end-1 along the first dimension, freshly allocated."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        out = np.empty((end - begin, *self.shape[1:]), self.dtype)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.start + begin * row_bytes)
            view, filled = memoryview(out.reshape(-1).view(np.uint8)), 0
            while filled < len(view):
                if not (count := file.readinto(view[filled:])):
                    raise CheckpointError(f"{self.file}: ends inside tensor {self.name}")
                filled += count
        return out


def read_folder(folder: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder: `model.safetensors`, or the shards of its index.

    Raises:
      CheckpointError: no weights, a damaged file, or an index that does not match its shards.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; expected one with config.json and weights"
        )
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise CheckpointError(
                f"{folder}: has neither {SINGLE} nor {INDEX}; only safetensors weights are read "
                "(convert .bin or .pt files with their own tools first)"
            )
        return read_header(_inside(folder, SINGLE))
    weight_map = _read_index(folder / INDEX)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        for tensor in read_header(_inside(folder, name)).values():
            if tensor.name in tensors:
                first = tensors[tensor.name].file.name
                raise CheckpointError(f"{folder}: {tensor.name} is in both {first} and {name}")
            if weight_map.get(tensor.name) != name:
                raise CheckpointError(
                    f"{folder}: {name} holds {tensor.name}, which {INDEX} places in "
                    f"{weight_map.get(tensor.name, 'no file')}"
                )
            tensors[tensor.name] = tensor
    if missing := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(
            f"{folder}: {INDEX} names {missing[0]} in {weight_map[missing[0]]}, which lacks it"
        )
    return tensors


def _read_index(path: pathlib.Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        if all(isinstance(name, str) for name in weight_map.values()) and weight_map:
            return weight_map
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError(f"{path}: expected JSON with a weight_map of tensor name to file name")


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of that name in the folder; a stranger's index must not lead to other files.

    A link is followed only within the hub cache's own layout: snapshots/… → ../../blobs/….
    """
    path = folder / name
    if name != os.path.basename(name) or not name.endswith(".safetensors") or "\\" in name:
        raise CheckpointError(
            f"{folder}: {INDEX} points to {name!r}; expected the plain name of a .safetensors file "
            "in the same folder"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder}: {name} is missing; download the folder again")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real.parent not in (home, blobs):
        raise CheckpointError(f"{path}: is a link to {real}, outside its folder; copy the file")
    return path


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one file, after checking that their byte ranges tile it exactly.

    Raises:
      CheckpointError: not a safetensors file, truncated, or a header that contradicts itself.
    """

    def bad(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: {reason}; the file is damaged or not safetensors")

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise bad(f"has {size} bytes and states a header of {length}")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise bad("has a header nested too deep") from None
    except ValueError as error:
        raise bad(f"has no readable header ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(header, dict):
        raise bad("has a header that is not a mapping")
    header.pop("__metadata__", None)
    tensors, ranges = {}, []
    for name, entry in header.items():
        begin, end, shape, tag = _entry(entry, lambda why, name=name: bad(f"{name}: {why}"))
        if tag not in DTYPES:
            raise CheckpointError(
                f"{path}: {name} has dtype {tag}; supported: {', '.join(DTYPES)}; "
                "convert quantised or 64-bit weights first"
            )
        tensor = Tensor(path, name, DTYPES[tag], shape, 8 + length + begin)
        if tensor.nbytes != end - begin:
            raise bad(
                f"{name} of {tag}{list(shape)} needs {tensor.nbytes} bytes, has {end - begin}"
            )
        ranges.append((begin, end, name))
        tensors[name] = tensor
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            raise bad(f"{name} begins at byte {begin} of the data, expected {position}")
        position = end
    if position != size - 8 - length:
        raise bad(f"holds {size - 8 - length} bytes of data, its header describes {position}")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"{name!r} appears twice")
        seen[name] = value
    return seen


def _entry(entry: Any, bad) -> tuple[int, int, tuple[int, ...], str]:
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0  # noqa: E731
    try:
        (begin, end), shape, tag = entry["data_offsets"], entry["shape"], entry["dtype"]
        if not (whole(begin) and whole(end) and all(whole(size) for size in shape)):
            raise bad("has a negative or fractional offset or size")
    except (KeyError, TypeError) as error:
        raise bad("lacks dtype, shape or data_offsets") from error
    return begin, end, tuple(shape), str(tag)


class Writer:
    """Writes tensors of known shapes into shards, in any order and in parts.

    The files are laid out in the order of `shapes`; a shard is closed when the next tensor would
    take it past `max_shard_bytes`. Use as a context manager; at its end every byte is on disk.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
        max_shard_bytes: int,
    ):
        self.folder, self.dtype = folder, np.dtype(dtype)
        size = lambda name: math.prod(shapes[name]) * self.dtype.itemsize  # noqa: E731
        shards: list[list[str]] = [[]]
        filled = 0
        for name in shapes:
            if shards[-1] and filled + size(name) > max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size(name)
        self._files, self._places, weight_map = [], {}, {}
        for i, names in enumerate(shards):
            total = len(shards)
            file_name = SINGLE if total == 1 else f"model-{i + 1:05d}-of-{total:05d}.safetensors"
            file, data_start = _begin_file(folder / file_name, names, shapes, self.dtype)
            self._files.append(file)
            for name in names:
                self._places[name] = (file, data_start)
                data_start += size(name)
                weight_map[name] = file_name
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(map(size, shapes))},
                "weight_map": dict(sorted(weight_map.items())),
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def write(self, name: str, row: int, part: np.ndarray) -> None:
        """Puts `part`, some rows of tensor `name`, at row `row`."""
        file, start = self._places[name]
        assert part.dtype == self.dtype, f"{name}: {part.dtype} is not {self.dtype}"
        file.seek(start + row * math.prod(part.shape[1:]) * self.dtype.itemsize)
        # A view of the transposed data would be written in the wrong order.
        file.write(memoryview(np.ascontiguousarray(part).reshape(-1).view(np.uint8)))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc_info) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()


def _begin_file(path: pathlib.Path, names: Iterable[str], shapes, dtype: np.dtype):
    """Opens a file of the right size with its header written; the data is still zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        end = position + math.prod(shapes[name]) * dtype.itemsize
        header[name] = {
            "dtype": TAGS[dtype],
            "shape": list(shapes[name]),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    file = open(path, "wb")  # noqa: SIM115  the writer closes it
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + position)
    return file, 8 + len(text)
