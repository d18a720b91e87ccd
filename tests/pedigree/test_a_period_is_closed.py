"""Closed periods: hashed, chained, replayed; changed only beside what was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import numpy as np
import pytest

from core.clock import parse_rfc3339, rfc3339
from core.errors import BadRequest
from core.proof.explain import Explanations
from core.proof.sealing import Sealing, Verdict
from core.results import HOUR_NS
from core.samples import PointTable, sample_batch
from core.store.seam import Correction

START_NS = parse_rfc3339("2026-03-01T16:00:00Z")  # 2 March in Shanghai
DAY_NS = 24 * HOUR_NS
DAY = "2026-03-02"


async def sealing_of(works: Any, readings: Any, days: int = 2, drop: Any = None) -> Sealing:
    """Some days of readings, computed, and what closes them."""
    batch = readings(START_NS, START_NS + days * DAY_NS)
    if drop is not None:
        batch = batch.take(np.flatnonzero(~drop(batch)))
    await works.write(batch)
    await works.drain()
    return Sealing(works.store, works.pipeline.history, works.clock)


async def verdict(works: Any, sealing: Sealing) -> Verdict:
    return await sealing.verify()


async def execute(works: Any, statement: str) -> None:
    connection = await asyncpg.connect(works.store_dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def grid_gap(batch: Any) -> Any:
    """Three hours of the grid's register in the middle of the first day."""
    grid = batch.point == batch.points.names.index("grid.energy")
    return grid & (batch.time_ns > START_NS + 10 * HOUR_NS) & (batch.time_ns < START_NS + 13 * HOUR_NS)


async def site_kg(works: Any, revision: int | None = None) -> float:
    opened = await Explanations(works.pipeline.history, works.store).node(
        "site", START_NS, START_NS + DAY_NS, 2, "location", "zero-carbon-factory", 10, None, revision
    )
    return float(opened.emissions_kgco2e)


async def test_a_day_closes_when_it_is_due_and_a_month_after_its_days(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    closed = [(seal.period, seal.label, seal.revision) async for seal in sealing.close_due()]
    # The third day has its first instant only in the last reading: results of it exist, so it closes too.
    assert closed[:2] == [("day", "2026-03-02", 1), ("day", "2026-03-03", 1)]
    assert closed[-1] == ("month", "2026-03", 1)
    assert [seal async for seal in sealing.close_due()] == []
    held = await sealing.verify()
    assert held.difference is None
    assert held.seals == len(closed)
    assert held.replayed == len(closed) - 1


async def test_nothing_closes_before_its_days_are_over(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    works.clock.time_ns = START_NS + 5 * DAY_NS
    assert [seal async for seal in sealing.close_due()] == []
    works.clock.time_ns = START_NS + DAY_NS + HOUR_NS
    with pytest.raises(BadRequest, match="closes two hours after its end"):
        await sealing.close(DAY, "mai", "month report")


async def test_a_late_reading_makes_a_new_revision_beside_the_old(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings, drop=grid_gap)
    first = await sealing.close(DAY, "mai", "month report")
    kg_then = await site_kg(works)

    whole = readings(START_NS, START_NS + 2 * DAY_NS)
    await works.write(whole.take(np.flatnonzero(grid_gap(whole))))
    await works.drain()
    again = [seal async for seal in sealing.close_due() if seal.label == DAY]

    assert [seal.revision for seal in again] == [2]
    assert "late readings of grid.energy" in again[0].why
    assert again[0].digest != first.digest
    assert await site_kg(works, revision=1) == pytest.approx(kg_then, rel=1e-12)
    assert await site_kg(works, revision=2) == await site_kg(works)
    held = await sealing.verify()
    assert held.difference is None
    assert held.replayed >= 2  # the old revision too, without what came late


async def test_a_correction_of_a_closed_day_says_who_and_why(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    await sealing.close(DAY, "mai", "month report")
    batch = readings(START_NS, START_NS + DAY_NS)
    press = batch.take(np.flatnonzero(batch.point == batch.points.names.index("press.energy"))[40:41])
    table = PointTable(("press.energy",))
    corrected = sample_batch(table, np.zeros(1, dtype=np.int32), press.time_ns, press.value + 5.0)
    await works.write(corrected, Correction("wen", "display read by hand", works.clock.now_ns()))
    await works.drain()
    (again,) = [seal async for seal in sealing.close_due() if seal.label == DAY]
    assert "display read by hand (wen, 1 corrected)" in again.why
    assert (await sealing.verify()).difference is None


async def test_a_repeated_reading_changes_no_closed_figure(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    await sealing.close(DAY, "mai", "month report")
    await works.write(readings(START_NS, START_NS + DAY_NS))
    await works.store.mark_dirty(START_NS, START_NS + DAY_NS - 1, None, "recompute")
    await works.drain()
    assert [seal.label async for seal in sealing.close_due() if seal.label == DAY] == []
    assert [seal.revision for seal in await works.store.seals(START_NS, START_NS + DAY_NS, "day")] == [1]


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        (
            "UPDATE ecmc.sample SET value = value + 7 WHERE point_id = (SELECT id FROM ecmc.point"
            " WHERE name = 'grid.energy') AND time = '2026-03-02T04:00:00Z'",
            r"2026-03-02 revision 1: energy e-grid energy_kwh at 2026-03-02T03:45:00Z",
        ),
        (
            "UPDATE ecmc.energy_block SET energy_kwh[2] = energy_kwh[2] * 1.01 WHERE edge_id ="
            " (SELECT id FROM ecmc.edge WHERE name = 'e-grid') AND hour = '2026-03-02T05:00:00Z'",
            r"energy e-grid energy_kwh at 2026-03-02T05:15:00Z: .* is stored",
        ),
        (
            "UPDATE ecmc.emission_block SET emissions_kg[3] = emissions_kg[3] - 1 WHERE emissions_kg[3] > 5 AND"
            " node_id = (SELECT id FROM ecmc.node WHERE name = 'press') AND hour = '2026-03-02T05:00:00Z'",
            r"emission press 2 .* emissions_kg at 2026-03-02T05:30:00Z: .* is stored",
        ),
        (
            "UPDATE ecmc.stock SET kwh = kwh + 1 WHERE hour = '2026-03-02T06:00:00Z'",
            r"day 2026-03-02 revision 1: .* at 2026-03-02T06:00:00Z: .* is stored",
        ),
        (
            "UPDATE ecmc.energy_1h SET energy_kwh = energy_kwh * 1.01 WHERE start = '2026-03-02T05:00:00Z'",
            r"energy_1h e-.* at 2026-03-02T05:00:00Z is not the sum of its base intervals",
        ),
        (
            "UPDATE ecmc.seal SET who = 'nobody' WHERE label = '2026-03-02'",
            "the chain breaks at day 2026-03-02",
        ),
        ("DELETE FROM ecmc.seal WHERE label = '2026-03-02'", "the chain breaks at day 2026-03-03"),
        (
            "UPDATE ecmc.seal SET digest = decode(repeat('00', 32), 'hex') WHERE label = '2026-03-03'",
            "the chain breaks at day 2026-03-03",
        ),
    ],
)
async def test_tampering_is_named(works: Any, readings: Any, tampering: str, named: str) -> None:
    sealing = await sealing_of(works, readings)
    async for _ in sealing.close_due():
        pass
    await execute(works, tampering)
    found = (await sealing.verify()).difference
    assert found is not None
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(found)


async def test_seals_cut_off_the_end_show_by_what_was_written_down(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    async for _ in sealing.close_due():
        pass
    written_down = (await sealing.verify()).link
    assert (await sealing.verify(written_down)).difference is None

    await execute(works, "DELETE FROM ecmc.seal WHERE id > (SELECT min(id) FROM ecmc.seal)")

    assert (await sealing.verify()).difference is None  # a shorter chain is a chain
    assert "no longer holds" in str((await sealing.verify(written_down)).difference)


async def test_what_retention_took_is_said_and_held_by_its_hash(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    async for _ in sealing.close_due():
        pass
    await execute(works, "DELETE FROM ecmc.sample WHERE time < '2026-03-02T20:00:00Z'")
    found = await sealing.verify()
    assert found.difference is None
    assert found.lost_before_ns == parse_rfc3339("2026-03-02T20:00:00Z")
    assert found.hashed >= 1
    await execute(works, "UPDATE ecmc.energy_block SET energy_kwh[2] = 1 WHERE hour = '2026-03-02T05:00:00Z'")
    assert "day 2026-03-02 revision 1" in str((await sealing.verify()).difference)


async def test_a_reading_taken_out_of_the_middle_is_named(works: Any, readings: Any) -> None:
    sealing = await sealing_of(works, readings)
    async for _ in sealing.close_due():
        pass
    await execute(works, "DELETE FROM ecmc.sample WHERE time = '2026-03-02T04:00:00Z'")
    assert "day 2026-03-02 revision 1" in str((await sealing.verify()).difference)


@pytest.mark.parametrize("label", ["2026-3-2", "march", "2026-02-30", "20260302"])
async def test_a_label_that_is_no_period_is_refused(works: Any, readings: Any, label: str) -> None:
    sealing = Sealing(works.store, works.pipeline.history, works.clock)
    with pytest.raises(BadRequest, match="is no day such as"):
        await sealing.close(label, "mai", "test")


async def opened_as(works: Any, link: str) -> Any:
    """What a link of an answer opens."""
    asked = dict(parse_qsl(urlsplit(link).query))
    explain = Explanations(works.pipeline.history, works.store)
    span = parse_rfc3339(asked["start"]), parse_rfc3339(asked["end"])
    revision = int(asked["revision"])
    if "edge" in asked:
        return await explain.edge(asked["edge"], *span, revision=revision)
    return await explain.node(
        asked["node"], *span, int(asked["scope"]), asked["basis"], asked["method_set"], revision=revision
    )


async def test_a_closed_figure_is_walked_down_as_it_was(works: Any, readings: Any) -> None:
    """Since then: readings came late, and it was computed with an older factor."""
    sealing = await sealing_of(works, readings, drop=grid_gap)
    await sealing.close(DAY, "mai", "month report")
    start, end = rfc3339(START_NS), rfc3339(START_NS + DAY_NS)
    asked = f"?start={start}&end={end}&scope=2&basis=location&method_set=zero-carbon-factory&revision=1"
    site_then = await opened_as(works, f"{asked}&node=site")

    whole = readings(START_NS, START_NS + 2 * DAY_NS)
    late = whole.take(np.flatnonzero(grid_gap(whole)))
    await works.write(replace(late, value=late.value + 5.0))
    await works.drain()
    span = START_NS, START_NS + DAY_NS
    await works.pipeline.recompute(*span, parse_rfc3339("2025-06-01T00:00:00Z"), "recompute")
    assert await site_kg(works) != pytest.approx(site_then.emissions_kgco2e)

    site = await opened_as(works, f"{asked}&node=site")
    grid = await opened_as(works, next(item.upstream for item in site.items if item.id == "grid"))
    (item,) = grid.items
    edge = await opened_as(works, item.explain)

    assert site.emissions_kgco2e == site_then.emissions_kgco2e
    assert {run.last_known_at for run in site.runs} == {run.last_known_at for run in site_then.runs}
    assert [(f.id, f.value) for f in grid.factors] == [("grid_cn:CN-CQ:2023:average", 0.5581)]
    assert grid.unexplained_kgco2e == pytest.approx(0, abs=1e-9)
    assert edge.energy_kwh == pytest.approx(item.energy_kwh, rel=1e-12)
    assert edge.register["difference_kwh"] == pytest.approx(edge.energy_kwh, rel=1e-9)
    assert edge.marks == {"gap": 12}


async def test_a_months_revision_opens_its_days_as_they_were_then(works: Any, readings: Any) -> None:
    """Two days change one after the other: the month's second revision has one of them changed, its third both."""
    await sealing_of(works, readings)
    sealing = Sealing(works.store, works.pipeline.history, works.clock)
    first, second = START_NS, START_NS + DAY_NS
    old = parse_rfc3339("2025-06-01T00:00:00Z")
    kg = []
    async for _ in sealing.close_due():
        pass
    for day_ns in (None, first, second):
        if day_ns is not None:
            await works.pipeline.recompute(day_ns, day_ns + DAY_NS, old, "recompute")
            await works.drain()
            async for _ in sealing.close_due():
                pass
        month = [s for s in await works.store.seals(START_NS, START_NS + DAY_NS) if s.period == "month"][-1]
        series = await works.store.emissions(
            ["site"], month.start_ns, month.end_ns, "1y", "location", "zero-carbon-factory"
        )
        kg.append(float(series.columns["emissions_kgco2e"].sum()))
    assert month.revision == 3

    explain = Explanations(works.pipeline.history, works.store)
    for revision, then in enumerate(kg, start=1):
        opened = await explain.node(
            "site",
            month.start_ns,
            month.end_ns,
            2,
            "location",
            "zero-carbon-factory",
            revision=revision,
        )
        direct = await explain.node(
            "site",
            month.start_ns,
            month.end_ns,
            1,
            "location",
            "zero-carbon-factory",
            revision=revision,
        )
        assert opened.emissions_kgco2e + direct.emissions_kgco2e == pytest.approx(then, rel=1e-12)
    with pytest.raises(BadRequest, match="no revision 9 of that month: it was closed as 1, 2, 3"):
        await explain.node("site", month.start_ns, month.end_ns, 2, "location", "cbam", revision=9)
