"""The plant folder edited under a running ecmc: taken over between two polls, or refused whole."""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

PLANT = """\
plant: editing
name: {{zh: 改图厂, en: Editing}}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
connections:
  - {{id: mb1, protocol: modbus-tcp, host: 127.0.0.1, port: {port}}}
devices:
{devices}
network:
  nodes:
    - {{id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}}
    - {{id: main, kind: bus, carrier: electricity}}
    - {{id: hall, kind: load, carrier: electricity}}
  edges:
    - {{id: e-grid, from: grid, to: main, meter: m1.energy}}
    - {{id: e-hall, from: main, to: hall, meter: remainder}}
"""
HEAD = "point,device,name,quantity,unit,address,function,type,period_s\n"


class CountingMeter(socketserver.BaseRequestHandler):
    """Answers each read of a unit with how often that unit was read: a reading that is lost leaves a hole."""

    served: Counter[int]

    def handle(self) -> None:
        while head := self.request.recv(7, 0x100):  # all of it
            transaction, _, length, unit = struct.unpack(">HHHB", head)
            _, _, count = struct.unpack(">BHH", self.request.recv(length - 1, 0x100))
            self.served[unit] += 1
            registers = struct.pack(">I", self.served[unit]).ljust(2 * count, b"\0")
            body = struct.pack(">BB", 3, 2 * count) + registers
            self.request.sendall(struct.pack(">HHHB", transaction, 0, len(body) + 1, unit) + body)


@pytest.fixture
def meter() -> Iterator[tuple[int, Counter[int]]]:
    served: Counter[int] = Counter()
    handler = type("Meter", (CountingMeter,), {"served": served})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], served
        server.shutdown()


def folder(port: int, *units: int, period_s: float = 0.2) -> dict[str, str]:
    devices = "\n".join(f"  - {{id: m{unit}, connection: mb1, unit_id: {unit}}}" for unit in units)
    points = "".join(
        f"m{unit}.energy,m{unit},,active_energy_import_total,kWh,0,3,uint32,{period_s}\n" for unit in units
    )
    return {"plant_yaml": PLANT.format(port=port, devices=devices), "points_csv": HEAD + points}


def stored(ecmc: Any, point: str) -> list[float]:
    now = datetime.now(UTC)
    span = {"start": (now - timedelta(hours=1)).isoformat(), "end": (now + timedelta(hours=1)).isoformat()}
    rows = ecmc.get("/v1/samples", point=point, limit=10_000, **span)["items"]
    return [row["value"] for row in rows if row["value"] is not None]


def test_a_device_comes_a_faulty_edit_and_another_plant_are_refused_and_no_reading_is_lost(
    ecmc: Any, meter: tuple[int, Counter[int]]
) -> None:
    port, served = meter
    ecmc.write(**folder(port, 1))
    ecmc.start()
    ecmc.wait_for(lambda: served[1] > 10)

    ecmc.write(**folder(port, 1, 2))
    ecmc.wait_for(lambda: served[2] > 5)
    assert ecmc.get("/v1/health")["parts"]["plant"]["status"] == "ok"
    assert {device["device"] for device in ecmc.get("/v1/devices")} == {"m1", "m2"}

    # A faulty edit: the plan before runs on, and the health says where the fault is.
    faulty = folder(port, 1, 2, 3)
    faulty["points_csv"] = faulty["points_csv"].replace("m3.energy,m3", "m3.energy,m33")
    ecmc.write(**faulty)
    health = ecmc.wait_for(lambda: (h := ecmc.get("/v1/health"))["parts"]["plant"]["status"] != "ok" and h)
    assert "points.csv:4" in health["parts"]["plant"]["detail"]
    assert "m33" in health["parts"]["plant"]["detail"]
    before = served[1]
    ecmc.wait_for(lambda: served[1] > before + 5)
    assert served[3] == 0

    # Another plant's folder is refused as well.
    ecmc.write(plant_yaml=folder(port, 1, 2)["plant_yaml"].replace("plant: editing", "plant: elsewhere"))
    ecmc.write(points_csv=folder(port, 1, 2)["points_csv"])
    ecmc.wait_for(lambda: "'elsewhere'" in ecmc.get("/v1/health")["parts"]["plant"]["detail"])
    assert ecmc.get("/v1/plant")["plant"] == "editing"
    before = served[1]
    ecmc.wait_for(lambda: served[1] > before + 3)

    # Put right, and a device taken out in the same edit.
    ecmc.write(**folder(port, 1, 3))
    ecmc.wait_for(lambda: served[3] > 5)
    assert ecmc.wait_for(lambda: ecmc.get("/v1/health")["parts"]["plant"]["status"] == "ok")
    last = served[2]

    time.sleep(1.0)
    ecmc.stop()
    total = dict(served)
    assert total[2] <= last + 1
    ecmc.write(**folder(port, 1, 2, 3))
    ecmc.start()
    ecmc.wait_for(lambda: len(stored(ecmc, "m1.energy")) > total[1])
    for unit in (1, 3):
        values = stored(ecmc, f"m{unit}.energy")
        # The last reading before the process ended may have been under way.
        missing = set(map(float, range(1, total[unit]))) - set(values)
        assert not missing, (
            f"m{unit}: {sorted(missing)} of {total[unit]} readings were served and are not stored"
        )
    assert stored(ecmc, "m2.energy")[: last - 1] == [float(n) for n in range(1, last)]
