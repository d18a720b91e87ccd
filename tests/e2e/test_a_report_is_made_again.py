"""A report of a past known time, made again after late readings, new factors and new entries: to the last digit."""

from __future__ import annotations

import json
import urllib.error
from datetime import UTC, datetime
from typing import Any

import pytest

PLANT = """\
plant: report
name: {zh: 报告厂, en: Report}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
gap_after_s: 90000
method_sets: [ghg-protocol]
devices:
  - {id: m-grid, accuracy_class: 0.5}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: line, kind: source, carrier: electricity, origin: purchased, factor: contract}
    - {id: gas, kind: source, carrier: natural_gas, origin: purchased, fuel: natural_gas@ndrc_other_industry}
    - {id: main, kind: bus, carrier: electricity}
    - {id: hall, kind: load, carrier: electricity}
    - {id: sold, kind: export, carrier: electricity}
    - {id: boiler, kind: load, burns: natural_gas}
  edges:
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-line, from: line, to: main, meter: line.energy}
    - {id: e-gas, from: gas, to: boiler, meter: gas.energy}
    - {id: e-sold, from: main, to: sold, meter: "= e-grid * 0.1"}
    - {id: e-hall, from: main, to: hall, meter: remainder}
"""
POINTS = """\
point,device,name,quantity,unit
grid.energy,m-grid,,active_energy_import_total,kWh
line.energy,,,active_energy_import_total,kWh
gas.energy,,,active_energy_import_total,kWh
"""
FACTORS = """\
id,value,unit,valid_from,published,source,approved_by
contract,0.3127,kgCO2/kWh,2026-01-01,2025-12-20,supplier letter 3,wang
"""
SERIALS = range(4)


def readings(hours: range, shift: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "point": f"{name}.energy",
            "time": f"2026-09-{1 + hour // 24:02}T{hour % 24:02}:00:00+08:00",
            "value": hour * kw + hour * hour * 0.013 + shift,
        }
        for hour in hours
        for name, kw in (("grid", 97.3), ("line", 13.7), ("gas", 51.1))
    ]


def approved(ecmc: Any, path: str, row: dict[str, Any]) -> int:
    (number,) = ecmc.post(path, [row], who="li")["ids"]
    ecmc.post(f"{path.replace('/factors', '/factors/entries')}/{number}/approve", None, who="wang")
    return int(number)


def test_a_report_of_a_past_known_time_is_the_same_to_the_last_digit(ecmc: Any) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS, factors_csv=FACTORS)
    ecmc.start()
    ecmc.post("/v1/samples", readings(range(48)))
    last_hour = {"start": "2026-09-02T14:00:00Z", "end": "2026-09-02T15:00:00Z", "bucket": "1h"}
    ecmc.wait_for(lambda: ecmc.get("/v1/energy", edge="e-gas", **last_hour))
    diesel = {"kind": "fuel", "subject": "diesel@ndrc_other_industry", "amount": 1.37, "unit": "t"}
    first = approved(ecmc, "/v1/activities", {**diesel, "period": "2026-09"})
    bought = [
        {"serial": f"G{i}", "state": "bought", "on": "2026-10-01", "generated": "2026-09"} for i in SERIALS
    ]
    ecmc.post("/v1/certificates", [*bought, {**bought[0], "state": "cancelled", "claim": "2026"}], who="li")
    seal = ("seal", "--plant", ecmc.plant, "--data", ecmc.data, "2026-09", "--why")
    before_closing = datetime.now(UTC).isoformat()
    ecmc.cli(*seal, "reported")
    signed = datetime.now(UTC).isoformat()

    def report(known_at: str | None = signed) -> list[Any]:
        asked = {"period": "2026-09", "known_at": known_at}
        return [ecmc.get("/v1/inventory", **asked) | {"known_at": ""}, ecmc.get("/v1/indicators", **asked)]

    as_signed, as_it_stood = report(), report(None)
    assert _figures(as_signed) == pytest.approx(_figures(as_it_stood), rel=1e-12)
    # Sold power takes its carbon along: a tenth of the grid's share of the mix. It is reported, in no total netted.
    (left,) = [row for row in as_it_stood[0]["exports"] if row["basis"] == "location"]
    gross = sum(t["total_kgco2e"] for t in as_it_stood[0]["totals"] if t["basis"] == "location")
    assert 0 < left["total_kgco2e"] < 0.1 * gross
    assert (left["net_kgco2e"], left["net_is_asked"]) == (pytest.approx(gross - left["total_kgco2e"]), False)

    ecmc.post(
        "/v1/samples", readings(range(5, 29), shift=2.5), correct="true", who="li", why="a gateway's clock"
    )
    contract = {"series": "contract", "value": 0.29, "unit": "kgCO2/kWh", "source": "supplier letter 4"}
    approved(ecmc, "/v1/factors", {**contract, "valid_from": "2026-09-02"})
    ecmc.post(f"/v1/activities/{first}/withdraw", {"why": "of the other site"}, who="wang")
    approved(ecmc, "/v1/activities", {**diesel, "period": "2026-09", "amount": 2.0})
    ecmc.post("/v1/certificates", [{**bought[1], "state": "cancelled", "claim": "2026"}], who="li")

    def contract_used() -> bool:
        used = {row["id"] for row in report(None)[0]["factors"]}
        return any("@entry-" in row for row in used)

    ecmc.wait_for(contract_used)
    assert _figures(report(None)) != pytest.approx(_figures(as_signed), rel=1e-6)
    assert report() == as_signed
    ecmc.cli(*seal, "letter 4")
    assert report() == as_signed  # the newer revision stands beside the signed one
    assert _figures(report(datetime.now(UTC).isoformat())) == pytest.approx(_figures(report(None)), rel=1e-12)

    with pytest.raises(urllib.error.HTTPError) as refused:
        report(before_closing)
    assert refused.value.code == 422
    assert "2026-09-01 was not closed" in json.load(refused.value)["detail"]


def _figures(answer: list[Any]) -> list[float]:
    inventory, indicators = answer
    totals = [total["total_kgco2e"] for total in inventory["totals"]]
    return [*totals, *(row["value"] for row in indicators if row["value"] is not None)]
