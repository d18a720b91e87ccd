"""Sparkplug B as its edge nodes speak it: a number is only ever what a birth called it."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from collector.drivers import sparkplug
from collector.drivers import sparkplug_pb2 as pb
from collector.drivers.sparkplug import SparkplugDriver
from collector.sparkplug import payload_of, rebirth_request
from collector.tools.browse import browse
from core import quality
from core.plant.model import Connection, Device, MqttSource, Plant, Protocol
from core.samples import NS_PER_S

PEERS = Path(__file__).parents[1] / "peers"
INT8, INT32, UINT64, FLOAT, DOUBLE, STRING = 1, 3, 8, 9, 10, 12
POWER, IMPORT = "Energy/Active Power", "Energy/Import"

Rows = list[tuple[str, int, float, int]]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's waits, scaled down."""
    monkeypatch.setattr(sparkplug, "REORDER_S", 0.15)
    monkeypatch.setattr(sparkplug, "REBIRTH_S", 0.4)


@pytest.fixture
def plant_of(plant_of: Callable[..., Plant]) -> Callable[..., Plant]:
    def sparkplug_plant(port: int, points: dict[str, tuple[str, str]], **options: object) -> Plant:
        plain = plant_of(port, {name: MqttSource(*source) for name, source in points.items()})
        connection = Connection(
            "sp1", Protocol.SPARKPLUG, {"host": "127.0.0.1", "port": port, "group": "Works", **options}
        )
        return Plant(
            **{
                **{
                    name: getattr(plain, name)
                    for name in plain.__dataclass_fields__
                    if plain.__dataclass_fields__[name].init
                },
                "connections": (connection,),
                "devices": (Device("gw", "sp1", None, tuple(points)),),
            }
        )

    return sparkplug_plant


class Reading:
    """What a driver reads, while it runs."""

    def __init__(self, driver: SparkplugDriver) -> None:
        self.driver = driver
        self.rows: Rows = []

    async def run(self) -> None:
        while True:
            batch = await self.driver.read()
            columns = (batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist())
            self.rows += zip(*columns, strict=True)
            await self.driver.stored()

    def last(self, name: str) -> tuple[int, float, int] | None:
        return next((row[1:] for row in reversed(self.rows) if row[0] == name), None)

    def values(self, name: str) -> list[float]:
        return [row[2] for row in self.rows if row[0] == name]

    @property
    def counters(self) -> Any:
        return self.driver.devices()["gw"].counters

    async def until(self, done: Callable[[], object], within_s: float = 8.0) -> None:
        async with asyncio.timeout(within_s):
            while not done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(plant: Plant) -> AsyncIterator[Reading]:
    async with SparkplugDriver(plant, plant.connections[0]) as driver:
        reading = Reading(driver)
        task = asyncio.create_task(reading.run())
        try:
            yield reading
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Edge:
    """An edge node that says exactly what a test wants, and sees all that is published to it."""

    def __init__(self, port: int, bd_seq: int = 7) -> None:
        self.seq, self.bd_seq = 0, bd_seq
        self.heard: list[tuple[str, bytes, bool]] = []
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=f"edge-{time.monotonic_ns()}")
        self.client.on_message = lambda _c, _u, m: self.heard.append((m.topic, bytes(m.payload), m.retain))
        self.client.connect("127.0.0.1", port)
        self.client.subscribe("#")
        self.client.loop_start()

    def say(self, kind: str, device: str = "", *metrics: dict[str, Any], **fields: Any) -> None:
        payload = pb.Payload(timestamp=fields.pop("timestamp", time.time_ns() // 1_000_000))
        if kind == "NBIRTH":
            self.seq = 0
            payload.metrics.add(name="bdSeq", datatype=UINT64, long_value=fields.pop("bd_seq", self.bd_seq))
        if kind == "NDEATH":
            payload.metrics.add(name="bdSeq", datatype=UINT64, long_value=fields.pop("bd_seq", self.bd_seq))
        else:
            payload.seq = fields.pop("seq", self.seq)
            self.seq = (payload.seq + 1) % 256
        for metric in metrics:
            payload.metrics.add(**metric)
        self.raw(kind, device, payload.SerializeToString(), **fields)

    def raw(self, kind: str, device: str, payload: bytes, retain: bool = False, wait: bool = True) -> None:
        topic = "/".join(filter(None, ("spBv1.0", "Works", kind, "Line4", device)))
        sent = self.client.publish(topic, payload, 1, retain)
        if wait:
            sent.wait_for_publish(5.0)

    def births(self, **fields: Any) -> None:
        self.say("NBIRTH", "", **fields)
        self.say("DBIRTH", "M12", power(1.5), energy(100.0))

    def rebirths_asked(self) -> int:
        return sum(topic == "spBv1.0/Works/NCMD/Line4" for topic, _, _ in self.heard)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def power(value: float, **more: Any) -> dict[str, Any]:
    return {"name": POWER, "alias": 1, "datatype": FLOAT, "float_value": value, **more}


def energy(value: float, **more: Any) -> dict[str, Any]:
    return {"name": IMPORT, "alias": 2, "datatype": DOUBLE, "double_value": value, **more}


POINTS = {"power": ("Line4/M12", POWER), "import": ("Line4/M12", IMPORT)}


@pytest.fixture
def edge(broker: Any) -> Iterator[Edge]:
    connected = Edge(broker.port)
    yield connected
    connected.close()


async def say(function: Callable[..., None], *args: Any, **fields: Any) -> None:
    await asyncio.to_thread(lambda: function(*args, **fields))


async def test_data_by_alias_gets_its_name_from_the_birth_and_its_own_time(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    then_ms = time.time_ns() // 1_000_000 - 5_000
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await say(edge.say, "DDATA", "M12", {"alias": 2, "timestamp": then_ms + 1, "double_value": 101.25})
        await say(edge.say, "DDATA", "M12", {"alias": 1, "float_value": 2.5}, timestamp=then_ms)
        await reading.until(lambda: len(reading.rows) == 4)

        state = reading.driver.devices()["gw"]
        assert (state.up, state.detail) == (True, "born")
    assert [(row[0], row[2]) for row in reading.rows] == [
        ("power", 1.5), ("import", 100.0), ("import", 101.25), ("power", 2.5),
    ]  # fmt: skip
    assert [row[1] for row in reading.rows[2:]] == [(then_ms + 1) * 1_000_000, then_ms * 1_000_000]
    assert {row[3] for row in reading.rows} == {quality.GOOD}


async def test_who_comes_late_asks_for_the_births_and_names_nothing_before(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    await say(edge.births)
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.say, "DDATA", "M12", {"alias": 1, "float_value": 9.0})
        await reading.until(edge.rebirths_asked)
        assert reading.rows == []
        assert "no birth of Line4/M12" in reading.driver.devices()["gw"].detail
        await say(edge.births)
        await reading.until(lambda: len(reading.rows) == 2)

    asked = [payload_of(p) for topic, p, retained in edge.heard if "/NCMD/" in topic and not retained]
    assert [(m.name, m.boolean_value) for m in asked[0].metrics] == [("Node Control/Rebirth", True)]
    assert reading.values("power") == [1.5]


async def test_after_a_gap_no_alias_is_believed_until_the_rebirth(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await reading.until(lambda: len(reading.rows) == 2)
        edge.seq += 1  # a birth that changed the aliases, say, is lost
        await say(edge.say, "DDATA", "M12", {"alias": 2, "double_value": 3.0})
        await say(edge.say, "DDATA", "M12", energy(102.0), {"alias": 1, "float_value": 4.0})
        await reading.until(edge.rebirths_asked)
        assert reading.counters["sequence_gaps"] == 1
        assert reading.values("import") == [100.0, 102.0]  # this one named itself
        assert reading.values("power") == [1.5]

        edge.say("NBIRTH")
        edge.say("DBIRTH", "M12", power(5.0, alias=2), energy(103.0, alias=1))
        await say(edge.say, "DDATA", "M12", {"alias": 2, "float_value": 6.0})
        await reading.until(lambda: reading.values("power")[-1] == 6.0)
    assert reading.values("import") == [100.0, 102.0, 103.0]
    assert reading.values("power") == [1.5, 5.0, 6.0]


async def test_what_comes_in_the_wrong_order_is_put_right_without_a_rebirth(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        for seq, value in ((3, 3.0), (4, 4.0), (2, 2.0), (5, 5.0)):
            await say(edge.say, "DDATA", "M12", {"alias": 1, "float_value": value}, seq=seq)
        await reading.until(lambda: len(reading.values("power")) == 5)
        await asyncio.sleep(0.3)

        assert reading.values("power") == [1.5, 2.0, 3.0, 4.0, 5.0]
        assert reading.counters["rebirths_asked"] == edge.rebirths_asked() == 0


async def test_the_sequence_goes_round(broker: Any, edge: Edge, plant_of: Callable[..., Plant]) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        for k in range(300):
            edge.say("DDATA", "M12", {"alias": 1, "float_value": float(k)}, wait=False)
        await reading.until(lambda: len(reading.values("power")) == 301)

        assert reading.counters["sequence_gaps"] == 0


async def test_rebirths_are_asked_for_ever_more_rarely_and_silence_is_marked(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await reading.until(lambda: len(reading.rows) == 2)
        edge.seq += 1
        started_s = time.monotonic()
        while time.monotonic() - started_s < 2.5:
            await say(edge.say, "DDATA", "M12", {"alias": 1, "float_value": 1.0})
            await asyncio.sleep(0.02)

        assert edge.rebirths_asked() == 3  # at 0.15, 0.55 and 1.35 s; the next at 2.95 s
        assert [row[3] for row in reading.rows[2:]] == [quality.BAD_NO_COMMUNICATION] * 2


async def test_a_node_s_death_takes_its_points_and_an_older_session_s_does_not(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await say(edge.say, "NDEATH", bd_seq=6)
        await reading.until(lambda: reading.counters["stale_deaths"])
        assert reading.driver.devices()["gw"].up

        before_ns = time.time_ns()
        await say(edge.say, "NDEATH", timestamp=1_000_000_000_000)  # the time its connection began
        await reading.until(lambda: len(reading.rows) == 4)
        assert {row[3] for row in reading.rows[2:]} == {quality.BAD_NOT_CONNECTED}
        assert np.isnan([row[2] for row in reading.rows[2:]]).all()
        assert all(row[1] >= before_ns - 1_000 for row in reading.rows[2:])
        assert not reading.driver.devices()["gw"].up

        slow_ms = time.time_ns() // 1_000_000 - 30_000  # the edge node's clock lags
        await say(edge.births, timestamp=slow_ms)
        await reading.until(lambda: len(reading.rows) == 6)
    death, power_again = reading.rows[2], reading.last("power")
    assert power_again is not None
    assert power_again[0] > death[1]
    assert power_again[1:] == (1.5, quality.GOOD)


async def test_a_device_s_death_takes_only_its_points(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    points = {**POINTS, "air": ("Line4", "Temperature"), "other": ("Line4/M13", POWER)}
    temperature = {"name": "Temperature", "alias": 9, "datatype": INT8}
    async with opened(plant_of(broker.port, points)) as reading:
        await say(edge.say, "NBIRTH", "", {**temperature, "int_value": 0xF4})
        await say(edge.say, "DBIRTH", "M12", power(1.0), energy(2.0))
        await say(edge.say, "DBIRTH", "M13", power(3.0))
        await say(edge.say, "DDEATH", "M12")
        await say(edge.say, "NDATA", "", {"alias": 9, "int_value": 0xFFFFFFF5})
        await reading.until(lambda: reading.values("air") == [-12.0, -11.0])

        assert [row[0] for row in reading.rows if row[3] == quality.BAD_NOT_CONNECTED] == ["power", "import"]
        assert reading.last("other") is not None
        assert reading.driver.devices()["gw"].detail == "no birth of Line4/M12"


async def test_a_device_that_does_not_come_back_with_its_node_is_marked(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await say(edge.say, "NBIRTH")
        await reading.until(lambda: len(reading.rows) == 4)
        await asyncio.sleep(0.6)

    assert [row[3] for row in reading.rows] == [quality.GOOD] * 2 + [quality.BAD_NOT_CONNECTED] * 2


async def test_null_history_and_quality_are_what_they_say(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    old_ms = time.time_ns() // 1_000_000 - 30 * 86_400_000
    stale = pb.PropertySet(keys=["Quality"], values=[pb.PropertyValue(type=INT32, int_value=500)])
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await say(edge.say, "DDATA", "M12", {"alias": 1, "is_null": True})
        await say(
            edge.say, "DDATA", "M12",
            {"alias": 2, "is_historical": True, "timestamp": old_ms, "double_value": 50.0},
            {"alias": 2, "is_historical": True, "double_value": 51.0},
        )  # fmt: skip
        await say(edge.say, "DDATA", "M12", {"alias": 2, "double_value": 104.0, "properties": stale})
        await reading.until(lambda: reading.values("import")[-1:] == [104.0])

        assert reading.counters["times_refused"] == 1  # a history without a time
    assert [row[1:] for row in reading.rows if row[2] == 50.0] == [(old_ms * 1_000_000, 50.0, quality.GOOD)]
    assert [row[3] for row in reading.rows if row[0] == "power"] == [quality.GOOD, quality.BAD_SENSOR_FAILURE]
    assert reading.rows[-1][3] == quality.UNCERTAIN_LAST_USABLE_VALUE
    assert 51.0 not in reading.values("import")


async def test_bad_payloads_and_retained_ones_are_counted_and_stop_nothing(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    await say(edge.say, "DDATA", "M12", power(99.0), retain=True)
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await reading.until(lambda: reading.counters["retained_refused"] == 1)
        for junk in (b"\xff\xfe", b"{}", b"", b"\x0a\xff\xff\xff\xff\x7f", b"\x12\x04\x0a\x02\xff\xfe"):
            await say(edge.raw, "DDATA", "M12", junk)
        await reading.until(lambda: reading.counters["bad_payloads"] == 5)
        assert reading.rows == []
        await say(edge.births)
        await reading.until(lambda: len(reading.rows) == 2)
        assert reading.driver.devices()["gw"].detail == "born"
    await say(edge.raw, "DDATA", "M12", b"", retain=True)


async def test_a_metric_the_birth_lacks_or_has_as_text_is_said(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    points = {**POINTS, "phase": ("Line4/M12", "Energy/Phase"), "serial": ("Line4/M12", "Serial")}
    async with opened(plant_of(broker.port, points)) as reading:
        await say(edge.say, "NBIRTH")
        serial = {"name": "Serial", "datatype": STRING, "string_value": "12345"}
        await say(edge.say, "DBIRTH", "M12", power(1.0), energy(2.0), serial)
        await reading.until(lambda: reading.last("phase") and reading.last("serial"))

        assert reading.driver.devices()["gw"].detail == "not in the birth as numbers: Energy/Phase, Serial"
    for name in ("phase", "serial"):
        assert {row[3] for row in reading.rows if row[0] == name} == {quality.BAD_CONFIGURATION_ERROR}


async def test_after_somebody_else_s_rebirth_request_the_old_aliases_are_forgotten(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await say(edge.raw, "NCMD", "", rebirth_request(1))
        # The births of seq 0 and 1, with other aliases, are lost: the sequence shows no gap.
        await say(edge.say, "DDATA", "M12", {"alias": 1, "double_value": 101.0})
        await reading.until(lambda: edge.rebirths_asked() == 2)

    assert reading.values("power") == [1.5]


async def test_a_value_of_another_type_than_its_birth_s_is_another_metric_s(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.births)
        await say(edge.say, "DDATA", "M12", {"alias": 1, "datatype": DOUBLE, "double_value": 9.0})
        await reading.until(edge.rebirths_asked)

        assert reading.counters["unknown_metrics"] == 1
    assert reading.values("power") == [1.5]


async def test_an_alias_given_twice_names_nothing(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    async with opened(plant_of(broker.port, POINTS)) as reading:
        await say(edge.say, "NBIRTH")
        await say(edge.say, "DBIRTH", "M12", power(1.0), energy(2.0, alias=1))
        await say(edge.say, "DDATA", "M12", {"alias": 1, "float_value": 3.0})
        await reading.until(lambda: reading.counters["unknown_metrics"])

    assert 3.0 not in [row[2] for row in reading.rows]


async def test_an_unchanged_value_is_repeated_while_its_node_lives(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparkplug, "REPEAT_S", 0.2)
    monkeypatch.setattr(sparkplug, "REPEAT_LAG_S", 0.5)
    plant = plant_of(broker.port, POINTS)
    async with opened(plant) as reading:
        reading.driver._repeat_ns = [int(0.2 * NS_PER_S)] * 2
        await say(edge.births)
        await asyncio.sleep(1.2)
        assert reading.values("power") == [
            1.5
        ]  # nothing tells yet how long this node gathers before it sends
        await say(edge.say, "DDATA", "M12", {"alias": 2, "double_value": 101.0})
        await reading.until(lambda: len(reading.values("power")) >= 3)
        assert set(reading.values("power")) == {1.5}
        times = [row[1] for row in reading.rows if row[0] == "power"]
        assert times == sorted(times)
        assert times[-1] <= time.time_ns() - 0.5 * NS_PER_S

        await say(edge.say, "NDEATH")
        await reading.until(lambda: (reading.last("power") or (0, 0, 0))[2] < 0)
        count = len(reading.rows)
        await asyncio.sleep(1.3)
        assert len(reading.rows) == count


async def test_a_node_that_gathers_its_changes_is_not_spoken_for_meanwhile(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparkplug, "REPEAT_LAG_S", 0.1)
    async with opened(plant_of(broker.port, POINTS)) as reading:
        reading.driver._repeat_ns = [int(0.1 * NS_PER_S)] * 2
        old_ms = time.time_ns() // 1_000_000 - 60_000
        await say(edge.births, timestamp=old_ms)
        await say(edge.say, "DDATA", "M12", {"alias": 2, "timestamp": old_ms + 10, "double_value": 101.0})
        await reading.until(lambda: len(reading.rows) == 3)
        await asyncio.sleep(1.2)

    assert len(reading.rows) == 3


async def test_a_broker_away_is_a_gap_and_the_births_are_asked_for_again(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    plant = plant_of(broker.port, POINTS)
    async with opened(plant) as reading:
        await say(edge.births)
        await reading.until(lambda: len(reading.rows) == 2)
        await asyncio.to_thread(broker.stop)
        await reading.until(lambda: len(reading.rows) == 4)
        assert "link lost" in reading.driver.devices()["gw"].detail
    assert {row[3] for row in reading.rows[2:]} == {quality.BAD_NO_COMMUNICATION}

    await asyncio.to_thread(broker.start)
    again = Edge(broker.port)
    async with SparkplugDriver(plant, plant.connections[0]) as driver:
        reading = Reading(driver)
        task = asyncio.create_task(reading.run())
        again.seq = 5
        await say(again.say, "DDATA", "M12", {"alias": 1, "float_value": 9.0})
        await reading.until(again.rebirths_asked)
        assert reading.rows == []
        await say(again.births)
        await reading.until(lambda: reading.values("power") == [1.5])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    again.close()


async def test_the_host_says_when_it_is_there_and_publishes_nothing_else_but_rebirths(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    states = "spBv1.0/STATE/hall"

    def said() -> list[dict[str, Any]]:
        return [json.loads(payload) for topic, payload, _ in edge.heard if topic == states]

    plant = plant_of(broker.port, POINTS, host_id="hall")
    async with opened(plant) as reading:
        await reading.until(said)
        await say(edge.births)
        edge.client.publish(states, b'{"online": false, "timestamp": 1}', 1, True).wait_for_publish(5.0)
        await reading.until(lambda: len(said()) == 3)
        edge.seq += 3
        await say(edge.say, "DDATA", "M12", {"alias": 1, "float_value": 1.0})
        await reading.until(edge.rebirths_asked)
    await reading.until(lambda: len(said()) == 4)
    assert [state["online"] for state in said()] == [True, False, True, False]
    assert said()[0]["timestamp"] == said()[2]["timestamp"] <= said()[3]["timestamp"]
    own = {f"spBv1.0/Works/{kind}/Line4" for kind in ("NBIRTH", "DBIRTH", "DDATA")}
    others = {t for t, _, _ in edge.heard if not any(t.startswith(mine) for mine in own)}
    assert others == {states, "spBv1.0/Works/NCMD/Line4"}

    async with opened(plant) as killed:
        client = killed.driver._client
        assert client is not None
        await killed.until(lambda: len(said()) >= 5)
        client.socket().close()  # as a killed process leaves it
        await killed.until(lambda: said()[-1]["online"] is False)  # the will
    late = Edge(broker.port)
    await reading.until(lambda: [retained for topic, _, retained in late.heard if topic == states])
    late.close()
    assert [retained for topic, _, retained in late.heard if topic == states] == [True]


async def test_the_npm_sparkplug_client_is_understood(broker: Any, plant_of: Callable[..., Plant]) -> None:
    if not shutil.which("node") or not (PEERS / "node_modules" / "sparkplug-client").exists():
        pytest.skip("sparkplug-client is not installed (tests/peers/install.sh)")
    points = {
        "power": ("Line9/M1", POWER),
        "import": ("Line9/M1", IMPORT),
        "offset": ("Line9/M1", "Offset"),
        "pulses": ("Line9/M1", "Pulses"),
        "running": ("Line9/M1", "Running"),
        "air": ("Line9", "Temperature"),
    }
    process = await asyncio.create_subprocess_exec(
        "node", str(PEERS / "sparkplug_edge.js"), str(broker.port), "Works", "Line9", "M1",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def tell(line: Any) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(line).encode() + b"\n")

    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"born\n"
    try:
        async with opened(plant_of(broker.port, points)) as reading:
            async with asyncio.timeout(8):  # it was born before anybody listened
                assert await process.stdout.readline() == b"rebirth\n"
            await reading.until(lambda: {row[0] for row in reading.rows} == set(points))
            first = {row[0]: row[2] for row in reading.rows}
            assert first == {
                "power": 12.5, "import": 25723.4, "offset": -5.0, "pulses": 2.0**32, "running": 1.0, "air": -12.0,
            }  # fmt: skip
            tell({"metrics": [{"alias": 13, "type": "Int32", "value": -70000}]})
            tell({"metrics": [{"name": IMPORT, "alias": 12, "type": "Double", "value": None}]})
            await reading.until(
                lambda: (reading.last("import") or (0, 0, 0))[2] == quality.BAD_SENSOR_FAILURE
            )
            assert reading.values("offset")[-1] == -70000.0

            tell({"skip": 2})
            tell({"metrics": [{"alias": 11, "type": "Float", "value": 99.0}]})
            async with asyncio.timeout(8):
                assert await process.stdout.readline() == b"rebirth\n"
            await reading.until(lambda: reading.values("import")[-1] == 25723.4)
            assert 99.0 not in reading.values("power")

            tell({"die": True})
            await reading.until(lambda: (reading.last("power") or (0, 0, 0))[2] == quality.BAD_NOT_CONNECTED)
            process.stdin.close()  # it leaves, with its own death
            await reading.until(lambda: (reading.last("air") or (0, 0, 0))[2] == quality.BAD_NOT_CONNECTED)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_browsing_shows_what_the_births_of_a_group_offer(
    broker: Any, edge: Edge, plant_of: Callable[..., Plant]
) -> None:
    plant = plant_of(broker.port, POINTS)
    serial = {"name": "Serial", "datatype": STRING, "string_value": "12345"}

    async def answer() -> None:
        while not edge.rebirths_asked():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        edge.say("NBIRTH", "", {"name": "Node Control/Rebirth", "datatype": 11, "boolean_value": False})
        edge.say(
            "DBIRTH", "M12", power(1.5), {"name": "Offset", "datatype": INT32, "int_value": 2**32 - 5}, serial
        )

    offers, _ = await asyncio.gather(browse(plant, "sp1", 1.0), answer())

    assert [(one.cells, one.shows, one.note, one.used) for one in offers] == [
        ({"topic": "Line4/M12", "json_path": POWER}, "1.5", "Float", True),
        ({"topic": "Line4/M12", "json_path": "Offset"}, "-5.0", "Int32", False),
    ]
    assert edge.rebirths_asked() == 1
