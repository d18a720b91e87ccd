"""What a broker carries: its topics listened to for a while, every number in their messages as an offer.

A clean session of its own under its own client id, so that the collector's is
left alone; it subscribes and publishes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from collector.drivers.broker import password_of, tls_context
from collector.payload import document_of
from collector.tools.browse import Offer, Said
from core.errors import DeviceRefused, DeviceUnreachable
from core.plant.model import Connection, MqttSource, Plant

MOST_OFFERS = 10_000
_SHOWN = 60  # characters of a payload that is neither JSON nor a number


class Heard:
    """The last message of every topic; filled by the network thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, tuple[bytes, int, bool]] = {}  # payload, how many, whether retained
        self.closed: str | None = None

    def message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        with self._lock:
            seen = self._last.get(message.topic)
            self._last[message.topic] = (
                bytes(message.payload),
                1 + (seen[1] if seen else 0),
                bool(message.retain),
            )

    def topics(self) -> dict[str, tuple[bytes, int, bool]]:
        with self._lock:
            return dict(self._last)


async def browse(plant: Plant, connection: Connection, seconds: float, said: Said) -> list[Offer]:
    """Every number on every topic heard within `seconds`; see collector/tools/browse.py."""
    heard = Heard()
    client = await listening(plant, connection, heard, "#")
    try:
        for tenth in range(max(1, round(10 * seconds))):
            said(f"{len(heard.topics())} topics", tenth / (10 * seconds))
            if heard.closed is not None:
                raise DeviceUnreachable(f"{where(connection)}: {heard.closed}")
            await asyncio.sleep(min(0.1, seconds))
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)
    read = {
        (point.source.topic, point.source.json_path)
        for point in plant.points
        if isinstance(point.source, MqttSource)
    }
    offers: list[Offer] = []
    for topic, (payload, count, retained) in sorted(heard.topics().items()):
        note = f"{count} message{'s' if count > 1 else ''}{', retained' if retained else ''}"
        for path, shows in _values(payload):
            if len(offers) == MOST_OFFERS:
                return offers
            cells = {"topic": topic, "json_path": path}
            offers.append(Offer(cells, shows, note, (topic, path) in read))
    return offers


async def listening(plant: Plant, connection: Connection, heard: Heard, topic: str) -> Client:
    """A client that hears a topic filter, its network thread running."""
    options = connection.options
    timeout_s = max(float(str(options.get("timeout_s", 5.0))), 1.0)
    is_v5 = str(options.get("version", "5")) == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"ecmc-browse-{secrets.token_hex(4)}",
        protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
        clean_session=None if is_v5 else True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = timeout_s
    if options.get("username"):
        client.username_pw_set(str(options["username"]), password_of(connection))
    if options.get("tls"):
        client.tls_set_context(tls_context(connection, Path(plant.folder)))
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Any] = loop.create_future()

    def settle(reason: Any) -> None:
        if not answered.done():
            answered.set_result(reason)

    def closed(_c: Client, _u: Any, _flags: Any, reason: Any, _p: Any) -> None:
        heard.closed = f"link lost: {reason}"

    def connected(_c: Client, _u: Any, _flags: Any, reason: Any, _p: Any) -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits any more, the loop is closed
            loop.call_soon_threadsafe(settle, reason)

    client.on_connect = connected
    client.on_disconnect = closed
    client.on_message = heard.message
    try:
        async with asyncio.timeout(2 * timeout_s):
            port = int(str(options.get("port", 1883)))
            await asyncio.to_thread(client.connect, str(options["host"]), port)
            client.loop_start()
            reason = await answered
    except TimeoutError:
        raise DeviceUnreachable(f"{where(connection)}: no answer within {2 * timeout_s:g} s") from None
    except OSError as why:
        raise DeviceUnreachable(f"{where(connection)}: {why.strerror or why}") from None
    if reason.is_failure:
        await asyncio.to_thread(client.loop_stop)
        raise DeviceRefused(f"{where(connection)}: {reason}")
    client.subscribe(topic, qos=0)
    return client


def where(connection: Connection) -> str:
    return f"{connection.id} {connection.options.get('host')}:{connection.options.get('port', 1883)}"


def _values(payload: bytes) -> Iterator[tuple[str, str]]:
    """(JSON path, what stands there) of every number in a payload; ("", …) where it is none of JSON."""
    try:
        document = document_of(payload)
    except ValueError:
        yield "", payload[:_SHOWN].decode("utf-8", "replace")
        return
    if not isinstance(document, dict | list):
        yield "", str(document)[:_SHOWN]
        return
    yield from _numbers(document, "$")


def _numbers(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if "'" not in key and key:  # no path can name the others
                signs = any(sign in key for sign in ".[]*")
                yield from _numbers(inner, f"{path}['{key}']" if signs else f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value[:100]):
            yield from _numbers(inner, f"{path}[{number}]")
    elif isinstance(value, int | float):
        yield path, str(value)
    elif isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return
        yield path, value
