"""What a compiled program moves through main memory and between devices.

Counted per instruction, from the program's text: what it reads of its operands and writes of its
result. Inside a fusion nothing is stored, so its operands count by the part of them that is used,
and its result by the part that is new: a token written into a cache in place is a token, not a
cache. Arrays in the chip's own memory are free, and copies into it count as the read they are.
"""

from __future__ import annotations

import dataclasses
import re

from jaxmath.plan.hlo import Array, Computation, Instruction, Program

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_NAMES_ONLY = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "optimization-barrier",
    "partition-id",
    "replica-id",
    "async-update",
    "async-done",
)
_SLICES = ("slice", "dynamic-slice", "gather", "slice-start")
_IN_PLACE = ("dynamic-update-slice", "scatter")
_SAME_ORDER = ("bitcast", "reshape")
_ELEMENT_BY_ELEMENT = (*_SAME_ORDER, "convert", "copy", "transpose", "bitcast-convert", "negate")


@dataclasses.dataclass(frozen=True)
class Loop:
    """A `while` and the computations that each of its turns runs."""

    instruction: Instruction
    condition: Computation
    body: Computation


@dataclasses.dataclass(frozen=True)
class Write:
    """A result stored in main memory; nbytes is the part of it that is new."""

    name: str
    opcode: str
    nbytes: int
    op_name: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices; nbytes is what each device puts in."""

    kind: str
    operands: tuple[Array, ...]
    nbytes: int
    op_name: str


def main_loop(program: Program) -> Loop:
    """The loop that moves most per turn, among those that the entry computation starts.

    Raises:
      ValueError: there is no loop.
    """
    loops = [
        Loop(i, *(program[name] for name in i.called))
        for _, i in _stored(program, program.entry, into_loops=False)
        if i.opcode == "while"
    ]
    if not loops:
        raise ValueError("the program has no loop; expected one that decodes token by token")
    return max(loops, key=lambda loop: accessed(program, loop.body))


def accessed(program: Program, computation: Computation, *, unknown_trips: int = 1) -> int:
    """Bytes read from and written to main memory by one run of `computation` on one device.

    Args:
      unknown_trips: turns assumed for inner loops whose number the compiler does not know.
    """
    total = 0
    for i in computation:
        inner = [accessed(program, c, unknown_trips=unknown_trips) for c in _runs(program, i)]
        if i.opcode == "while":
            turns = program.turns(computation, i)
            total += (unknown_trips if turns is None else turns) * sum(inner)
        elif i.opcode == "conditional":
            total += max(inner)
        elif inner:
            total += sum(inner)
        elif i.opcode not in _NAMES_ONLY:
            total += _read(program, computation, i) + sum(_written(program, computation, i))
    return total


def large_writes(program: Program, computation: Computation, nbytes: int) -> list[Write]:
    """Instructions that store `nbytes` or more anew: copies, where an update was meant in place."""
    found = []
    for owner, i in _stored(program, computation):
        if i.opcode in _NAMES_ONLY or list(_runs(program, i)):
            continue
        most = max(_written(program, owner, i), default=0)
        if most >= nbytes:
            found.append(Write(i.name, i.opcode, most, i.op_name))
    return found


def collectives(program: Program, loop: Loop) -> list[Collective]:
    """All exchanges of one turn of the loop, those in fusions and inner loops included, once."""
    found = []
    for start in (loop.body, loop.condition):
        for owner, i in program.reached(start):
            kind = i.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                arrays = tuple(a for name in i.operands for a in owner[name].shape)
                nbytes = sum(array.dense_nbytes for array in arrays)
                found.append(Collective(kind, arrays, nbytes, i.op_name))
    return found


# --- one instruction --------------------------------------------------------------------------


def _runs(program: Program, i: Instruction):
    """Computations whose own instructions store their results; those of a fusion do not."""
    if i.opcode in ("while", "call", "conditional", "async-start"):
        yield from (program[name] for name in i.called)


def _stored(program: Program, computation: Computation, into_loops: bool = True):
    """(computation, instruction) for each instruction that runs by itself."""
    for i in computation:
        yield computation, i
        if into_loops or i.opcode != "while":
            for inner in _runs(program, i):
                yield from _stored(program, inner, into_loops)


def _read(program: Program, computation: Computation, i: Instruction) -> int:
    if i.opcode.endswith("-done"):
        return 0  # counted where it started
    total = 0
    for name in dict.fromkeys(i.operands):
        for array in computation[name].shape:
            if array.space == 0:
                total += min(array.nbytes, _needed(program, i, name, array))
    return total


def _needed(program: Program, user: Instruction, operand: str, array: Array) -> int:
    """Bytes of `array` that `user` looks at, when it gets it as `operand`."""
    if user.opcode in _SLICES and user.operands[0] == operand:
        result = user.shape[1] if user.opcode == "slice-start" else user.shape[0]
        return result.size * array.nbytes // max(array.size, 1)
    if user.opcode in _IN_PLACE and user.operands[0] == operand:
        return 0
    if user.opcode == "fusion":
        inner = program[user.called[0]]
        positions = [k for k, name in enumerate(user.operands) if name == operand]
        return sum(_needed_inside(program, inner, inner.parameters[k], array) for k in positions)
    return array.nbytes


def _needed_inside(
    program: Program, computation: Computation, value: Instruction, array: Array
) -> int:
    if value.is_root:
        return array.nbytes
    total = 0
    for user in computation.users[value.name]:
        if user.opcode in _ELEMENT_BY_ELEMENT:
            total += _needed_inside(program, computation, user, array)
        else:
            total += _needed(program, user, value.name, array)
    return min(total, array.nbytes)


def _written(program: Program, computation: Computation, i: Instruction) -> list[int]:
    """Bytes that are new in each array of the result, 0 where it is not in main memory."""
    if i.opcode.endswith("-start"):
        return []  # counted where it is done
    if i.opcode == "fusion":
        inner = program[i.called[0]]
        if inner.root.opcode == "tuple":
            new = [_new_inside(program, inner, inner[name])[0] for name in inner.root.operands]
        else:
            new = _new_inside(program, inner, inner.root)
    elif i.opcode in _IN_PLACE:
        new = [_updates(computation, i)]
    elif i.opcode == "custom-call":
        new = _new_in_custom_call(i)
    else:
        new = [array.nbytes for array in i.shape]
    return [n if array.space == 0 else 0 for n, array in zip(new, i.shape, strict=True)]


def _new_inside(program: Program, computation: Computation, value: Instruction) -> list[int]:
    while value.opcode in _SAME_ORDER:
        value = computation[value.operands[0]]
    if value.opcode in _IN_PLACE and _is_parameter(computation, value.operands[0]):
        return [_updates(computation, value)]
    if value.opcode == "fusion" and len(value.shape) == 1:
        inner = program[value.called[0]]
        return _new_inside(program, inner, inner.root)
    return [array.nbytes for array in value.shape]


def _is_parameter(computation: Computation, name: str) -> bool:
    value = computation[name]
    while value.opcode in _SAME_ORDER:
        value = computation[value.operands[0]]
    return value.opcode == "parameter"


def _updates(computation: Computation, i: Instruction) -> int:
    position = 1 if i.opcode == "dynamic-update-slice" else 2
    return computation[i.operands[position]].nbytes


def _new_in_custom_call(i: Instruction) -> list[int]:
    new = [array.nbytes for array in i.shape]
    aliased = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", i.attributes)
    for index in re.findall(r"\{(\d*)\}: \(", aliased[1]) if aliased else ():
        new[int(index or 0)] = 0  # updated in place, by how much is the kernel's secret
    if '"__cu' in i.attributes and i.shape[-1].dtype in ("s8", "u8"):
        new[-1] = 0  # cuBLAS and cuDNN: scratch, not data
    return new
