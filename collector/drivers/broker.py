"""One session with an MQTT broker, whatever its messages mean.

The library's network thread only appends messages to a queue; an exception
there would end all reception without a word. They are decoded in batches on the
event loop, and acknowledged in `stored`: a message is the broker's to keep
until its samples are on disk. `MqttDriver` and `SparkplugDriver` say what is
listened to and what a message brings.
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
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.subscribeoptions import SubscribeOptions

from collector.delivery import Delivery
from collector.memory import Memory
from core import quality
from core.clock import Clock, SystemClock
from core.errors import DeviceRefused, DeviceUnreachable
from core.plant.model import Connection, Device, Plant, Point
from core.samples import Floats, Indices, SampleBatch, Statuses, Times

log = logging.getLogger(__name__)

DRAIN_EVERY_S: Final = 0.03
DRAIN_ROWS: Final = 20_000
# Beyond these, messages of QoS 0 are dropped and counted. Others are never: the broker would wait for their
# acknowledgement, and it sends no more than RECEIVE_MAXIMUM before.
WAITING_MESSAGES: Final = 200_000
WAITING_BYTES: Final = 64 << 20
RECEIVE_MAXIMUM: Final = 1_000
READ_BYTES: Final = 65_536
LAST_WORD_S: Final = 1.0
SESSION_EXPIRY_S: Final = 7 * 86_400

_UNSUPPORTED_VERSION: Final = 0x84
# Unsupported version, client id, user or password, not authorised, banned, bad method (MQTT 5, 3.2.2.2).
_REFUSALS: Final = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})


class Message(NamedTuple):
    topic: str
    payload: bytes
    mid: int
    qos: int
    retained: bool
    arrival_ns: int


class Columns:
    """Raw samples of a drain, in the order they came; a time and a status often hold for many."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.raws: list[float] = []
        self.times_ns: list[int] = []  # one for each call of add or add_one, as are statuses
        self.statuses: list[int] = []
        self._counts: list[int] = []

    def __len__(self) -> int:
        return len(self.raws)

    def add(self, slots: Sequence[int], time_ns: int, raws: Sequence[float], status: int) -> None:
        self.slots += slots
        self.raws += raws
        self.times_ns.append(time_ns)
        self.statuses.append(status)
        self._counts.append(len(slots))

    def add_one(self, slot: int, time_ns: int, raw: float, status: int) -> None:
        self.slots.append(slot)
        self.raws.append(raw)
        self.times_ns.append(time_ns)
        self.statuses.append(status)
        self._counts.append(1)

    def arrays(self) -> tuple[Indices, Times, Floats, Statuses]:
        """Slots, times, raw numbers and statuses, each of shape (n,)."""
        return (
            np.array(self.slots, dtype=np.int32),
            np.repeat(np.array(self.times_ns, dtype=np.int64), self._counts),
            np.array(self.raws, dtype=np.float64),
            np.repeat(np.array(self.statuses, dtype=np.int16), self._counts),
        )


class _Reader(Client):
    """paho's client with a buffer before it, and messages taken without an object of properties each.

    Of itself it asks the socket three times for the few bytes of a message's head, and waits for the
    socket again between any two messages; each time the interpreter changes threads.
    """

    take: Callable[[str, bytes, int, int, bool], None] | None = None  # topic, payload, mid, QoS, retained
    _ahead = b""
    _at = 0

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._at == len(self._ahead):
            self._ahead, self._at = super()._sock_recv(READ_BYTES), 0
        part = self._ahead[self._at : self._at + bufsize]
        self._at += len(part)
        return part

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Everything there is, so that nothing waits here while the thread waits for the socket."""
        while True:
            error = super().loop_read(max_packets)
            if error or self._at == len(self._ahead):
                return error

    def _handle_publish(self) -> MQTTErrorCode:
        """A message of QoS 0 or 1, taken as it stands; what is left is for paho to handle, or to refuse."""
        command, packet = self._in_packet["command"], self._in_packet["packet"]
        qos = command >> 1 & 3
        topic_end = 2 + int.from_bytes(packet[:2])
        at = topic_end + (2 if qos else 0)
        try:
            topic = packet[2:topic_end].decode()
            mid = int.from_bytes(packet[topic_end:at])
            if self.protocol == MQTTProtocolVersion.MQTTv5:
                properties, used = VariableByteIntegers.decode(packet[at : at + 4])  # type: ignore[no-untyped-call]
                at += properties + used
        except (ValueError, IndexError):
            return super()._handle_publish()
        if self.take is None or qos > 1 or not topic or at > len(packet):
            return super()._handle_publish()
        self.take(topic, bytes(packet[at:]), mid, qos, bool(command & 1))
        return MQTTErrorCode.MQTT_ERR_SUCCESS


class BrokerDriver:
    """The session, and the seam of a driver; what stands under "a protocol's own" is for the protocol.

    Options of the connection: `host`, `port`, `version` (`5`, `3.1.1`), `username`, `password_env`,
    `client_id`, `tls` with `ca_file`, `cert_file`, `key_file`; `timeout_s`, `keep_alive_s`, `session_expiry_s`.
    """

    keeps_session = True  # whether the broker keeps what comes while ecmc is away

    def __init__(
        self, plant: Plant, connection: Connection, clock: Clock | None = None, learned: Path | None = None
    ) -> None:
        self.name = connection.id
        self._memory = Memory(connection.id, learned if self.keeps_session else None)
        self._connection = connection
        self._options = connection.options
        self._folder = Path(plant.folder)
        self._clock = clock or SystemClock()
        self._client_id = str(connection.options.get("client_id") or f"ecmc-{plant.id}-{connection.id}")
        self._devices: list[Device] = [d for d in plant.devices if d.connection == connection.id]
        self._points: list[Point] = [plant.point_by_id[name] for d in self._devices for name in d.points]
        self._delivery = Delivery(plant, self._points)
        self._client: _Reader | None = None
        self._thread: threading.Thread | None = None
        self._waiting: deque[Message] = deque()
        self._received_bytes = 0  # counted by the network thread alone, as the other is by the loop
        self._taken_bytes = 0
        self._to_ack: list[tuple[int, int]] = []
        self._unstored = False
        self._refused: list[str] = []
        self._marks: list[SampleBatch] = []
        self._up = False
        self._lost: str | None = "not connected"
        self._gap_marked = True
        self._since_ns = self._clock.now_ns()
        self._dropped = 0

    # ---- a protocol's own

    def _listens(self) -> Mapping[str, int]:
        """The topic filters to subscribe to, each with its QoS."""
        raise NotImplementedError

    def _slots_of(self, topic: str) -> Sequence[int]:
        """The points that live from a topic filter."""
        raise NotImplementedError

    def _take(self, message: Message, columns: Columns) -> None:
        """Add what one message brings; it never raises."""
        raise NotImplementedError

    def _will(self) -> tuple[str, bytes] | None:
        """Topic and retained payload the broker publishes when this session ends without a word."""
        return None

    def _opened(self) -> None:
        """The session stands."""

    def _last_word(self) -> tuple[str, bytes] | None:
        """Topic and retained payload to publish before the session is closed in order."""
        return None

    def _tend(self, columns: Columns) -> None:
        """What time itself brings, called many times a second; it never raises."""

    # ---- the seam

    async def __aenter__(self) -> Self:
        self._waiting.clear()
        self._received_bytes = self._taken_bytes = 0
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
        self._opened()
        return self

    async def read(self) -> SampleBatch:
        while True:
            if self._marks:
                return self._marks.pop()
            had_waiting = bool(self._waiting)
            batch = self._drain()
            if len(batch):
                self._unstored = True
                return batch
            if had_waiting:
                if not self._unstored:  # nothing in these to keep
                    await self.stored()
            elif self._lost is None and self._thread is not None and not self._thread.is_alive():
                self._lose("the network thread ended")
            elif self._lost is None:
                await asyncio.sleep(DRAIN_EVERY_S)
            elif not self._gap_marked:
                self._gap_marked = True
                return self._delivery.mark(
                    range(len(self._points)), self._clock.now_ns(), quality.BAD_NO_COMMUNICATION
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
        client = _Reader(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
            clean_session=None if is_v5 else not self.keeps_session,
            reconnect_on_failure=False,  # the runner opens again, with its own jitter
            manual_ack=True,
        )
        self._client = client
        client.connect_timeout = timeout_s
        if self._options.get("username"):
            client.username_pw_set(str(self._options["username"]), password_of(self._connection))
        if self._options.get("tls"):
            client.tls_set_context(await asyncio.to_thread(tls_context, self._connection, self._folder))
        if (will := self._will()) is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        connected: asyncio.Future[Any] = loop.create_future()
        subscribed: asyncio.Future[list[Any]] = loop.create_future()

        def settle(future: asyncio.Future[Any], result: Any) -> None:
            if not future.done():
                future.set_result(result)

        def tell(future: asyncio.Future[Any], result: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, future, result)

        def fail(why: str) -> None:
            for future in (connected, subscribed):
                if not future.done():
                    future.set_exception(DeviceUnreachable(f"{self._where}: {why}"))
                    future.exception()  # one of them may have nobody waiting

        def lost(reason: Any) -> None:
            self._lose(f"link lost: {reason}", client)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(fail, f"link lost: {reason}")

        client.on_connect = lambda _c, _u, _flags, reason, _p: tell(connected, reason)
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: tell(subscribed, reasons)
        client.on_disconnect = lambda _c, _u, _flags, reason, _p: lost(reason)
        client.on_message = self._received_whole
        client.take = self._received
        self._lost = None
        connect_properties = None
        if is_v5:
            connect_properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            if self.keeps_session:
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
                clean_start=not self.keeps_session if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
                properties=connect_properties,
            )
            client.loop_start()
            name = f"paho-mqtt-client-{self._client_id}"
            self._thread = next((t for t in set(threading.enumerate()) - before if t.name == name), None)
            reason = await connected
            if reason.is_failure:
                error = DeviceRefused if reason.value in _REFUSALS else DeviceUnreachable
                hint = " 5; say version: 3.1.1" if is_v5 and reason.value == _UNSUPPORTED_VERSION else ""
                raise error(f"{self._where}: {reason}{hint}")
            wanted = self._listens()
            if wanted:
                client.subscribe([_asked(topic, qos, is_v5) for topic, qos in wanted.items()])
                self._check(list(wanted), await subscribed)
            if self.keeps_session:
                self._forget_others(client, wanted)

    def _forget_others(self, client: Client, wanted: Mapping[str, int]) -> None:
        """The session outlives the plant folder as it was: what that listened to is not listened to any more."""
        whose = [self._client_id, str(self._options["host"]), str(self._options.get("port", 1883))]
        if self._memory.known.get("session") == whose:
            before = self._memory.known.get("topics")
            gone = set(before if isinstance(before, list) else ()) - set(wanted)
            if gone:
                client.unsubscribe(sorted(gone))
        self._memory.keep({"session": whose, "topics": sorted(wanted)})

    def _check(self, filters: list[str], reasons: list[Any]) -> None:
        refused = [topic for topic, reason in zip(filters, reasons, strict=True) if reason.is_failure]
        if refused and refused != self._refused:
            log.warning("subscription refused", extra={"connection": self.name, "topics": refused})
            slots = [slot for topic in refused for slot in self._slots_of(topic)]
            self._marks.append(
                self._delivery.mark(slots, self._clock.now_ns(), quality.BAD_CONFIGURATION_ERROR)
            )
        self._refused = refused

    async def _disconnect(self) -> None:
        client = self._client
        if client is not None:
            client.on_message = client.on_disconnect = client.take = None
            if self._up and (last_word := self._last_word()) is not None:
                sent = client.publish(last_word[0], last_word[1], qos=1, retain=True)
                with contextlib.suppress(ValueError, RuntimeError):  # the link is lost: the will says it
                    await asyncio.to_thread(sent.wait_for_publish, LAST_WORD_S)
            client.disconnect()
            self._client = self._thread = None
            await asyncio.to_thread(client.loop_stop)

    def _lose(self, why: str, client: Client | None = None) -> None:
        """Also from the network thread; a client given up earlier has nothing to say any more."""
        if self._lost is None and (client is None or client is self._client):
            self._lost, self._up = why, False
            self._since_ns = self._clock.now_ns()

    # ---- messages

    def _received_whole(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        """What the reader left to paho, of QoS 2."""
        with contextlib.suppress(UnicodeDecodeError):  # a topic no broker would let pass
            self._received(message.topic, bytes(message.payload), message.mid, message.qos, message.retain)

    def _received(self, topic: str, payload: bytes, mid: int, qos: int, retained: bool) -> None:
        """On the network thread, which an exception here would end."""
        try:
            waiting_bytes = self._received_bytes - self._taken_bytes
            if qos == 0 and (len(self._waiting) >= WAITING_MESSAGES or waiting_bytes >= WAITING_BYTES):
                self._dropped += 1
                return
            self._received_bytes += len(payload)
            self._waiting.append(Message(topic, payload, mid, qos, retained, self._clock.now_ns()))
        except Exception:
            self._dropped += 1
            log.exception("message lost", extra={"connection": self.name})

    def _drain(self) -> SampleBatch:
        """Everything waiting, up to a full write, in columns."""
        columns = Columns()
        while self._waiting and len(columns) < DRAIN_ROWS:
            message = self._waiting.popleft()
            self._taken_bytes += len(message.payload)
            if message.qos:
                self._to_ack.append((message.mid, message.qos))
            self._take(message, columns)
        if self._lost is None:
            self._tend(columns)
        return self._delivery.batch(*columns.arrays())


def _asked(topic: str, qos: int, is_v5: bool) -> Any:
    if not is_v5:
        return topic, qos
    options = SubscribeOptions(qos=qos, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
    return topic, options


def password_of(connection: Connection) -> str | None:
    """The broker password out of the environment, where the connection names a variable for it.

    Raises:
        DeviceRefused: The variable is not there.
    """
    name = connection.options.get("password_env")
    if not name:
        return None
    if str(name) not in os.environ:
        raise DeviceRefused(f"{connection.id}: the environment has no {name} to take the password from")
    return os.environ[str(name)]


def tls_context(connection: Connection, folder: Path) -> ssl.SSLContext:
    """Who we trust, and our own certificate if the broker asks for one; files are the plant folder's.

    Raises:
        DeviceRefused: A certificate file cannot be used.
    """

    def file(key: str) -> str | None:
        return str(folder / str(connection.options[key])) if connection.options.get(key) else None

    try:
        context = ssl.create_default_context(cafile=file("ca_file"))
        if (certificate := file("cert_file")) is not None:
            context.load_cert_chain(certificate, file("key_file"))
    except OSError as why:
        raise DeviceRefused(f"{connection.id}: certificate files: {why}") from why
    return context
