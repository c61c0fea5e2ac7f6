"""Arithmetic and exchanges of a compiled program, with every turn of its loops.

XLA's own count takes the body of a loop once, and a scan over layers is a loop. Here a loop counts
as often as it turns, as far as the compiler knows it. Counted are matrix products: the rest of a
language model's arithmetic is a percent of them.

Exchanges are what a device receives over its links, in rings of n devices:

    all-gather, reduce-scatter, all-to-all   (n - 1) / n of the larger side, once
    all-reduce                               the same, twice
    collective-permute and others            all of it
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from jaxmath.model.config import ModelConfig
from jaxmath.plan.hlo import Array, Computation, Instruction, Program
from jaxmath.plan.traffic import COLLECTIVES

_CUBLAS = re.compile(r"\"lhs_contracting_dimensions\":\[([^\]]*)\]")
_CUDNN = re.compile(r"__cudnn\$fmha\w+")
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")
_ESTIMATE = re.compile(r"\"cost_estimate\":\{[^{}]*\"flops\":\"?(\d+)")


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one run on one device.

    flops: of matrix products. counts, received: exchanges and their bytes by kind.
    """

    flops: float = 0.0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def total_received(self) -> float:
        return self.received.total()


@dataclasses.dataclass(frozen=True)
class _Part:
    """Of one run of a computation: what its loops did, and by channel its own exchanges.

    A TPU starts an exchange in one fusion, goes on with it in others, and ends it in another yet;
    all of them show it, with one channel.
    """

    flops: float = 0.0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    own: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)

    def __add__(self, other: _Part) -> _Part:
        return _Part(
            self.flops + other.flops,
            self.counts + other.counts,
            self.received + other.received,
            self.own | other.own,
        )

    def times(self, turns: int) -> Work:
        counts, received = self.counts.copy(), self.received.copy()
        for kind, nbytes in self.own.values():
            counts[kind] += 1
            received[kind] += nbytes
        scaled = lambda counter: collections.Counter({k: v * turns for k, v in counter.items()})  # noqa: E731
        return Work(self.flops * turns, scaled(counts), scaled(received))


def of(program: Program, start: Computation, *, unknown_turns: int = 1) -> Work:
    """All that runs under `start`; of the branches of a choice, the one with most arithmetic.

    Args:
      unknown_turns: of loops whose number of turns the compiler does not know.
    """

    # On a TPU a fusion may hold a piece of an exchange, and all its pieces have one channel.
    # Elsewhere a channel says nothing: under `shard_map` every exchange has the same.
    fused = {name for _, i in program.reached(start) if i.opcode == "fusion" for name in i.called}

    @functools.cache
    def computation(name: str) -> _Part:
        return sum((one(program[name], i) for i in program[name]), _Part())

    def one(owner: Computation, i: Instruction) -> _Part:
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            # On a TPU a reduce-scatter is an all-reduce of which a part is kept, in a fusion.
            kind = "reduce-scatter" if "all-reduce-scatter" in owner.name else kind
            found = re.search(r"channel_id=(\d+)", i.attributes)
            name = found[1] if found and owner.name in fused else i.name
            return _Part(own={name: (kind, _received(owner, i, kind))})
        if i.opcode in ("async-update", "async-done"):
            return _Part()
        inner = [computation(name) for name in i.called]
        if i.opcode == "while":
            turns = program.turns(owner, i)
            done = sum(inner, _Part()).times(unknown_turns if turns is None else turns)
            return _Part(done.flops, done.counts, done.received)
        if i.opcode == "conditional":
            return max(inner, key=lambda part: (part.flops, part.times(1).total_received))
        return sum(inner, _Part(_flops(owner, i)))

    return computation(start.name).times(1)


def forward_flops(model: ModelConfig, context: float, *, head: bool = True) -> float:
    """What the model asks for per token: 2 per weight of a matrix, 4 per number of a key it sees.

    Args:
      context: tokens that a token sees, on average: half a row of causal attention.
      head: whether the logits are asked for.
    """
    tables = 1 if model.tie_embeddings else 2
    matrices = model.num_params - tables * model.vocab_size * model.embed_dim
    matrices += model.vocab_size * model.embed_dim if head else 0
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * context
    return 2.0 * matrices + attention


# --- one instruction --------------------------------------------------------------------------


def _flops(owner: Computation, i: Instruction) -> float:
    if i.opcode == "dot":
        return _dot(i, owner[i.operands[0]].shape[0], _numbers(i, r"lhs_contracting_dims={([^}]*)"))
    if i.opcode == "convolution":
        return _convolution(owner, i)
    if i.opcode == "custom-call":
        if found := _CUDNN.search(i.attributes):
            return _cudnn(owner, i, 5 if "Backward" in found[0] else 2)
        if found := _SPLASH.search(f"{i.name} {i.op_name}"):
            return _splash(owner, i, {"fwd": 2, "dq": 3, "dkv": 4}[found[1]])
        if found := _CUBLAS.search(i.attributes):
            axes = tuple(int(n) for n in re.findall(r"\d+", found[1]))
            return _dot(i, owner[i.operands[0]].shape[0], axes)
        if found := _ESTIMATE.search(i.attributes):  # a kernel that says what it does
            return float(found[1])
    return 0.0


def _dot(i: Instruction, lhs: Array, contracted: tuple[int, ...]) -> float:
    return 2.0 * i.shape[0].size * math.prod(lhs.dims[axis] for axis in contracted)


def _cudnn(owner: Computation, i: Instruction, products: int) -> float:
    """Attention: so many products of each query with each key it may see. q_BTNH, k_BSKH, …"""
    q_BTNH, k_BSKH = (owner[name].shape[0] for name in i.operands[:2])
    num_keys = k_BSKH.dims[1]
    share = (num_keys + 1) / (2 * num_keys) if "CAUSAL" in i.attributes else 1.0
    return 2.0 * products * q_BTNH.size * num_keys * share


def _splash(owner: Computation, i: Instruction, products: int) -> float:
    """The same on a TPU, of whole blocks. The first operand has a number for each block of queries
    and keys, of which those above the diagonal are skipped; then q_BNTH and k_BKSH, where there is
    a B."""
    blocks, *rest = (owner[name].shape[0] for name in i.operands)
    q_BNTH, k_BKSH, *_ = (array for array in rest if "f" in array.dtype)
    share = (blocks.dims[-1] + 1) / (2 * blocks.dims[-1])
    return 2.0 * products * q_BNTH.size * k_BKSH.dims[-2] * share


def _convolution(owner: Computation, i: Instruction) -> float:
    """A TPU's matrix products are convolutions; those with a batch dilate it, mostly into zeros.

    Only the products of two numbers that are there count.
    """
    lhs, rhs = (owner[name].shape[0] for name in i.operands[:2])
    result = i.shape[0]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    of_lhs, of_rhs, of_result = labels.groups()
    size = lambda array, label, axis: array.dims[label.index(axis)]  # noqa: E731
    taps = 1
    for k in range(sum(letter.isdigit() for letter in of_lhs)):
        window = _Window.of(i.attributes, k)
        taps *= window.products(
            size(lhs, of_lhs, str(k)), size(rhs, of_rhs, str(k)), size(result, of_result, str(k))
        )
    batch = size(lhs, of_lhs, "b") // _group(i, "batch")
    outer = batch * size(result, of_result, "f") * size(rhs, of_rhs, "i")
    return 2.0 * outer * taps


@dataclasses.dataclass(frozen=True)
class _Window:
    """One dimension of a convolution's window."""

    stride: int
    low: int  # padding, negative where it cuts
    lhs_dilate: int
    rhs_dilate: int

    @classmethod
    def of(cls, attributes: str, axis: int) -> _Window:
        window = re.search(r"window={([^}]*)}", attributes)[1]
        fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", window))
        get = lambda name, default: fields[name].split("x")[axis] if name in fields else default  # noqa: E731
        return cls(
            int(get("stride", 1)),
            int(get("pad", "0_0").split("_")[0]),
            int(get("lhs_dilate", 1)),
            int(get("rhs_dilate", 1)),
        )

    def products(self, num_in: int, num_taps: int, num_out: int) -> int:
        """Pairs of an output and a tap that meet a number of the input."""
        out = np.arange(num_out, dtype=np.int64)[:, None] * self.stride - self.low
        place = out + np.arange(num_taps, dtype=np.int64)[None] * self.rhs_dilate
        there = (place >= 0) & (place % self.lhs_dilate == 0) & (place // self.lhs_dilate < num_in)
        return int(np.count_nonzero(there))


def _group(i: Instruction, what: str) -> int:
    found = re.search(rf"{what}_group_count=(\d+)", i.attributes)
    return int(found[1]) if found else 1


def _numbers(i: Instruction, pattern: str) -> tuple[int, ...]:
    found = re.search(pattern, i.attributes)
    return tuple(int(n) for n in re.findall(r"\d+", found[1])) if found else ()


def _received(owner: Computation, i: Instruction, kind: str) -> float:
    put_in = sum(array.dense_nbytes for name in i.operands for array in owner[name].shape)
    n = group_size(i.attributes)
    share = (n - 1) / n if n else 1.0
    match kind:
        case "all-gather":
            return put_in * ((n - 1) if n else 1)
        case "all-reduce":
            return 2 * put_in * share
        case "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
            return put_in * share
    return put_in


def group_size(attributes: str) -> int | None:
    """Devices that exchange with each other; None: not said.

    Written as `{{0,1},{2,3}}`, `[2,4]<=[8]`, or `mesh['a'=2,'b'=4] {'b'}`.
    """
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return None
