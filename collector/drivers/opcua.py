"""OPC UA: subscriptions straight into columns, cyclic reads where a server will not subscribe.

Publish answers go from the bytes into columns, without a task or an object per
value. What a server will not watch, it is asked for in turn. A subscription
speaks only of changes, so an unchanged value would look like a missing one:
while the server keeps answering, the last value is repeated each ten seconds (or each period, if longer). The repeat is dated
by the server's own publish time, less the sampling interval and the five
seconds a source's clock may lag: up to there the value is known not to have
changed, and no later change can be dated before it.

A link that fails is not mended by the library, which throws away what the
server kept; the driver marks the gap, gives up, and is opened again. Then it
asks for the history of the gap, beside the values of now; and so it does after a
restart of ecmc, for the time it was not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np
from asyncua import ua

from collector.delivery import Delivery, plausible
from collector.driver import DeviceState
from collector.drivers.opcua_decode import (
    CLOCK_TOLERANCE_S,
    Feeds,
    Node,
    Rows,
    overflows,
    resolved_node,
)
from collector.drivers.opcua_history import (
    Gap,
    Row,
    across_marks,
    history_rows,
    nodes_with_history,
    read_history,
)
from collector.drivers.opcua_publish import Publisher
from collector.drivers.opcua_session import Service, Session, said
from collector.drivers.opcua_wire import PublishAnswer, Values, read_answer
from collector.memory import Memory
from core import quality
from core.clock import NS_PER_S, Clock, SystemClock
from core.errors import DeviceUnreachable
from core.plant.model import Connection, Kind, OpcuaSource, Plant, Point
from core.samples import SampleBatch, concatenate

log = logging.getLogger(__name__)

ITEMS_PER_SUBSCRIPTION: Final = 1_000
KEEP_ALIVE_S: Final = 5.0
HEARTBEAT_S: Final = 10.0
QUEUE_SIZE: Final = 10
REFUSED_RETRY_S: Final = 600.0
HISTORY_RETRY_S: Final = 60.0
REMEMBER_S: Final = 10.0
ROWS_AHEAD: Final = (
    100_000  # beyond these no more is asked for till they are on disk; the server's queues wait
)

_NO_SUCH_NODE: Final = (
    ua.StatusCodes.BadNodeIdUnknown,
    ua.StatusCodes.BadNodeIdInvalid,
    ua.StatusCodes.BadAttributeIdInvalid,
)
_NO_HISTORY: Final = (
    ua.StatusCodes.BadServiceUnsupported,
    ua.StatusCodes.BadHistoryOperationUnsupported,
    ua.StatusCodes.BadHistoryOperationInvalid,
)
_FILTER_REFUSALS: Final = (
    ua.StatusCodes.BadMonitoredItemFilterUnsupported,
    ua.StatusCodes.BadMonitoredItemFilterInvalid,
    ua.StatusCodes.BadFilterNotAllowed,
    ua.StatusCodes.BadDeadbandFilterInvalid,
)


@dataclass(slots=True)
class _Group:
    """One subscription, and until when the server vouches for its nodes."""

    sampling_s: float
    publishing_s: float
    id: int = 0
    heard_s: float = 0.0  # monotonic
    vouched_ns: int = 0
    collected_ns: int | None = (
        None  # when the first of several messages was sent, till the last of them has come
    )
    slots: list[int] = field(default_factory=list)  # monitored


@dataclass(slots=True)
class _Turn:
    """Nodes asked for in turn, and when next (wall clock)."""

    nodes: list[Node]
    due_s: float


class OpcuaDriver:
    """One OPC UA connection.

    Options beside those of the session (opcua_session.py): `mode` (`subscribe`, `read`); `history` (false:
    never asked for); `publish_interval_s`, `sampling_interval_s`, `queue_size`.
    """

    def __init__(
        self, plant: Plant, connection: Connection, clock: Clock | None = None, learned: Path | None = None
    ) -> None:
        self.name = connection.id
        self._session = Session(Path(plant.folder), connection)
        self._clock = clock or SystemClock()
        self._devices = [device for device in plant.devices if device.connection == connection.id]
        self._options = connection.options
        # Of what a profile says of its server, only this is not ours to choose by the points' period.
        advised = [int(str(device.options.get("queue_size", QUEUE_SIZE))) for device in self._devices]
        self._queue_size = int(str(connection.options.get("queue_size", max(advised, default=QUEUE_SIZE))))
        points = [
            plant.point_by_id[name]
            for device in self._devices
            for name in device.points
            if isinstance(plant.point_by_id[name].source, OpcuaSource)
        ]
        self._slots_of_device = {
            device.id: [slot for slot, point in enumerate(points) if point.device == device.id]
            for device in self._devices
        }
        self._delivery = Delivery(plant, points)
        self._nodes = _nodes_of(points)
        self._feeds = Feeds(self._nodes)
        self._publisher: Publisher | None = None
        self._groups: list[_Group] = []
        self._polling: dict[float, _Turn] = {}  # by period
        self._refused: list[tuple[_Group, Node]] = []
        self._retry_refused_s = 0.0
        self._memory = Memory(connection.id, learned)
        self._given_ns = 0  # up to where `read` gave all there is; no further than an open gap
        self._complete_ns = 0  # the same, once it is on disk
        self._kept_s = time.monotonic()
        self._gap: Gap | None = None
        self._closing_gap: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._gap_marked = True
        self._arrived = asyncio.Event()
        self._rows: list[Rows] = []  # until the next read
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._marks: list[SampleBatch] = []
        n = len(points)
        self._heartbeat_ns = np.array([max(p.period_s, HEARTBEAT_S) for p in points]) * NS_PER_S
        self._last_ns = np.zeros(n, dtype=np.int64)
        self._last_raw = np.full(n, np.nan)
        self._last_status = np.full(n, quality.BAD_WAITING_FOR_INITIAL_DATA, dtype=np.int16)
        self._up = False
        self._since_ns = self._clock.now_ns()
        self._detail = "not connected"
        self._counters = {
            "values": 0, "gaps": 0, "refused_nodes": 0, "history_values": 0, "overflows": 0, "missed_ticks": 0,
        }  # fmt: skip

    # ---- the seam

    async def __aenter__(self) -> Self:
        self._lost = None
        self._groups, self._polling, self._refused = [], {}, []
        self._publisher = Publisher(self._session, self._lose, self._has_room)
        self._rows.clear()
        self._has_room.set()
        try:
            async with asyncio.timeout(5 * self._session.timeout_s):
                await self._session.open(self._lose)
                await self._begin()
        except Exception as why:
            await self._close()
            raise self._session.failure(why) from why
        except asyncio.CancelledError:
            await self._close()
            raise
        self._up, self._since_ns, self._detail = True, self._clock.now_ns(), "connected"
        self._gap_marked = False
        if self._gap is None:
            self._gap = self._gap_since_last_run()
        if self._gap is not None and self._options.get("history", True):
            self._closing_gap = asyncio.create_task(self._close_gap(self._gap), name=f"history:{self.name}")
        return self

    async def read(self) -> SampleBatch:
        while True:
            if self._lost is None:
                await self._poll_or_wait()
            batches, self._marks = self._marks, []
            if self._rows:
                batches.append(self._take_rows())
            if self._lost is None:
                batches += self._heartbeats()
            elif not self._gap_marked:
                batches.append(self._mark_gap())
            elif not batches:
                raise DeviceUnreachable(f"{self.name}: {self._lost}")
            if batches:
                if self._gap is None:
                    self._given_ns = self._known_until()
                return concatenate(batches)

    async def stored(self) -> None:
        """The server has been told already; what a crash takes, its history gives back where it has one."""
        self._complete_ns = self._given_ns
        if time.monotonic() - self._kept_s >= REMEMBER_S:
            self._remember()

    def devices(self) -> Mapping[str, DeviceState]:
        states = {}
        warning = self._session.expiry_warning()
        for device, slots in self._slots_of_device.items():
            bad = int(quality.is_bad(self._last_status[slots]).sum())
            detail = self._detail
            if self._up and (lost := self._counters["overflows"]):
                detail = f"connected, the server's queues were too short {lost} times (queue_size)"
            if self._up and bad:
                detail = f"{bad} of {len(slots)} points bad"
            up = self._up and (bad < len(slots) or not slots)
            states[device] = DeviceState(up, self._since_ns, detail, dict(self._counters), warning)
        return states

    async def __aexit__(self, *exc: object) -> None:
        self._up, self._detail = False, self._lost or "closed"
        self._since_ns = self._clock.now_ns()
        if self._closing_gap is not None:
            self._closing_gap.cancel()
            await asyncio.gather(self._closing_gap, return_exceptions=True)
            self._closing_gap = None
        self._remember()
        await self._close()

    async def _close(self) -> None:
        if self._publisher is not None:
            await self._publisher.close()
        await self._session.close(dead=self._lost is not None)

    async def _begin(self) -> None:
        unknown = []
        for node in self._nodes:
            node.resolved = resolved_node(node.node_id, self._session.namespaces)
            if node.resolved is None:
                unknown.append(node)
        if unknown:
            self._refuse(unknown, quality.BAD_CONFIGURATION_ERROR)
        nodes = [node for node in self._nodes if node.resolved is not None]
        if str(self._options.get("mode", "subscribe")) == "read":
            self._poll(nodes)
        else:
            await self._subscribe(nodes)

    # ---- subscriptions

    async def _subscribe(self, nodes: Sequence[Node]) -> None:
        by_period: dict[float, list[Node]] = defaultdict(list)
        for node in nodes:
            by_period[node.period_s].append(node)
        unwatched: list[Node] = []
        for period_s, of_period in sorted(by_period.items()):
            # Sampling at twice the period's rate and publishing as often shows a change within one period.
            sampling_s = float(str(self._options.get("sampling_interval_s", period_s / 2)))
            publishing_s = float(
                str(self._options.get("publish_interval_s", min(max(period_s / 2, 0.25), 1.0)))
            )
            for start in range(0, len(of_period), ITEMS_PER_SUBSCRIPTION):
                group, part = (
                    _Group(sampling_s, publishing_s),
                    of_period[start : start + ITEMS_PER_SUBSCRIPTION],
                )
                try:
                    await self._create_subscription(group)
                    unwatched += await self._monitor(group, part)
                except ua.UaStatusCodeError as why:
                    log.warning("no subscription", extra={"connection": self.name, "why": type(why).__name__})
                    unwatched += part
                else:
                    self._groups.append(group)
        if unwatched:
            log.warning(
                "nodes read in turn",
                extra={"connection": self.name, "nodes": [n.node_id for n in unwatched][:20]},
            )
            self._poll(unwatched)
        self._retry_refused_s = time.monotonic() + REFUSED_RETRY_S

    async def _create_subscription(self, group: _Group) -> None:
        assert self._publisher is not None
        keep_alive_count = max(1, round(KEEP_ALIVE_S / group.publishing_s))
        parameters = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=ua.Double(group.publishing_s * 1000),
            RequestedLifetimeCount=ua.UInt32(max(3 * keep_alive_count, round(60 / group.publishing_s))),
            RequestedMaxKeepAliveCount=ua.UInt32(keep_alive_count),
            MaxNotificationsPerPublish=ua.UInt32(0),
            PublishingEnabled=True,
            Priority=ua.Byte(0),
        )

        def published(answer: PublishAnswer) -> None:
            self._published(group, answer)

        group.heard_s = time.monotonic()
        answer = await self._publisher.subscribe(parameters, published)
        group.id = answer.SubscriptionId
        group.publishing_s = answer.RevisedPublishingInterval / 1000

    async def _monitor(self, group: _Group, nodes: Sequence[Node], deadbands: bool = True) -> list[Node]:
        """Have the server watch nodes of a group; those it has but will not watch come back."""
        unfiltered: list[Node] = []
        unwatched: list[Node] = []

        async def monitor(part: list[Node]) -> None:
            request = ua.CreateMonitoredItemsParameters(
                SubscriptionId=group.id,
                TimestampsToReturn=ua.TimestampsToReturn.Both,
                ItemsToCreate=[self._item(group, node, deadbands) for node in part],
            )
            results = await self._session.services.create_monitored_items(request)
            for node, result in zip(part, results, strict=True):
                code = result.StatusCode.value
                if result.StatusCode.is_good():
                    group.slots += [slot for slot, _ in node.feeds]
                elif code in _FILTER_REFUSALS and deadbands:
                    unfiltered.append(node)
                elif code in _NO_SUCH_NODE:
                    self._refused.append((group, node))
                    self._refuse([node], quality.BAD_CONFIGURATION_ERROR)
                else:
                    unwatched.append(node)

        await self._session.split(Service.MONITOR, nodes, monitor)
        if unfiltered:
            unwatched += await self._monitor(group, unfiltered, deadbands=False)
        return unwatched

    def _item(self, group: _Group, node: Node, deadbands: bool) -> ua.MonitoredItemCreateRequest:
        parameters = ua.MonitoringParameters(
            ClientHandle=ua.UInt32(node.handle),
            SamplingInterval=ua.Double(group.sampling_s * 1000),
            QueueSize=ua.UInt32(self._queue_size),
            DiscardOldest=True,
        )
        if deadbands and node.deadband > 0:
            parameters.Filter = ua.DataChangeFilter(
                Trigger=ua.DataChangeTrigger.StatusValue,
                DeadbandType=ua.UInt32(int(ua.DeadbandType.Absolute)),
                DeadbandValue=ua.Double(node.deadband),
            )
        return ua.MonitoredItemCreateRequest(
            ItemToMonitor=ua.ReadValueId(NodeId=node.resolved, AttributeId=ua.UInt32(ua.AttributeIds.Value)),
            MonitoringMode=ua.MonitoringMode.Reporting,
            RequestedParameters=parameters,
        )

    def _published(self, group: _Group, answer: PublishAnswer) -> None:
        """One publish answer, right as it comes."""
        arrival_ns = self._clock.now_ns()
        group.heard_s = time.monotonic()
        for values in answer.changes:
            self._take_values(values, arrival_ns, polled=False)
        for code in answer.statuses:
            self._lose(f"subscription ended: {ua.StatusCode(code).name}")
        if group.collected_ns is None:
            is_plausible = plausible(answer.published_ns, arrival_ns)
            group.collected_ns = answer.published_ns if is_plausible else arrival_ns
        if not answer.more:
            known_ns = group.collected_ns - int((group.sampling_s + CLOCK_TOLERANCE_S) * NS_PER_S)
            group.vouched_ns = max(group.vouched_ns, known_ns)
            group.collected_ns = None
        self._arrived.set()

    def _heartbeats(self) -> Iterator[SampleBatch]:
        """The last values of subscriptions whose server vouches that they have not changed since."""
        for group in self._groups:
            slots = np.array(group.slots, dtype=np.int32)
            due = group.vouched_ns - self._last_ns[slots] >= self._heartbeat_ns[slots]
            due &= ~quality.is_bad(self._last_status[slots])
            slots = slots[due]
            if slots.size:
                times = np.full(slots.shape, group.vouched_ns)
                self._last_ns[slots] = group.vouched_ns
                yield self._delivery.batch(slots, times, self._last_raw[slots], self._last_status[slots])

    # ---- cyclic reads

    def _poll(self, nodes: Sequence[Node]) -> None:
        now_s = self._clock.now_ns() / NS_PER_S
        for node in nodes:
            self._polling.setdefault(node.period_s, _Turn([], now_s)).nodes.append(node)

    async def _poll_or_wait(self) -> None:
        """Until there are rows, the link is lost or a second has passed."""
        wait_s = 1.0
        if self._polling:
            now_s = self._clock.now_ns() / NS_PER_S
            wait_s = min(max(min(turn.due_s for turn in self._polling.values()) - now_s, 0.0), wait_s)
        if not self._rows and not self._marks:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), wait_s)
        now_s = self._clock.now_ns() / NS_PER_S
        for period_s, turn in self._polling.items():
            if turn.due_s <= now_s or turn.due_s > now_s + 2 * period_s:  # the clock was put back
                missed = int((now_s - turn.due_s) // period_s)
                self._counters["missed_ticks"] += max(0, missed)
                turn.due_s = (now_s // period_s + 1) * period_s
                await self._read_all(turn.nodes)
        now = time.monotonic()
        for group in self._groups:
            silent_s = now - group.heard_s
            if silent_s > 3 * max(KEEP_ALIVE_S, group.publishing_s) and self._has_room.is_set():
                self._lose(f"subscription {group.id} silent for {silent_s:.0f} s")
        if self._refused and now > self._retry_refused_s:
            await self._retry_refused()

    async def _retry_refused(self) -> None:
        refused, self._refused = self._refused, []
        by_group: dict[int, list[Node]] = defaultdict(list)
        for group, node in refused:
            by_group[group.id].append(node)
        try:
            for group in self._groups:
                self._poll(await self._monitor(group, by_group[group.id]))
        except (OSError, TimeoutError, ua.UaError) as why:
            self._lose(f"asking again for refused nodes failed: {said(why)}")
        self._retry_refused_s = time.monotonic() + REFUSED_RETRY_S

    async def _read_all(self, nodes: Sequence[Node]) -> None:
        async def read(part: list[Node]) -> None:
            request = ua.ReadRequest()
            request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Both
            request.Parameters.NodesToRead = [
                ua.ReadValueId(NodeId=node.resolved, AttributeId=ua.UInt32(ua.AttributeIds.Value))
                for node in part
            ]
            values = read_answer(await self._session.send(request), [node.handle for node in part])
            self._take_values(values, self._clock.now_ns(), polled=True)

        try:
            await self._session.split(Service.READ, nodes, read)
        except (OSError, TimeoutError, ua.UaError, ValueError, struct.error) as why:
            self._lose(f"read failed: {said(why)}")

    # ---- history

    def _known_until(self) -> int:
        """Up to when nothing can come any more but from a history."""
        now_ns = self._clock.now_ns()
        watched = [group.vouched_ns for group in self._groups]
        return min([*watched, *(now_ns - int(period_s * NS_PER_S) for period_s in self._polling)], default=0)

    def _remember(self) -> None:
        """Where to go on after a restart."""
        self._kept_s = time.monotonic()
        if self._complete_ns:
            self._memory.keep({"complete_ns": self._complete_ns})

    def _gap_since_last_run(self) -> Gap | None:
        since_ns, n = self._memory.known.get("complete_ns"), self._last_ns.size
        if self._given_ns or not isinstance(since_ns, int) or not plausible(since_ns, self._clock.now_ns()):
            return None
        return Gap(np.full(n, since_ns), self._last_status.copy(), np.full(n, np.nan))

    async def _close_gap(self, gap: Gap) -> None:
        """Ask for what the server kept of a gap, till it answers; live values come in beside it."""
        until_ns = self._clock.now_ns()
        nodes = [n for n in self._nodes if n.resolved is not None and _known_since(gap, n)]
        while True:
            try:
                await self._read_history(gap, nodes, until_ns)
            except (OSError, TimeoutError, ua.UaError) as why:
                log.warning("history of a gap not read", extra={"connection": self.name, "why": said(why)})
                if not isinstance(why, ua.UaStatusCodeError) or why.code not in _NO_HISTORY:
                    await asyncio.sleep(HISTORY_RETRY_S)
                    continue
            if self._gap is gap:
                self._gap = None
            return

    async def _read_history(self, gap: Gap, nodes: Sequence[Node], until_ns: int) -> None:
        before: dict[int, Row | None] = {}

        async def read(part: list[Node]) -> None:
            since_ns = min(_known_since(gap, node) for node in part)
            async for values in read_history(self._session, part, since_ns, until_ns):
                rows = history_rows(self._feeds, values, until_ns, self._last_ns.size)
                self._take_history(gap, rows, before)
                await self._has_room.wait()

        kept = await nodes_with_history(self._session, nodes)
        await self._session.split(Service.HISTORY, kept, read)

    def _take_history(self, gap: Gap, rows: Rows, before: dict[int, Row | None]) -> None:
        """A page of one node; `before` is the last row of each slot so far."""
        rows = rows.take(rows.time_ns > gap.since_ns[rows.slot])
        by_slot: dict[int, list[Row]] = defaultdict(list)
        columns = (rows.slot.tolist(), rows.time_ns.tolist(), rows.raw.tolist(), rows.status.tolist())
        for row in zip(*columns, strict=True):
            by_slot[row[0]].append(row)
        repeats: list[Row] = []
        for slot, of_slot in by_slot.items():
            of_slot.sort(key=lambda row: row[1])
            standing = before.get(slot, gap.row_before(slot))
            marks_ns = [mark for mark in gap.marks_ns if standing is None or mark >= standing[1]]
            repeats += across_marks(standing, of_slot, marks_ns)
            before[slot] = of_slot[-1]
        self._add(rows)
        self._add(Rows.of(repeats))
        self._counters["history_values"] += len(rows)
        self._arrived.set()

    # ---- values

    def _take_values(self, values: Values, arrival_ns: int, polled: bool) -> None:
        rows = self._feeds.rows_of(values, arrival_ns, self._last_status, standing=polled)
        self._counters["overflows"] += overflows(values)
        self._add(rows)
        # Of several of one slot the last stands.
        self._last_ns[rows.slot], self._last_raw[rows.slot] = rows.time_ns, rows.raw
        self._last_status[rows.slot] = rows.status

    def _add(self, rows: Rows) -> None:
        self._rows.append(rows)
        if sum(map(len, self._rows)) > ROWS_AHEAD:
            self._has_room.clear()

    def _take_rows(self) -> SampleBatch:
        taken, self._rows = self._rows, []
        if not self._has_room.is_set():
            for group in self._groups:
                group.heard_s = time.monotonic()
        batches = [self._delivery.batch(rows.slot, rows.time_ns, rows.raw, rows.status) for rows in taken]
        self._has_room.set()
        self._counters["values"] += sum(map(len, batches))
        return concatenate(batches)

    def _refuse(self, nodes: Iterable[Node], status: int) -> None:
        nodes = list(nodes)
        slots = [slot for node in nodes for slot, _ in node.feeds]
        known = self._last_status[slots] == status
        self._last_status[slots] = status
        self._counters["refused_nodes"] += len(nodes)
        if not known.all():
            log.warning(
                "node refused", extra={"connection": self.name, "nodes": [n.node_id for n in nodes][:20]}
            )
            self._marks.append(self._delivery.mark(slots, self._clock.now_ns(), status))

    def _mark_gap(self) -> SampleBatch:
        self._gap_marked = True
        self._counters["gaps"] += 1
        slots = np.arange(self._last_status.size)
        configured = self._last_status != quality.BAD_CONFIGURATION_ERROR
        now_ns = self._clock.now_ns()
        if self._gap is None:
            self._gap = Gap(self._last_ns.copy(), self._last_status.copy(), self._last_raw.copy())
        self._gap.marks_ns.append(now_ns)
        self._last_status[configured] = quality.BAD_NO_COMMUNICATION
        return self._delivery.mark(slots[configured], now_ns, quality.BAD_NO_COMMUNICATION)

    # ---- ends

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost, self._up, self._detail = why, False, why
            self._since_ns = self._clock.now_ns()
        self._arrived.set()


def _nodes_of(points: Sequence[Point]) -> list[Node]:
    """The server's nodes, each once, at the shortest period and the narrowest deadband of its points."""
    nodes: dict[str, Node] = {}
    for slot, point in enumerate(points):
        source = point.source
        if not isinstance(source, OpcuaSource):
            continue
        deadband = abs((point.deadband or 0.0) / source.scale) if point.kind is Kind.GAUGE else 0.0
        node = nodes.get(source.node_id)
        if node is None:
            feeds = [(slot, source.element)]
            nodes[source.node_id] = Node(source.node_id, feeds, point.period_s, deadband, len(nodes))
        else:
            node.feeds.append((slot, source.element))
            node.period_s = min(node.period_s, point.period_s)
            node.deadband = min(node.deadband, deadband)
    return list(nodes.values())


def _known_since(gap: Gap, node: Node) -> int:
    """The oldest of the last values of what a node feeds; 0 where there was none yet."""
    return min(int(gap.since_ns[slot]) for slot, _ in node.feeds)
