"""How much CPU OPC UA costs: printed (`pytest -s`), never failed by time; a value lost does fail.

The server is node-opcua in a process of its own, on another core. Run with
`ECMC_BENCH_OPCUA_S=600 pytest -s tests/benchmarks/test_opcua_speed.py --timeout 900` for the ten minutes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from collector.drivers.opcua import OpcuaDriver
from collector.drivers.opcua_wire import publish_answer
from collector.pki import Pki
from collector.spool import Spool
from core.plant.model import OpcuaSource

NODES, PERIOD_MS = 10_000, 980
SECONDS = float(os.environ.get("ECMC_BENCH_OPCUA_S", "15"))
OWN = {"certificate": "pki/own/certificate.der", "private_key": "pki/own/key.pem"}


@pytest.fixture(scope="module")
def opcua(fixtures_of: Callable[[str], Any]) -> Any:
    found = fixtures_of("opcua")
    if not shutil.which("node") or not (found.PEERS / "node_modules" / "node-opcua").exists():
        pytest.skip("node-opcua is not installed (tests/peers/install.sh)")
    return found


@pytest.mark.timeout(int(SECONDS) + 120)
@pytest.mark.parametrize("security", ["none", "Basic256Sha256_SignAndEncrypt"])
def test_10_000_changes_a_second(opcua: Any, tmp_path: Path, security: str) -> None:
    server = opcua.NodeServer(tmp_path / "peer", extra=NODES, reportsEveryChange=True)
    store = Pki(tmp_path / "pki")
    store.create("bench")
    store.trust(str(tmp_path / "peer" / "own" / "certs" / "certificate.pem"))
    sources = {f"n{i}": OpcuaSource(f"nsu=urn:plant:line1;s=N{i}") for i in range(NODES)}
    # A sampling interval of 0 has every change reported, so that each can be counted on both sides.
    asked = {"sampling_interval_s": 0, "queue_size": 20, "security": security, **OWN}
    plant = opcua.opcua_plant(server.port, sources, PERIOD_MS / 1000, str(tmp_path), **asked)
    # Each node counts down from -1, and stands above before; a value repeated later is no other one.
    seen = np.zeros((NODES, int(SECONDS * 1000 / PERIOD_MS) + 300), dtype=np.bool_)
    late_s, kept_s = [0.0], [0.0]

    async def collect() -> tuple[float, float, int, Mapping[str, int]]:
        async with Spool(tmp_path / "spool") as spool, OpcuaDriver(plant, plant.connections[0]) as driver:

            async def take() -> None:
                batch = await driver.read()
                began_s = time.monotonic()
                await spool.append(batch)
                kept_s.append(time.monotonic() - began_s)
                counted = batch.value < 0
                seen[batch.point[counted], (-1 - batch.value[counted]).astype(np.intp)] = True
                if counted.any():
                    late_s.append((time.time_ns() - int(batch.time_ns[counted].max())) * 1e-9)

            first: set[int] = set()
            while len(first) < NODES:
                first.update((await driver.read()).point.tolist())
            server.count(PERIOD_MS)
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            while time.monotonic() - began_s < SECONDS:
                await take()
            took = time.process_time() - began_cpu_s, time.monotonic() - began_s
            changes = await asyncio.to_thread(server.halt)
            until_s = (
                time.monotonic() + 60
            )  # a busy server, or a busy disk, may be late with the last of them
            while seen.sum() < changes and time.monotonic() < until_s:
                await take()
            return *took, changes, driver.devices()["line"].counters

    try:
        cpu, wall, changes, counters = uvloop.run(collect())
    finally:
        server.kill()
    print(
        f"\nOPC UA, {NODES:,} nodes, {changes / wall:,.0f} changes/s for {wall:.0f} s onto the disk, {security}: "
        f"{cpu / wall * 100:.1f} % of a core, {cpu / changes * 1e6:.1f} µs each, {changes - seen.sum()} of {changes:,} "
        f"lost (wanted 10,000 below 50 %); on the disk at most {max(late_s):.1f} s after the newest of its batch, "
        f"longest wait for the disk {max(kept_s):.1f} s, {counters}"
    )
    assert seen.sum() == changes
    assert seen[:, : changes // NODES].all()


def test_a_publish_answer_against_the_library() -> None:
    moment = ua.uatypes.datetime.now(ua.uatypes.timezone.utc)
    response = ua.PublishResponse()
    items = [
        ua.MonitoredItemNotification(
            ClientHandle=ua.UInt32(i),
            Value=ua.DataValue(ua.Variant(i / 7, ua.VariantType.Double), SourceTimestamp=moment, ServerTimestamp=moment),
        )
        for i in range(1_000)
    ]  # fmt: skip
    response.Parameters.NotificationMessage.NotificationData = [
        ua.DataChangeNotification(MonitoredItems=items)
    ]
    data = struct_to_binary(response)

    def cpu_s(decode: Callable[[], object]) -> float:
        began_s = time.process_time()
        for _ in range(20):
            decode()
        return (time.process_time() - began_s) / 20

    ours = min(cpu_s(lambda: publish_answer(Buffer(data))) for _ in range(3))
    library = min(cpu_s(lambda: struct_from_binary(ua.PublishResponse, Buffer(data))) for _ in range(3))
    print(
        f"\nOPC UA, a publish answer of 1,000 values to columns: {ours * 1e3:.2f} µs a value, "
        f"the library's objects {library * 1e3:.1f} µs ({library / ours:.0f} times)"
    )
