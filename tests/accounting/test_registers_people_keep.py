"""Registers over HTTP: written whole or not at all, approved by a second person, counted once, kept for ever."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from core.carbon.factors import FactorLibrary

DIESEL_KG_PER_T = 3145.1224933333333  # 43.33 GJ/t x 0.0202 tC/GJ x 0.98 x 44/12, the set's own NCV
DIESEL = {
    "kind": "fuel",
    "subject": "diesel@ndrc_other_industry",
    "period": "2026-09",
    "amount": 1.0,
    "unit": "t",
    "use": "forklifts",
}


async def post(office: Any, path: str, rows: Any, who: str = "li", code: int = 200) -> Any:
    answer = await office.http.post(path, json=rows, params={"who": who})
    assert answer.status_code == code, answer.text
    return answer.json()


async def get(office: Any, path: str, **query: Any) -> Any:
    answer = await office.http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def approved(office: Any, path: str, rows: Any) -> list[int]:
    ids: list[int] = (await post(office, path, rows))["ids"]
    for number in ids:
        await post(office, f"{path}/{number}/approve", None, who="wang")
    return ids


async def indicator(
    office: Any, name: str, basis: str | None = None, period: str = "2026-09", **q: Any
) -> Any:
    rows = await get(office, "/v1/indicators", period=period, **q)
    return next(row["value"] for row in rows if row["indicator"] == name and row["basis"] == basis)


# activity data
async def test_an_activity_counts_once_a_second_person_has_approved_it(office: Any) -> None:
    before = await indicator(office, "emissions_scope_1")
    (number,) = (await post(office, "/v1/activities", [DIESEL]))["ids"]
    waiting = await indicator(office, "emissions_scope_1")
    await post(office, f"/v1/activities/{number}/approve", None, who="li", code=422)
    await post(office, f"/v1/activities/{number}/approve", None, who="wang")

    assert waiting == before
    after = await indicator(office, "emissions_scope_1")
    assert after - before == pytest.approx(DIESEL_KG_PER_T)
    entry = (await get(office, "/v1/activities"))["items"][0]
    assert (entry["who"], entry["approved_by"], entry["state"]) == ("li", "wang", "counted")


async def test_an_activity_stands_in_the_inventory_by_its_months(office: Any) -> None:
    await approved(office, "/v1/activities", [{**DIESEL, "period": "2026", "amount": 3.65}])

    answer = await get(office, "/v1/inventory", period="2026")
    line = next(row for row in answer["lines"] if row["kind"] == "activity")
    assert sum(line["kgco2e"]) == pytest.approx(3.65 * DIESEL_KG_PER_T)
    assert line["kgco2e"][1] == pytest.approx(0.28 * DIESEL_KG_PER_T)  # February: 28 of 365 days
    total = next(row for row in answer["totals"] if (row["scope"], row["basis"]) == (1, "location"))
    rows = [row for row in answer["lines"] if row["scope"] == 1 and row["basis"] in (None, "location")]
    assert total["total_kgco2e"] == pytest.approx(sum(row["total_kgco2e"] for row in rows))


async def test_overlapping_periods_of_one_subject_are_refused_whole(office: Any) -> None:
    await post(office, "/v1/activities", [DIESEL])
    other = {**DIESEL, "use": "trucks"}

    answer = await post(office, "/v1/activities", [other, {**DIESEL, "period": "2026-09-15"}], code=422)

    assert answer["errors"][0]["row"] == 2
    assert answer["errors"][0]["field"] == "period"
    assert len((await get(office, "/v1/activities"))["items"]) == 1  # the first row was not taken either


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": -1}, "amount"),
        ({"amount": "much"}, "amount"),
        ({"amount": None}, "amount"),
        ({"unit": "Nm3"}, "unit"),
        ({"subject": "unobtainium@ndrc_other_industry"}, "fuel"),
        ({"period": "2026-13"}, "period"),
        ({"colour": "red"}, "colour"),
        ({"evidence_file": "invoice.pdf"}, "evidence_sha256"),
    ],
)
async def test_a_faulty_row_is_refused_with_its_number_and_field(
    office: Any, change: dict[str, Any], field: str
) -> None:
    answer = await post(office, "/v1/activities", [{**DIESEL, "use": "ok"}, {**DIESEL, **change}], code=422)

    assert answer["errors"][0]["row"] == 2
    assert field in (answer["errors"][0]["field"], answer["errors"][0]["reason"].split()[0])
    assert (await get(office, "/v1/activities"))["items"] == []


async def test_a_withdrawn_entry_leaves_every_sum_and_stays_readable(office: Any) -> None:
    before = await indicator(office, "emissions_scope_1")
    (number,) = await approved(office, "/v1/activities", [DIESEL])
    answer = await office.http.post(
        f"/v1/activities/{number}/withdraw", json={"why": "delivered to the other site"}, params={"who": "li"}
    )

    assert answer.json()["state"] == "withdrawn"
    assert await indicator(office, "emissions_scope_1") == before
    assert (await get(office, "/v1/activities"))["items"][0]["why"] == "delivered to the other site"


async def test_what_a_formula_takes_from_the_tables_is_named_and_marked(office: Any) -> None:
    steam = {"kind": "process", "subject": "steam", "amount": 1, "unit": "t", "period": "2026-09"}
    await approved(office, "/v1/activities", [{**steam, "details": {"enthalpy_kj_per_kg": 2777}}])

    answer = await get(office, "/v1/inventory", period="2026-09")
    line = next(row for row in answer["lines"] if row["kind"] == "activity")
    in_use = {row["id"]: row["unverified"] for row in answer["factors"]}
    assert line["factors"] == ["heat:heat_cn", "heat:feedwater_enthalpy_20C"]
    assert in_use["heat:feedwater_enthalpy_20C"]  # written down from memory


async def test_bought_heat_and_power_are_energy_of_the_plant_too(office: Any) -> None:
    """GB/T 2589: a GJ of heat is 34.12 kgce, a kWh of electricity 0.1229 kgce, metered or on an invoice."""
    before_kwh = await indicator(office, "energy")
    before_tce = await indicator(office, "energy_tce", "calorific")
    heat = {"kind": "factor", "subject": "heat:heat_cn", "amount": 100, "unit": "GJ"}
    power = {"kind": "factor", "subject": "grid_cn:CN-CQ:average", "amount": 2000, "unit": "kWh"}
    water = {
        "kind": "process",
        "subject": "hot-water",
        "amount": 100,
        "unit": "t",
        "details": {"temperature_c": 70},
    }
    await approved(office, "/v1/activities", [{"period": "2026-09", **row} for row in (heat, power, water)])

    heat_gj = 100 + 20.934  # T3: 100 t of water at 70 degC
    assert await indicator(office, "energy") - before_kwh == pytest.approx(heat_gj / 0.0036 + 2000)
    more_tce = await indicator(office, "energy_tce", "calorific") - before_tce
    assert more_tce == pytest.approx(heat_gj * 0.03412 + 0.2458, rel=1e-4)


async def test_every_choice_a_form_offers_is_taken(office: Any) -> None:
    """Whatever `choices` names, with a unit it names, is written down without a fault."""
    numbers = {"gas": "SF6", "fuel": "anthracite", "sector": "manufacturing", "receiver_record": "R-7"}
    streams = {"inputs": [[1, 0.8]], "outputs": [[1, 0.1]]}
    rows = []
    for choice in await get(office, "/v1/activities/choices"):
        details = {name: numbers.get(name, streams.get(name, 0.1)) for name in choice["needs"]}
        details |= {"temperature_c": 70} if "temperature_c" in details else {}
        details |= {"enthalpy_kj_per_kg": 2777} if "enthalpy_kj_per_kg" in details else {}
        rows += [
            {"kind": choice["kind"], "subject": choice["subject"], "amount": 1, "unit": unit, "use": unit,
             "period": "2026-09", "details": details}
            for unit in choice["units"]
        ]  # fmt: skip

    ids = (await post(office, "/v1/activities", rows))["ids"]
    assert len(ids) == len(rows) > 400


async def test_an_own_factor_per_tonne_does_not_guess_its_scope(office: Any) -> None:
    row = {
        "series": "steel-plate",
        "value": 2.1,
        "unit": "tCO2e/t",
        "source": "supplier",
        "valid_from": "2026",
    }
    (number,) = (await post(office, "/v1/factors", [row]))["ids"]
    await post(office, f"/v1/factors/entries/{number}/approve", None, who="wang")
    plate = {"kind": "factor", "subject": "steel-plate", "amount": 10, "unit": "t", "period": "2026-09"}

    refused = await post(office, "/v1/activities", [plate], code=422)
    await approved(office, "/v1/activities", [{**plate, "scope": 3}])

    assert refused["errors"][0]["field"] == "scope"
    lines = (await get(office, "/v1/inventory", period="2026-09"))["lines"]
    (line,) = [line for line in lines if line["kind"] == "activity"]
    assert (line["scope"], line["category"], line["total_kgco2e"]) == (3, 4, pytest.approx(21_000))


async def test_co2_handed_over_stands_apart_and_needs_its_record(office: Any) -> None:
    handed = {
        "kind": "process",
        "subject": "co2-transferred",
        "amount": 500,
        "unit": "kg",
        "period": "2026-09",
    }
    await post(office, "/v1/activities", [{**handed, "details": {}}], code=422)
    gross = await indicator(office, "emissions_scope_1")
    await approved(office, "/v1/activities", [{**handed, "details": {"receiver_record": "R-7"}}])

    answer = await get(office, "/v1/inventory", period="2026-09")
    assert answer["removed_kgco2"] == [500.0]
    assert await indicator(office, "removal_rate") > 0
    assert await indicator(office, "auto_collection") == 100.0
    hunan = await get(office, "/v1/indicators", period="2026-09", scheme="hunan-zero-carbon-factory")
    share = next(row for row in hunan if row["indicator"] == "non_fossil_share")
    assert (share["stages"], share["reached"]) == ({"2027": 35.0, "2030": 55.0, "2035": 80.0}, "none")
    assert await indicator(office, "emissions_scope_1") == gross


async def test_evidence_is_known_by_its_hash(office: Any) -> None:
    answer = await office.http.put(
        "/v1/evidence", params={"name": "发票 7.pdf", "who": "li"}, content=b"paid"
    )
    sha256 = answer.json()["sha256"]

    assert sha256 == hashlib.sha256(b"paid").hexdigest()
    assert (await office.http.get(f"/v1/evidence/{sha256}")).content == b"paid"
    await post(office, "/v1/activities", [{**DIESEL, "evidence_file": "x.pdf", "evidence_sha256": sha256}])


async def test_rows_may_come_and_go_as_csv(office: Any) -> None:
    text = "period,kind,subject,amount,unit,note\n2026-09,fuel,diesel@ndrc_other_industry,1.5,t,柴油\n"
    answer = await office.http.post(
        "/v1/activities", content=text.encode("gb18030"), headers={"Content-Type": "text/csv"}
    )
    assert answer.status_code == 200, answer.text
    kept = await office.http.get("/v1/activities", params={"format": "csv"})
    assert "柴油" in kept.content.decode("utf-8-sig")


async def test_pages_follow_one_another(office: Any) -> None:
    rows = [{**DIESEL, "period": f"2026-09-{day:02}"} for day in range(1, 8)]
    await post(office, "/v1/activities", rows)

    first = await get(office, "/v1/activities", limit=5)
    second = await get(office, "/v1/activities", limit=5, cursor=first["next"])
    assert [len(first["items"]), len(second["items"]), second["next"]] == [5, 2, None]


# green power and certificates
def certificates(count: int, generated: str = "2026-09", start: int = 0) -> list[dict[str, Any]]:
    bought = [
        {"serial": f"GEC-{start + i}", "state": "bought", "on": "2026-10-01", "generated": generated}
        for i in range(count)
    ]
    return [*bought, *({**row, "state": "cancelled", "claim": "2026 report"} for row in bought)]


async def test_certificates_and_trade_move_the_market_figure_at_the_residual_factor_only(office: Any) -> None:
    """T4's rule: what is covered is taken out at the factor of the grid without traded power."""
    location = await indicator(office, "emissions_scope_2", "location")
    market = await indicator(office, "emissions_scope_2", "market")
    await post(office, "/v1/certificates", certificates(10))
    await post(
        office, "/v1/green-power/entries", [{"kind": "green-trade", "period": "2026-09", "value": 20_000}]
    )

    ledger = await get(office, "/v1/green-power", period="2026-09")
    assert (ledger["traded_kwh"], ledger["certificate_kwh"]) == (20_000.0, 10_000.0)
    assert await indicator(office, "emissions_scope_2", "location") == location
    residual = market / 72_000  # 100 kW over September
    assert await indicator(office, "emissions_scope_2", "market") == pytest.approx(market - 30_000 * residual)
    inventory = await get(office, "/v1/inventory", period="2026-09")
    claims = next(row for row in inventory["lines"] if row["kind"] == "claims")
    assert claims["total_kgco2e"] == pytest.approx(-30_000 * residual)


async def test_the_ledger_of_t4_by_the_hour_adds_up_to_the_period(office: Any) -> None:
    await post(
        office,
        "/v1/green-power/entries",
        [
            {"kind": "green-trade", "period": "2026-09", "value": 20_000},
            {"kind": "province-share", "period": "2026", "value": 0.3},
        ],
    )

    ledger = await get(office, "/v1/green-power", period="2026-09")
    hours = await get(office, "/v1/green-power/hours", period="2026-09")
    assert len(hours) == 720
    for column in ("traded_kwh", "certificate_kwh", "share_kwh", "physical_kwh"):
        assert sum(row[column] for row in hours) == pytest.approx(ledger[column])
    assert ledger["share_kwh"] == pytest.approx((72_000 - 20_000) * 0.3)


async def test_a_certificate_of_another_year_does_not_count(office: Any) -> None:
    await post(office, "/v1/certificates", certificates(5, generated="2025-09"))

    assert (await get(office, "/v1/green-power", period="2026"))["certificate_kwh"] == 0.0


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"serial": "GEC-0", "state": "sold", "on": "2026-11-01"}, "state"),
        ({"serial": "GEC-0", "state": "cancelled", "on": "2026-11-01", "claim": "again"}, "state"),
        ({"serial": "NEW", "state": "cancelled", "on": "2026-11-01", "claim": "x"}, "state"),
        ({"serial": "NEW", "state": "bought", "on": "2026-11-01"}, "generated"),
    ],
)
async def test_no_certificate_counts_twice(office: Any, event: dict[str, Any], field: str) -> None:
    await post(office, "/v1/certificates", certificates(1))
    good = {"serial": "GEC-9", "state": "bought", "on": "2026-10-01", "generated": "2026-08"}

    answer = await post(office, "/v1/certificates", [good, event], code=422)

    assert (answer["errors"][0]["row"], answer["errors"][0]["field"]) == (2, field)
    assert len((await get(office, "/v1/certificates"))["items"]) == 1


# production
async def test_production_is_the_denominator(office: Any) -> None:
    await post(
        office,
        "/v1/production",
        [{"product": "gear", "period": "2026-09", "amount": 120, "unit": "t", "value_cny": 1e6}],
    )

    kg = await indicator(office, "emissions_total", "location")
    assert await indicator(office, "emissions_per_output", "location") == pytest.approx(kg / 120)
    assert await indicator(office, "emissions_per_value", "location") == pytest.approx(kg / 1000 / 100)


# factors
async def test_the_library_says_where_every_row_is_from(office: Any) -> None:
    page = await get(office, "/v1/factors", series="grid_cn:CN-CQ", kind="average")
    assert {row["region"] for row in page["items"]} == {"CN-CQ"}
    assert all(row["source"] and row["confidence"] for row in page["items"])
    assert (await get(office, "/v1/factors", unverified=True, limit=1))["items"][0]["unverified"]
    everything = await office.http.get("/v1/factors", params={"format": "csv"})
    assert len(everything.text.splitlines()) > len(FactorLibrary.shipped().rows)


async def test_an_approved_factor_re_states_what_stands_on_it(office: Any) -> None:
    """The plant's straw supplier states a factor for a node that names one."""
    steam = {"series": "supplier-steam", "value": 0.08, "unit": "tCO2/GJ", "source": "supplier letter 12",
             "valid_from": "2026-09-01", "uncertainty_pct": 4}  # fmt: skip
    (number,) = (await post(office, "/v1/factors", [steam]))["ids"]
    assert (await get(office, "/v1/factors", series="supplier-steam"))["items"] == []
    await post(office, f"/v1/factors/entries/{number}/approve", None, who="wang")

    (row,) = (await get(office, "/v1/factors", series="supplier-steam"))["items"]
    assert (row["value"], row["confidence"], row["uncertainty"]) == (0.08, "approved", 0.04)
    heat = {"kind": "factor", "subject": "supplier-steam", "amount": 10, "unit": "GJ", "period": "2026-10"}
    await approved(office, "/v1/activities", [{**heat, "uncertainty_pct": 3}])
    answer = await get(office, "/v1/inventory", period="2026-10")
    line = next(row for row in answer["lines"] if row["kind"] == "activity")
    assert line["total_kgco2e"] == pytest.approx(800.0)
    assert line["scope"] == 2
    assert line["uncertainty"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"value": -0.1}, "value"),
        ({"value": "NaN"}, "value"),
        ({"unit": "kWh"}, "unit"),
        ({"valid_to": "2025-01-01"}, "valid_to"),
        ({"source": ""}, "source"),
    ],
)
async def test_a_faulty_factor_is_refused(office: Any, change: dict[str, Any], word: str) -> None:
    row = {"series": "mine", "value": 0.1, "unit": "kgCO2e/kWh", "source": "s", "valid_from": "2026"}

    answer = await post(office, "/v1/factors", [{**row, **change}], code=422)

    assert word in answer["detail"]


# comparing periods
async def test_what_energy_did_and_what_the_factor_did_add_up(office: Any) -> None:
    answer = await get(office, "/v1/compare", period="2026-10", against="2026-09")

    grid = next(row for row in answer["lines"] if row["line"] == "grid")
    difference = grid["after_kgco2e"] - grid["before_kgco2e"]
    assert grid["energy_effect_kgco2e"] == pytest.approx(difference)  # one factor for both months
    assert grid["factor_effect_kgco2e"] == pytest.approx(0.0, abs=1e-6)
    assert grid["energy_effect_kgco2e"] == pytest.approx(grid["before_kgco2e"] * 24 / 720)


async def test_a_suppliers_new_factor_is_told_apart_from_using_more(office: Any) -> None:
    """10 GJ at 80 kg, then 12 GJ at 100 kg: 2 GJ more at the old factor, and 20 kg on each of the 12."""
    told = {"series": "steam-net", "unit": "kgCO2/GJ", "source": "supplier"}
    dated = [
        {**told, "value": 80, "valid_from": "2026-09-01"},
        {**told, "value": 100, "valid_from": "2026-10-01"},
    ]
    ids = (await post(office, "/v1/factors", dated))["ids"]
    await post(office, "/v1/factors/entries/approve", ids, who="wang")
    heat = {"kind": "factor", "subject": "steam-net", "unit": "GJ"}
    used = [{**heat, "period": "2026-09", "amount": 10}, {**heat, "period": "2026-10", "amount": 12}]
    await approved(office, "/v1/activities", used)

    answer = await get(office, "/v1/compare", period="2026-10", against="2026-09")

    row = next(row for row in answer["lines"] if row["line"] == "factor steam-net")
    assert (row["before_kgco2e"], row["after_kgco2e"]) == (pytest.approx(800), pytest.approx(1200))
    assert row["energy_effect_kgco2e"] == pytest.approx(160)
    assert row["factor_effect_kgco2e"] == pytest.approx(240)
