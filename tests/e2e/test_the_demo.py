"""`ecmc demo` as a newcomer meets it: three protocols, figures that add up, a meter that can be unplugged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ECMC = Path(sys.executable).with_name("ecmc")


@pytest.fixture(scope="module")
def demo(new_ecmc: Any) -> Iterator[Any]:
    running, folder = new_ecmc()
    with running.log.open("wb") as log:
        running.process = subprocess.Popen(
            [ECMC, "demo", "--data", running.data, "--port", str(running.port), "--days", "1"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    running.wait_for(lambda: _health(running) == "ok", 60)
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def new_ecmc() -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("e2e_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.new_ecmc


def _health(running: Any) -> str:
    try:
        return str(running.get("/v1/health")["status"])
    except OSError:
        return "away"


def live(running: Any) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in running.get("/v1/live")["nodes"]}


def test_every_device_of_all_three_protocols_delivers(demo: Any) -> None:
    devices = demo.wait_for(lambda: (rows := demo.get("/v1/devices")) and all(r["up"] for r in rows) and rows)
    latest = demo.get(
        "/v1/latest",
        point=["m-grid.active_power_total", "plc-line1.active_power_total", "canteen.active_power_total"],
    )

    assert len(devices) == 13
    assert [row["quality"] for row in latest] == ["good"] * 3


def test_the_live_carbon_is_the_grids_power_times_its_factor_and_the_gas_burned(demo: Any) -> None:
    nodes = demo.wait_for(lambda: (rows := live(demo)) and rows["site"]["emissions_kgco2e_per_h"] and rows)

    grid, boiler, site = nodes["grid"], nodes["gas"], nodes["site"]

    assert grid["emissions_kgco2e_per_h"] == pytest.approx(
        grid["power_kw"] * 0.5581, rel=1e-6
    )  # Chongqing 2023
    gas_kg_per_kwh = 0.0153 * 44 / 12 * 0.99 * 1000 * 0.0036  # tC/GJ x 44/12 x OF, per kWh (NCV)
    assert site["emissions_kgco2e_per_h"] == pytest.approx(
        grid["emissions_kgco2e_per_h"] + boiler["power_kw"] * gas_kg_per_kwh, rel=1e-6
    )


def test_a_register_change_is_latest_within_a_second_and_a_half(demo: Any) -> None:
    ages = []
    for _ in range(20):
        row = demo.get("/v1/latest", point="m-grid.active_energy_import_total")[0]
        ages.append(time.time() - _seconds(row["time"]))
        time.sleep(0.13)

    assert (
        max(ages) < 1.5 + 0.5
    )  # one period of 1 s, half a second, and the test's own slack on a busy machine


def test_the_past_and_the_present_join_without_a_hole(demo: Any) -> None:
    end = time.time() // 60 * 60 - 60
    window = {"start": _stamp(end - 3600), "end": _stamp(end)}

    rows = demo.get("/v1/energy", edge=["e-grid", "e-hall-2", "e-press"], **window)

    assert len(rows) == 3 * 60
    assert all(row["energy_kwh"] is not None and row["coverage"] > 0.5 for row in rows)


def test_an_unplugged_meter_takes_nobody_with_it_and_heals(demo: Any) -> None:
    faults = demo.data / "plant" / "faults.json"
    faults.write_text(json.dumps({"m-press": {"drop": True}}))
    demo.wait_for(
        lambda: demo.get("/v1/latest", point="m-press.active_power_total")[0]["quality"] == "bad", 30
    )

    time.sleep(3)
    others = demo.get("/v1/latest", point=["m-hall-2.active_power_total", "m-grid.active_power_total"])
    faults.write_text("{}")
    back = demo.wait_for(
        lambda: (
            (rows := demo.get("/v1/latest", point="m-press.active_power_total"))[0]["quality"] == "good"
            and rows
        ),
        90,
    )

    assert [row["quality"] for row in others] == ["good", "good"]
    assert all(time.time() - _seconds(row["time"]) < 60 for row in others)
    assert back[0]["value"] is not None


def test_the_demo_fits_into_600_mb(demo: Any) -> None:
    root = psutil.Process(demo.process.pid)
    family = [root, *root.children(recursive=True)]
    servers = [
        p for p in psutil.process_iter(["cmdline"]) if str(demo.data) in " ".join(p.info["cmdline"] or [])
    ]
    server_children = [child for server in servers for child in server.children(recursive=True)]

    used = sum(p.memory_full_info().pss for p in {*family, *servers, *server_children})

    assert used < 600e6


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def _stamp(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
