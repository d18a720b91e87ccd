"""Results in, series out: every bucket over any range equals the plain sum over its base intervals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.clock import parse_rfc3339, time_ns_of
from core.plant.model import Plant, Shift
from core.results import HOUR_NS, WindowResult
from core.samples import NS_PER_S
from core.store.bucket import bucket_edges
from core.store.postgres import PostgresStore
from core.store.seam import Bucket, Run

MINUTE_NS = 60 * NS_PER_S
START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
RUN = Run(START_NS, "f1", "samples")
SET = "zero-carbon-factory"
Window = Callable[..., WindowResult]


def summed(column: np.ndarray, edges: np.ndarray, start_ns: int, end_ns: int) -> list[float]:
    """The oracle: a column of minutes from START_NS on, added up bucket by bucket inside [start, end)."""
    time_ns = START_NS + np.arange(column.size) * MINUTE_NS
    inside = (time_ns >= start_ns) & (time_ns < end_ns)
    return [
        float(column[inside & (time_ns >= a) & (time_ns < b)].sum())
        for a, b in pairwise(edges.tolist())
        if (inside & (time_ns >= a) & (time_ns < b)).any()
    ]


@pytest.mark.parametrize(("cut_from", "cut_to"), [(0, 0), (7, 11), (15, 45), (60, 0), (59, 1)])
async def test_a_bucket_is_the_sum_of_its_base_intervals_wherever_the_range_is_cut(
    store: PostgresStore, window: Window, cut_from: int, cut_to: int
) -> None:
    result = window(START_NS, hours=30)
    await store.write_window(result, RUN)
    start_ns, end_ns = START_NS + cut_from * MINUTE_NS, result.end_ns - cut_to * MINUTE_NS

    buckets: list[Bucket] = ["1m", "5m", "15m", "30m", "1h", "1d"]
    for bucket in buckets:
        energy = await store.energy(["e-press"], start_ns, end_ns, bucket)
        emissions = await store.emissions(["press"], start_ns, end_ns, bucket, "location", SET)
        balance = await store.balance(["main"], start_ns, end_ns, bucket)

        edges = bucket_edges(start_ns, end_ns, bucket, ZoneInfo("Asia/Shanghai"))
        scope_2 = emissions.columns["emissions_kgco2e"][emissions.flow == 1]
        np.testing.assert_array_equal(energy.start_ns, edges[:-1])
        np.testing.assert_allclose(
            energy.columns["energy_kwh"], summed(result.energy.energy_kwh[1], edges, start_ns, end_ns)
        )
        np.testing.assert_allclose(scope_2, summed(result.emissions_kg[3, 1], edges, start_ns, end_ns))
        np.testing.assert_allclose(
            balance.columns["residual_kwh"],
            summed(result.residual_kwh[1], edges, start_ns, end_ns),
            atol=1e-12,
        )


async def test_coverage_is_the_share_of_the_bucket_inside_the_range(
    store: PostgresStore, window: Window
) -> None:
    energy_kwh = np.ones((2, 120))
    energy_kwh[:, 30:] = np.nan
    result = window(START_NS, hours=2, energy_kwh=energy_kwh)
    result = replace(result, energy=replace(result.energy, covered=np.isfinite(energy_kwh).astype(float)))
    await store.write_window(result, RUN)

    whole = await store.energy(["e-press"], START_NS, START_NS + 2 * HOUR_NS, "1h")
    cut = await store.energy(["e-press"], START_NS, START_NS + 40 * MINUTE_NS, "1h")

    assert whole.columns["energy_kwh"].tolist() == [30.0]  # the second hour has nothing and is left out
    assert whole.columns["coverage"].tolist() == [0.5]
    assert whole.columns["estimated_share"].tolist() == [0.25]
    assert cut.columns["coverage"].tolist() == [0.75]


async def test_carbon_unknown_in_one_interval_is_unknown_in_every_bucket_over_it(
    store: PostgresStore, window: Window
) -> None:
    result = window(START_NS, hours=3)
    result.emissions_kg[3, 1, 90] = np.nan
    await store.write_window(result, RUN)

    by_hour = await store.emissions(["press"], START_NS, START_NS + 3 * HOUR_NS, "1h", "location", SET)
    by_minute = await store.emissions(["press"], START_NS, START_NS + 3 * HOUR_NS, "1m", "location", SET)
    by_day = await store.emissions(["press"], START_NS, START_NS + 3 * HOUR_NS, "1d", "location", SET)

    def unknown(series: object) -> list[int]:
        columns, flow = series.columns, series.flow  # type: ignore[attr-defined]
        return np.flatnonzero(np.isnan(columns["emissions_kgco2e"][flow == 1])).tolist()

    assert (unknown(by_hour), unknown(by_minute), unknown(by_day)) == ([1], [90], [0])
    assert np.isfinite(by_day.columns["emissions_kgco2e"][by_day.flow == 0]).all()


async def test_a_node_through_which_nothing_is_known_to_pass_is_left_out_not_zero(
    store: PostgresStore, window: Window
) -> None:
    result = window(START_NS, hours=4)
    for column in (result.in_kwh, result.out_kwh, result.through_kwh, result.residual_kwh):
        column[3, 60:120] = np.nan
    result.emissions_kg[3, :, 60:120] = np.nan
    await store.write_window(result, RUN)

    emissions = await store.emissions(["press"], START_NS, result.end_ns, "1h", "location", SET)
    day = await store.emissions(["press"], START_NS, result.end_ns, "1d", "location", SET)

    hours = (emissions.start_ns[emissions.flow == 0] - START_NS) // HOUR_NS
    assert hours.tolist() == [0, 2, 3]
    known = np.delete(result.emissions_kg[3, 0], np.s_[60:120])
    np.testing.assert_allclose(day.columns["emissions_kgco2e"][0], known.sum())


async def test_what_is_not_in_yet_at_the_end_of_the_newest_hour_does_not_hide_the_hour(
    store: PostgresStore, window: Window
) -> None:
    result = window(START_NS, hours=2)
    for column in (result.in_kwh, result.through_kwh):
        column[4, 100:] = np.nan  # one source has not reported; others have
    result.emissions_kg[4, :, 100:] = np.nan
    await store.write_window(result, RUN)

    while_newest = await store.emissions(["site"], START_NS, result.end_ns, "1h", "location", SET)
    await store.write_window(window(result.end_ns, hours=1), RUN)
    await store.write_window(result, RUN)
    afterwards = await store.emissions(["site"], START_NS, result.end_ns, "1h", "location", SET)

    np.testing.assert_allclose(
        while_newest.columns["emissions_kgco2e"][while_newest.flow == 1],
        [result.emissions_kg[4, 1, :60].sum(), result.emissions_kg[4, 1, 60:100].sum()],
    )
    assert np.isnan(afterwards.columns["emissions_kgco2e"][afterwards.flow == 1]).tolist() == [False, True]


async def test_intensity_is_carbon_leaving_over_energy_leaving(store: PostgresStore, window: Window) -> None:
    result = window(START_NS, hours=2)
    await store.write_window(result, RUN)

    got = await store.intensity(["main", "press"], START_NS, result.end_ns, "1h", "location", SET)

    kg = result.through_kg[[1, 3]].sum(axis=1).reshape(2, 2, 60).sum(axis=-1)
    kwh = result.through_kwh[[1, 3]].reshape(2, 2, 60).sum(axis=-1)
    assert got.name == ("main", "main", "press", "press")
    np.testing.assert_allclose(got.columns["intensity_kgco2e_per_kwh"], (kg / kwh).ravel())


async def test_writing_an_hour_again_replaces_it_in_blocks_and_rollups(
    store: PostgresStore, window: Window
) -> None:
    await store.write_window(window(START_NS, hours=3, seed=1), RUN)
    again = window(START_NS + HOUR_NS, hours=1, seed=2)

    await store.write_window(again, RUN)

    for bucket in ("1m", "15m", "1h"):
        got = await store.energy(["e-grid"], again.start_ns, again.end_ns, bucket)
        np.testing.assert_allclose(got.columns["energy_kwh"].sum(), again.energy.energy_kwh[0].sum())


async def test_a_written_window_takes_its_ledger_rows_with_it(store: PostgresStore, window: Window) -> None:
    await store.mark_dirty(START_NS, START_NS, ["p1"], "samples")
    await store.mark_dirty(START_NS, START_NS, None, "factor")
    first, second = await store.dirty()

    await store.write_window(window(START_NS, hours=1), RUN, done=[first.id])

    assert [r.id for r in await store.dirty()] == [second.id]
    assert (first.points, second.points) == (("p1",), None)


async def test_stocks_are_found_at_every_hour_of_the_window_and_at_its_end(
    store: PostgresStore, window: Window
) -> None:
    result = window(START_NS, hours=2)
    await store.write_window(result, RUN)

    at_end = await store.stocks(result.end_ns, ["bat"], result.flows)
    never = await store.stocks(result.end_ns + HOUR_NS, ["bat"], result.flows)

    assert at_end is not None
    np.testing.assert_array_equal(at_end.kwh, result.stock_kwh[:, -1])
    np.testing.assert_array_equal(at_end.kg, result.stock_kg[:, :, -1])
    assert never is None
    assert await store.has_run(START_NS)
    assert not await store.has_run(START_NS - HOUR_NS)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-07-01", 24)])
def test_a_day_of_the_plants_zone_has_the_hours_its_clocks_give_it(day: str, hours: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    noon_ns = parse_rfc3339(f"{day}T12:00:00Z")

    edges = bucket_edges(noon_ns, noon_ns + HOUR_NS, "1d", zone)

    assert np.diff(edges).tolist() == [hours * HOUR_NS]


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", [7, 8, 8]), ("2026-10-25", [9, 8, 8]), ("2026-07-01", [8, 8, 8])]
)
async def test_shifts_begin_by_the_plants_clock_and_a_night_of_the_change_is_an_hour_off(
    store: PostgresStore, plant: Plant, window: Window, day: str, hours: list[int]
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    shifts = (Shift("early", 360), Shift("late", 840), Shift("night", 1320))
    await store.adopt(replace(plant, zone=zone, shifts=shifts, fingerprint="berlin"))
    midnight = datetime.fromisoformat(day).replace(tzinfo=zone)
    night_ns = time_ns_of(midnight) - 2 * HOUR_NS
    result = window(night_ns // HOUR_NS * HOUR_NS, hours=30)
    await store.write_window(result, RUN)
    edges = bucket_edges(night_ns + HOUR_NS, night_ns + 20 * HOUR_NS, "shift", zone, [360, 840, 1320])

    answer = await store.energy(["e-press"], int(edges[0]), int(edges[-1]), "shift")

    at = (edges - result.start_ns) // MINUTE_NS
    minutes = result.energy.energy_kwh[1]
    assert (np.diff(edges) // HOUR_NS).tolist() == hours
    np.testing.assert_array_equal(answer.start_ns, edges[:-1])
    np.testing.assert_allclose(
        answer.columns["energy_kwh"], [minutes[a:b].sum() for a, b in pairwise(at.tolist())]
    )


def test_months_and_years_begin_at_the_zones_midnight() -> None:
    zone = ZoneInfo("Asia/Shanghai")
    start_ns, end_ns = parse_rfc3339("2026-11-30T15:00:00Z"), parse_rfc3339("2027-01-31T16:00:00Z")

    months = bucket_edges(start_ns, end_ns, "1mo", zone)
    years = bucket_edges(start_ns, end_ns, "1y", zone)

    assert months.tolist() == [
        parse_rfc3339(f"{month}T16:00:00Z")
        for month in ("2026-10-31", "2026-11-30", "2026-12-31", "2027-01-31")
    ]
    assert years.tolist() == [parse_rfc3339(f"{year}-12-31T16:00:00Z") for year in ("2025", "2026", "2027")]


def test_a_years_hours_are_all_there() -> None:
    start_ns = parse_rfc3339("2026-01-01T00:00:00Z")

    edges = bucket_edges(start_ns, start_ns + 8760 * HOUR_NS, "1h", ZoneInfo("Asia/Shanghai"))

    assert (edges.size, int(edges[-1])) == (8761, start_ns + 8760 * HOUR_NS)


async def test_a_window_of_months_keeps_the_stock_at_its_very_end(
    store: PostgresStore, window: Window
) -> None:
    result = window(START_NS, hours=2400)
    await store.write_window(result, RUN)

    at_end = await store.stocks(result.end_ns, ["bat"], result.flows)

    assert at_end is not None
    assert at_end.kwh.tolist() == result.stock_kwh[:, -1].tolist()


@pytest.mark.parametrize("what", ["a few figures", "another base interval"])
async def test_hours_written_over_others_leave_what_they_would_have_left_in_an_empty_database(
    store: PostgresStore, databases: Any, window: Window, plant: Any, what: str
) -> None:
    """Only what differs is written: one edge, a node whose figures go."""
    before, after = window(START_NS, hours=4, seed=1), window(START_NS, hours=4, seed=1)
    later = window(before.end_ns, hours=1, seed=2)  # so that those are not the hours still filling
    after.energy.energy_kwh[0, 70:75] += 1.0
    after.in_kwh[2, :] = after.out_kwh[2, :] = after.through_kwh[2, :] = np.nan
    if what == "another base interval":
        after = by_quarter(after)
    empty = await PostgresStore.open(await asyncio.to_thread(databases.new), plant)

    for result in (before, later, after):
        await store.write_window(result, RUN)
    for result in (later, after):
        await empty.write_window(result, RUN)

    for table in TABLES:
        query = f"SELECT t::text FROM ecmc.{table} AS t ORDER BY 1"
        assert await store.pool.fetch(query) == await empty.pool.fetch(query), table
    await empty.close()


def by_quarter(result: WindowResult) -> WindowResult:
    """Every fifteenth minute, as if it were a quarter of an hour."""
    energy = replace(
        result.energy, **{f.name: getattr(result.energy, f.name)[..., ::15] for f in fields(result.energy)}
    )
    names = ("in_kwh", "out_kwh", "residual_kwh", "coverage", "emissions_kg", "through_kg", "through_kwh")
    columns: dict[str, Any] = {name: getattr(result, name)[..., ::15] for name in names}
    return replace(result, base_ns=15 * MINUTE_NS, energy=energy, **columns)


TABLES = (
    *(f"{family}_{level}" for family in ("energy", "node", "emission") for level in ("block", "15m", "1h")),
    "stock",
    "stock_carbon",
)
