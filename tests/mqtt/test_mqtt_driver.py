"""MQTT over a real broker: nothing acknowledged is lost, nothing old looks fresh, nothing stops reception."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from collector.drivers.mqtt import MqttDriver
from core import quality
from core.clock import rfc3339
from core.errors import DeviceRefused, DeviceUnreachable
from core.plant.model import MqttSource, Plant
from core.samples import NS_PER_S

POWER = {"power": MqttSource("plant/m1", "$.v.P", time_path="$.ts")}

Rows = list[tuple[str, int, float, int]]


class Reading:
    """Collects what a driver reads until a condition holds, and says `stored` or not."""

    def __init__(self, driver: MqttDriver, stores: bool = True) -> None:
        self.driver = driver
        self.stores = stores
        self.rows: Rows = []

    async def until(self, done: Callable[[Rows], object], within_s: float = 8.0) -> Rows:
        async with asyncio.timeout(within_s):
            while not done(self.rows):
                batch = await self.driver.read()
                columns = (batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist())
                self.rows += zip(*columns, strict=True)
                if self.stores:
                    await self.driver.stored()
        return self.rows


@asynccontextmanager
async def opened(plant: Plant, stores: bool = True) -> AsyncIterator[Reading]:
    async with MqttDriver(plant, plant.connections[0]) as driver:
        yield Reading(driver, stores)


def at(seconds_ago: float) -> int:
    """A time of whole milliseconds."""
    return (time.time_ns() - int(seconds_ago * NS_PER_S)) // 1_000_000 * 1_000_000


def message(value: float, time_ns: int) -> str:
    return json.dumps({"ts": time_ns // 1_000_000, "v": {"P": value}})


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_payload_becomes_a_sample_at_its_own_time(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], version: str
) -> None:
    points = {**POWER, "scaled": MqttSource("plant/+", "$.v.P", scale=0.001, offset=1.0)}
    then = at(3600)
    async with opened(plant_of(broker.port, points, version=version)) as reading:
        await asyncio.to_thread(gateway.publish, "plant/m1", message(12.5, then))
        rows = await reading.until(lambda rows: len(set(rows)) == 2)

    # Where topic filters overlap, the broker may send a message once for each of them.
    assert set(rows) == {("power", then, 12.5, quality.GOOD), ("scaled", then, 1.0125, quality.GOOD)}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_message_is_the_same_with_every_qos_property_and_length(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], version: str
) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = [("line", "4"), ("线", "四" * 60)]
    properties.ContentType, properties.MessageExpiryInterval = "application/json", 3600
    topic = "plant/" + "车间" * 40 + "/m1"
    points = {"power": MqttSource("plant/+/m1", "$.v.P", time_path="$.ts")}
    start = at(600)
    async with opened(plant_of(broker.port, points, version=version, qos=2)) as reading:
        for k in range(30):
            padding = (
                " " * (0, 3, 110, 16_400, 70_000)[k % 5]
            )  # one to three bytes of length, more than one read
            sent = gateway._client.publish(
                topic,
                message(float(k), start + k * NS_PER_S) + padding,
                k % 3,
                properties=properties if k % 2 else None,
            )
            await asyncio.to_thread(sent.wait_for_publish, 5.0)
        rows = await reading.until(lambda rows: len(rows) == 30)

        assert reading.driver.devices()["gw"].counters["bad_payloads"] == 0
    assert {row[1:3] for row in rows} == {(start + k * NS_PER_S, float(k)) for k in range(30)}
    async with opened(
        plant_of(broker.port, points, version=version, qos=2)
    ) as again:  # all were acknowledged
        with pytest.raises(TimeoutError):
            await again.until(lambda rows: rows, within_s=0.4)


async def test_a_bare_number_is_dated_on_arrival(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, {"p": MqttSource("shellies/a/power", "")})) as reading:
        before = time.time_ns()
        for payload in ["812.45", " -3 ", "--", "-9999", "Online"]:
            await asyncio.to_thread(gateway.publish, "shellies/a/power", payload)
        rows = await reading.until(lambda rows: len(rows) == 5)

    assert [row[2] for row in rows[:2]] == [812.45, -3.0]
    assert np.isnan([row[2] for row in rows[2:]]).all()
    assert [row[3] for row in rows] == [
        quality.GOOD,
        quality.GOOD,
        quality.BAD_SENSOR_FAILURE,
        quality.BAD_SENSOR_FAILURE,
        quality.BAD_DECODING_ERROR,
    ]
    assert all(before <= row[1] + 1000 <= time.time_ns() + 1000 for row in rows)


async def test_values_side_by_side_are_read_alike_whatever_their_neighbours_are(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    points = {key: MqttSource("plant/m1", f"$.v.{key}") for key in "abc"}
    then = at(60)
    seconds = then // NS_PER_S
    async with opened(plant_of(broker.port, points)) as reading:
        for v in [{"a": 1, "b": 2.5, "c": -3}, {"a": "4", "b": None, "c": 5}, {"c": 10**30}, {"a": 10**400}]:
            await asyncio.to_thread(gateway.publish, "plant/m1", json.dumps({"ts": seconds, "v": v}))
        rows = await reading.until(lambda rows: len(rows) >= 8)

    assert {row[1] for row in rows} == {seconds * NS_PER_S}
    assert [(row[0], row[2]) for row in rows if row[3] == quality.GOOD] == [
        ("a", 1.0), ("b", 2.5), ("c", -3.0), ("a", 4.0), ("c", 5.0), ("c", 1e30),
    ]  # fmt: skip
    assert [(row[0], row[3]) for row in rows if row[3] != quality.GOOD] == [
        ("b", quality.BAD_SENSOR_FAILURE),
        ("a", quality.BAD_OUT_OF_RANGE),
    ]


async def test_bad_payloads_are_counted_and_never_stop_reception(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POWER)) as reading:
        bad = [b"\xff\xfe\x00", b"", b"Offline", b"[" * 100_000, b'{"v": {"P": 1', b"x" * 262_144]
        for payload in bad:
            await asyncio.to_thread(gateway.publish, "plant/m1", payload)
        reader = asyncio.create_task(reading.until(lambda rows: rows))
        async with asyncio.timeout(5):
            while reading.driver.devices()["gw"].counters["bad_payloads"] < len(bad):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "not readable" in reading.driver.devices()["gw"].detail
        await asyncio.to_thread(gateway.publish, "plant/m1", message(7.0, at(1)))
        rows = await reader

        assert [row[2] for row in rows] == [7.0]
        assert reading.driver.devices()["gw"].counters["messages"] == len(bad) + 1
        assert reading.driver.devices()["gw"].detail == "connected"


async def test_a_retained_old_value_does_not_look_fresh(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    then = at(7200)
    gateway.publish("plant/undated", '{"P": 1.0}', retain=True)
    gateway.publish("plant/bare", "2.0", retain=True)
    gateway.publish("plant/m1", message(3.0, then), retain=True)
    points = {
        "undated": MqttSource("plant/undated", "$.P"),
        "bare": MqttSource("plant/bare", ""),
        **POWER,
    }
    async with opened(plant_of(broker.port, points)) as reading:
        await asyncio.to_thread(gateway.publish, "plant/bare", "2.5")
        rows = await reading.until(lambda rows: {row[0] for row in rows} >= {"power", "bare"})

        assert reading.driver.devices()["gw"].counters["retained_undated"] == 2
    assert [(row[0], row[2]) for row in rows if row[0] != "power"] == [("bare", 2.5)]
    assert [row[1:] for row in rows if row[0] == "power"] == [(then, 3.0, quality.GOOD)]


async def test_a_clock_that_cannot_be_believed_gives_way_to_the_arrival(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POWER)) as reading:
        for wrong in (at(-3600), at(8 * 86_400)):
            await asyncio.to_thread(gateway.publish, "plant/m1", message(1.0, wrong))
        rows = await reading.until(lambda rows: len(rows) == 2)

    assert {row[3] for row in rows} == {quality.UNCERTAIN}
    assert all(abs(row[1] - time.time_ns()) < 5 * NS_PER_S for row in rows)


async def test_what_was_not_stored_when_ecmc_was_killed_comes_again(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    plant = plant_of(broker.port, POWER)
    start = at(1000)
    async with opened(plant):
        pass  # the session stands from here on
    for k in range(300):
        gateway.publish("plant/m1", message(float(k), start + k * NS_PER_S))

    killed = MqttDriver(plant, plant.connections[0])
    await killed.__aenter__()
    lost = Reading(killed, stores=False)
    await lost.until(lambda rows: len(rows) >= 100)
    assert killed._client is not None
    killed._client.socket().close()  # as a killed process leaves it: without a word
    await killed.__aexit__()

    async with opened(plant) as reading:
        rows = await reading.until(lambda rows: len({row[1] for row in rows}) == 300)
        with pytest.raises(TimeoutError):  # what the broker still had on its way is read and acknowledged too
            await reading.until(lambda rows: False, within_s=0.5)
    assert {(row[1], row[2]) for row in rows} == {(start + k * NS_PER_S, float(k)) for k in range(300)}

    async with opened(plant) as again:
        with pytest.raises(TimeoutError):
            await again.until(lambda rows: rows, within_s=0.5)


async def test_a_burst_of_old_records_newest_first_lands_at_their_times(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    start = at(7200)
    records = [{"ts": rfc3339(start + k * 60 * NS_PER_S), "v": {"P": str(k)}} for k in range(120)]
    points = {"power": MqttSource("plant/m1", "$.meters[].v.P")}
    async with opened(plant_of(broker.port, points)) as reading:
        await asyncio.to_thread(gateway.publish, "plant/m1", json.dumps({"meters": records[::-1]}))
        rows = await reading.until(lambda rows: len(rows) == 120)

    assert sorted((row[1], row[2]) for row in rows) == [
        (start + k * 60 * NS_PER_S, float(k)) for k in range(120)
    ]


async def test_a_wrong_password_is_a_refusal_and_the_right_one_is_taken(
    broker: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = plant_of(broker.port, POWER, username="reader", password_env="MQ_PASSWORD")
    with pytest.raises(DeviceRefused, match="no MQ_PASSWORD"):
        await MqttDriver(plant, plant.connections[0]).__aenter__()
    monkeypatch.setenv("MQ_PASSWORD", "wrong")
    with pytest.raises(DeviceRefused, match="mq1 127"):
        await MqttDriver(plant, plant.connections[0]).__aenter__()

    monkeypatch.setenv("MQ_PASSWORD", "right")
    async with opened(plant) as reading:
        assert reading.driver.devices()["gw"].up


async def test_over_tls_only_the_broker_with_the_right_certificate_is_spoken_to(
    tls_broker: Any, gateway_to: Callable[[int], Any], plant_of: Callable[..., Plant]
) -> None:
    trusting = plant_of(tls_broker.tls_port, POWER, tls=True, ca_file=str(tls_broker.certificate))
    async with opened(trusting) as reading:
        gateway = await asyncio.to_thread(gateway_to, tls_broker.port)
        await asyncio.to_thread(gateway.publish, "plant/m1", message(4.0, at(1)))
        await asyncio.to_thread(gateway.close)
        rows = await reading.until(lambda rows: rows)
    assert rows[0][2] == 4.0

    doubting = plant_of(tls_broker.tls_port, POWER, tls=True)
    with pytest.raises(DeviceUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
        await MqttDriver(doubting, doubting.connections[0]).__aenter__()


async def test_nobody_listening_is_unreachable(plant_of: Callable[..., Plant]) -> None:
    plant = plant_of(1, POWER)

    with pytest.raises(DeviceUnreachable, match="mq1 127"):
        await MqttDriver(plant, plant.connections[0]).__aenter__()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_network_thread_is_noticed(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POWER)) as reading:
        client = reading.driver._client
        assert client is not None

        def breaks(*_: object) -> None:
            raise SystemExit

        client.take = breaks
        await asyncio.to_thread(gateway.publish, "plant/m1", message(1.0, at(0)))
        with pytest.raises(DeviceUnreachable, match="network thread ended"):
            await reading.until(lambda rows: False)

        assert [row[3] for row in reading.rows] == [quality.BAD_NO_COMMUNICATION]
