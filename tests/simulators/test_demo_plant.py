"""The demo plant adds up, stays the same over restarts, and its folder means what the model does."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from core.clock import time_ns_of
from core.plant.load import load_plant
from core.plant.model import FormulaMeter, Kind, Plant, PointMeter, RemainderMeter
from simulators.history import delivered, history
from simulators.meter import Meters
from simulators.plant import HALL_2_MWH_A, DemoPlant
from simulators.recording import steel
from simulators.run import DEMO_PORTS, write_demo_plant

NS = 10**9
MONDAY = time_ns_of(datetime(2026, 11, 15, 16, tzinfo=UTC))  # midnight of Monday, 16 November in Chongqing
YEAR_2026 = time_ns_of(datetime(2025, 12, 31, 16, tzinfo=UTC))


def test_every_instant_balances_at_the_switchboards(model: DemoPlant) -> None:
    rng = np.random.default_rng(7)
    state = model.state(YEAR_2026 + rng.integers(0, 365 * 86_400 * NS, 5_000))

    for flow in (state.energy_kwh, state.power_kw):
        into = flow["grid"] + flow["roof"] + flow["discharge"]
        out = flow["sold"] + flow["charge"] + flow["hall-1"] + flow["transformer-loss"] + flow["hall-2"]
        out = out + flow["lighting"] + flow["canteen"] + flow["offices"]
        machines = sum(flow[name] for name in ("press", "welding", "air", "air-2", "hall-2-rest"))

        np.testing.assert_allclose(into, out, rtol=0, atol=1e-6)
        np.testing.assert_allclose(machines, flow["hall-2"], rtol=0, atol=1e-6)
    assert (np.minimum(state.power_kw["grid"], state.power_kw["sold"]) == 0).all()


def test_power_is_the_slope_of_the_register(model: DemoPlant) -> None:
    moments = MONDAY + np.arange(0, 86_400, 1, dtype=np.int64) * NS
    state = model.state(moments)

    for name, energy_kwh in state.energy_kwh.items():
        step_kwh = np.diff(energy_kwh)
        from_power_kwh = np.trapezoid(state.power_kw[name]) / 3600

        assert step_kwh.min() > -1e-9, name
        assert from_power_kwh == pytest.approx(step_kwh.sum(), rel=2e-3, abs=0.05), name


def test_each_quarter_hour_carries_exactly_the_recorded_energy(model: DemoPlant) -> None:
    edges = MONDAY + np.arange(97, dtype=np.int64) * 900 * NS

    hall_1_kwh = np.diff(model.state(edges).energy_kwh["hall-1"])

    # Monday 16 November 2026 is day 319 of its year; 2018's nearest Monday is day 322, 19 November.
    nearest = (date(2018, 11, 19) - date(2018, 1, 1)).days
    assert date(2018, 11, 19).weekday() == 0
    np.testing.assert_allclose(
        hall_1_kwh, steel()["energy_kwh"][nearest * 96 : nearest * 96 + 96], rtol=0, atol=1e-6
    )


def test_hall_2_uses_what_it_was_scaled_to(model: DemoPlant) -> None:
    ends = model.state([YEAR_2026, YEAR_2026 + 365 * 86_400 * NS])

    assert np.diff(ends.energy_kwh["hall-2"])[0] == pytest.approx(HALL_2_MWH_A * 1000, rel=0.01)


def test_the_battery_loses_what_its_efficiency_says(model: DemoPlant) -> None:
    ends = model.state([YEAR_2026, YEAR_2026 + 365 * 86_400 * NS])
    charged, discharged = (np.diff(ends.energy_kwh[name])[0] for name in ("charge", "discharge"))
    stored_kwh = np.diff(ends.soc)[0] * 500

    assert charged > 50_000
    assert stored_kwh == pytest.approx(charged * 0.96 - discharged / 0.96 - 0.2 * 8760, abs=1e-3)


def test_a_restart_goes_on_with_the_same_registers(model: DemoPlant) -> None:
    moments = MONDAY + np.arange(0, 3_600, 7, dtype=np.int64) * NS

    first, again = model.state(moments), DemoPlant().state(moments)
    # Asked for a later year first, the same past comes out.
    later = DemoPlant()
    later.state(MONDAY + 2 * 366 * 86_400 * NS)

    for name, energy_kwh in first.energy_kwh.items():
        assert np.array_equal(again.energy_kwh[name], energy_kwh), name
        assert np.array_equal(later.state(moments).energy_kwh[name], energy_kwh), name


def test_played_faster_a_register_still_counts_power_times_time(model: DemoPlant) -> None:
    fast = DemoPlant(speed=60, anchor_ns=MONDAY)
    moments = MONDAY + np.arange(0, 1_440, 1, dtype=np.int64) * NS  # a day in 24 minutes
    state = fast.state(moments)

    counted_kwh = state.energy_kwh["hall-1"][-1] - state.energy_kwh["hall-1"][0]

    assert counted_kwh == pytest.approx(np.trapezoid(state.power_kw["hall-1"]) / 3600, rel=0.02)
    slow = model.state([MONDAY, MONDAY + 1_439 * 60 * NS])
    assert counted_kwh == pytest.approx(np.diff(slow.energy_kwh["hall-1"])[0] / 60, rel=1e-6)


def test_a_time_before_commissioning_is_refused(model: DemoPlant) -> None:
    with pytest.raises(ValueError, match="commissioned on 2024-01-01"):
        model.state(time_ns_of(datetime(2023, 6, 1, tzinfo=UTC)))


def test_what_the_meters_read_adds_up_to_their_resolution(plant: Plant, meters: Meters) -> None:
    hour_ns = np.array([MONDAY + 10 * 3_600 * NS, MONDAY + 14 * 3_600 * NS])
    flows = meters.model.state(hour_ns)
    loose = {
        "e-machines": np.diff(flows.energy_kwh["hall-2-rest"])[0],
        "e-offices": np.diff(flows.energy_kwh["offices"])[0],
        "e-compressor-2": np.diff(flows.energy_kwh["air-2"])[0],  # metered by power alone
    }
    read_kwh: dict[str, float] = {}
    for edge in plant.edges:
        if isinstance(edge.meter, PointMeter) and edge.id not in loose:
            point = plant.point_by_id[edge.meter.point]
            read_kwh[edge.id] = np.diff(delivered(point, meters.history([point.id], hour_ns)[point.id]))[0]
    for edge in plant.edges:
        if isinstance(edge.meter, FormulaMeter):
            columns = {name: np.array([value]) for name, value in read_kwh.items()}
            read_kwh[edge.id] = edge.meter.formula.evaluate(columns)[0]
        elif isinstance(edge.meter, RemainderMeter) or edge.id in loose:
            read_kwh[edge.id] = loose[edge.id]

    for node in ("main", "hall-2"):
        into = sum(read_kwh[edge.id] for edge in plant.edges if edge.target == node)
        out = sum(read_kwh[edge.id] for edge in plant.edges if edge.source == node)
        # The coarsest registers: acrel steps by 0.6 kWh, sungrow by 0.1, a float32 by 64 Wh.
        assert into == pytest.approx(out, abs=1.0)
        assert into > 100


def test_the_demo_folder_holds_what_the_issue_asks_for(plant: Plant) -> None:
    modbus = [c.id for c in plant.connections if c.protocol.value == "modbus-tcp"]
    profiles = {device.profile for device in plant.devices if device.connection in modbus}
    kinds = {type(edge.meter) for edge in plant.edges}

    assert len(modbus) == 2
    assert len(profiles) == 10
    assert {c.protocol.value for c in plant.connections} == {"modbus-tcp", "opcua", "mqtt"}
    assert kinds == {PointMeter, RemainderMeter, FormulaMeter}
    assert {node.kind.value for node in plant.nodes} == {
        "source",
        "bus",
        "converter",
        "storage",
        "load",
        "export",
    }
    assert plant.region == "CN-CQ"
    assert all(node.name and node.name.zh and node.name.en for node in plant.nodes)


def test_the_folder_takes_the_ports_it_is_given(tmp_path: Path) -> None:
    # Two swapped ones: a careless replacement would make them the same.
    ports = {"mb-1": 15021, "mb-2": 15020, "ua-1": 40001, "mq-1": 40002}

    folder = write_demo_plant(tmp_path / "demo", ports)

    plant = load_plant(folder, [Path(__file__).parents[2] / "collector" / "profiles"])
    options = {connection.id: connection.options for connection in plant.connections}
    assert options["mb-1"]["port"] == 15021
    assert options["mb-2"]["port"] == 15020
    assert options["ua-1"]["url"] == "opc.tcp://127.0.0.1:40001/ecmc/line1"
    assert options["mq-1"]["port"] == 40002
    assert set(options) == set(DEMO_PORTS)


def test_history_is_what_the_devices_would_have_said(plant: Plant, meters: Meters) -> None:
    start, end = MONDAY, MONDAY + 600 * NS

    batches = list(history(plant, start, end, step_s=60, model=meters.model))

    values = {}
    for batch in batches:
        for name, time_ns, value in zip(batch.names(), batch.time_ns, batch.value, strict=True):
            values[name, int(time_ns)] = value
    delivered_points = [point for point in plant.points if point.device]
    assert len(values) == 10 * len(delivered_points) == sum(len(batch) for batch in batches)
    meters.clock.time_ns = MONDAY + 120 * NS  # type: ignore[attr-defined]
    for point in delivered_points:
        live = meters.values(point.device or "")[point.id]
        assert values[point.id, MONDAY + 120 * NS] == delivered(point, np.array([live]))[0]


def test_history_counters_never_fall_but_at_a_shift(plant: Plant, model: DemoPlant) -> None:
    names = [point.id for point in plant.points if point.kind is Kind.COUNTER and point.device]

    batches = list(history(plant, MONDAY, MONDAY + 86_400 * NS, 300, names, model))

    column = np.concatenate([batch.value for batch in batches]).reshape(-1, len(names))
    falls = {
        name for name, fell in zip(names, (np.diff(column, axis=0) < 0).any(axis=0), strict=True) if fell
    }
    assert falls == {"plc-line1.production_good_count"}
