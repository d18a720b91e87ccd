"""What an OPC UA server says, as rows of slots: node ids, values, statuses and whose clock is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from asyncua import ua

from collector.delivery import plausible
from collector.drivers.opcua_wire import NO_TIME, Values
from collector.payload import number_of
from core import quality
from core.clock import NS_PER_S
from core.samples import Flags, Floats, Indices, Statuses, Times

CLOCK_TOLERANCE_S: Final = 5.0

_NOT_THERE: Final = (ua.StatusCodes.BadNodeIdUnknown, ua.StatusCodes.BadNodeIdInvalid)
# The server's queue was too short for what came between two answers (Part 4, 7.39.1).
_OVERFLOW: Final = 0x480


@dataclass(slots=True)
class Node:
    """One node of the server and the slots it feeds: (slot, element or None)."""

    node_id: str
    feeds: list[tuple[int, int | None]]
    period_s: float
    deadband: float  # raw, 0 for none
    handle: int = 0
    resolved: ua.NodeId | None = None


@dataclass(slots=True, eq=False)
class Rows:
    """Raw samples, one a row: shapes (n,), as `Delivery.batch` takes them."""

    slot: Indices
    time_ns: Times
    raw: Floats
    status: Statuses

    def __len__(self) -> int:
        return int(self.slot.size)

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, float, int]]) -> Rows:
        slot, time_ns, raw, status = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            np.array(slot, dtype=np.int32),
            np.array(time_ns, dtype=np.int64),
            np.array(raw, dtype=np.float64),
            np.array(status, dtype=np.int16),
        )

    def take(self, rows: npt.NDArray[np.intp] | Flags) -> Rows:
        return Rows(self.slot[rows], self.time_ns[rows], self.raw[rows], self.status[rows])


class Feeds:
    """Which slots each node feeds, by its handle."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        counts = [len(node.feeds) for node in nodes]
        self._count = np.array(counts, dtype=np.intp)
        self._start = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.intp)
        feeds = [feed for node in nodes for feed in node.feeds]
        self._slot = np.array([slot for slot, _ in feeds], dtype=np.int32)
        self._element = np.array([-1 if element is None else element for _, element in feeds], dtype=np.intp)

    def rows_of(self, values: Values, arrival_ns: int, last_status: Statuses, standing: bool) -> Rows:
        """Values as rows of the slots they feed.

        Args:
            last_status: Of each slot, before these values.
            standing: Whether they are what holds now, however old; else only those behind a bad status are.
        """
        count = self._count[values.handle]
        row = np.repeat(np.arange(len(values)), count)
        feed = np.arange(row.size) - np.repeat(np.cumsum(count) - count, count)
        feed += self._start[values.handle][row]
        slot = self._slot[feed]
        raw = values.number[row]
        status = (values.code >> 16).astype(np.uint16).view(np.int16)[row]
        status[np.isin(values.code, _NOT_THERE)[row]] = quality.BAD_CONFIGURATION_ERROR
        element = self._element[feed]
        own = np.where((element >= 0) & ~np.isnan(raw), quality.BAD_CONFIGURATION_ERROR, quality.GOOD)
        for i in np.flatnonzero(np.isin(row, list(values.other))) if values.other else ():
            raw[i], own[i] = _element(values.other[int(row[i])], int(element[i]))
        status = np.where((own != quality.GOOD) & (status >= 0), own, status).astype(np.int16)
        stands = np.full(row.size, True) if standing else _behind_bad(slot, status, last_status)
        time_ns, doubtful = times_of(values.source_ns[row], values.server_ns[row], arrival_ns, stands)
        status[doubtful & (status == quality.GOOD)] = quality.UNCERTAIN
        return Rows(slot, time_ns, raw, status)


def overflows(values: Values) -> int:
    """Behind how many of them the server had to drop others."""
    return int(np.count_nonzero(values.code & _OVERFLOW == _OVERFLOW))


def resolved_node(node_id: str, namespaces: Sequence[str]) -> ua.NodeId | None:
    """`nsu=urn:x;s=y` by the server's own namespace table; None where it cannot be meant here."""
    if node_id.startswith("nsu="):
        uri, _, rest = node_id[4:].partition(";")
        if uri not in namespaces:
            return None
        node_id = f"ns={namespaces.index(uri)};{rest}"
    try:
        return ua.NodeId.from_string(node_id)
    except (ua.UaError, ValueError):
        return None


def times_of(source_ns: Times, server_ns: Times, arrival_ns: int, standing: Flags) -> tuple[Times, Flags]:
    """When values were so, and whether that is in doubt; shapes (n,), NO_TIME where a time is not there.

    The source's time stands unless the server's differs by more than five seconds. A value that
    stands (a read, the first of a subscription) may well be older than that: it is dated by the
    server, without doubt. A change so dated, or any time in the future, comes from a wrong clock.
    """
    tolerance_ns = int(CLOCK_TOLERANCE_S * NS_PER_S)
    by_source, by_server = source_ns != NO_TIME, server_ns != NO_TIME
    both = by_source & by_server
    apart = both & (np.abs(source_ns - server_ns) > tolerance_ns)
    old = by_source & ~both & standing & (arrival_ns - source_ns > tolerance_ns)
    time_ns = np.where(by_source & ~apart, source_ns, server_ns)
    time_ns = np.where(old | ~(by_source | by_server), arrival_ns, time_ns)
    doubtful = apart & ((source_ns > server_ns) | ~standing)
    believed = plausible(time_ns, arrival_ns)
    return np.where(believed, time_ns, arrival_ns), doubtful | ~believed


def _behind_bad(slot: Indices, status: Statuses, last_status: Statuses) -> Flags:
    """Which rows are the first of their slot after a bad status."""
    order = np.argsort(slot, kind="stable")
    in_order, before = slot[order], last_status[slot[order]]
    again = np.flatnonzero(in_order[1:] == in_order[:-1]) + 1
    before[again] = status[order][again - 1]
    behind = np.empty(slot.size, dtype=np.bool_)
    behind[order] = quality.is_bad(before)
    return behind


def _element(content: Any, element: int) -> tuple[float, int]:
    """One element of an array, or the number a text says; NaN and bad where it is none."""
    if element >= 0:
        if not isinstance(content, list | tuple) or element >= len(content):
            return np.nan, quality.BAD_CONFIGURATION_ERROR
        content = content[element]
    if isinstance(content, list | tuple):
        return np.nan, quality.BAD_CONFIGURATION_ERROR
    if content is None or isinstance(content, float):
        return np.nan if content is None else content, quality.GOOD
    number, status = number_of(content)
    return number, quality.BAD_DECODING_ERROR if status == quality.BAD_CONFIGURATION_ERROR else status
