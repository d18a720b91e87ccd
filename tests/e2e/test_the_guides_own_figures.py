"""T1, T4, T5 and T8 of the specification through import and HTTP: a steel sheet, the ledger, both tce bases, hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PLANT = """\
plant: guide
name: {zh: 指南厂, en: Guide}
zone: Asia/Shanghai
region: CN
base_interval_s: 900
gap_after_s: 3000000
method_sets: [ghg-protocol, zero-carbon-factory]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: main, kind: bus, carrier: electricity}
    - {id: hall, kind: load, carrier: electricity}
    - {id: sold, kind: export, carrier: electricity}
    - {id: bat, kind: storage, carrier: electricity, capacity_kwh: 400000, charge_efficiency: 0.95,
       discharge_efficiency: 0.95}
  edges:
    - {id: e-charge, from: main, to: bat, meter: charge.energy}
    - {id: e-discharge, from: bat, to: main, meter: discharge.energy}
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-roof, from: roof, to: main, meter: roof.energy}
    - {id: e-sold, from: main, to: sold, meter: sold.energy}
    - {id: e-hall, from: main, to: hall, meter: remainder}
"""
POINTS = """\
point,device,name,quantity,unit
grid.energy,,,active_energy_import_total,kWh
roof.energy,,,active_energy_yield_total,kWh
sold.energy,,,active_energy_export_total,kWh
charge.energy,,,active_energy_import_total,kWh
discharge.energy,,,active_energy_import_total,kWh
"""


def rows(times: list[str], **registers: list[float]) -> str:
    lines = [
        f"{name}.energy,{time},{value!r}"
        for name, values in registers.items()
        for time, value in zip(times, values, strict=True)
    ]
    return "point,time,value\n" + "\n".join(lines) + "\n"


def test_t4_t5_and_t8(ecmc: Any, tmp_path: Path) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    ecmc.start()
    file = tmp_path / "t4.csv"
    september = ["2026-09-01T00:00:00+08:00", "2026-10-01T00:00:00+08:00"]
    # What charges the battery is off-take like any other, and what comes back is nobody's generation.
    battery = {"charge": [0.0, 300_000.0], "discharge": [0.0, 250_000.0]}
    file.write_text(
        rows(september, grid=[0.0, 8.8e6], roof=[0.0, 1.2e6], sold=[0.0, 0.0], **battery), "utf-8"
    )
    ecmc.import_(file)
    hours = [f"2026-10-05T{h:02}:00:00+08:00" for h in range(5)]
    file.write_text(
        rows(
            hours,
            grid=[8.8e6 + kwh for kwh in (0, 10, 10, 10, 20)],
            roof=[1.2e6 + kwh for kwh in (0, 0, 25, 40, 40)],
            sold=[0.0, 0.0, 15.0, 20.0, 20.0],
            charge=[300_000.0] * 5,
            discharge=[250_000.0] * 5,
        ),
        "utf-8",
    )
    ecmc.import_(file)
    certificates = [
        {"serial": f"GEC-{i}", "state": "bought", "on": "2026-10-02", "generated": "2026-09"}
        for i in range(1500)
    ]
    cancelled = [{**row, "state": "cancelled", "claim": "2026"} for row in certificates]
    ecmc.post("/v1/certificates", certificates + cancelled, who="li")
    ecmc.post(
        "/v1/green-power/entries",
        [
            {"kind": "green-trade", "period": "2026-09", "value": 2.0e6, "contract": "GT-1"},
            {"kind": "province-share", "period": "2026", "value": 0.30, "document": "as published"},
        ],
        who="li",
    )

    ledger = ecmc.get("/v1/green-power", period="2026-09")
    assert ledger["share_kwh"] == pytest.approx(1.59e6)
    assert ledger["non_fossil_kwh"] == pytest.approx(6.29e6)
    assert ledger["non_fossil_share"] == pytest.approx(0.629)
    assert ledger["physical_share"] == pytest.approx(0.12)
    assert ledger["location_based_kgco2e"] == pytest.approx(4_669_280)
    assert ledger["market_based_kgco2e"] == pytest.approx(
        3_230_880
    )  # never 2 812 180, the average for the rest
    assert ledger["fossil_remainder_kgco2e_experimental"] == pytest.approx(3_069_280, rel=1e-4)

    inventory = ecmc.get("/v1/inventory", period="2026-10", method_set="zero-carbon-factory")
    (left,) = [row for row in inventory["exports"] if row["basis"] == "location"]
    assert (left["total_kgco2e"], left["net_is_asked"]) == (0.0, True)  # what was sold came from the roof

    def indicator(name: str, basis: str | None, period: str) -> float:
        answer = ecmc.get("/v1/indicators", period=period, method_set="zero-carbon-factory")
        return next(float(r["value"]) for r in answer if (r["indicator"], r["basis"]) == (name, basis))

    assert indicator("physical_non_fossil_electricity_share", None, "2026-09") == pytest.approx(12.0)
    grid_only = indicator("emissions_scope_2", "location", "2026-09")
    energy = {b: indicator("energy_tce", b, "2026-09") * 0.88 for b in ("calorific", "primary")}
    assert grid_only / 1000 / energy["calorific"] == pytest.approx(4.3173, rel=1e-4)  # T5
    assert grid_only / 1000 / energy["primary"] == pytest.approx(1.8578, rel=1e-4)
    assert indicator("hourly_match", None, "2026-10-05") == pytest.approx(50.0)  # T8
    assert indicator("self_use", None, "2026-10-05") == pytest.approx(50.0)


STEEL = """\
plant: steel
name: {zh: 钢厂, en: Steel}
zone: Asia/Shanghai
region: CN-HE
base_interval_s: 900
method_sets: [national-ets]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: mill, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: mill, meter: grid.energy}
"""


def test_t1_a_months_sheet_of_the_national_ets_for_steel(ecmc: Any) -> None:
    """Monthly evidence sheet, steel, June 2026: no oxidation factor, no electricity, carbon in products taken off."""
    ecmc.write(plant_yaml=STEEL, points_csv=POINTS.splitlines()[0] + "\n" + POINTS.splitlines()[1] + "\n")
    ecmc.start()
    fuels = {
        "anthracite": (2317.68, 25.024, 0.02749),
        "bituminous": (120188.43, 23.736, 0.02618),
        "washed coal": (300810.90, 26.344, 0.02541),
        "coke": (66522.44, 28.435, 0.02942),
        "coke-oven gas": (920.50, 173.854, 0.0121),
    }
    sheet = [
        {
            "kind": "process",
            "subject": "fuel-heat",
            "use": name,
            "period": "2026-06",
            "amount": amount,
            "unit": "t",
            "details": {
                "ncv_gj": ncv,
                "carbon_t_per_gj": carbon,
                "oxidation": 0.9,
            },  # which this regime leaves out
        }
        for name, (amount, ncv, carbon) in fuels.items()
    ]
    for subject, tonnes in (("carbonate", 32394.60), ("carbon-in-products", 47513.21)):
        sheet.append(
            {
                "kind": "process",
                "subject": subject,
                "use": "sheet",
                "period": "2026-06",
                "amount": tonnes,
                "unit": "t",
                "details": {"factor_t_per_t": 1.0},
            }
        )
    for number in ecmc.post("/v1/activities", sheet, who="li")["ids"]:
        ecmc.post(f"/v1/activities/{number}/approve", None, who="wang")
    ecmc.post(
        "/v1/production", [{"period": "2026-06", "product": "steel", "amount": 595279, "unit": "t"}], who="li"
    )

    inventory = ecmc.get("/v1/inventory", period="2026-06")
    by_line = {
        row["line"]: row["total_kgco2e"] / 1000 for row in inventory["lines"] if row["kind"] == "activity"
    }
    stated = (5845.97, 273849.07, 738331.47, 204049.48, 7100.11, 32394.60, -47513.21)
    assert sorted(by_line.values()) == pytest.approx(sorted(stated), abs=0.005)
    (scope_1,) = [t for t in inventory["totals"] if t["scope"] == 1 and t["basis"] == "location"]
    assert scope_1["total_kgco2e"] / 1000 == pytest.approx(1214057.49, abs=0.01)
    assert scope_1["total_kgco2e"] / 1000 / 595279 == pytest.approx(2.0395, abs=5e-5)
