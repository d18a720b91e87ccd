"""The readings of a window with their context, picked out of sorted columns.

What `context_before.sql` and `context_after.sql` ask a database, asked of
readings in memory: those that have left the database come from files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from core.samples import Floats, Times
from core.store.writer import Rows


@dataclass(frozen=True, slots=True)
class Picked:
    """The readings, and the points whose context would need readings from further away, should there be any."""

    rows: Rows
    short_before: frozenset[int]
    short_after: frozenset[int]


def with_context(rows: Rows, start_ns: int, end_ns: int, spread_ns: int, seen_to_ns: int) -> Picked:
    """Those of [start, end) and the context that `Store.readings` promises, of readings that are not bad.

    Args:
        rows: All there are from far enough before `start_ns` up to `seen_to_ns`.
    """
    chosen = np.zeros(len(rows), dtype=np.bool_)
    short_before: set[int] = set()
    short_after: set[int] = set()
    cuts = np.flatnonzero(np.diff(rows.point)) + 1
    for begin, stop in pairwise([0, *cuts.tolist(), len(rows)]):
        if begin == stop:
            continue
        point = int(rows.point[begin])
        time_ns, value, mine = rows.time_ns[begin:stop], rows.value[begin:stop], chosen[begin:stop]
        inside, after = np.searchsorted(time_ns, [start_ns, end_ns]).tolist()
        mine[inside:after] = True
        if not _before(time_ns, value, inside, spread_ns, mine):
            short_before.add(point)
        if not _after(time_ns, value, after, spread_ns, seen_to_ns, mine):
            short_after.add(point)
    return Picked(rows.take(chosen), frozenset(short_before), frozenset(short_after))


def _before(time_ns: Times, value: Floats, inside: int, spread_ns: int, mine: npt.NDArray[np.bool_]) -> bool:
    """Choose the last reading before, the first of its plateau, and the one before that; whether all are there."""
    if inside == 0:
        return False
    last = inside - 1
    reach = int(np.searchsorted(time_ns, time_ns[last] - spread_ns))
    broke = np.flatnonzero(_differs(value[reach:last], value[last]))
    first = reach + int(broke[-1]) + 1 if broke.size else reach
    mine[[max(0, first - 1), first, last]] = True
    return first > 0


def _after(
    time_ns: Times, value: Floats, after: int, spread_ns: int, seen_to_ns: int, mine: npt.NDArray[np.bool_]
) -> bool:
    """Choose the first reading after, the first with another value, and the one after that; whether all are there."""
    if after == time_ns.size:
        return False
    until_ns = int(time_ns[after]) + spread_ns
    reach = int(np.searchsorted(time_ns, until_ns, side="right"))
    other = np.flatnonzero(_differs(value[after + 1 : reach], value[after]))
    mine[after] = True
    if not other.size:
        return until_ns < seen_to_ns
    then = after + 1 + int(other[0])
    mine[then : then + 2] = True
    return then + 1 < time_ns.size


def _differs(value: Floats, one: float) -> npt.NDArray[np.bool_]:
    differs: npt.NDArray[np.bool_] = (value != one) & ~(np.isnan(value) & np.isnan(one))
    return differs
