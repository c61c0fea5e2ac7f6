"""A plan as people read it: what runs where, one table, the verdict last."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmath.plan import programs
from jaxmath.plan.chips import GIB
from jaxmath.plan.verdicts import Plan, Row

HEADER = (
    *("program", "args", "temp", "beside", "peak"),
    *("TFLOP", "/model", "GB moved", "GB linked", "at least", "bound by", "compiled"),
)
TIGHT = 0.97  # share of a device's memory above which an allocator's fragments may decide
ON_THE_LEFT = ("program", "bound by")

LEGEND = (
    "per device and run (a decode step: one token of each slot); memory in GiB: peak = args + temp "
    "+ beside,",
    "beside being what others keep there meanwhile. /model: arithmetic over what the model asks "
    "for; above 1 is",
    "recomputation and scores behind the mask.",
)


def text(title: Sequence[str], plan: Plan) -> str:
    """The whole report; `title` are the lines of its head."""
    blocks = [title]
    if plan.rows:
        blocks += [table(plan), LEGEND]
    blocks += [[*_links(plan), *_resident(plan), *_step(plan)], [*_fullest(plan), verdict(plan)]]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def table(plan: Plan) -> list[str]:
    """A line for each program, columns aligned."""
    cells = [HEADER, *(_cells(row, plan) for row in plan.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple("─" * width for width in widths))
    return [
        "  ".join(
            word.ljust(width) if name in ON_THE_LEFT else word.rjust(width)
            for word, width, name in zip(line, widths, HEADER, strict=True)
        ).rstrip()
        for line in cells
    ]


def verdict(plan: Plan) -> str:
    """The last line: fits, or what does not."""
    have = f"{gib(plan.chip.memory)} GiB of a {plan.chip.name}"
    if plan.job.refusals:
        return "DOES NOT FIT: " + "\n".join(plan.job.refusals)
    if not plan.fits:
        rows = ", ".join(f"{row.program.name} takes {gib(row.total)}" for row in plan.too_large)
        return f"DOES NOT FIT: {rows} of the {have}"
    row = plan.fullest
    share = row.total / plan.chip.memory
    tight = ", which leaves little for fragments" if share > TIGHT else ""
    return (
        f"FITS: {gib(row.total)} of the {have} at the fullest, {row.program.name} "
        f"({share:.0%}){tight}"
    )


def _cells(row: Row, plan: Plan) -> tuple[str, ...]:
    cost, name = row.cost, row.program.name
    compiled = f"{cost.compile_s:.0f} s"
    peak = gib(row.total) + (" !" if row.total > plan.chip.memory or cost.full else "")
    if cost.full:
        return (name, "", "", gib(row.beside), peak, *("",) * 5, "refused for it", compiled)
    model = row.program.model_flops / plan.num_devices
    return (
        name,
        gib(cost.arguments),
        gib(cost.temporaries + cost.results),
        gib(row.beside),
        peak,
        amount(cost.flops / 1e12),
        f"{cost.flops / model:.2f}" if model else "",
        amount(cost.moved / 1e9),
        amount(cost.work.total_received / 1e9),
        seconds(row.bound.seconds),
        row.bound.by,
        compiled,
    )


def _links(plan: Plan) -> list[str]:
    lines = []
    for row in plan.rows:
        done = row.cost.work
        kinds = [
            f"{done.counts[kind]:,.0f} {kind} {amount(nbytes / 1e9)}"
            for kind, nbytes in done.received.most_common()
        ]
        if kinds:
            lines.append(f"links, GB: {row.program.name}: {', '.join(kinds)}")
    return lines


def _resident(plan: Plan) -> list[str]:
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.job.parts.items())
    lines = [f"resident, GiB: {parts}"]
    if plan.job.host:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.job.host.items())
        whole = sum(plan.job.host.values()) * plan.num_devices
        lines.append(f"in the hosts' memory, GiB per device: {parts} ({gib(whole)} in all)")
    return lines


def _fullest(plan: Plan) -> list[str]:
    """What the memory is taken by at its fullest, the largest first."""
    row = plan.fullest
    if row is None:
        return []
    names = (*row.program.holds, *row.program.beside)
    shares = {name: plan.job.parts[name] for name in names}
    shares["its own"] = max(row.total - sum(shares.values()), 0)
    largest = sorted(shares.items(), key=lambda share: -share[1])
    taken = " + ".join(f"{name} {gib(size)}" for name, size in largest if size > 0.001 * row.total)
    return [f"{row.program.name}, GiB: {taken}"]


def _step(plan: Plan) -> list[str]:
    if not plan.is_complete:
        return []
    lines = [f"step: {plan.job.step}"]
    part = [row for row in plan.rows if row.program.runs]
    if len(part) > 1:
        shares = [
            f"{program.runs:,.0f} x {program.name} {seconds(program.runs * row.bound.seconds)}"
            for row, program in ((row, row.program) for row in part)
        ]
        lines.append(f"at least {seconds(plan.bound_s)}: {' + '.join(shares)}")
    else:
        lines.append(f"at least {seconds(plan.bound_s)}")
    estimate = plan.bound_s / programs.REACHED
    lines.append(
        f"about {seconds(estimate)}, {plan.job.tokens / estimate:,.0f} tokens/s, at "
        f"{programs.REACHED:.0%} of these speeds, which good programs reach; none was measured here"
    )
    return [*lines, *plan.job.notes]


def gib(nbytes: float) -> str:
    """Two digits behind the point, and more where these would be zeros."""
    value = nbytes / GIB
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def amount(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.1g}"


def seconds(value: float) -> str:
    """In the unit that reads well."""
    if value >= 60:
        return f"{value / 60:.1f} min"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
