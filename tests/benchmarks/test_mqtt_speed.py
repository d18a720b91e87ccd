"""How much CPU MQTT costs: printed (`pytest -s`), never failed by time.

Everything is the CPU time of this process, its network thread included; broker and gateway run in others. Run with
`pytest -s tests/benchmarks/test_mqtt_speed.py`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop

from collector.drivers import sparkplug_pb2 as pb
from collector.drivers.broker import Columns, Message
from collector.drivers.mqtt import MqttDriver
from collector.drivers.sparkplug import SparkplugDriver
from collector.spool import Spool
from core.plant.model import Connection, MqttSource, Plant, Protocol

METERS, VALUES, MESSAGES_PER_S = 20, 100, 2_000

GATEWAY = """
import json, sys, time
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
port, rate, seconds, meters, values = map(int, sys.argv[1:])
client = Client(CallbackAPIVersion.VERSION2)
client.max_inflight_messages_set(0)
client.connect("127.0.0.1", port)
client.loop_start()
bodies = ["%s" % {f"k{k}": round(12.345 * k + m / 7, 3) for k in range(values)} for m in range(meters)]
bodies = [body.replace("'", '"') for body in bodies]
began = time.monotonic()
for n in range(rate * seconds):
    if n % 100 == 0:
        time.sleep(max(0.0, began + n / rate - time.monotonic()))
    m = n % meters
    client.publish(f"plant/m{m}", '{"ts":%d,"v":%s}' % (time.time_ns() // 1_000_000, bodies[m]), 1)
while client._out_messages:
    time.sleep(0.05)
client.disconnect()
client.loop_stop()
"""


@pytest.fixture(scope="module")
def mqtt(fixtures_of: Callable[[str], Any]) -> Any:
    return fixtures_of("mqtt")


@pytest.fixture
def broker(mqtt: Any, tmp_path: Path) -> Iterator[Any]:
    if mqtt.MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (tests/peers/install.sh)")
    started = mqtt.Broker(tmp_path)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def plant_of(mqtt: Any) -> Callable[[int], Plant]:
    points = {
        f"m{m}.v{k}": MqttSource(f"plant/m{m}", f"$.v.k{k}", time_path="$.ts")
        for m in range(METERS)
        for k in range(VALUES)
    }

    def plant(port: int) -> Plant:
        made: Plant = mqtt.mqtt_plant(port, points)
        return made

    return plant


def cpu_s(work: Callable[[], object]) -> float:
    """The best of five."""
    best = float("inf")
    for _ in range(5):
        began_s = time.process_time()
        work()
        best = min(best, time.process_time() - began_s)
    return best


def test_json_messages_of_100_values_decoded(plant_of: Callable[[int], Plant]) -> None:
    plant = plant_of(1)
    driver = MqttDriver(plant, plant.connections[0])
    now_ns = time.time_ns()
    payloads = [
        json.dumps(
            {"ts": now_ns // 10**6 - n, "v": {f"k{k}": round(12.345 * k + n / 7, 3) for k in range(VALUES)}}
        )
        for n in range(MESSAGES_PER_S)
    ]
    messages = [
        Message(f"plant/m{n % METERS}", payload.encode(), n, 1, False, now_ns)
        for n, payload in enumerate(payloads)
    ]

    def drain() -> None:
        driver._waiting.extend(messages)
        while driver._waiting:
            driver._drain()
        driver._to_ack.clear()

    ours = cpu_s(drain)
    bare = cpu_s(lambda: [orjson.loads(message.payload) for message in messages])
    plain = cpu_s(lambda: [json.loads(message.payload) for message in messages])
    print(
        f"\nMQTT, a second's 200,000 values in JSON messages of 100, decoded to columns: {ours * 1e3:.0f} ms of CPU; "
        f"{ours / bare:.1f} times orjson.loads, {ours / plain:.2f} times json.loads of the same"
    )


@pytest.mark.parametrize("to_disk", [False, True], ids=["read", "spooled"])
def test_200_000_values_a_second_through_a_broker(
    broker: Any, plant_of: Callable[[int], Plant], tmp_path: Path, to_disk: bool
) -> None:
    seconds, plant = 8, plant_of(broker.port)
    wanted = MESSAGES_PER_S * seconds * VALUES

    async def collect() -> tuple[float, float, int]:
        rows = 0
        async with AsyncExitStack() as stack:
            spool = await stack.enter_async_context(Spool(tmp_path / "spool")) if to_disk else None
            driver = await stack.enter_async_context(MqttDriver(plant, plant.connections[0]))
            arguments = [str(n) for n in (broker.port, MESSAGES_PER_S, seconds, METERS, VALUES)]
            gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, *arguments])  # noqa: ASYNC220
            rows += len(await driver.read())
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            async with asyncio.timeout(60):
                while rows < wanted:
                    batch = await driver.read()
                    rows += len(batch)
                    if spool is not None:
                        await spool.append(batch)
                    await driver.stored()
            took = time.process_time() - began_cpu_s, time.monotonic() - began_s, rows
            gateway.wait()
        return took

    cpu, wall, rows = uvloop.run(collect())
    print(
        f"\nMQTT, QoS 1 through mosquitto{', onto the disk' if to_disk else ''}: {rows / wall:,.0f} values/s at "
        f"{cpu / wall * 100:.0f} % of a core, {rows - wanted} lost or doubled (wanted 200,000 below 40 %)"
    )


def test_sparkplug_messages_of_100_metrics_by_alias(mqtt: Any) -> None:
    connection = Connection("mq1", Protocol.SPARKPLUG, {"host": "127.0.0.1", "port": 1, "group": "G"})
    sources = {f"m0.v{k}": MqttSource("N/D", f"k{k}") for k in range(VALUES)}
    plant: Plant = mqtt.mqtt_plant(1, sources, group="G")
    driver = SparkplugDriver(plant, connection)
    now_ns = time.time_ns()

    def message(kind: str, seq: int, *metrics: Any) -> Message:
        payload = pb.Payload(seq=seq % 256, timestamp=now_ns // 10**6, metrics=metrics)
        topic = f"spBv1.0/G/{kind}/N" + ("/D" if kind[0] == "D" else "")
        return Message(topic, payload.SerializeToString(), 0, 0, False, now_ns)

    births = [pb.Metric(name=f"k{k}", alias=k, datatype=9, float_value=k) for k in range(VALUES)]
    values = [pb.Metric(alias=k, timestamp=now_ns // 10**6, float_value=k + 0.5) for k in range(VALUES)]
    messages = [message("NBIRTH", 0), message("DBIRTH", 1, *births)]
    messages += [message("DDATA", n + 2, *values) for n in range(MESSAGES_PER_S)]

    def drain() -> None:
        columns = Columns()
        for one in messages:
            driver._take(one, columns)
        assert len(columns.slots) == VALUES * (MESSAGES_PER_S + 1)

    def parse() -> None:
        for one in messages:
            pb.Payload().ParseFromString(one.payload)

    ours, bare = cpu_s(drain), cpu_s(parse)
    print(
        f"\nSparkplug, a second's 200,000 values in messages of 100 metrics by alias: {ours * 1e3:.0f} ms of CPU, "
        f"{ours / bare:.1f} times protobuf's parse of the same"
    )
