"""A period's inventory: lines that add up to the site's own totals, each with its factors and how sure it is."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from openpyxl import load_workbook

from core.answers.inventory import Inventories
from core.answers.period import Periods
from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.plant.model import Plant
from core.registers.shelf import Registers
from core.results import Basis
from core.store.factor_use import factors_used

SEPTEMBER_H, OCTOBER_H = 720.0, 744.0
GAS = FactorLibrary.shipped().fuel("natural_gas@ndrc_other_industry").kgco2_per_kwh(oxidised=True)
BIOMASS = FactorLibrary.shipped().fuel("other_solid_biomass@ipcc_2006").kgco2_per_kwh(oxidised=True)


async def answer_of(office: Any, **query: str) -> dict[str, Any]:
    answer = await office.http.get("/v1/inventory", params={"period": "2026", **query})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def books_of(office: Any, plant: Plant) -> Inventories:
    """The inventories of the same figures, were the plant this one."""
    library = office.app.state.services.library()
    registers = Registers(office.store.pool, plant, library)
    periods = Periods(plant, office.store, library, registers)
    return Inventories(plant, office.store, periods, registers, partial(factors_used, office.store.pool))


def line(answer: dict[str, Any], id_: str, basis: str | None) -> dict[str, Any]:
    (found,) = [row for row in answer["lines"] if row["line"] == id_ and row["basis"] == basis]
    return dict(found)


async def test_lines_by_month_are_energy_times_factor(office: Any) -> None:
    answer = await answer_of(office)

    months = dict(zip(answer["months"], line(answer, "boiler", None)["kgco2e"], strict=True))
    assert months["2026-09"] == pytest.approx(50 * SEPTEMBER_H * GAS)
    assert months["2026-10"] == pytest.approx(50 * OCTOBER_H * GAS)
    assert months["2026-01"] is None  # a month without data is unknown, not zero
    grid = line(answer, "grid", "location")
    factor = next(row for row in answer["factors"] if row["id"] in grid["factors"])
    assert grid["kgco2e"][9] == pytest.approx(100 * OCTOBER_H * factor["value"])
    assert grid["scope"] == 2
    assert grid["category"] == 2


async def test_lines_add_up_to_the_sites_totals(office: Any) -> None:
    answer = await answer_of(office)

    assert not [row for row in answer["lines"] if row["kind"] == "difference"]
    for total in answer["totals"]:
        rows = [
            row["total_kgco2e"] or 0.0
            for row in answer["lines"]
            if row["scope"] == total["scope"] and row["basis"] in (None, total["basis"])
        ]
        assert sum(rows) == pytest.approx(total["total_kgco2e"], rel=1e-9)


async def test_biogenic_carbon_stands_apart(office: Any) -> None:
    answer = await answer_of(office)

    assert line(answer, "stove", None)["total_kgco2e"] == 0.0
    assert answer["biogenic_kgco2"][8] == pytest.approx(10 * SEPTEMBER_H * BIOMASS)


async def test_uncertainty_joins_meter_and_factor_and_says_what_is_not_stated(office: Any) -> None:
    answer = await answer_of(office)

    assert line(answer, "grid", "location")["uncertainty"] == pytest.approx((0.01**2 + 0.05**2) ** 0.5)
    assert line(answer, "boiler", None)["uncertainty"] == pytest.approx((0.02**2 + 0.03**2) ** 0.5)
    assert answer["uncertainty_not_stated"] == []  # roof and straw carry no carbon: nothing to be unsure of


async def test_the_statement_of_the_plant_stands_with_it(office: Any) -> None:
    answer = await answer_of(office)

    base_year = answer["base_year"]
    assert (base_year["year"], base_year["kgco2e"]) == (2026, 120000.0)
    assert answer["exclusions"][0]["reason"]["en"] == "below the significance threshold"
    assert "designed toward" in answer["method_set"]["edition"]


async def test_a_base_year_that_no_longer_is_what_was_declared_is_to_be_recalculated(office: Any) -> None:
    base_year = (await answer_of(office))["base_year"]

    totals = (await answer_of(office))["totals"]
    computed = sum(t["total_kgco2e"] for t in totals if t["basis"] == "location" and t["scope"] <= 2)
    assert base_year["computed_kgco2e"] == pytest.approx(computed)
    assert abs(computed - 120000.0) > 0.05 * 120000.0
    assert base_year["recalculation_due"] is True
    of_a_month = (await answer_of(office, period="2026-09"))["base_year"]
    assert of_a_month["recalculation_due"] is None


async def test_indicators_say_how_sure_their_emissions_are(office: Any) -> None:
    answer = await office.http.get("/v1/indicators", params={"period": "2026"})
    inventory = await answer_of(office)
    rows = {(row["indicator"], row["basis"]): row for row in answer.json()}

    for basis in ("location", "market"):
        (total,) = [t for t in inventory["totals"] if (t["scope"], t["basis"]) == (2, basis)]
        assert rows["emissions_scope_2", basis]["uncertainty"] == pytest.approx(total["uncertainty"])
    # 1 % of the meter and 5 % of the factor, from one source: C24.
    assert rows["emissions_scope_2", "location"]["uncertainty"] == pytest.approx((0.01**2 + 0.05**2) ** 0.5)
    # 1 % of 100 kW from the grid and 2 % of 50 kW of gas, among 180 kW: roof and straw state none.
    assert rows["energy", None]["uncertainty"] == pytest.approx((1.0**2 + 1.0**2) ** 0.5 / 180)
    # Emissions and energy stand on the same meters, so these partly cancel in their ratio.
    ratio, total = rows["emissions_intensity", "location"], rows["emissions_total", "location"]
    apart = (total["uncertainty"] ** 2 + rows["energy", None]["uncertainty"] ** 2) ** 0.5
    assert 0 < ratio["uncertainty"] < apart
    # Own 20 of used 120 kW: the share is off by 1 % of the grid's part of the use.
    share = rows["non_fossil_electricity_share", None]
    assert share["uncertainty"] == pytest.approx(0.01 * 100 / 120, rel=0.01)
    # Of every hour's 120 kWh the roof's 20 are clean: the match moves as the share does.
    match = rows["hourly_match", None]
    assert match["value"] == pytest.approx(100 * 20 / 120)
    assert match["uncertainty"] == pytest.approx(0.01 * 100 / 120, rel=0.01)
    assert rows["self_use", None]["uncertainty"] is None  # nobody states how good the roof's meter is
    on_location = rows["emissions_scope_2", "location"]
    assert (on_location["factors"], on_location["levels"]) == (["grid_cn:CN-CQ:2023:average"], ["provincial"])
    assert rows["emissions_scope_2", "market"]["levels"] == ["national"]
    assert rows["emissions_scope_1", None]["levels"] == []
    per_tce = rows["carbon_per_energy", "location,primary"]
    assert per_tce["factors"][-1] == "tce:electricity_primary_factory"
    assert per_tce["unverified"] is False
    as_csv = await office.http.get("/v1/indicators", params={"period": "2026", "format": "csv"})
    assert len(list(csv.DictReader(io.StringIO(as_csv.text.removeprefix(chr(0xFEFF)))))) == len(rows)


async def test_what_cancels_in_a_share_is_known_to_be_off_by_nothing(office: Any) -> None:
    """The grid's meter reads the roof too: all is off alike, and nothing is sold."""
    points = tuple(
        replace(point, device="m-grid") if point.id == "roof.energy" else point
        for point in office.plant.points
    )
    books = books_of(office, replace(office.plant, points=points))
    day = parse_rfc3339("2026-09-09T16:00:00Z"), parse_rfc3339("2026-09-10T16:00:00Z")

    rows = {row["indicator"]: row for row in await books.indicators(*day, "zero-carbon-factory")}

    assert (rows["self_use"]["value"], rows["self_use"]["uncertainty"]) == (100.0, 0.0)
    assert rows["hourly_match"]["uncertainty"] == pytest.approx(0.0, abs=1e-12)
    assert rows["energy"]["uncertainty"] == pytest.approx((1.2**2 + 1.0**2) ** 0.5 / 180)


async def test_emissions_of_months_and_longer_say_how_sure_they_are_and_what_they_stand_on(
    office: Any,
) -> None:
    october = {"start": "2026-09-30T16:00:00Z", "end": "2026-10-31T16:00:00Z"}
    asked = {**october, "node": ["site", "boiler", "press"], "bucket": "1mo"}
    rows = (await office.http.get("/v1/emissions", params=asked)).json()
    found = {(row["node"], row["scope"]): row for row in rows}

    power, gas = (0.01**2 + 0.05**2) ** 0.5, (0.02**2 + 0.03**2) ** 0.5
    assert found["site", 2]["uncertainty"] == pytest.approx(power)
    assert found["press", 2]["uncertainty"] == pytest.approx(power)  # it is a remainder: no meter of its own
    assert found["boiler", 1]["uncertainty"] == pytest.approx(gas)  # the gas meter is the source's
    assert found["press", 2]["levels"] == ["provincial"]
    assert found["press", 2]["factors"] == ["grid_cn:CN-CQ:2023:average"]
    by_hour = (await office.http.get("/v1/emissions", params={**asked, "bucket": "1h"})).json()
    assert "uncertainty" not in by_hour[0]
    assert by_hour[0]["unverified"] is False
    told = {**asked, "bucket": "1h", "end": "2026-09-30T18:00:00Z", "uncertainty": True}
    assert (await office.http.get("/v1/emissions", params=told)).json()[0]["uncertainty"] is not None


async def test_short_buckets_too_say_where_a_factor_is_unverified(office: Any) -> None:
    day = {"start": "2026-09-09T16:00:00Z", "end": "2026-09-10T16:00:00Z", "bucket": "1d", "node": "site"}
    coarser = replace(
        office.plant,
        nodes=tuple(
            replace(node, fuel="natural_gas@gbt_32151_2015") if node.id == "gas" else node
            for node in office.plant.nodes
        ),
    )

    rows = (await office.http.get("/v1/emissions", params=day)).json()
    asked = parse_rfc3339(day["start"]), parse_rfc3339(day["end"]), "zero-carbon-factory", Basis.LOCATION
    marked = await books_of(office, coarser).unverified(*asked)

    assert {(row["scope"], row["unverified"]) for row in rows} == {(1, False), (2, False)}
    assert marked == {1: True, 2: False}


async def test_intensities_know_which_meters_cancel_in_them(office: Any) -> None:
    october = {"start": "2026-09-30T16:00:00Z", "end": "2026-10-31T16:00:00Z"}
    asked = {**october, "node": ["site", "grid", "roof", "main", "press", "boiler"], "bucket": "1mo"}
    rows = {row["node"]: row for row in (await office.http.get("/v1/intensity", params=asked)).json()}
    params = {"period": "2026-10"}
    of_site = next(
        row
        for row in (await office.http.get("/v1/indicators", params=params)).json()
        if (row["indicator"], row["basis"]) == ("emissions_intensity", "location")
    )

    assert rows["grid"]["uncertainty"] == pytest.approx(0.05)  # its meter is above and below
    # The roof brings a sixth: of the grid meter's 1 % as much is left.
    left = 1.01 / (1 + 1 / 120) - 1
    assert rows["press"]["uncertainty"] == pytest.approx((0.05**2 + left**2) ** 0.5)
    assert rows["main"]["uncertainty"] == pytest.approx(rows["press"]["uncertainty"])
    assert rows["boiler"]["uncertainty"] == pytest.approx(0.03)
    assert rows["roof"]["uncertainty"] is None
    assert rows["site"]["uncertainty"] == pytest.approx(of_site["uncertainty"])
    assert rows["press"]["factors"] == ["grid_cn:CN-CQ:2023:average", "number:0.0"]
    assert (rows["press"]["levels"], rows["press"]["unverified"]) == (["provincial"], False)
    by_hour = {**asked, "bucket": "1h", "end": "2026-09-30T18:00:00Z"}
    assert "uncertainty" not in (await office.http.get("/v1/intensity", params=by_hour)).json()[0]
    told = (await office.http.get("/v1/intensity", params={**by_hour, "uncertainty": True})).json()
    of_hours = [row["uncertainty"] for row in told if row["node"] == "grid"]
    assert of_hours == pytest.approx([0.05, 0.05])


async def test_it_can_be_kept_as_csv_and_xlsx(office: Any) -> None:
    as_csv = await office.http.get("/v1/inventory", params={"period": "2026-10", "format": "csv"})
    as_xlsx = await office.http.get("/v1/inventory", params={"period": "2026-10", "format": "xlsx"})

    rows = list(csv.DictReader(io.StringIO(as_csv.content.decode("utf-8-sig"))))
    boiler = next(row for row in rows if row["line"] == "boiler")
    assert float(boiler["kgco2e"]) == pytest.approx(50 * OCTOBER_H * GAS)
    assert boiler["month"] == "2026-10"
    book = load_workbook(io.BytesIO(as_xlsx.content), read_only=True)
    assert book.sheetnames == ["lines", "totals", "factors", "about"]
    assert boiler["method_set"] == "zero-carbon-factory"
    assert ("levels", "provincial") in [
        pair for row in rows if row["line"] == "grid" and row["basis"] == "location" for pair in row.items()
    ]
    about = dict(
        row[:2]
        for row in book["about"].iter_rows(values_only=True)
        if len(row) > 1  # an empty cell is no cell
    )
    assert "designed toward" in about["edition"]
    assert about["left out, scope 3"] == "Commuting: below the significance threshold"
    assert "attachment" in as_xlsx.headers["content-disposition"]


async def test_a_format_nobody_knows_is_named(office: Any) -> None:
    answer = await office.http.get("/v1/inventory", params={"period": "2026", "format": "pdf"})

    assert answer.status_code in (400, 422)
    assert "pdf" in answer.json()["detail"]
