"""Sets of reals as intervals: what inequalities leave over together."""

from jaxmath.verify import answers, evaluate
from jaxmath.verify.answers import Interval, Union, Value

INFINITE = {answers.INFINITY.node: 1, answers.MINUS_INFINITY.node: -1}


def order(first: Value, second: Value) -> int | None:
    """-1, 0 or 1 as the first of two bounds is less, equal or greater; None if that cannot be
    told."""
    ends = INFINITE.get(first.node, 0), INFINITE.get(second.node, 0)
    if any(ends):
        return (ends[0] > ends[1]) - (ends[0] < ends[1])
    return evaluate.order(first.node, second.node)


def parts(region: Interval | Union) -> tuple:
    return region.parts if isinstance(region, Union) else (region,)


def intersection(first: Interval | Union, second: Interval | Union) -> Interval | Union | None:
    """What lies in both; None if it is empty or the bounds cannot be compared."""
    common = []
    for a in parts(first):
        for b in parts(second):
            if not (isinstance(a, Interval) and isinstance(b, Interval)):
                return None
            orders = order(a.low, b.low), order(a.high, b.high)
            if None in orders:
                return None
            low, has_low = inner(orders[0], (a.low, a.has_low), (b.low, b.has_low))
            high, has_high = inner(-orders[1], (a.high, a.has_high), (b.high, b.has_high))
            if order(low, high) == -1:
                common.append(Interval(low, high, has_low, has_high))
    if not common:
        return None
    return common[0] if len(common) == 1 else Union(tuple(common))


def inner(comparison: int, first: tuple[Value, bool], second: tuple[Value, bool]):
    """The tighter of two lower bounds; of equal ones, the open one."""
    if comparison == 0:
        return first[0], first[1] and second[1]
    return first if comparison > 0 else second


def without(points: list[Value]) -> Interval | Union | None:
    """The reals except some points."""
    region: Interval | Union | None = answers.ALL_REALS
    for point in points:
        region = region and intersection(region, answers.half_line(point, "\\ne"))
    return region


def excludes(region: Interval | Union) -> bool:
    """Whether a region is what `x ≠ a` leaves."""
    return (
        isinstance(region, Union)
        and len(region.parts) == 2
        and region.parts[0].high == region.parts[1].low
    )
