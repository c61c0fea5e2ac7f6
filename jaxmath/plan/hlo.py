"""The text of a compiled program → its computations, instructions and arrays.

`compiled.as_text()` is XLA's optimised HLO, one instruction a line, in the order in which they run:

    %fusion.3 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%a, %b), kind=kLoop, calls=%fused.3, …

Read here are names, shapes, operands and called computations; `traffic` adds up what they move.
The grammar is the same for CPU, GPU and TPU; tiles, `T(…)`, and memory spaces, `S(…)`, are those
of a TPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?(\S+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation"
    r"|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_CONTINUED = re.compile(r'\n(?="|\}[^\n])')  # what a kernel says of itself takes lines of its own
_NAME = re.compile(r"%([^\s,(){}]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    tile: the minor dimensions are padded to multiples of it, () where the layout has none.
    space: of memory; 0 is the device's main one. TPU: 1 is on the chip, others are registers.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def dense_nbytes(self) -> int:
        """Without padding."""
        return math.ceil(self.size * _bits(self.dtype) / 8)

    @property
    def nbytes(self) -> int:
        """As laid out in memory, padding included."""
        if not self.tile:
            return self.dense_nbytes
        minor = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        dims = [self.dims[axis] for axis in reversed(minor)]  # major to minor
        dims = [1] * (len(self.tile) - len(dims)) + dims
        split = len(dims) - len(self.tile)
        tiled = [math.ceil(n / t) * t for n, t in zip(dims[split:], self.tile, strict=True)]
        return math.ceil(math.prod(dims[:split] + tiled) * _bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. shape: the leaves of a tuple, in order. attributes: what follows the operands."""

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls; a `while` calls its condition and its body."""
        groups = _CALLED.findall(self.attributes)
        return tuple(name.strip().lstrip("%") for g in groups for name in g.strip("{}").split(","))

    @functools.cached_property
    def op_name(self) -> str:
        """Where in the Python program it comes from, as JAX wrote it down; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @functools.cached_property
    def trip_count(self) -> int | None:
        """Of a `while`, where the compiler knows it."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.attributes)
        return int(found[1]) if found else None

    @functools.cached_property
    def body(self) -> str:
        """Of a `while`."""
        return re.search(r"body=%?([\w.\-]+)", self.attributes)[1]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.shape)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: Mapping[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self if i.is_root)

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """In the order of the caller's operands."""
        found = [i for i in self if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.arguments)))

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return {name: tuple(users) for name, users in found.items()}


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a module by name, and the one that runs first."""

    computations: Mapping[str, Computation]
    entry: Computation

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]

    def turns(self, owner: Computation, loop: Instruction) -> int | None:
        """How often a `while` in `owner` turns; None where only the data say.

        A TPU's compiler does not write it down. It is then read off a condition `counter < limit`
        the counter's first value, and what the body adds to it: 1 in scans, 2 where the compiler
        unrolled the exchange that goes with a product. Of a condition `counter < limit and …` it is
        the most that it may turn.
        """
        if loop.trip_count is not None:
            return loop.trip_count
        found = list(self._bounds(self[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]))
        if len(found) != 1:
            return None
        [(place, limit)] = found
        first = owner[loop.operands[0]]
        if first.opcode == "tuple":
            first = owner[first.operands[place]]
        start = int(first.arguments) if first.opcode == "constant" else 0
        return max(math.ceil((limit - start) / self._stride(self[loop.body], place)), 0)

    def _stride(self, body: Computation, place: int) -> int:
        """What a loop's body adds to the number at `place` of the carried tuple; 1 if not said."""
        if body.root.opcode != "tuple":
            return 1
        where, given, total = body, {}, 0
        i = body[body.root.operands[place]]
        while True:
            if i.name in given:  # from the inside of a fusion to what was given to it
                where, i, given = body, body[given[i.name]], {}
            elif i.opcode == "fusion" and where is body:
                where = self[i.called[0]]
                given = dict(zip((p.name for p in where.parameters), i.operands, strict=True))
                i = where.root
            elif i.opcode == "add":
                terms = [where[name] for name in i.operands]
                known = [body[given[t.name]] if t.name in given else t for t in terms]
                constants = [int(t.arguments) for t in known if t.opcode == "constant"]
                if len(constants) != 1:
                    return 1
                total += constants[0]
                i = next(t for t, k in zip(terms, known, strict=True) if k.opcode != "constant")
            else:
                return max(total, 1)

    def _bounds(self, condition: Computation) -> Iterator[tuple[int, int]]:
        """Of a loop's condition: (place in the carried tuple, constant it has to stay under)."""
        where, given = condition, {}
        if condition.root.opcode == "fusion":
            [name] = condition.root.called
            where = self[name]
            given = dict(
                zip((p.name for p in where.parameters), condition.root.operands, strict=True)
            )

        def resolved(name: str) -> Instruction:
            return condition[given[name]] if name in given else where[name]

        root = where.root
        tests = [where[name] for name in root.operands] if root.opcode == "and" else [root]
        for test in tests:
            if test.opcode == "compare" and "direction=LT" in test.attributes:
                counter, limit = (resolved(name) for name in test.operands)
                place = re.search(r"index=(\d+)", counter.attributes)
                if limit.opcode == "constant" and place is not None:
                    yield int(place[1]), int(limit.arguments)

    def reached(self, start: Computation) -> Iterator[tuple[Computation, Instruction]]:
        """All instructions that run under `start`, those of called computations included."""
        seen, waiting = {start.name}, [start]
        while waiting:
            computation = waiting.pop(0)
            for instruction in computation:
                yield computation, instruction
                for name in instruction.called:
                    if name not in seen:
                        seen.add(name)
                        waiting.append(self[name])


def parse(text: str) -> Program:
    """`compiled.as_text()` → Program.

    Raises:
      ValueError: no entry computation: not the text of an HLO module.
    """
    computations: dict[str, Computation] = {}
    entry = name = None
    body: dict[str, Instruction] = {}
    for line in _CONTINUED.sub(" ", text).splitlines():
        if found := _HEADER.match(line):
            name, body = found[2], {}
            entry = name if found[1] else entry
        elif name is not None and line == "}":
            computations[name] = Computation(name, body)
            name = None
        elif name is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], is_root=bool(found[1]))
            body[instruction.name] = instruction
    if entry is None:
        raise ValueError("no ENTRY computation; expected the text of a compiled HLO module")
    return Program(computations, computations[entry])


def _instruction(name: str, rest: str, *, is_root: bool) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)  # /*index=5*/
    end = _closing(rest) + 1 if rest[0] == "(" else rest.index(" ")
    opcode, _, _ = rest[end:].strip().partition("(")
    start = rest.index("(", end)
    stop = start + _closing(rest[start:])
    arguments = rest[start + 1 : stop]
    return Instruction(
        name=name,
        opcode=opcode,
        shape=_arrays(rest[:end]),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[stop + 1 :],
        is_root=is_root,
    )


def _closing(text: str) -> int:
    """Where the parenthesis closes that `text` begins with; quotes may hold others."""
    depth, quoted = 0, False
    for i, letter in enumerate(text):
        if letter == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and letter in "()":
            depth += 1 if letter == "(" else -1
            if depth == 0:
                return i
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


@functools.lru_cache(maxsize=4096)
def _arrays(shape: str) -> tuple[Array, ...]:
    arrays = []
    for dtype, dims, layout in _SHAPE.findall(shape):
        order, _, tiles = layout.partition(":")
        numbers = lambda text: tuple(int(n) for n in re.findall(r"\d+", text))  # noqa: E731
        tile = re.search(r"T\(([\d,]+)\)", tiles)
        space = re.search(r"S\((\d+)\)", tiles)
        arrays.append(
            Array(
                dtype,
                numbers(dims),
                numbers(order),
                numbers(tile[1]) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return tuple(arrays)


def _bits(dtype: str) -> int:
    """Of one element: the first number in the name; u32 is 32, bf16 16, f8e4m3fn 8."""
    if dtype in ("token", "opaque"):
        return 0
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8  # pred
