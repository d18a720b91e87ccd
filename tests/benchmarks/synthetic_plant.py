"""A plant of many meters whose devices are arrays: all of the product runs, only the wire is left out.

As a script, `synthetic_plant.py PLANT DATA` runs the plant until SIGTERM and says its address.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from collector.driver import DeviceState
from collector.spool import Spool
from core.plant.model import Plant
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from ecmc import compose
from ecmc.folder import read_plant
from ecmc.loop import run_work

QUANTITIES = {
    "active_energy_import_total": "kWh",
    "active_power_total": "kW",
    "current_l1": "A",
    "current_l2": "A",
    "current_l3": "A",
    "voltage_l1": "V",
    "voltage_l2": "V",
    "voltage_l3": "V",
    "power_factor_total": "1",
    "frequency": "Hz",
}
TELEGRAM = 500  # values that come at once; each is synced before the next is asked for


def write_plant(folder: Path, meters: int, quantities: int, period_s: int = 1, halls: int = 10) -> Path:
    """A grid meter, hall meters, and loads behind them with a remainder in every hall."""
    names = [f"m{i:04d}" for i in range(meters)]
    nodes = [
        "{id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}",
        "{id: main, kind: bus, carrier: electricity}",
    ]
    edges = [f"{{id: e-grid, from: grid, to: main, meter: {names[0]}}}"]
    for hall in range(halls):
        nodes.append(f"{{id: hall{hall}, kind: bus, carrier: electricity}}")
        nodes.append(f"{{id: rest{hall}, kind: load, carrier: electricity}}")
        edges.append(f"{{id: e-hall{hall}, from: main, to: hall{hall}, meter: {names[1 + hall]}}}")
        edges.append(f"{{id: e-rest{hall}, from: hall{hall}, to: rest{hall}, meter: remainder}}")
    for i, name in enumerate(names[1 + halls :]):
        nodes.append(f"{{id: load-{name}, kind: load, carrier: electricity}}")
        edges.append(f"{{id: e-{name}, from: hall{i % halls}, to: load-{name}, meter: {name}}}")
    devices = [
        f"{{id: {name}, connection: c, period_s: {period_s}, accuracy_class: 1, rated_kw: 5000}}"
        for name in names
    ]
    folder.mkdir(parents=True)
    (folder / "plant.yaml").write_text(
        "plant: big\nname: {zh: 大厂, en: Big plant}\nzone: Asia/Shanghai\nregion: CN-CQ\nbase_interval_s: 60\n"
        "method_sets: [zero-carbon-factory, ghg-protocol]\n"
        "connections:\n  - {id: c, protocol: mqtt, host: 127.0.0.1, port: 1, username: null, password_env: null,"
        " tls: false}\n"
        + _listed("devices", devices, "  ")
        + "network:\n"
        + _listed("nodes", nodes, "    ", "  ")
        + _listed("edges", edges, "    ", "  "),
        encoding="utf-8",
    )
    rows = [
        f"{name}.{quantity},{name},,{quantity},{unit},t/{name},$.{quantity},{period_s}"
        for name in names
        for quantity, unit in list(QUANTITIES.items())[:quantities]
    ]
    header = "point,device,name,quantity,unit,topic,json_path,period_s"
    (folder / "points.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def _listed(name: str, rows: list[str], indent: str, before: str = "") -> str:
    return f"{before}{name}:\n" + "".join(f"{indent}- {row}\n" for row in rows)


class Meters:
    """What all meters of a plant say in a second, telegram by telegram."""

    def __init__(self, plant: Plant) -> None:
        self.table = PointTable(tuple(plant.point_by_id))
        self.telegrams = -(-len(self.table) // TELEGRAM)
        self._register = np.array([name.endswith("import_total") for name in self.table.names])
        self._random = np.random.default_rng(1)

    def telegram(self, second_ns: int, number: int) -> SampleBatch:
        points = np.arange(number * TELEGRAM, min((number + 1) * TELEGRAM, len(self.table)))
        at_ns = second_ns + number * NS_PER_S // self.telegrams
        counted = np.floor((second_ns // NS_PER_S - 1_700_000_000) * 0.3) / 10  # 108 kW, by steps of 0.1 kWh
        measured = np.round(self._random.random(points.size) * 100, 1)
        values = np.where(self._register[points], counted, measured)
        return sample_batch(self.table, points, np.full(points.size, at_ns), values)


class SyntheticDriver:
    name = "c"

    def __init__(self, plant: Plant) -> None:
        self._meters = Meters(plant)

    async def __aenter__(self) -> Self:
        self._next = 0
        self._began_s = asyncio.get_running_loop().time()
        self._began_ns = time.time_ns() // NS_PER_S * NS_PER_S
        return self

    async def read(self) -> SampleBatch:
        second, number = divmod(self._next, self._meters.telegrams)
        due_s = self._began_s + self._next / self._meters.telegrams
        await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
        self._next += 1
        return self._meters.telegram(self._began_ns + second * NS_PER_S, number)

    async def stored(self) -> None: ...

    def devices(self) -> Mapping[str, DeviceState]:
        return {}

    async def __aexit__(self, *exc: object) -> None: ...


async def fill_spool(folder: Path, plant: Plant, seconds: int) -> int:
    """What stands in a spool after an outage of the database that ends now; returns the rows."""
    meters = Meters(plant)
    first_ns = time.time_ns() // NS_PER_S * NS_PER_S - seconds * NS_PER_S
    async with Spool(folder, sync_interval_s=0) as spool:
        for second in range(seconds):
            at_ns = first_ns + second * NS_PER_S
            await asyncio.gather(*(spool.append(meters.telegram(at_ns, i)) for i in range(meters.telegrams)))
    return seconds * len(meters.table)


def _make_driver(plant: Plant, *_: Any, **__: Any) -> SyntheticDriver:
    return SyntheticDriver(plant)


def main() -> None:
    compose.make_driver = _make_driver  # type: ignore[assignment]
    plant = read_plant(Path(sys.argv[1]))
    run_work(
        compose.run_plant(plant, Path(sys.argv[2]), None, "127.0.0.1", 0, lambda at: print(at, flush=True))
    )


if __name__ == "__main__":
    main()
