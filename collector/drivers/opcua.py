"""OPC UA: subscriptions straight into columns, cyclic reads where a server will not subscribe.

The publish answers of the library are taken raw, without a task or an object of
ours per value. A subscription speaks only of changes, so an unchanged value
would look like a missing one: while the server keeps answering, the last value
is repeated each ten seconds (or each period, if longer). The repeat is dated
by the server's own publish time, less the sampling interval and the five
seconds a source's clock may lag: up to there the value is known not to have
changed, and no later change can be dated before it.

A link that fails is not mended by the library, which throws away what the
server kept; the driver marks the gap, gives up, and is opened again. Then it
asks for the history of the gap, beside the values of now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
    Node,
    Row,
    history_rows,
    ns_of,
    resolved_node,
    rows_of,
)
from collector.drivers.opcua_history import (
    NODES_PER_CALL,
    Gap,
    across_marks,
    nodes_with_history,
    read_history,
)
from collector.drivers.opcua_session import Session, parts, said
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

_FILTER_REFUSALS = (
    ua.StatusCodes.BadMonitoredItemFilterUnsupported,
    ua.StatusCodes.BadMonitoredItemFilterInvalid,
    ua.StatusCodes.BadFilterNotAllowed,
    ua.StatusCodes.BadDeadbandFilterInvalid,
)


@dataclass(slots=True)
class _Group:
    """One subscription: its nodes by client handle, and until when the server vouches for them."""

    nodes: list[Node]
    sampling_s: float
    publishing_s: float
    id: int = 0
    heard_s: float = 0.0  # monotonic
    vouched_ns: int = 0
    slots: list[int] = field(default_factory=list)  # monitored


class OpcuaDriver:
    """One OPC UA connection.

    Options beside those of the session (opcua_session.py): `mode` (`subscribe`, `read`); `history` (false:
    never asked for); `publish_interval_s`, `sampling_interval_s`, `queue_size`.
    """

    def __init__(self, plant: Plant, connection: Connection, clock: Clock | None = None) -> None:
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
        self._groups: list[_Group] = []
        self._polling: list[tuple[float, list[Node]]] = []  # next due (wall clock, s) and what
        self._refused: list[tuple[_Group, Node]] = []
        self._retry_refused_s = 0.0
        self._gap: Gap | None = None
        self._closing_gap: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._gap_marked = True
        self._arrived = asyncio.Event()
        self._rows: list[Row] = []  # until the next read
        self._marks: list[SampleBatch] = []
        n = len(points)
        self._heartbeat_ns = np.array([max(p.period_s, HEARTBEAT_S) for p in points]) * NS_PER_S
        self._last_ns = np.zeros(n, dtype=np.int64)
        self._last_raw = np.full(n, np.nan)
        self._last_status = np.full(n, quality.BAD_WAITING_FOR_INITIAL_DATA, dtype=np.int16)
        self._up = False
        self._since_ns = self._clock.now_ns()
        self._detail = "not connected"
        self._counters = {"values": 0, "gaps": 0, "refused_nodes": 0, "history_values": 0}

    # ---- the seam

    async def __aenter__(self) -> Self:
        self._lost = None
        self._groups, self._polling, self._refused = [], [], []
        self._rows.clear()
        try:
            async with asyncio.timeout(5 * self._session.timeout_s):
                await self._session.open(self._lose)
                await self._begin()
        except Exception as why:
            await self._session.close(dead=self._lost is not None)
            raise self._session.failure(why) from why
        except asyncio.CancelledError:
            await self._session.close(dead=self._lost is not None)
            raise
        self._up, self._since_ns, self._detail = True, self._clock.now_ns(), "connected"
        self._gap_marked = False
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
                return concatenate(batches)

    async def stored(self) -> None:
        """The server has been told already; what a crash takes is marked as a gap."""

    def devices(self) -> Mapping[str, DeviceState]:
        states = {}
        warning = self._session.expiry_warning()
        for device, slots in self._slots_of_device.items():
            bad = int(quality.is_bad(self._last_status[slots]).sum())
            detail = self._detail
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
            return
        try:
            await self._subscribe(nodes)
        except ua.UaStatusCodeError as why:
            log.warning(
                "no subscription, reading in turn", extra={"connection": self.name, "why": type(why).__name__}
            )
            self._groups = []
            self._poll(nodes)

    # ---- subscriptions

    async def _subscribe(self, nodes: Sequence[Node]) -> None:
        by_period: dict[float, list[Node]] = defaultdict(list)
        for node in nodes:
            by_period[node.period_s].append(node)
        for period_s, of_period in sorted(by_period.items()):
            # Sampling at twice the period's rate and publishing as often shows a change within one period.
            sampling_s = float(str(self._options.get("sampling_interval_s", period_s / 2)))
            publishing_s = float(
                str(self._options.get("publish_interval_s", min(max(period_s / 2, 0.25), 1.0)))
            )
            for part in parts(of_period, ITEMS_PER_SUBSCRIPTION):
                group = _Group(part, sampling_s, publishing_s)
                await self._create_subscription(group)
                self._groups.append(group)
                await self._monitor(group, list(enumerate(group.nodes)))
        self._retry_refused_s = time.monotonic() + REFUSED_RETRY_S

    async def _create_subscription(self, group: _Group) -> None:
        keep_alive_count = max(1, round(KEEP_ALIVE_S / group.publishing_s))
        parameters = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=ua.Double(group.publishing_s * 1000),
            RequestedLifetimeCount=ua.UInt32(max(3 * keep_alive_count, round(60 / group.publishing_s))),
            RequestedMaxKeepAliveCount=ua.UInt32(keep_alive_count),
            MaxNotificationsPerPublish=ua.UInt32(0),
            PublishingEnabled=True,
            Priority=ua.Byte(0),
        )

        def published(result: ua.PublishResult) -> None:
            self._published(group, result)

        group.heard_s = time.monotonic()
        answer = await self._session.services.create_subscription(parameters, published)
        group.id = answer.SubscriptionId
        group.publishing_s = answer.RevisedPublishingInterval / 1000

    async def _monitor(
        self, group: _Group, items: Sequence[tuple[int, Node]], deadbands: bool = True
    ) -> None:
        """Have the server watch nodes of a group; `items` are (client handle, node)."""
        unfiltered: list[tuple[int, Node]] = []
        for part in parts(items, self._session.limit_monitor):
            parameters = ua.CreateMonitoredItemsParameters(
                SubscriptionId=group.id,
                TimestampsToReturn=ua.TimestampsToReturn.Both,
                ItemsToCreate=[self._item(group, handle, node, deadbands) for handle, node in part],
            )
            results = await self._session.services.create_monitored_items(parameters)
            for (handle, node), result in zip(part, results, strict=True):
                if result.StatusCode.is_good():
                    group.slots += [slot for slot, _ in node.feeds]
                elif result.StatusCode.value in _FILTER_REFUSALS and deadbands:
                    unfiltered.append((handle, node))
                else:
                    self._refused.append((group, node))
                    self._refuse([node], quality.BAD_CONFIGURATION_ERROR)
        if unfiltered:
            await self._monitor(group, unfiltered, deadbands=False)

    def _item(self, group: _Group, handle: int, node: Node, deadbands: bool) -> ua.MonitoredItemCreateRequest:
        parameters = ua.MonitoringParameters(
            ClientHandle=ua.UInt32(handle),
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

    def _published(self, group: _Group, result: ua.PublishResult) -> None:
        """One publish answer, straight from the library's receive loop."""
        message = result.NotificationMessage
        arrival_ns = self._clock.now_ns()
        group.heard_s = time.monotonic()
        for notification in message.NotificationData or ():
            if isinstance(notification, ua.DataChangeNotification):
                for item in notification.MonitoredItems:
                    self._value(group.nodes[item.ClientHandle], item.Value, arrival_ns, polled=False)
            elif isinstance(notification, ua.StatusChangeNotification):
                self._lose(f"subscription ended: {ua.StatusCode(notification.Status).name}")
        if not result.MoreNotifications:
            published_ns = ns_of(message.PublishTime) if message.PublishTime else arrival_ns
            if not plausible(published_ns, arrival_ns):
                published_ns = arrival_ns
            known_ns = published_ns - int((group.sampling_s + CLOCK_TOLERANCE_S) * NS_PER_S)
            group.vouched_ns = max(group.vouched_ns, known_ns)
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
        by_period: dict[float, list[Node]] = defaultdict(list)
        for node in nodes:
            by_period[node.period_s].append(node)
        now_s = time.time()
        self._polling = [(now_s, of_period) for _, of_period in sorted(by_period.items())]

    async def _poll_or_wait(self) -> None:
        """Until there are rows, the link is lost or a second has passed."""
        now_s = time.time()
        if self._polling:
            due_s = min(due for due, _ in self._polling)
            if due_s > now_s:
                await asyncio.sleep(min(due_s - now_s, 1.0))
                return
            for i, (due_s, nodes) in enumerate(self._polling):
                if due_s <= now_s:
                    period_s = nodes[0].period_s
                    self._polling[i] = ((now_s // period_s + 1) * period_s, nodes)
                    await self._read_all(nodes)
            return
        if not self._rows and not self._marks:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 1.0)
        now = time.monotonic()
        for group in self._groups:
            silent_s = now - group.heard_s
            if silent_s > 3 * max(KEEP_ALIVE_S, group.publishing_s):
                self._lose(f"subscription {group.id} silent for {silent_s:.0f} s")
        if self._refused and now > self._retry_refused_s:
            await self._retry_refused()

    async def _retry_refused(self) -> None:
        refused, self._refused = self._refused, []
        try:
            for group, node in refused:
                await self._monitor(group, [(group.nodes.index(node), node)])
        except (OSError, TimeoutError, ua.UaError) as why:
            self._lose(f"asking again for refused nodes failed: {said(why)}")
        self._retry_refused_s = time.monotonic() + REFUSED_RETRY_S

    async def _read_all(self, nodes: Sequence[Node]) -> None:
        try:
            for part in parts(nodes, self._session.limit_read):
                ids = [node.resolved for node in part]
                answers = await self._session.services.read(
                    ua.ReadParameters(
                        TimestampsToReturn=ua.TimestampsToReturn.Both,
                        NodesToRead=[
                            ua.ReadValueId(NodeId=i, AttributeId=ua.UInt32(ua.AttributeIds.Value))
                            for i in ids
                        ],
                    )
                )
                arrival_ns = self._clock.now_ns()
                for node, answer in zip(part, answers, strict=True):
                    self._value(node, answer, arrival_ns, polled=True)
        except (OSError, TimeoutError, ua.UaError) as why:
            self._lose(f"read failed: {said(why)}")

    # ---- history

    async def _close_gap(self, gap: Gap) -> None:
        """Ask for what the server kept of a gap; live values come in beside it."""
        until_ns = self._clock.now_ns()
        services = self._session.services
        nodes = [n for n in self._nodes if n.resolved is not None and _known_since(gap, n)]
        try:
            kept = await nodes_with_history(services, [n.resolved for n in nodes], self._session.limit_read)
            for part in parts([nodes[i] for i in kept], min(self._session.limit_history, NODES_PER_CALL)):
                since_ns = min(_known_since(gap, node) for node in part)
                rows: list[Row] = []
                async for i, values in read_history(services, [n.resolved for n in part], since_ns, until_ns):
                    rows += history_rows(part[i], values, until_ns)
                self._take_history(gap, rows)
        except (OSError, TimeoutError, ua.UaError) as why:
            log.warning("history of a gap not read", extra={"connection": self.name, "why": said(why)})
            return
        if self._gap is gap:
            self._gap = None

    def _take_history(self, gap: Gap, rows: Sequence[Row]) -> None:
        by_slot: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            if row[1] > gap.since_ns[row[0]]:
                by_slot[row[0]].append(row)
        for slot, of_slot in by_slot.items():
            of_slot.sort(key=lambda row: row[1])
            self._rows += of_slot
            self._rows += across_marks(gap.row_before(slot), of_slot, gap.marks_ns)
            self._counters["history_values"] += len(of_slot)
        self._arrived.set()

    # ---- values

    def _value(self, node: Node, value: ua.DataValue, arrival_ns: int, polled: bool) -> None:
        first = self._last_status[node.feeds[0][0]] < 0
        for row in rows_of(node, value, arrival_ns, standing=polled or bool(first)):
            slot, time_ns, raw, status = row
            self._rows.append(row)
            self._last_ns[slot], self._last_raw[slot], self._last_status[slot] = time_ns, raw, status

    def _take_rows(self) -> SampleBatch:
        rows, self._rows = self._rows, []
        self._counters["values"] += len(rows)
        slot, time_ns, raw, status = zip(*rows, strict=True)
        return self._delivery.batch(slot, time_ns, raw, np.array(status, dtype=np.int16))

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
            nodes[source.node_id] = Node(source.node_id, [(slot, source.element)], point.period_s, deadband)
        else:
            node.feeds.append((slot, source.element))
            node.period_s = min(node.period_s, point.period_s)
            node.deadband = min(node.deadband, deadband)
    return list(nodes.values())


def _known_since(gap: Gap, node: Node) -> int:
    """The oldest of the last values of what a node feeds; 0 where there was none yet."""
    return min(int(gap.since_ns[slot]) for slot, _ in node.feeds)
