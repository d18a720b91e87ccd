"""Footprints of what is made, uncertainty drawn and propagated, method sets that name their editions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from core.answers.footprint import FootprintBook
from core.answers.period import Periods
from core.carbon.factors import FactorLibrary
from core.carbon.sector import sectors
from core.clock import SystemClock, parse_rfc3339
from core.plant.model import Label, Product
from core.registers.activity import ActivityKind
from core.registers.monte_carlo import MonteCarloRuns
from core.registers.process import PROCESSES
from core.registers.shelf import Registers

GAS = FactorLibrary.shipped().fuel("natural_gas@ndrc_other_industry").kgco2_per_kwh(oxidised=True)


async def get(office: Any, path: str, **query: Any) -> Any:
    answer = await office.http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def made(office: Any, rows: list[dict[str, Any]]) -> None:
    answer = await office.http.post("/v1/production", json=rows, params={"who": "li"})
    assert answer.status_code == 200, answer.text


def shift(product: str, start_h: int, end_h: int, amount: float, **more: Any) -> dict[str, Any]:
    return {
        "product": product,
        "start": f"2026-09-10T{start_h:02}:00:00+08:00",
        "end": f"2026-09-10T{end_h:02}:00:00+08:00",
        "amount": amount,
        "unit": "t",
        **more,
    }


async def test_a_batch_bears_its_nodes_carbon_and_its_part_of_shared_nodes(office: Any) -> None:
    await made(
        office,
        [
            shift("gear", 8, 16, 30.0, scrap=10.0, batch="A"),
            shift("bolt", 8, 16, 60.0, batch="B"),
        ],
    )

    answer = await get(office, "/v1/footprints", product="gear", period="2026-09-10")
    (batch,) = answer["batches"]
    press = await get(
        office,
        "/v1/emissions",
        node="press",
        start="2026-09-10T00:00:00Z",
        end="2026-09-10T08:00:00Z",
        bucket="1d",
    )
    direct = sum(row["emissions_kgco2e"] for row in press)
    assert sum(batch["direct_kgco2e"].values()) == pytest.approx(direct)
    assert batch["shared_kgco2e"] == pytest.approx(8 * 50 * GAS * 40 / 100)  # boiler by mass, scrap included
    assert batch["per_good_kgco2e"] == pytest.approx(
        (direct + batch["shared_kgco2e"]) / 30.0
    )  # scrap bears none
    assert batch["electricity_kwh"] == pytest.approx(8 * 120)
    assert batch["life_cycle_electricity_kgco2e"] == pytest.approx(8 * 120 * 0.944)
    assert answer["idle_kgco2e"] == pytest.approx(2 * direct, rel=1e-9)  # the other sixteen hours


async def test_two_batches_on_one_node_share_it_by_the_declared_driver(office: Any) -> None:
    await made(
        office,
        [
            shift("gear", 8, 16, 10.0, batch="A", driver=1.0),
            shift("gear", 8, 12, 10.0, batch="B", driver=1.0),
        ],
    )

    batches = (await get(office, "/v1/footprints", product="gear", period="2026-09-10"))["batches"]
    by_name = {batch["batch"]: sum(batch["direct_kgco2e"].values()) for batch in batches}
    # From 8 to 12 B works twice as fast as A, from 12 to 16 A is alone.
    assert by_name["A"] / by_name["B"] == pytest.approx((4 / 3 + 4) / (8 / 3))


async def test_a_plc_counter_makes_a_batch_of_every_hour_it_moved(office: Any) -> None:
    """A scale on the boiler's line counts 10 an hour; the boiler burns 50 kWh of gas in it."""
    counted = Product("flour", Label("面粉", "Flour"), "t", nodes=("boiler",), counter="straw.energy")
    plant, services = replace(office.plant, products=(counted,)), office.app.state.services
    registers = Registers(office.store.pool, plant, services.library())
    book = FootprintBook(plant, office.store, registers, services.clock.now_ns)
    day = parse_rfc3339("2026-09-09T16:00:00Z"), parse_rfc3339("2026-09-10T16:00:00Z")

    found = await book.of("flour", *day, "location", "zero-carbon-factory")
    sums = await Periods(plant, office.store, services.library(), registers).sums(*day, "zero-carbon-factory")

    assert len(found.batches) == 24
    assert [batch.made.good for batch in found.batches] == pytest.approx([10.0] * 24)
    assert [batch.per_good_kg for batch in found.batches] == pytest.approx([5 * GAS] * 24)
    assert found.idle_kg == 0.0
    assert all(math.isnan(batch.life_cycle_kg) for batch in found.batches)  # no life-cycle factor declared
    assert sums.output == {"t": pytest.approx(240.0)}


async def test_embedded_emissions_of_a_good_with_precursors(office: Any) -> None:
    wire = {"cn_code": "7213", "mass_t": 32.0, "direct_t_per_t": 2.0}
    await made(office, [shift("gear", 8, 16, 30.0, precursors=[wire])])

    (batch,) = (await get(office, "/v1/footprints", product="gear", period="2026-09-10"))["batches"]
    cbam = batch["cbam"]
    boiler_t = 8 * 50 * GAS / 1000  # alone on the shared boiler; the press itself burns nothing
    assert cbam["direct_t_per_t"] == pytest.approx((32 * 2.0 + boiler_t) / 30)
    assert cbam["see_t_per_t"] == cbam["direct_t_per_t"]  # steel: indirect is not due
    assert cbam["indirect_counts"] is False


async def test_a_precursor_by_default_value_bears_the_mark_up_of_its_year(office: Any) -> None:
    """Pig iron, default 2.07 t/t, 10 % on top in 2026."""
    iron = {"cn_code": "7201", "mass_t": 10.0, "default": "cbam_pig_iron"}
    for wrong, word in (
        ({**iron, "default": "gold"}, "cbam_clinker"),
        ({**iron, "direct_t_per_t": 1}, "either"),
    ):
        refused = await office.http.post(
            "/v1/production", json=[shift("gear", 8, 16, 30.0, precursors=[wrong])]
        )
        assert refused.status_code == 422
        assert "precursors" in refused.json()["errors"][0]["field"]
        assert word in refused.json()["detail"]
    await made(office, [shift("gear", 8, 16, 30.0, precursors=[iron])])

    (batch,) = (await get(office, "/v1/footprints", product="gear", period="2026-09-10"))["batches"]
    (precursor,) = batch["cbam"]["precursors"]
    boiler_t = 8 * 50 * GAS / 1000
    assert precursor["direct_t_per_t"] == pytest.approx(2.07 * 1.1)
    assert precursor["rows"] == ["materials:cbam_pig_iron:cbam_default_total", "cbam_markup:2026"]
    assert batch["cbam"]["see_t_per_t"] == pytest.approx((10 * 2.07 * 1.1 + boiler_t) / 30)


async def test_production_of_an_undeclared_product_or_unit_is_refused(office: Any) -> None:
    for row, word in ((shift("nut", 8, 9, 1.0), "product"), (shift("gear", 8, 9, 1.0, unit="kg"), "unit")):
        answer = await office.http.post("/v1/production", json=[row])
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == word


async def test_monte_carlo_repeats_with_its_seed_and_agrees_with_propagation(office: Any) -> None:
    first = await get(office, "/v1/uncertainty", period="2026-09", seed=7)
    again = await get(office, "/v1/uncertainty", period="2026-09", seed=7)
    other = await get(office, "/v1/uncertainty", period="2026-09", seed=8)

    assert first == again
    assert other["monte_carlo"]["mean"] != first["monte_carlo"]["mean"]
    assert first["monte_carlo"]["uncertainty"] == pytest.approx(first["propagated"], rel=0.02)
    empty = await get(office, "/v1/uncertainty", period="2020-01")
    assert (empty["propagated"], empty["monte_carlo"]["mean"]) == (None, None)


async def test_a_monte_carlo_run_keeps_its_seed_and_terms_over_a_restart(office: Any) -> None:
    asked = {"period": "2026-09", "basis": "market", "trials": 20_000}
    begun = await office.http.post("/v1/uncertainty/runs", json=asked, params={"who": "li"})
    assert begun.status_code == 202
    number, seed = begun.json()["id"], begun.json()["seed"]
    runs = office.app.state.services.monte_carlo
    await runs.finished()
    done = await get(office, f"/v1/uncertainty/runs/{number}")
    assert (done["state"], done["who"], done["asked"]["method_set"]) == ("done", "li", "zero-carbon-factory")
    assert done["uncertainty"] == pytest.approx(done["propagated"], rel=0.05)

    # The process ends before a run is done, and figures change meanwhile: the next start draws it from what was kept.
    await office.store.pool.execute("UPDATE ecmc.monte_carlo SET result = NULL, done = NULL")
    again = MonteCarloRuns(office.store.pool, SystemClock())
    await again.resume()
    await again.finished()
    assert (await get(office, f"/v1/uncertainty/runs/{number}"))["mean_kgco2e"] == done["mean_kgco2e"]
    given = (await office.http.post("/v1/uncertainty/runs", json={**asked, "seed": seed})).json()["id"]
    await runs.finished()
    listed = (await get(office, "/v1/uncertainty/runs"))["items"]
    assert [row["id"] for row in listed] == [number, given]
    assert listed[1]["high_kgco2e"] == done["high_kgco2e"]
    refused = await office.http.post("/v1/uncertainty/runs", json={**asked, "trials": 100})
    assert refused.status_code == 422
    assert (await office.http.get("/v1/uncertainty/runs/99")).status_code == 404


async def test_every_method_set_names_its_edition_and_what_it_is_designed_toward(office: Any) -> None:
    answer = await get(office, "/v1/method-sets")

    assert answer["kept"] == ["zero-carbon-factory", "ghg-protocol"]
    for method in answer["method_sets"]:
        assert "designed toward" in method["edition"] or method["id"] == "in-house"
        assert "conform" not in method["edition"]


def test_every_source_of_a_sector_can_be_entered() -> None:
    kinds = {kind.value for kind in ActivityKind}
    library = FactorLibrary.shipped()
    for sector in sectors():
        for source in sector.sources:
            assert source.kind in kinds or source.how.startswith("metered"), (sector.id, source)
            if source.kind == "process":
                assert source.subject in PROCESSES
            if source.kind == "factor":
                assert library.row(source.subject)


async def test_the_way_to_the_final_values_goes_in_equal_steps(office: Any) -> None:
    rows = await get(office, "/v1/trajectory", period="2026", last_year=2030)

    targets = next(row for row in rows if row["indicator"] == "non_fossil_share")["targets"]
    assert targets["2030"] == 95.0
    assert targets["2027"] - targets["2026"] == pytest.approx((95.0 - targets["2026"]) / 4)


async def test_a_list_of_entries_is_approved_together(office: Any) -> None:
    rows = [
        {"series": "hourly", "value": 0.1 * h, "unit": "kgCO2e/kWh", "source": "grid operator",
         "valid_from": f"2026-09-10T{h:02}:00:00Z"}
        for h in range(24)
    ]  # fmt: skip
    ids = (await office.http.post("/v1/factors", json=rows, params={"who": "li"})).json()["ids"]

    refused = await office.http.post("/v1/factors/entries/approve", json=[*ids, 999], params={"who": "wang"})
    taken = await office.http.post("/v1/factors/entries/approve", json=ids, params={"who": "wang"})

    assert refused.status_code == 404
    assert taken.json() == {"approved": 24}
    listed = await get(office, "/v1/factors", series="hourly")
    assert [row["value"] for row in listed["items"]] == pytest.approx([0.1 * h for h in range(24)])
