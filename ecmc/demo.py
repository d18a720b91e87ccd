"""`ecmc demo`: simulated devices on real protocols, and the same `run` any plant gets."""

from __future__ import annotations

import logging
from pathlib import Path

from core.clock import SystemClock
from core.compute.engine import Engine
from core.plant.model import Plant
from core.samples import NS_PER_S
from core.settings import default_data_folder, prepare_data_folder
from core.store.postgres import PostgresStore
from ecmc.compose import run_plant
from ecmc.folder import read_plant
from simulators.history import history
from simulators.run import FAULT_FILE, Simulators, free_ports, write_demo_plant

log = logging.getLogger(__name__)

HISTORY_STEP_S = 60.0
DAY_NS = 86_400 * NS_PER_S


async def run_demo(data: Path | None, dsn: str | None, host: str, port: int, days: int, speed: float) -> None:
    """Serve the demo plant and run ecmc on it until stopped; the first start is given `days` of simulated past."""
    folder = prepare_data_folder(data or default_data_folder("demo"))
    plant_folder = write_demo_plant(folder / "plant", free_ports())
    plant = read_plant(plant_folder)

    async def begin(store: PostgresStore, engine: Engine) -> None:
        if days > 0 and await store.span() is None:
            await _write_past(plant, store, engine, simulators, days)

    def ready(address: str) -> None:
        print(f"console       {address}")
        print(f"plant folder  {plant_folder}")
        print(f"faults        {plant_folder / FAULT_FILE} (unplug a meter there)")
        print("stop with Ctrl-C", flush=True)

    async with Simulators(plant, speed, fault_file=plant_folder / FAULT_FILE) as simulators:
        await run_plant(plant, folder, dsn, host, port, ready, begin)


async def _write_past(
    plant: Plant, store: PostgresStore, engine: Engine, simulators: Simulators, days: int
) -> None:
    now_ns = SystemClock().now_ns()
    rows = 0
    for batch in history(
        plant, now_ns - days * DAY_NS, now_ns, HISTORY_STEP_S, engine.points, simulators.model
    ):
        rows += (await store.write(batch)).accepted
    log.info("simulated past written", extra={"days": days, "rows": rows})
