"""What goes wrong between gateway, broker and ecmc: nothing sent with QoS 1 is lost without a mark."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from collector.drivers import broker as broker_module
from collector.drivers.mqtt import MqttDriver
from collector.spool import Spool
from collector.supervise import Backoff, Link
from core import quality
from core.errors import DeviceRefused, DeviceUnreachable
from core.health import Health
from core.plant.model import MqttSource, Plant
from core.samples import NS_PER_S

POWER = {"power": MqttSource("plant/m1", "$.P", time_path="$.ts")}
ELSEWHERE = {**POWER, "secret": MqttSource("office/m9", "$.P", time_path="$.ts")}

PLUGIN = Path("/usr/lib") / f"{sysconfig.get_config_var('MULTIARCH')}" / "mosquitto_dynamic_security.so"

Rows = list[tuple[str, int, float, int]]

READER = """
import asyncio, sys, time
from pathlib import Path
from zoneinfo import ZoneInfo
from collector.drivers.mqtt import MqttDriver
from collector.spool import Spool
from core.plant.model import Connection, Device, Kind, Label, MqttSource, Plant, Point, Protocol

port, folder = int(sys.argv[1]), Path(sys.argv[2])
plant = Plant(
    id="t", name=Label("t", "t"), zone=ZoneInfo("Asia/Shanghai"), region="CN", base_interval_s=60, method_sets=(),
    areas=(), connections=(Connection("mq1", Protocol.MQTT, {"host": "127.0.0.1", "port": port}),),
    devices=(Device("gw", "mq1", None, ("power",)),),
    points=(Point("power", "active_power_total", "kW", Kind.GAUGE, "gw", MqttSource("plant/m1", "$.P", time_path="$.ts")),),
    nodes=(), edges=(), alerts=(), folder="", fingerprint="",
)

async def main():
    kept = 0
    async with Spool(folder) as spool, MqttDriver(plant, plant.connections[0]) as driver:
        print("up", flush=True)
        while kept < 100:
            batch = await driver.read()
            await spool.append(batch)
            kept += len(batch)
            await driver.stored()
        received = len(await driver.read())
        print(received, flush=True)  # received, and never committed
        await asyncio.sleep(60)

asyncio.run(main())
"""


def message(value: float, time_ns: int) -> str:
    return json.dumps({"ts": time_ns // 1_000_000, "P": value})


def start_ns(seconds_ago: float = 1000) -> int:
    return (time.time_ns() // NS_PER_S - int(seconds_ago)) * NS_PER_S


@asynccontextmanager
async def supervised(plant: Plant, folder: Path) -> AsyncIterator[tuple[MqttDriver, Rows]]:
    """A driver under supervision, and the rows its spool holds."""
    rows: Rows = []
    driver = MqttDriver(plant, plant.connections[0])

    async def keep(spool: Spool) -> None:
        while True:
            batch, position = await spool.read(10_000)
            await spool.ack(position)
            columns = (batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist())
            rows.extend(zip(*columns, strict=True))

    async with Spool(folder) as spool:
        backoff = Backoff(base_s=0.1, cap_s=0.3)
        link = Link(driver, spool, Health(), asyncio.Semaphore(1), backoff)
        tasks = [asyncio.create_task(link.run()), asyncio.create_task(keep(spool))]
        try:
            yield driver, rows
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(done: Callable[[], object], within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def is_up(driver: MqttDriver) -> bool:
    return driver.devices()["gw"].up


@pytest.mark.parametrize(
    "away_s",
    [3.0, pytest.param(300.0, marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
    ids=["3 s", "5 min"],
)
async def test_a_broker_away_costs_a_mark_and_no_message(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], tmp_path: Path, away_s: float
) -> None:
    start, sent = start_ns(), 0

    async def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):  # what cannot be sent, the gateway keeps
            gateway._client.publish("plant/m1", message(float(sent), start + sent * NS_PER_S), 1)
            sent += 1

    async with supervised(plant_of(broker.port, POWER), tmp_path / "spool") as (driver, rows):
        await until(lambda: is_up(driver))
        await send(20)
        await until(lambda: len(rows) == 20)
        await asyncio.to_thread(broker.stop)
        went_s = time.monotonic()
        await until(lambda: not is_up(driver))
        while time.monotonic() - went_s < away_s:
            await send(1)
            await asyncio.sleep(away_s / 30)
        await asyncio.to_thread(broker.start)
        await until(lambda: is_up(driver), within_s=away_s + 20)
        await send(20)
        await until(
            lambda: len({row[1] for row in rows if row[3] == quality.GOOD}) == sent, within_s=away_s + 40
        )

    good = {row[1:3] for row in rows if row[3] == quality.GOOD}
    assert good == {(start + k * NS_PER_S, float(k)) for k in range(sent)}
    assert [row[3] for row in rows if row[3] != quality.GOOD] == [quality.BAD_NO_COMMUNICATION]


async def test_what_came_to_the_broker_while_ecmc_was_cut_off_comes_later_at_its_time(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    start = start_ns()
    async with supervised(plant_of(broker.port, POWER), tmp_path / "spool") as (driver, rows):
        await until(lambda: is_up(driver))
        assert driver._client is not None
        driver._client.socket().close()
        for k in range(50):
            gateway._client.publish("plant/m1", message(float(k), start + k * NS_PER_S), 1)
        await until(lambda: len({row[1] for row in rows if row[3] == quality.GOOD}) == 50)

    assert {row[1:3] for row in rows if row[3] == 0} == {(start + k * NS_PER_S, float(k)) for k in range(50)}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_broker_that_forgot_its_sessions_is_subscribed_to_again(
    broker: Any, gateway_to: Any, plant_of: Callable[..., Plant], tmp_path: Path, version: str
) -> None:
    async def say(value: float) -> None:
        gateway = await asyncio.to_thread(gateway_to, broker.port)
        await asyncio.to_thread(gateway.publish, "plant/m1", message(value, start_ns(value)))
        await asyncio.to_thread(gateway.close)

    async with supervised(plant_of(broker.port, POWER, version=version), tmp_path / "spool") as (
        driver,
        rows,
    ):
        await until(lambda: is_up(driver))
        await say(1.0)
        await until(lambda: rows)
        await asyncio.to_thread(broker.stop)
        broker.forget()
        await until(lambda: not is_up(driver))
        await asyncio.to_thread(broker.start)
        await until(lambda: is_up(driver))
        await say(2.0)
        await until(lambda: rows[-1][2] == 2.0)

    assert [row[3] for row in rows] == [quality.GOOD, quality.BAD_NO_COMMUNICATION, quality.GOOD]


async def test_killed_between_receipt_and_commit_of_300_queued_messages_none_is_lost(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    plant, start = plant_of(broker.port, POWER), start_ns()
    async with MqttDriver(plant, plant.connections[0]):
        pass  # the session stands from here on
    for k in range(300):
        gateway._client.publish("plant/m1", message(float(k), start + k * NS_PER_S), 1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, str(broker.port), str(tmp_path / "spool"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"up\n"
        for k in range(300, 320):  # some come while it holds what it has not committed
            await asyncio.sleep(0.01)
            gateway._client.publish("plant/m1", message(float(k), start + k * NS_PER_S), 1)
        assert int(await process.stdout.readline()) > 0
    process.kill()
    await process.wait()

    async with supervised(plant, tmp_path / "spool") as (_, rows):
        await until(lambda: len({row[1] for row in rows}) == 320)
    assert {row[1:3] for row in rows} == {(start + k * NS_PER_S, float(k)) for k in range(320)}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_with_a_client_certificate_the_broker_knows_its_reader(
    tls_broker: Any, gateway_to: Any, plant_of: Callable[..., Plant], version: str
) -> None:
    options = {"tls": True, "ca_file": str(tls_broker.certificate), "version": version}
    own = {"cert_file": str(tls_broker.client_certificate), "key_file": str(tls_broker.client_key)}
    plant = plant_of(tls_broker.mutual_port, POWER, **options, **own)
    async with MqttDriver(plant, plant.connections[0]) as driver:
        gateway = await asyncio.to_thread(gateway_to, tls_broker.port)
        await asyncio.to_thread(gateway.publish, "plant/m1", message(4.0, start_ns()))
        await asyncio.to_thread(gateway.close)
        async with asyncio.timeout(8):
            assert (await driver.read()).value.tolist() == [4.0]

    without = plant_of(tls_broker.mutual_port, POWER, **options)
    with pytest.raises(DeviceUnreachable, match="link lost"):
        await MqttDriver(without, without.connections[0]).__aenter__()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_subscription_refused_is_said_and_the_rest_is_read(
    broker: Any,
    gateway_to: Any,
    plant_of: Callable[..., Plant],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:
    if not PLUGIN.exists():
        pytest.skip("mosquitto's dynamic security plugin is not installed")
    await asyncio.to_thread(broker.stop)
    broker.refuse_by_plugin(PLUGIN)
    await asyncio.to_thread(broker.start)
    gateway = await asyncio.to_thread(gateway_to, broker.port)
    monkeypatch.setenv("MQ_PASSWORD", "right")
    plant = plant_of(broker.port, ELSEWHERE, username="reader", password_env="MQ_PASSWORD", version=version)
    async with MqttDriver(plant, plant.connections[0]) as driver:
        await asyncio.to_thread(gateway.publish, "office/m9", message(9.0, start_ns()))
        await asyncio.to_thread(gateway.publish, "plant/m1", message(1.0, start_ns()))
        rows: Rows = []
        async with asyncio.timeout(8):
            while not any(row[0] == "power" for row in rows):
                batch = await driver.read()
                columns = (batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist())
                rows += zip(*columns, strict=True)
        assert "subscription refused: office/m9" in driver.devices()["gw"].detail
        await asyncio.to_thread(gateway.close)

    assert [row[3] for row in rows if row[0] == "secret"] == [quality.BAD_CONFIGURATION_ERROR]
    assert [row[2] for row in rows if row[0] == "power"] == [1.0]


async def test_what_an_access_list_holds_back_without_a_word_is_said(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQ_PASSWORD", "right")
    plant = plant_of(broker.port, ELSEWHERE, username="reader", password_env="MQ_PASSWORD")
    async with MqttDriver(plant, plant.connections[0]) as driver:
        await asyncio.to_thread(gateway.publish, "office/m9", message(9.0, start_ns()))
        await asyncio.to_thread(gateway.publish, "plant/m1", message(1.0, start_ns()))
        async with asyncio.timeout(8):
            batch = await driver.read()

        assert batch.names() == ["power"]
        assert driver.devices()["gw"].detail == "connected, nothing yet on office/m9"


def test_a_flood_nobody_reads_costs_messages_of_qos_0_and_bounded_memory(
    plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "WAITING_BYTES", 1_000)
    plant = plant_of(1, POWER)
    driver = MqttDriver(plant, plant.connections[0])
    now = start_ns(0)
    for k in range(100):
        driver._received("plant/m1", message(float(k), now + k).encode(), k, k % 2, False)

    kept = [waiting.qos for waiting in driver._waiting]
    assert kept.count(1) == 50
    assert 0 < kept.count(0) < 40
    assert driver.devices()["gw"].counters["messages_dropped"] == 50 - kept.count(0)
    driver._drain()
    driver._received("plant/m1", message(0.0, now).encode(), 1, 0, False)
    assert len(driver._waiting) == 1


class Wire:
    """A relay before the broker that keeps every packet the client sends."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.sent = bytearray()
        self.closed = False

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._to)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
            while data := await source.read(65_536):
                kept += data
                sink.write(data)
            sink.close()

        await asyncio.gather(pass_on(reader, to_broker, self.sent), pass_on(from_broker, writer, bytearray()))
        self.closed = True

    def packets(self) -> list[tuple[int, bytes]]:
        """Type and content of each packet (MQTT 5, 2.1)."""
        found, at = [], 0
        while at < len(self.sent):
            kind, at, length, shift = self.sent[at] >> 4, at + 1, 0, 0
            while True:
                byte, at = self.sent[at], at + 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            found.append((kind, bytes(self.sent[at : at + length])))
            at += length
        return found


CONNECT, PUBLISH, PUBACK, PUBREC, PUBCOMP, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 5, 7, 8, 12, 14


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_no_packet_ecmc_sends_a_broker_publishes_anything(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], version: str
) -> None:
    async with Wire(broker.port) as wire:
        plant = plant_of(wire.port, ELSEWHERE, version=version, qos=2, keep_alive_s=2)
        async with MqttDriver(plant, plant.connections[0]) as driver:
            for qos in (0, 1, 2):
                await asyncio.to_thread(gateway.publish, "plant/m1", message(float(qos), start_ns(qos)), qos)
            rows = 0
            async with asyncio.timeout(8):
                while rows < 3:
                    rows += len(await driver.read())
                    await driver.stored()
            await until(lambda: PINGREQ in {kind for kind, _ in wire.packets()})
        await until(lambda: wire.closed)
    kinds = [kind for kind, _ in wire.packets()]

    assert kinds[0] == CONNECT
    assert set(kinds) == {CONNECT, SUBSCRIBE, PUBACK, PUBREC, PUBCOMP, PINGREQ, DISCONNECT}
    assert not wire.packets()[0][1][7] & 0b100  # nor leaves a will behind


async def test_a_frozen_broker_is_noticed_and_left(broker: Any, plant_of: Callable[..., Plant]) -> None:
    plant = plant_of(broker.port, POWER, keep_alive_s=1)
    async with MqttDriver(plant, plant.connections[0]) as driver:
        broker._process.send_signal(signal.SIGSTOP)  # it answers nothing and closes nothing
        try:
            async with asyncio.timeout(10):
                batch = await driver.read()
            assert batch.status.tolist() == [quality.BAD_NO_COMMUNICATION]
            with pytest.raises(DeviceUnreachable, match="link lost"):
                await driver.read()
        finally:
            broker._process.send_signal(signal.SIGCONT)


async def test_topics_that_left_the_plant_leave_the_session(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    wide = plant_of(broker.port, {"power": MqttSource("#", "$.P", time_path="$.ts")})
    async with MqttDriver(wide, wide.connections[0], learned=tmp_path):
        pass
    narrow = plant_of(broker.port, POWER)
    async with MqttDriver(narrow, narrow.connections[0], learned=tmp_path) as driver:
        gateway.publish("office/m9", message(9.0, start_ns()))
        gateway.publish("plant/m1", message(1.0, start_ns()))
        async with asyncio.timeout(8):
            batch = await driver.read()

        assert batch.value.tolist() == [1.0]
        assert set(driver._by_topic) == {"plant/m1"}


async def test_a_broker_that_knows_only_3_1_1_says_what_to_write(plant_of: Callable[..., Plant]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x02\x00\x01")  # CONNACK: unacceptable protocol version (MQTT 3.1.1, 3.2.2.3)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        plant = plant_of(server.sockets[0].getsockname()[1], POWER)
        with pytest.raises(DeviceRefused, match=r"version 5; say version: 3\.1\.1"):
            await MqttDriver(plant, plant.connections[0]).__aenter__()
