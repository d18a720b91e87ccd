"""What an OPC UA server says, as rows of slots: node ids, values, statuses and whose clock is believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from asyncua import ua

from collector.delivery import plausible
from core import quality
from core.clock import NS_PER_S
from core.samples import NS_PER_US

CLOCK_TOLERANCE_S: Final = 5.0
Row = tuple[int, int, float, int]  # slot, time, raw, status

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Node:
    """One node of the server and the slots it feeds: (slot, element or None)."""

    node_id: str
    feeds: list[tuple[int, int | None]]
    period_s: float
    deadband: float  # raw, 0 for none
    resolved: ua.NodeId | None = None


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


def rows_of(node: Node, value: ua.DataValue, arrival_ns: int, standing: bool) -> Iterator[Row]:
    """A value of a node as rows of the slots it feeds."""
    code = value.StatusCode.value if value.StatusCode is not None else 0
    status = quality.status(code)
    time_ns, doubtful = time_of(value, arrival_ns, standing)
    if code in (ua.StatusCodes.BadNodeIdUnknown, ua.StatusCodes.BadNodeIdInvalid):
        status = quality.BAD_CONFIGURATION_ERROR
    elif doubtful and status == quality.GOOD:
        status = quality.UNCERTAIN
    content = value.Value.Value if value.Value is not None else None
    for slot, element in node.feeds:
        raw, own_status = _element(content, element)
        yield slot, time_ns, raw, status if status < 0 or own_status == quality.GOOD else own_status


def history_rows(node: Node, values: Sequence[ua.DataValue], until_ns: int) -> list[Row]:
    """Rows of a page of history; what has no time of its own is worth nothing here."""
    dated = (one for one in values if one.SourceTimestamp is not None or one.ServerTimestamp is not None)
    rows = [row for one in dated for row in rows_of(node, one, until_ns + 1, standing=False)]
    return [row for row in rows if row[1] <= until_ns]


def time_of(value: ua.DataValue, arrival_ns: int, standing: bool) -> tuple[int, bool]:
    """When a value was so, and whether that is in doubt.

    The source's time stands unless the server's differs by more than five seconds. A value that
    stands (a read, the first of a subscription) may well be older than that: it is dated by the
    server, without doubt. A change so dated, or any time in the future, comes from a wrong clock.
    """
    source_ns, server_ns = _given(value.SourceTimestamp), _given(value.ServerTimestamp)
    if source_ns is None or server_ns is None:
        time_ns = source_ns if source_ns is not None else server_ns
        if time_ns is None:
            return arrival_ns, False
        if standing and source_ns is not None and source_ns < arrival_ns:
            time_ns = arrival_ns if arrival_ns - source_ns > CLOCK_TOLERANCE_S * NS_PER_S else source_ns
    elif abs(source_ns - server_ns) <= CLOCK_TOLERANCE_S * NS_PER_S:
        time_ns = source_ns
    else:
        doubtful = source_ns > server_ns or not standing
        return (server_ns, doubtful) if plausible(server_ns, arrival_ns) else (arrival_ns, True)
    return (time_ns, False) if plausible(time_ns, arrival_ns) else (arrival_ns, True)


def _given(moment: datetime | None) -> int | None:
    """A timestamp in ns; the ends of the wire's range, 1601 and 9999, mean none (Part 6, 5.2.2.5)."""
    return ns_of(moment) if moment is not None and 1601 < moment.year < 9999 else None


def _element(content: Any, element: int | None) -> tuple[float, int]:
    if element is not None:
        if not isinstance(content, list | tuple) or element >= len(content):
            return np.nan, quality.BAD_CONFIGURATION_ERROR if content is not None else quality.GOOD
        content = content[element]
    if isinstance(content, list | tuple):
        return np.nan, quality.BAD_CONFIGURATION_ERROR
    number = number_of(content)
    undecodable = np.isnan(number) and content is not None and not isinstance(content, float)
    return number, quality.BAD_DECODING_ERROR if undecodable else quality.GOOD


def number_of(content: Any) -> float:
    if isinstance(content, int | float):
        return float(content)
    try:
        return float(content) if isinstance(content, str) else np.nan
    except ValueError:
        return np.nan


def ns_of(moment: datetime) -> int:
    since = moment - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * NS_PER_US
