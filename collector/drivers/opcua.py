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
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np
from asyncua import Client, ua
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties, x509_from_der
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from collector import pki
from collector.delivery import Delivery, plausible
from collector.driver import DeviceState
from collector.drivers.opcua_history import (
    NODES_PER_CALL,
    Gap,
    Row,
    across_marks,
    nodes_with_history,
    read_history,
)
from core import quality
from core.clock import NS_PER_S, Clock, SystemClock
from core.errors import BadRequest, DeviceRefused, DeviceUnreachable
from core.metrics import CERTIFICATE_DAYS
from core.plant.model import Connection, Kind, OpcuaSource, Plant, Point
from core.samples import NS_PER_US, SampleBatch, concatenate

log = logging.getLogger(__name__)
# What fails in the library reaches this driver as an exception and is said once, by the runner.
logging.getLogger("asyncua").setLevel(logging.CRITICAL)

ITEMS_PER_SUBSCRIPTION: Final = 1_000
SESSION_TIMEOUT_S: Final = 120
WATCHDOG_S: Final = 5.0
KEEP_ALIVE_S: Final = 5.0
HEARTBEAT_S: Final = 10.0
QUEUE_SIZE: Final = 10
CLOCK_TOLERANCE_S: Final = 5.0
REFUSED_RETRY_S: Final = 600.0

T = TypeVar("T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MODES: Final = {
    "Basic256Sha256_Sign": ua.MessageSecurityMode.Sign,
    "Basic256Sha256_SignAndEncrypt": ua.MessageSecurityMode.SignAndEncrypt,
}
_OURS_REFUSED = (
    ua.StatusCodes.BadCertificateUntrusted,
    ua.StatusCodes.BadSecurityChecksFailed,
    ua.StatusCodes.BadCertificateInvalid,
)
_REFUSALS = (
    ua.StatusCodes.BadUserAccessDenied,
    ua.StatusCodes.BadIdentityTokenRejected,
    ua.StatusCodes.BadIdentityTokenInvalid,
    ua.StatusCodes.BadCertificateUriInvalid,
    ua.StatusCodes.BadCertificateUntrusted,
    ua.StatusCodes.BadCertificateInvalid,
    ua.StatusCodes.BadCertificateTimeInvalid,
    ua.StatusCodes.BadSecurityChecksFailed,
    ua.StatusCodes.BadSecurityPolicyRejected,
)
_FILTER_REFUSALS = (
    ua.StatusCodes.BadMonitoredItemFilterUnsupported,
    ua.StatusCodes.BadMonitoredItemFilterInvalid,
    ua.StatusCodes.BadFilterNotAllowed,
    ua.StatusCodes.BadDeadbandFilterInvalid,
)


@dataclass(slots=True)
class _Node:
    """One node of the server and the slots it feeds: (slot, element or None)."""

    node_id: str
    feeds: list[tuple[int, int | None]]
    period_s: float
    deadband: float  # raw, 0 for none
    resolved: ua.NodeId | None = None


@dataclass(slots=True)
class _Group:
    """One subscription: its nodes by client handle, and until when the server vouches for them."""

    nodes: list[_Node]
    sampling_s: float
    publishing_s: float
    id: int = 0
    heard_s: float = 0.0  # monotonic
    vouched_ns: int = 0
    slots: list[int] = field(default_factory=list)  # monitored


class OpcuaDriver:
    """One OPC UA session.

    Options of the connection: `url`; `security` (`none`, `Basic256Sha256_Sign`,
    `Basic256Sha256_SignAndEncrypt`) with `certificate`, `private_key` and, to trust one server only,
    `server_certificate` instead of the plant's trust list (collector/pki.py); `username`, `password_env`, or
    `user_certificate`, `user_private_key`; `mode` (`subscribe`, `read`); `history` (false: never asked for); `timeout_s`, `session_timeout_s`,
    `publish_interval_s`, `sampling_interval_s`, `queue_size`.
    """

    def __init__(self, plant: Plant, connection: Connection, clock: Clock | None = None) -> None:
        self.name = connection.id
        self._folder = Path(plant.folder)
        self._certificates: dict[str, x509.Certificate] = {}  # by whose they are
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
        self._client: Client | None = None
        self._groups: list[_Group] = []
        self._polling: list[tuple[float, list[_Node]]] = []  # next due (wall clock, s) and what
        self._refused: list[tuple[_Group, _Node]] = []
        self._retry_refused_s = 0.0
        self._limit_read = self._limit_monitor = self._limit_history = ITEMS_PER_SUBSCRIPTION
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
            async with asyncio.timeout(5 * self._timeout_s):
                await self._connect()
                await self._begin()
        except BaseException as why:
            await self._disconnect()
            if isinstance(why, BadRequest):  # a certificate of ours that is none
                raise DeviceRefused(f"{self.name}: {why}") from why
            if isinstance(why, DeviceRefused) or not isinstance(why, Exception):
                raise
            raise self._failure(why) from why
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
        warning = self._expiry_warning()
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
        await self._disconnect()

    # ---- connecting

    @property
    def _timeout_s(self) -> float:
        return float(str(self._options.get("timeout_s", 4.0)))

    async def _connect(self) -> None:
        client = Client(str(self._options["url"]), timeout=self._timeout_s, watchdog_intervall=WATCHDOG_S)
        client.name = client.description = "ecmc"
        client.application_uri = "urn:ecmc:collector"
        client.session_timeout = int(
            float(str(self._options.get("session_timeout_s", SESSION_TIMEOUT_S))) * 1000
        )
        self._client = client
        username = self._options.get("username")
        if username:
            client.set_user(str(username))
            client.set_password(self._password())
        if self._options.get("user_certificate"):
            await client.load_client_certificate(self._file("user_certificate"))
            await client.load_private_key(self._file("user_private_key"))
            self._certificates["user"] = await self._own("user_certificate", "the user's certificate")
        await self._secure(client)

        async def lost(why: Exception) -> None:
            self._lose(f"link lost: {why or type(why).__name__}")

        client.connection_lost_callback = lost
        await client.connect()

    def _password(self) -> str:
        name = self._options.get("password_env")
        if not name:
            return ""
        if str(name) not in os.environ:
            raise DeviceRefused(f"{self.name}: the environment has no {name} to take the password from")
        return os.environ[str(name)]

    async def _secure(self, client: Client) -> None:
        wanted = str(self._options.get("security") or "none")
        if wanted == "none":
            return
        mode = _MODES[wanted]
        own = self._certificates["own"] = await self._own("certificate", "our own certificate")
        # Servers compare the URI we give with the one in the certificate (BadCertificateUriInvalid).
        client.application_uri = pki.application_uri(own) or client.application_uri
        if self._options.get("server_certificate"):
            server = await self._own("server_certificate", "the server's certificate")
        else:
            server = await self._announced(client, mode)
            store = pki.Pki(self._folder / pki.FOLDER)
            await self._judged(store.judge, server, client.server_url.hostname or "")
        self._certificates["server"] = server
        await client.set_security(
            security_policies.SecurityPolicyBasic256Sha256,
            CertProperties(own.public_bytes(Encoding.DER), "der"),
            self._file("private_key"),
            server_certificate=CertProperties(server.public_bytes(Encoding.DER), "der"),
            mode=mode,
        )

    async def _announced(self, client: Client, mode: ua.MessageSecurityMode) -> x509.Certificate:
        """The certificate the server shows for the security that is wanted."""
        endpoints = await client.connect_and_get_server_endpoints()
        policy = security_policies.SecurityPolicyBasic256Sha256.URI
        for endpoint in endpoints:
            if endpoint.SecurityMode == mode and endpoint.SecurityPolicyUri == policy:
                found: x509.Certificate | None = x509_from_der(endpoint.ServerCertificate)
                if found is not None:
                    return found
        offered = {
            f"{(one.SecurityPolicyUri or '').rpartition('#')[2]}_{ua.MessageSecurityMode(one.SecurityMode).name}"
            for one in endpoints
        }
        raise DeviceRefused(
            f"{self.name} {self._options['url']}: the server offers {', '.join(sorted(offered)) or 'nothing'}, "
            f"wanted {self._options['security']}"
        )

    def _file(self, option: str) -> Path:
        return self._folder / str(self._options[option])

    async def _own(self, option: str, whose: str) -> x509.Certificate:
        """A certificate the plant names, valid now."""
        found = await asyncio.to_thread(pki.read_certificate, self._file(option))
        await self._judged(pki.check_time, found, whose)
        return found

    async def _judged(
        self, judge: Callable[[x509.Certificate, str], None], certificate: x509.Certificate, about: str
    ) -> None:
        try:
            await asyncio.to_thread(judge, certificate, about)
        except DeviceRefused as why:
            raise DeviceRefused(f"{self.name} {self._options['url']}: {why}") from None

    def _expiry_warning(self) -> str:
        """What to renew soon; sets the metric on the way."""
        said = []
        for whose, certificate in self._certificates.items():
            days = pki.days_left(certificate)
            CERTIFICATE_DAYS.labels(self.name, whose).set(days)
            if days <= pki.EXPIRY_WARNING_DAYS:
                said.append(
                    f"the {whose} certificate expires on {certificate.not_valid_after_utc:%Y-%m-%d}, "
                    f"in {days:.0f} days"
                )
        return "; ".join(said)

    async def _begin(self) -> None:
        client = self._session()
        namespaces = await client.get_namespace_array()
        self._limit_read, self._limit_monitor, self._limit_history = await self._operation_limits()
        unknown = []
        for node in self._nodes:
            node.resolved = _resolved(node.node_id, namespaces)
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

    async def _operation_limits(self) -> list[int]:
        ids = ua.ObjectIds
        wanted = [
            ids.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
            ids.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
            ids.Server_ServerCapabilities_OperationLimits_MaxNodesPerHistoryReadData,
        ]
        answers = await self._session().uaclient.session.read_attributes(
            [ua.NodeId(ua.Int32(number)) for number in wanted], ua.AttributeIds.Value
        )
        limits = [_number(a.Value.Value if a.Value else None) for a in answers]
        return [int(min(v, ITEMS_PER_SUBSCRIPTION)) if v > 0 else ITEMS_PER_SUBSCRIPTION for v in limits]

    # ---- subscriptions

    async def _subscribe(self, nodes: Sequence[_Node]) -> None:
        by_period: dict[float, list[_Node]] = defaultdict(list)
        for node in nodes:
            by_period[node.period_s].append(node)
        for period_s, of_period in sorted(by_period.items()):
            # Sampling at twice the period's rate and publishing as often shows a change within one period.
            sampling_s = float(str(self._options.get("sampling_interval_s", period_s / 2)))
            publishing_s = float(
                str(self._options.get("publish_interval_s", min(max(period_s / 2, 0.25), 1.0)))
            )
            for part in _parts(of_period, ITEMS_PER_SUBSCRIPTION):
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
        answer = await self._session().uaclient.session.create_subscription(parameters, published)
        group.id = answer.SubscriptionId
        group.publishing_s = answer.RevisedPublishingInterval / 1000

    async def _monitor(
        self, group: _Group, items: Sequence[tuple[int, _Node]], deadbands: bool = True
    ) -> None:
        """Have the server watch nodes of a group; `items` are (client handle, node)."""
        unfiltered: list[tuple[int, _Node]] = []
        for part in _parts(items, self._limit_monitor):
            parameters = ua.CreateMonitoredItemsParameters(
                SubscriptionId=group.id,
                TimestampsToReturn=ua.TimestampsToReturn.Both,
                ItemsToCreate=[self._item(group, handle, node, deadbands) for handle, node in part],
            )
            results = await self._session().uaclient.session.create_monitored_items(parameters)
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

    def _item(
        self, group: _Group, handle: int, node: _Node, deadbands: bool
    ) -> ua.MonitoredItemCreateRequest:
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
            published_ns = _ns(message.PublishTime) if message.PublishTime else arrival_ns
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

    def _poll(self, nodes: Sequence[_Node]) -> None:
        by_period: dict[float, list[_Node]] = defaultdict(list)
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
            self._lose(f"asking again for refused nodes failed: {_said(why)}")
        self._retry_refused_s = time.monotonic() + REFUSED_RETRY_S

    async def _read_all(self, nodes: Sequence[_Node]) -> None:
        try:
            for part in _parts(nodes, self._limit_read):
                ids = [node.resolved for node in part]
                answers = await self._session().uaclient.session.read(
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
            self._lose(f"read failed: {_said(why)}")

    # ---- history

    async def _close_gap(self, gap: Gap) -> None:
        """Ask for what the server kept of a gap; live values come in beside it."""
        until_ns = self._clock.now_ns()
        client = self._session()
        nodes = [n for n in self._nodes if n.resolved is not None and _known_since(gap, n)]
        try:
            kept = await nodes_with_history(client, [n.resolved for n in nodes], self._limit_read)
            for part in _parts([nodes[i] for i in kept], min(self._limit_history, NODES_PER_CALL)):
                since_ns = min(_known_since(gap, node) for node in part)
                rows: list[Row] = []
                async for i, values in read_history(client, [n.resolved for n in part], since_ns, until_ns):
                    rows += _history_rows(part[i], values, until_ns)
                self._take_history(gap, rows)
        except (OSError, TimeoutError, ua.UaError) as why:
            log.warning("history of a gap not read", extra={"connection": self.name, "why": _said(why)})
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

    def _value(self, node: _Node, value: ua.DataValue, arrival_ns: int, polled: bool) -> None:
        first = self._last_status[node.feeds[0][0]] < 0
        for row in _rows_of(node, value, arrival_ns, standing=polled or bool(first)):
            slot, time_ns, raw, status = row
            self._rows.append(row)
            self._last_ns[slot], self._last_raw[slot], self._last_status[slot] = time_ns, raw, status

    def _take_rows(self) -> SampleBatch:
        rows, self._rows = self._rows, []
        self._counters["values"] += len(rows)
        slot, time_ns, raw, status = zip(*rows, strict=True)
        return self._delivery.batch(slot, time_ns, raw, np.array(status, dtype=np.int16))

    def _refuse(self, nodes: Iterable[_Node], status: int) -> None:
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

    def _session(self) -> Client:
        if self._client is None:
            raise DeviceUnreachable(f"{self.name}: not connected")
        return self._client

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost, self._up, self._detail = why, False, why
            self._since_ns = self._clock.now_ns()
        self._arrived.set()

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if self._lost is not None:
            client.disconnect_socket()  # a dead link is not asked to close in order
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.disconnect(), 3.0)
        client.disconnect_socket()

    def _failure(self, why: Exception) -> DeviceRefused | DeviceUnreachable:
        if isinstance(why, ua.UaStatusCodeError) and why.code in _REFUSALS:
            hint = ""
            if why.code in _OURS_REFUSED and "own" in self._certificates:
                named = pki.described(self._certificates["own"])
                hint = f"; is our certificate trusted there ({named}, {self._file('certificate')})?"
            return DeviceRefused(f"{self.name} {self._options['url']}: {_said(why)}{hint}")
        return DeviceUnreachable(f"{self.name} {self._options['url']}: {_said(why)}")


def _nodes_of(points: Sequence[Point]) -> list[_Node]:
    """The server's nodes, each once, at the shortest period and the narrowest deadband of its points."""
    nodes: dict[str, _Node] = {}
    for slot, point in enumerate(points):
        source = point.source
        if not isinstance(source, OpcuaSource):
            continue
        deadband = abs((point.deadband or 0.0) / source.scale) if point.kind is Kind.GAUGE else 0.0
        node = nodes.get(source.node_id)
        if node is None:
            nodes[source.node_id] = _Node(source.node_id, [(slot, source.element)], point.period_s, deadband)
        else:
            node.feeds.append((slot, source.element))
            node.period_s = min(node.period_s, point.period_s)
            node.deadband = min(node.deadband, deadband)
    return list(nodes.values())


def _resolved(node_id: str, namespaces: Sequence[str]) -> ua.NodeId | None:
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


def _rows_of(node: _Node, value: ua.DataValue, arrival_ns: int, standing: bool) -> Iterator[Row]:
    """A value of a node as rows of the slots it feeds."""
    code = value.StatusCode.value if value.StatusCode is not None else 0
    status = quality.status(code)
    time_ns, doubtful = _time_of(value, arrival_ns, standing)
    if code in (ua.StatusCodes.BadNodeIdUnknown, ua.StatusCodes.BadNodeIdInvalid):
        status = quality.BAD_CONFIGURATION_ERROR
    elif doubtful and status == quality.GOOD:
        status = quality.UNCERTAIN
    content = value.Value.Value if value.Value is not None else None
    for slot, element in node.feeds:
        raw, own_status = _element(content, element)
        yield slot, time_ns, raw, status if status < 0 or own_status == quality.GOOD else own_status


def _history_rows(node: _Node, values: Sequence[ua.DataValue], until_ns: int) -> list[Row]:
    """Rows of a page of history; what has no time of its own is worth nothing here."""
    dated = (one for one in values if one.SourceTimestamp is not None or one.ServerTimestamp is not None)
    rows = [row for one in dated for row in _rows_of(node, one, until_ns + 1, standing=False)]
    return [row for row in rows if row[1] <= until_ns]


def _known_since(gap: Gap, node: _Node) -> int:
    """The oldest of the last values of what a node feeds; 0 where there was none yet."""
    return min(int(gap.since_ns[slot]) for slot, _ in node.feeds)


def _time_of(value: ua.DataValue, arrival_ns: int, standing: bool) -> tuple[int, bool]:
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
    return _ns(moment) if moment is not None and 1601 < moment.year < 9999 else None


def _element(content: Any, element: int | None) -> tuple[float, int]:
    if element is not None:
        if not isinstance(content, list | tuple) or element >= len(content):
            return np.nan, quality.BAD_CONFIGURATION_ERROR if content is not None else quality.GOOD
        content = content[element]
    if isinstance(content, list | tuple):
        return np.nan, quality.BAD_CONFIGURATION_ERROR
    number = _number(content)
    undecodable = np.isnan(number) and content is not None and not isinstance(content, float)
    return number, quality.BAD_DECODING_ERROR if undecodable else quality.GOOD


def _number(content: Any) -> float:
    if isinstance(content, int | float):
        return float(content)
    try:
        return float(content) if isinstance(content, str) else np.nan
    except ValueError:
        return np.nan


def _ns(moment: datetime) -> int:
    since = moment - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * NS_PER_US


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _said(why: Exception) -> str:
    return f"{type(why).__name__}: {why}" if str(why) else type(why).__name__
