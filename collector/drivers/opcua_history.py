"""What a server kept while nobody listened: a gap closed by HistoryRead, where nodes have a history.

The gap's marks stay where they are, for they were true when they were made. A
history of changes says by its silence that a value stood; so the value that
stood at a mark is repeated a microsecond after it, provided the history goes on
behind the mark and so is known to cover it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np
from asyncua import ua

from collector.drivers.opcua_decode import Feeds, Node, Rows
from collector.drivers.opcua_session import Service, Session
from collector.drivers.opcua_wire import NO_TIME, Values, values_of
from core import quality
from core.clock import NS_PER_S, datetime_of
from core.samples import NS_PER_US, Floats, Statuses, Times

LONGEST_GAP_S: Final = 7 * 86_400  # what is older is not believed of a live source either
VALUES_PER_PAGE: Final = 1_000
_READABLE: Final = 4  # AccessLevel: the history can be read (Part 3, 8.57)

Row = tuple[int, int, float, int]  # slot, time, raw, status


@dataclass(slots=True)
class Gap:
    """What was known of each slot when the link was lost, and every mark made since.

    Attributes:
        since_ns: Shape (n,), time of the last value, 0 where there was none.
        before: The last row of each slot before the gap.
    """

    since_ns: Times
    status: Statuses
    raw: Floats
    marks_ns: list[int] = field(default_factory=list)

    def row_before(self, slot: int) -> Row | None:
        if self.since_ns[slot] == 0 or self.status[slot] < 0:
            return None
        return slot, int(self.since_ns[slot]), float(self.raw[slot]), int(self.status[slot])


async def nodes_with_history(session: Session, nodes: Sequence[Node]) -> list[Node]:
    """Those of the nodes that have a history we may read."""
    found = []

    async def ask(part: list[Node]) -> None:
        ids = [node.resolved for node in part]
        answers = await session.services.read_attributes(ids, ua.AttributeIds.UserAccessLevel)
        for node, answer in zip(part, answers, strict=True):
            level = answer.Value.Value if answer.Value is not None else None
            if isinstance(level, int) and level & _READABLE:
                found.append(node)

    await session.split(Service.READ, nodes, ask)
    return found


async def read_history(
    session: Session, nodes: Sequence[Node], start_ns: int, end_ns: int
) -> AsyncIterator[Values]:
    """The raw values of nodes in [start_ns, end_ns], page by page, each of one node and later than its last."""
    details = ua.ReadRawModifiedDetails(
        IsReadModified=False,
        StartTime=datetime_of(max(start_ns, end_ns - LONGEST_GAP_S * NS_PER_S)),
        EndTime=datetime_of(end_ns),
        NumValuesPerNode=ua.UInt32(VALUES_PER_PAGE),
        ReturnBounds=False,
    )
    wanted: dict[int, bytes | None] = dict.fromkeys(range(len(nodes)))
    newest: dict[int, datetime] = {}
    alone: list[Node] = []
    while wanted:
        results = await session.services.history_read(
            ua.HistoryReadParameters(
                HistoryReadDetails=details,
                TimestampsToReturn=ua.TimestampsToReturn.Both,
                ReleaseContinuationPoints=False,
                NodesToRead=[
                    ua.HistoryReadValueId(NodeId=nodes[i].resolved, IndexRange="", ContinuationPoint=point)
                    for i, point in wanted.items()
                ],
            )
        )
        going_on: dict[int, bytes | None] = {}
        for i, result in zip(wanted, results, strict=True):
            values = getattr(result.HistoryData, "DataValues", None)
            if result.StatusCode.value == ua.StatusCodes.BadNoContinuationPoints and len(nodes) > 1:
                alone.append(nodes[i])  # the server has too few places for as many at once
            if not result.StatusCode.is_good() or not values:
                continue
            yield values_of((nodes[i].handle, value) for value in values)
            last = values[-1].SourceTimestamp or values[-1].ServerTimestamp
            # Some servers give the same point all the way, so progress is told by the times.
            if result.ContinuationPoint and last is not None and (i not in newest or last > newest[i]):
                going_on[i], newest[i] = result.ContinuationPoint, last
        wanted = going_on
    for node in alone:
        async for page in read_history(session, [node], start_ns, end_ns):
            yield page


def history_rows(feeds: Feeds, values: Values, until_ns: int, n_slots: int) -> Rows:
    """Rows of a page of history; what has no time of its own is worth nothing here."""
    good = np.zeros(n_slots, dtype=np.int16)
    undated = (values.source_ns == NO_TIME) & (values.server_ns == NO_TIME)
    values.server_ns[undated] = until_ns + NS_PER_S
    rows = feeds.rows_of(values, until_ns + NS_PER_S, good, standing=False)
    return rows.take(rows.time_ns <= until_ns)


def across_marks(before: Row | None, rows: Sequence[Row], marks_ns: Sequence[int]) -> list[Row]:
    """Repeats of the value that stood at each mark, a microsecond behind it; rows are of one slot, by time."""
    repeats: list[Row] = []
    for mark_ns in marks_ns:
        standing, after = before, False
        for row in rows:
            if row[1] > mark_ns:
                after = row[1] > mark_ns + NS_PER_US
                break
            standing = row
        if after and standing is not None and standing[3] >= 0 and standing[3] < quality.UNCERTAIN_FROM:
            repeats.append((standing[0], mark_ns + NS_PER_US, standing[2], standing[3]))
    return repeats
