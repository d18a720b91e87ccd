"""How the network of a healthy plant folder is resolved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.plant.check import notes, summarise
from core.plant.model import AlertKind, Plant, PointMeter, RemainderMeter, Role

Load = Callable[[Path], Plant]
Change = Callable[[Path, str, str], None]

METERS = {
    "e-grid": PointMeter(
        "m-grid.active_energy_import_total", Role.REGISTER, "import", "m-grid.active_power_total"
    ),
    "e-sold": PointMeter(
        "m-grid.active_energy_export_total", Role.REGISTER, "export", "m-grid.active_power_total"
    ),
    "e-roof": PointMeter(
        "m-roof.active_energy_yield_total", Role.REGISTER, "import", "m-roof.active_power_total"
    ),
    # A battery's power is positive while it discharges.
    "e-charge": PointMeter(
        "m-bat.battery_charge_energy_total", Role.REGISTER, "export", "m-bat.battery_power"
    ),
    "e-discharge": PointMeter(
        "m-bat.battery_discharge_energy_total", Role.REGISTER, "import", "m-bat.battery_power"
    ),
    "e-gas": PointMeter("m-gas.volume_std_total_2", Role.REGISTER, "import", "m-gas.flow_volume_std"),
    "e-steam": PointMeter("m-steam.heat", Role.REGISTER, "import", None),
    "e-other": RemainderMeter("main"),
    "e-dryer": RemainderMeter("header"),
}


@pytest.mark.parametrize(("edge", "meter"), METERS.items())
def test_an_edge_finds_its_meter(works: Path, load: Load, edge: str, meter: object) -> None:
    assert load(works).edge_by_id[edge].meter == meter


def test_power_meters_an_edge_whose_device_has_no_register(works: Path, load: Load) -> None:
    edge = "    - {id: e-office, from: main, to: office, meter: gate}"
    text = (works / "plant.yaml").read_text("utf-8")
    (old,) = [line for line in text.splitlines() if "id: e-office" in line]
    (works / "plant.yaml").write_text(text.replace(old, edge), "utf-8")

    meter = load(works).edge_by_id["e-office"].meter

    assert meter == PointMeter("gate.power", Role.POWER, "import", "gate.power")


def test_a_carrier_comes_from_whichever_end_names_it(works: Path, load: Load) -> None:
    plant = load(works)

    carriers = {edge.id: edge.carrier for edge in plant.edges}
    assert carriers["e-gas"] == "natural_gas"
    assert carriers["e-steam"] == "steam"
    assert carriers["e-dryer"] == "steam"
    assert carriers["e-office"] == "electricity"


def test_a_remainder_moves_to_the_other_bus_where_the_first_is_taken(
    works: Path, load: Load, change: Change
) -> None:
    change(
        works / "plant.yaml",
        "    - {id: sold,",
        "    - {id: hall, kind: bus, carrier: electricity}\n    - {id: sold,",
    )
    change(works / "plant.yaml", "from: main, to: light", "from: hall, to: light")
    change(
        works / "plant.yaml",
        "    - {id: e-grid,",
        "    - {id: e-hall, from: main, to: hall, meter: remainder}\n    - {id: e-grid,",
    )

    plant = load(works)

    assert plant.edge_by_id["e-hall"].meter == RemainderMeter("hall")
    assert plant.edge_by_id["e-other"].meter == RemainderMeter("main")


def test_every_metering_point_is_watched_for_silence(works: Path, load: Load) -> None:
    rules = {rule.point: rule for rule in load(works).alerts if rule.kind is AlertKind.MISSING}

    metering = {edge.meter.point for edge in load(works).edges if isinstance(edge.meter, PointMeter)}
    assert rules.keys() == metering
    assert rules["m-grid.active_energy_import_total"].for_s == 180.0  # three base intervals
    assert rules["m-gas.volume_std_total_2"].for_s == 600.0  # the folder's own rule


def test_the_fingerprint_changes_with_any_file_that_is_read(works: Path, load: Load, change: Change) -> None:
    before = load(works).fingerprint
    again = load(works).fingerprint
    change(works / "alerts.yaml", "severity: 700", "severity: 701")

    assert before == again
    assert load(works).fingerprint != before


def test_the_summary_counts_what_is_there(works: Path, load: Load) -> None:
    lines = summarise(load(works), {}).splitlines()

    assert lines[1:4] == [
        "4 connections (1 modbus-tcp, 1 modbus-rtu, 1 opcua, 1 mqtt)",
        "9 devices",
        "127 points, 1 by import alone",
    ]


def test_gas_that_nobody_burns_is_worth_a_note(works: Path, load: Load, change: Change) -> None:
    change(works / "plant.yaml", "kind: converter, burns: natural_gas", "kind: converter")

    assert "boiler takes natural_gas and burns none of it: no combustion is counted there" in notes(
        load(works)
    )
