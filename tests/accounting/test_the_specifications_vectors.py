"""The specification's test vectors through the public interface, one test each.

T1, T4, T5 and T8 need metered energy or a plant of their own: tests/e2e/test_the_guides_own_figures.py.
"""

from __future__ import annotations

from typing import Any

import pytest


async def tonnes(office: Any, *rows: dict[str, Any], method_set: str | None = None) -> list[float]:
    """tCO2e of activities written down by one person, approved by another, as the inventory has them."""
    answer = await office.http.post(
        "/v1/activities", json=[{"period": "2026-09", **row} for row in rows], params={"who": "li"}
    )
    assert answer.status_code == 200, answer.text
    done = await office.http.post("/v1/activities/approve", json=answer.json()["ids"], params={"who": "wang"})
    assert done.status_code == 200, done.text
    return await lines(office, method_set)


async def lines(office: Any, method_set: str | None = None) -> list[float]:
    asked = {"period": "2026-09"} | ({"method_set": method_set} if method_set else {})
    inventory = (await office.http.get("/v1/inventory", params=asked)).json()
    return [row["total_kgco2e"] / 1000 for row in inventory["lines"] if row["kind"] == "activity"]


async def test_t2_natural_gas_and_diesel_by_heat(office: Any) -> None:
    """10^4 Nm3 of 389.31 GJ and a tonne of 42.652 GJ, with their oxidation factors."""
    gas = {"ncv_gj": 389.31, "carbon_t_per_gj": 0.0153, "oxidation": 0.99}
    diesel = {"ncv_gj": 42.652, "carbon_t_per_gj": 0.0202, "oxidation": 0.98}
    burned = {"kind": "process", "subject": "fuel-heat", "amount": 1, "unit": "t"}

    made = await tonnes(
        office, {**burned, "use": "gas", "details": gas}, {**burned, "use": "diesel", "details": diesel}
    )

    assert made == pytest.approx([21.6219, 3.0959], abs=5e-5)


async def test_t3_hot_water_and_steam(office: Any) -> None:
    """100 t at 70 degC are 20.934 GJ; a tonne of 2777 kJ/kg is 2.69326 GJ; heat at 0.11 t/GJ."""
    bought = {"kind": "process", "unit": "t"}

    water, steam = await tonnes(
        office,
        {**bought, "subject": "hot-water", "amount": 100, "details": {"temperature_c": 70}},
        {**bought, "subject": "steam", "amount": 1, "details": {"enthalpy_kj_per_kg": 2777}},
    )

    assert water == pytest.approx(20.934 * 0.11)
    assert steam == pytest.approx(0.29626, abs=5e-6)


async def test_t6_uncertainty_propagated_and_drawn(office: Any) -> None:
    """1000, 500 and 200 with 1, 2, 5 % of the amount and 5, 3, 20 % of the factor: together 4.0004 %."""
    terms = ((1000, 1, 5), (500, 2, 3), (200, 5, 20))
    factors = [
        {
            "series": f"f{i}",
            "value": 1,
            "unit": "tCO2/t",
            "source": "T6",
            "valid_from": "2026",
            "uncertainty_pct": off,
        }
        for i, (_, _, off) in enumerate(terms)
    ]
    ids = (await office.http.post("/v1/factors", json=factors, params={"who": "li"})).json()["ids"]
    await office.http.post("/v1/factors/entries/approve", json=ids, params={"who": "wang"})
    made = await tonnes(
        office,
        *(
            {
                "kind": "factor",
                "subject": f"f{i}",
                "amount": t,
                "unit": "t",
                "scope": 3,
                "uncertainty_pct": off,
            }
            for i, (t, off, _) in enumerate(terms)
        ),
    )

    assert made == pytest.approx([1000, 500, 200])
    inventory = (await office.http.get("/v1/inventory", params={"period": "2026-09"})).json()
    each = [100 * row["uncertainty"] for row in inventory["lines"] if row["kind"] == "activity"]
    (together,) = [
        t["uncertainty"] for t in inventory["totals"] if (t["scope"], t["basis"]) == (3, "location")
    ]
    assert each == pytest.approx([5.0990, 3.6056, 20.6155], abs=5e-5)
    assert 100 * together == pytest.approx(4.0004, abs=5e-5)


async def test_t11_welding_gas(office: Any) -> None:
    gas = {"kind": "welding", "subject": "CO2:0.2 Ar:0.8", "amount": 1000, "unit": "kg"}

    assert await tonnes(office, gas) == pytest.approx([0.215686], abs=5e-7)


async def test_t12_sf6_by_two_gwp_sets(office: Any) -> None:
    """10 kg gone by mass balance; the GWP belongs to the method set: AR5 23500, AR6 25200."""
    counted = {
        "kind": "gas",
        "subject": "SF6",
        "unit": "kg",
        "balance": {"opening": 50, "bought": 10, "closing": 50},
    }

    assert await tonnes(office, counted) == pytest.approx([235.0])
    assert await lines(office, "ghg-protocol") == pytest.approx([252.0])


async def test_t13_clinker(office: Any) -> None:
    clinker = {"kind": "process", "subject": "clinker", "amount": 1, "unit": "t"}

    made = await tonnes(office, {**clinker, "details": {"cao": 0.65, "mgo": 0.015}})

    assert made == pytest.approx([0.52721], abs=5e-6)
