from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from api.window import bucket_of, period_span
from core.clock import parse_rfc3339, rfc3339
from core.errors import BadRequest
from core.plant.model import Shift
from core.results import Flow
from core.store.seam import Series

DAY = "start=2026-10-05T00:00:00Z&end=2026-10-06T00:00:00Z"
HOURS_NS = np.array([parse_rfc3339("2026-10-05T00:00:00Z"), parse_rfc3339("2026-10-05T01:00:00Z")])


async def test_energy_comes_by_bucket_and_unknown_is_null(client, world) -> None:
    world.store.answers["energy"] = Series(
        ("e-grid", "e-grid"),
        HOURS_NS,
        {
            "energy_kwh": np.array([100.0, np.nan]),
            "coverage": np.array([1.0, 0.25]),
            "estimated_share": np.array([0.0, np.nan]),
        },
    )
    answer = await client.get(f"/v1/energy?edge=e-grid&bucket=1h&{DAY}")
    assert answer.json() == [
        {
            "edge": "e-grid",
            "start": "2026-10-05T00:00:00Z",
            "energy_kwh": 100.0,
            "coverage": 1.0,
            "estimated_share": 0.0,
        },
        {
            "edge": "e-grid",
            "start": "2026-10-05T01:00:00Z",
            "energy_kwh": None,
            "coverage": 0.25,
            "estimated_share": None,
        },
    ]
    assert world.store.asked["energy"] == (
        ["e-grid"],
        int(HOURS_NS[0]),
        int(HOURS_NS[0]) + 24 * 3600 * 10**9,
        "1h",
    )


async def test_emissions_are_one_row_a_scope(client, world) -> None:
    flows = tuple(Flow(scope, "market", "ghg-protocol") for scope in (1, 2))
    world.store.answers["emissions"] = Series(
        ("site", "site"),
        HOURS_NS[[0, 0]],
        {"emissions_kgco2e": np.array([3.0, 45.8]), "coverage": np.array([1.0, 1.0])},
        np.array([0, 1], dtype=np.int32),
        flows,
    )
    rows = (
        await client.get(f"/v1/emissions?node=site&bucket=1h&basis=market&method_set=ghg-protocol&{DAY}")
    ).json()
    assert [(row["scope"], row["basis"], row["method_set"], row["emissions_kgco2e"]) for row in rows] == [
        (1, "market", "ghg-protocol", 3.0),
        (2, "market", "ghg-protocol", 45.8),
    ]
    assert world.store.asked["emissions"][-2:] == ("market", "ghg-protocol")


async def test_defaults_are_location_the_first_method_set_and_the_base_interval(client, world) -> None:
    await client.get(f"/v1/intensity?node=main&{DAY}")
    assert world.store.asked["intensity"][-3:] == ("1m", "location", "zero-carbon-factory")


async def test_no_name_means_all_of_them(client, world) -> None:
    await client.get(f"/v1/balance?bucket=1h&{DAY}")
    assert world.store.asked["balance"][0] == ["grid", "roof", "main", "press", "rest", "site"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/energy?edge=nobody&" + DAY, 404, "'nobody'"),
        ("/v1/emissions?node=nobody&" + DAY, 404, "'nobody'"),
        ("/v1/latest?point=nobody", 404, "'nobody'"),
        ("/v1/samples?point=nobody&" + DAY, 404, "'nobody'"),
        ("/v1/nothing", 404, "Not Found"),
        ("/v1/energy?bucket=1s&" + DAY, 422, "1m, 5m"),
        ("/v1/energy?edge=e-grid", 422, "start"),
        ("/v1/energy?start=2026-10-05T00:00:00&end=2026-10-06T00:00:00Z", 422, "zone"),
        ("/v1/energy?start=2026-10-06T00:00:00Z&end=2026-10-06T00:00:00Z", 422, "not before"),
        ("/v1/emissions?basis=moon&" + DAY, 422, "basis"),
        ("/v1/emissions?method_set=astrology&" + DAY, 422, "zero-carbon-factory, ghg-protocol"),
        ("/v1/indicators?period=2026-13", 422, "2026-13"),
        ("/v1/alerts?state=loud", 422, "state"),
        ("/v1/samples?point=e-grid.power&cursor=x&" + DAY, 422, "cursor"),
        ("/v1/energy?start=2020-01-01T00:00:00Z&end=2026-01-01T00:00:00Z", 422, "bucket=1d"),
    ],
)
async def test_what_cannot_be_meant_is_a_problem_that_says_so(
    client, path: str, status: int, said: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert said in body["detail"]


async def test_a_fault_of_ours_is_a_problem_too(client, world) -> None:
    world.store.latest = None  # type: ignore[assignment]
    answer = await client.get("/v1/latest")
    assert answer.status_code == 500
    assert answer.json()["title"] == "Internal Server Error"
    assert "NoneType" not in answer.text


async def test_a_plus_that_became_a_blank_is_still_a_zone(client, world) -> None:
    await client.get("/v1/energy?edge=e-grid&start=2026-10-05T08:00:00+08:00&end=2026-10-06T00:00:00Z")
    assert world.store.asked["energy"][1] == HOURS_NS[0]


@pytest.mark.parametrize(("base_s", "asked"), [(300, "1m"), (900, "5m"), (180, "5m")])
def test_a_bucket_that_base_intervals_do_not_fill_is_refused(base_s: int, asked: str) -> None:
    with pytest.raises(BadRequest, match=f"{base_s} s"):
        bucket_of(asked, base_s)


@pytest.mark.parametrize(
    ("base_s", "asked", "meant"),
    [(60, None, "1m"), (60, "60s", "1m"), (300, None, "5m"), (10, None, "1m"), (180, None, "15m")],
)
def test_the_default_bucket_is_the_base_interval(base_s: int, asked: str | None, meant: str) -> None:
    assert bucket_of(asked, base_s)[0] == meant


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("2026", "2025-12-31T16:00:00Z", "2026-12-31T16:00:00Z"),
        ("2026-12", "2026-11-30T16:00:00Z", "2026-12-31T16:00:00Z"),
        ("2026-10-05", "2026-10-04T16:00:00Z", "2026-10-05T16:00:00Z"),
    ],
)
def test_a_period_is_cut_in_the_plants_zone(world, period: str, start: str, end: str) -> None:
    span = period_span(world.plant, period)
    assert (rfc3339(span.start_ns), rfc3339(span.end_ns)) == (start, end)


async def test_indicators_are_asked_for_the_whole_period(client) -> None:
    (row,) = (await client.get("/v1/indicators?period=2026-10&method_set=ghg-protocol")).json()
    assert (row["value"], row["method_set"]) == (31 * 24, "ghg-protocol")


async def test_every_request_of_the_contract_is_described(client) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    wanted = [
        "health",
        "points",
        "latest",
        "samples",
        "energy",
        "emissions",
        "intensity",
        "balance",
        "indicators",
        "alerts",
        "stream",
    ]
    assert {f"/v1/{name}" for name in wanted} <= paths.keys()
    assert {"get", "post"} <= paths["/v1/samples"].keys()
    assert "/v1/alerts/{alert}/ack" in paths


async def test_shifts_are_named_and_a_plant_without_any_says_so(client, world) -> None:
    none = await client.get(f"/v1/energy?edge=e-grid&bucket=shift&{DAY}")
    world.plant = replace(world.plant, shifts=(Shift("day", 480), Shift("night", 1200)))
    world.store.answers["energy"] = Series(
        ("e-grid", "e-grid"),
        np.array(
            [parse_rfc3339("2026-10-05T00:00:00Z"), parse_rfc3339("2026-10-05T12:00:00Z")]
        ),  # 8:00, 20:00
        {"energy_kwh": np.array([100.0, 50.0])},
    )

    answer = await client.get(f"/v1/energy?edge=e-grid&bucket=shift&{DAY}")

    assert (none.status_code, "shifts" in none.json()["detail"]) == (422, True)
    assert [(row["shift"], row["energy_kwh"]) for row in answer.json()] == [("day", 100.0), ("night", 50.0)]
    assert world.store.asked["energy"][-1] == "shift"
