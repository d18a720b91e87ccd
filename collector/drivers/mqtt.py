"""MQTT: a message is acknowledged when its samples are on disk, and not before.

The library's network thread only appends messages to a queue; an exception
there would end all reception without a word. They are decoded in batches on the
event loop, and acknowledged in `stored`. The session stays with the broker, so
what comes while ecmc is away is delivered later: with the payload's own time
it lands where it belongs. A message without one is dated on arrival; where it
cannot have one (a bare number) QoS 0 is asked for, since an old value delivered
late would be dated wrongly. For the same reason a retained message without a
time of its own is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from collector.delivery import Delivery, plausible
from collector.driver import DeviceState
from collector.payload import JsonPath, Match, Times, document_of, number_of, reduced
from core import quality
from core.clock import NS_PER_S, Clock, SystemClock
from core.errors import DeviceRefused, DeviceUnreachable
from core.plant.model import Connection, MqttSource, Plant, Point
from core.samples import SampleBatch

log = logging.getLogger(__name__)

DRAIN_EVERY_S: Final = 0.03
DRAIN_ROWS: Final = 20_000
WAITING_MESSAGES: Final = 200_000  # beyond this QoS 0 is dropped and counted, QoS 1 left with the broker
RECEIVE_MAXIMUM: Final = 1_000
SESSION_EXPIRY_S: Final = 7 * 86_400
SILENT_S: Final = 60.0
KNOWN_TOPICS: Final = 10_000

# Unsupported version, client id, user or password, not authorised, banned, bad method (MQTT 5, 3.2.2.2).
_REFUSALS: Final = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})


class _Message(NamedTuple):
    topic: str
    payload: bytes
    mid: int
    qos: int
    retained: bool
    arrival_ns: int


@dataclass(slots=True)
class _Tag:
    """One point of a topic filter."""

    slot: int
    device: str
    path: JsonPath | None  # None: the payload is the number
    time_path: JsonPath | None
    reduce: str | None


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Points of one device whose values are keys of one object: read together, at the speed of the library."""

    tags: tuple[_Tag, ...]
    slots: tuple[int, ...]
    parent: JsonPath
    values: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class _Topic:
    """What one topic brings."""

    siblings: tuple[_Siblings, ...]
    singles: tuple[_Tag, ...]
    devices: frozenset[str]
    is_json: bool


class _Columns:
    """Raw samples of a drain."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.times_ns: list[int] = []
        self.raws: list[float] = []
        self.statuses: list[int] = []

    def add(self, slots: Sequence[int], time_ns: int, raws: Sequence[float], status: int) -> None:
        self.slots += slots
        self.times_ns += repeat(time_ns, len(slots))
        self.raws += raws
        self.statuses += repeat(status, len(slots))


@dataclass(slots=True)
class _Heard:
    """What a device has said."""

    silent_s: float
    last_ns: int = 0
    bad: str = ""
    counters: dict[str, int] = field(
        default_factory=lambda: {"messages": 0, "bad_payloads": 0, "retained_undated": 0, "times_refused": 0}
    )


class MqttDriver:
    """One session with a broker.

    Options of the connection: `host`, `port`, `version` (`5`, `3.1.1`), `qos`, `username`, `password_env`,
    `client_id`, `tls` with `ca_file`, `cert_file`, `key_file`; `timeout_s`, `keep_alive_s`, `session_expiry_s`.
    """

    def __init__(self, plant: Plant, connection: Connection, clock: Clock | None = None) -> None:
        self.name = connection.id
        self._options = connection.options
        self._folder = Path(plant.folder)
        self._zone = plant.zone
        self._clock = clock or SystemClock()
        self._client_id = str(connection.options.get("client_id") or f"ecmc-{plant.id}-{connection.id}")
        self._tags: dict[str, list[_Tag]] = {}  # by topic filter
        self._heard: dict[str, _Heard] = {}
        points: list[Point] = []
        paths: dict[str | None, JsonPath | None] = {None: None, "": None}
        for device in plant.devices:
            if device.connection != connection.id:
                continue
            of_device = [plant.point_by_id[name] for name in device.points]
            longest_s = max((point.period_s for point in of_device), default=1.0)
            self._heard[device.id] = _Heard(max(SILENT_S, 10 * longest_s))
            for point in of_device:
                source = point.source
                if isinstance(source, MqttSource):
                    for text in (source.json_path, source.time_path):
                        if text not in paths:
                            paths[text] = JsonPath(str(text))
                    path, time_path = paths[source.json_path], paths[source.time_path]
                    tag = _Tag(len(points), device.id, path, time_path, source.reduce)
                    self._tags.setdefault(source.topic, []).append(tag)
                    points.append(point)
        self._delivery = Delivery(plant, points)
        self._slots = len(points)
        self._by_topic: dict[str, _Topic] = {}
        self._client: Client | None = None
        self._thread: threading.Thread | None = None
        self._waiting: deque[_Message] = deque()
        self._to_ack: list[tuple[int, int]] = []
        self._unstored = False
        self._refused: list[str] = []
        self._marks: list[SampleBatch] = []
        self._up = False
        self._lost: str | None = "not connected"
        self._gap_marked = True
        self._since_ns = self._clock.now_ns()
        self._dropped = 0

    # ---- the seam

    async def __aenter__(self) -> Self:
        self._waiting.clear()
        self._to_ack.clear()
        try:
            await self._connect()
        except BaseException as why:
            await self._disconnect()
            if isinstance(why, DeviceRefused | DeviceUnreachable) or not isinstance(
                why, OSError | ValueError
            ):
                raise
            raise DeviceUnreachable(f"{self._where}: {why or type(why).__name__}") from why
        self._up, self._gap_marked, self._since_ns = True, False, self._clock.now_ns()
        return self

    async def read(self) -> SampleBatch:
        while True:
            if self._marks:
                return self._marks.pop()
            if self._waiting:
                batch = self._drain()
                if len(batch):
                    self._unstored = True
                    return batch
                if not self._unstored:  # nothing in these to keep
                    await self.stored()
            elif self._lost is None and self._thread is not None and not self._thread.is_alive():
                self._lose("the network thread ended")
            elif self._lost is None:
                await asyncio.sleep(DRAIN_EVERY_S)
            elif not self._gap_marked:
                self._gap_marked = True
                return self._delivery.mark(
                    range(self._slots), self._clock.now_ns(), quality.BAD_NO_COMMUNICATION
                )
            else:
                raise DeviceUnreachable(f"{self._where}: {self._lost}")

    async def stored(self) -> None:
        to_ack, self._to_ack = self._to_ack, []
        self._unstored = False
        if self._client is None or self._lost is not None:
            return  # another connection has other message ids; the broker sends these again
        for mid, qos in to_ack:
            self._client.ack(mid, qos)

    def devices(self) -> Mapping[str, DeviceState]:
        now_ns = self._clock.now_ns()
        states = {}
        for device, heard in self._heard.items():
            silent_s = (now_ns - max(heard.last_ns, self._since_ns)) / NS_PER_S
            if self._lost is not None or not self._up:
                up, detail = False, self._lost or "connecting"
            elif silent_s > heard.silent_s:
                up, detail = False, f"no message for {silent_s:.0f} s"
            elif heard.bad:
                up, detail = True, f"payload not readable: {heard.bad}"
            elif self._refused:
                up, detail = True, f"subscription refused: {', '.join(self._refused)}"
            else:
                up, detail = True, "connected" if heard.last_ns else "no message yet"
            counters = {**heard.counters, "messages_dropped": self._dropped}
            states[device] = DeviceState(up, heard.last_ns or self._since_ns, detail, counters)
        return states

    async def __aexit__(self, *exc: object) -> None:
        await self._disconnect()
        self._lose("closed")

    # ---- connecting

    @property
    def _where(self) -> str:
        return f"{self.name} {self._options.get('host')}:{self._options.get('port')}"

    async def _connect(self) -> None:
        timeout_s = max(float(str(self._options.get("timeout_s", 5.0))), 1.0)
        loop = asyncio.get_running_loop()
        is_v5 = str(self._options.get("version", "5")) == "5"
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
            clean_session=None if is_v5 else False,
            reconnect_on_failure=False,  # the runner opens again, with its own jitter
            manual_ack=True,
        )
        self._client = client
        client.connect_timeout = timeout_s
        if self._options.get("username"):
            client.username_pw_set(str(self._options["username"]), self._password())
        if self._options.get("tls"):
            client.tls_set_context(await asyncio.to_thread(self._tls))
        connected: asyncio.Future[Any] = loop.create_future()
        subscribed: asyncio.Future[list[Any]] = loop.create_future()

        def settle(future: asyncio.Future[Any], result: Any) -> None:
            if not future.done():
                future.set_result(result)

        def tell(future: asyncio.Future[Any], result: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, future, result)

        client.on_connect = lambda _c, _u, _flags, reason, _p: tell(connected, reason)
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: tell(subscribed, reasons)
        client.on_disconnect = lambda _c, _u, _flags, reason, _p: self._lose(f"link lost: {reason}", client)
        client.on_message = self._received
        self._lost = None
        connect_properties = None
        if is_v5:
            connect_properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            connect_properties.SessionExpiryInterval = int(
                str(self._options.get("session_expiry_s", SESSION_EXPIRY_S))
            )
            connect_properties.ReceiveMaximum = RECEIVE_MAXIMUM
        before = set(threading.enumerate())
        async with asyncio.timeout(2 * timeout_s):
            await asyncio.to_thread(
                client.connect,
                str(self._options["host"]),
                int(str(self._options.get("port", 1883))),
                keepalive=int(str(self._options.get("keep_alive_s", 30))),
                clean_start=False if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
                properties=connect_properties,
            )
            client.loop_start()
            name = f"paho-mqtt-client-{self._client_id}"
            self._thread = next((t for t in set(threading.enumerate()) - before if t.name == name), None)
            reason = await connected
            if reason.is_failure:
                error = DeviceRefused if reason.value in _REFUSALS else DeviceUnreachable
                raise error(f"{self._where}: {reason}")
            filters = list(self._tags)
            if filters:
                client.subscribe([self._asked(topic, is_v5) for topic in filters])
                await self._check(filters, await subscribed)

    def _asked(self, topic: str, is_v5: bool) -> Any:
        dated = any(tag.path is not None for tag in self._tags[topic])
        qos = int(str(self._options.get("qos", 1))) if dated else 0
        if not is_v5:
            return topic, qos
        options = SubscribeOptions(qos=qos, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        return topic, options

    async def _check(self, filters: list[str], reasons: list[Any]) -> None:
        refused = [topic for topic, reason in zip(filters, reasons, strict=True) if reason.is_failure]
        if refused and refused != self._refused:
            log.warning("subscription refused", extra={"connection": self.name, "topics": refused})
            slots = [tag.slot for topic in refused for tag in self._tags[topic]]
            self._marks.append(
                self._delivery.mark(slots, self._clock.now_ns(), quality.BAD_CONFIGURATION_ERROR)
            )
        self._refused = refused

    def _password(self) -> str | None:
        name = self._options.get("password_env")
        if not name:
            return None
        if str(name) not in os.environ:
            raise DeviceRefused(f"{self._where}: the environment has no {name} to take the password from")
        return os.environ[str(name)]

    def _tls(self) -> ssl.SSLContext:
        def file(key: str) -> str | None:
            return str(self._folder / str(self._options[key])) if self._options.get(key) else None

        try:
            context = ssl.create_default_context(cafile=file("ca_file"))
            if (certificate := file("cert_file")) is not None:
                context.load_cert_chain(certificate, file("key_file"))
        except OSError as why:
            raise DeviceRefused(f"{self._where}: certificate files: {why}") from why
        return context

    async def _disconnect(self) -> None:
        client, self._client, self._thread = self._client, None, None
        if client is not None:
            client.on_message = client.on_disconnect = None
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    def _lose(self, why: str, client: Client | None = None) -> None:
        """Also from the network thread; a client given up earlier has nothing to say any more."""
        if self._lost is None and (client is None or client is self._client):
            self._lost, self._up = why, False
            self._since_ns = self._clock.now_ns()

    # ---- messages

    def _received(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        """On the network thread, which an exception here would end."""
        try:
            if len(self._waiting) >= WAITING_MESSAGES:
                self._dropped += 1
                return
            arrival_ns = self._clock.now_ns()
            self._waiting.append(
                _Message(
                    message.topic,
                    bytes(message.payload),
                    message.mid,
                    message.qos,
                    message.retain,
                    arrival_ns,
                )
            )
        except Exception:
            self._dropped += 1
            log.exception("message lost", extra={"connection": self.name})

    def _drain(self) -> SampleBatch:
        """Everything waiting, up to a full write, in columns."""
        columns = _Columns()
        while self._waiting and len(columns.slots) < DRAIN_ROWS:
            message = self._waiting.popleft()
            if message.qos:
                self._to_ack.append((message.mid, message.qos))
            topic = self._topic(message.topic)
            for device in topic.devices:
                self._heard[device].counters["messages"] += 1
            try:
                self._decode(message, topic, columns)
            except Exception as why:  # whatever the payload was, the next one is read
                for device in topic.devices:
                    heard = self._heard[device]
                    heard.counters["bad_payloads"] += 1
                    heard.bad = f"{message.topic}: {str(why)[:100]}"
        statuses = np.array(columns.statuses, dtype=np.int16)
        return self._delivery.batch(columns.slots, columns.times_ns, columns.raws, statuses)

    def _topic(self, name: str) -> _Topic:
        topic = self._by_topic.get(name)
        if topic is None:
            matching = [of_it for wanted, of_it in self._tags.items() if topic_matches_sub(wanted, name)]
            topic = _topic_of([tag for of_it in matching for tag in of_it])
            if len(self._by_topic) < KNOWN_TOPICS:
                self._by_topic[name] = topic
        return topic

    def _decode(self, message: _Message, topic: _Topic, columns: _Columns) -> None:
        """Add one message's samples; ValueError where the payload is not readable."""
        document = document_of(message.payload) if topic.is_json else None
        times: dict[JsonPath | None, Times] = {}
        for siblings in topic.siblings:
            if not self._decode_together(message, document, siblings, times, columns):
                for tag in siblings.tags:
                    self._decode_one(message, document, tag, times, columns)
        for tag in topic.singles:
            self._decode_one(message, document, tag, times, columns)
        for device in topic.devices:
            heard = self._heard[device]
            heard.last_ns, heard.bad = message.arrival_ns, ""

    def _decode_together(
        self,
        message: _Message,
        document: Any,
        siblings: _Siblings,
        times: dict[JsonPath | None, Times],
        columns: _Columns,
    ) -> bool:
        """Whether the object is there once, with a plain number under every key."""
        found = siblings.parent.find(document)
        if len(found) != 1 or type(found[0].value) is not dict:
            return False
        around, parent = found[0], found[0].value
        try:
            values = siblings.values(parent)
        except KeyError:
            return False
        if not set(map(type, values)) <= {float, int}:
            return False
        numbers = list(map(float, values))
        inside = Match(None, (*around.trail, parent), around.one_of_many)
        payload_ns = self._times(document, siblings.tags[0], times).of(inside)
        dated = self._dated(message, siblings.tags[0], payload_ns, len(numbers))
        if dated is not None:
            columns.add(siblings.slots, dated[0], numbers, dated[1])
        return True

    def _decode_one(
        self,
        message: _Message,
        document: Any,
        tag: _Tag,
        times: dict[JsonPath | None, Times],
        columns: _Columns,
    ) -> None:
        by_time: dict[int | None, list[tuple[float, int]]] = {}
        if tag.path is None:
            by_time[None] = [number_of(message.payload.decode())]
        else:
            of_message = self._times(document, tag, times)
            for match in tag.path.find(document):
                by_time.setdefault(of_message.of(match), []).append(number_of(match.value))
        for payload_ns, values in by_time.items():
            raw, status = reduced(values, tag.reduce)
            dated = self._dated(message, tag, payload_ns, 1)
            if dated is not None:
                columns.add((tag.slot,), dated[0], (raw,), status if status != quality.GOOD else dated[1])

    def _times(self, document: Any, tag: _Tag, times: dict[JsonPath | None, Times]) -> Times:
        if tag.time_path not in times:
            times[tag.time_path] = Times(document, tag.time_path, self._zone)
        return times[tag.time_path]

    def _dated(
        self, message: _Message, tag: _Tag, payload_ns: int | None, samples: int
    ) -> tuple[int, int] | None:
        """When samples of a message were so, and the status that goes with it; None: too old to tell."""
        if payload_ns is not None and plausible(payload_ns, message.arrival_ns):
            return payload_ns, quality.GOOD
        counters = self._heard[tag.device].counters
        if message.retained:
            counters["retained_undated"] += samples
            return None
        if payload_ns is None and tag.time_path is None:
            return message.arrival_ns, quality.GOOD
        counters["times_refused"] += samples  # a clock that is wrong, or gives no time today
        return message.arrival_ns, quality.UNCERTAIN


def _topic_of(tags: Sequence[_Tag]) -> _Topic:
    """The points of a topic, those that stand side by side in one object put together."""
    side_by_side: dict[tuple[str, str, JsonPath | None], list[_Tag]] = {}
    singles: list[_Tag] = []
    for tag in tags:
        place = tag.path.place if tag.path is not None else None
        if place is None:
            singles.append(tag)
        else:
            side_by_side.setdefault((tag.device, place[0], tag.time_path), []).append(tag)
    together = []
    for (_, parent, _), of_object in side_by_side.items():
        keys = [tag.path.place[1] for tag in of_object if tag.path is not None and tag.path.place is not None]
        if len(keys) == 1:
            singles += of_object
            continue
        slots = tuple(tag.slot for tag in of_object)
        together.append(_Siblings(tuple(of_object), slots, JsonPath(parent), itemgetter(*keys)))
    return _Topic(
        tuple(together),
        tuple(singles),
        frozenset(tag.device for tag in tags),
        any(tag.path is not None for tag in tags),
    )
