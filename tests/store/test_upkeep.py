"""Old samples go or are compressed, results stay, gauges are rolled up from what stands."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from core.clock import SystemClock, parse_rfc3339
from core.health import Health
from core.plant.model import Kind, MqttSource, Plant, Point, Retention
from core.quality import BAD
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.postgres import PostgresStore
from core.store.seam import Correction
from core.store.upkeep import keep_store, tidy

DAY_NS = 86_400 * NS_PER_S
NOW_NS = parse_rfc3339("2026-10-29T00:00:00Z")  # a Thursday
START_NS = parse_rfc3339("2026-10-01T00:00:00Z")


async def count(store: PostgresStore, point: str) -> int:
    return len(await store.samples(point, 0, NOW_NS, limit=100_000))


async def test_points_that_meter_an_edge_outlive_the_others(store: PostgresStore) -> None:
    days_ns = NOW_NS - np.arange(1, 1001, 100) * DAY_NS
    for point in ("p0", "p5"):  # p0 feeds an edge
        await store.write(sample_batch(PointTable((point,)), [0] * 10, days_ns, np.arange(10.0)))

    await store.compress(NOW_NS)

    await tidy(store, NOW_NS, Retention(feeding_days=450, other_days=150))

    assert await count(store, "p5") == 2
    assert 5 <= await count(store, "p0") <= 6  # whole weeks go
    late = sample_batch(PointTable(("p0",)), [0], [days_ns[-1]], [1.0])
    assert (await store.write(late)).accepted == 1


async def test_compressed_history_still_takes_repeats_late_samples_and_corrections(
    store: PostgresStore,
) -> None:
    table = PointTable(("p0", "p1"))
    time_ns = np.tile(START_NS + np.arange(2000) * 60 * NS_PER_S, 2)
    batch = sample_batch(table, np.repeat([0, 1], 2000), time_ns, np.arange(4000.0))
    await store.write(batch)

    compressed = await store.compress(NOW_NS)
    again = await store.write(batch)
    late = await store.write(sample_batch(table, [1], [START_NS + NS_PER_S], [7.0]))
    corrected = await store.write(
        sample_batch(table, [0], [START_NS], [9.0]), Correction("li", "misread", NOW_NS)
    )

    assert (compressed > 0) == (store.tier.name == "community")
    assert (again.repeated, late.accepted, corrected.corrected) == (4000, 1, 1)
    assert (await store.samples("p0", START_NS, NOW_NS, limit=2)).value.tolist() == [9.0, 1.0]


def two_points(weeks: int, rows_a_week: int = 1500) -> SampleBatch:
    """p0, which feeds an edge, and p5, which does not, over whole weeks up to NOW_NS."""
    step_ns = 7 * DAY_NS // rows_a_week // 1000 * 1000
    time_ns = NOW_NS - np.arange(1, weeks * rows_a_week + 1) * step_ns
    value = np.random.default_rng(1).normal(100, 20, 2 * time_ns.size)
    return sample_batch(PointTable(("p0", "p5")), np.repeat([0, 1], time_ns.size), np.tile(time_ns, 2), value)


async def test_what_is_dropped_gives_its_disk_back(store: PostgresStore) -> None:
    await store.write(two_points(weeks=6, rows_a_week=6000))
    before = await store.raw_bytes()

    over = await tidy(store, NOW_NS, Retention(other_days=7, compress_after_days=400))

    assert over == ""
    assert await store.raw_bytes() < 0.75 * before
    assert (await count(store, "p0"), await count(store, "p5") < 14_000) == (36_000, True)


async def test_over_its_disk_other_points_go_first_and_registers_stay(store: PostgresStore) -> None:
    await store.write(two_points(weeks=6))
    whole_gb = await store.raw_bytes() / 1e9

    fits = await tidy(store, NOW_NS, Retention(other_days=400, disk_gb=0.8 * whole_gb))
    some = await count(store, "p5")
    over = await tidy(store, NOW_NS, Retention(other_days=400, disk_gb=0.1 * whole_gb))

    assert fits == ""
    assert "are allowed (retention.disk_gb); what is left meters edges" in over
    assert 9000 > some > await count(store, "p5") >= 1500
    assert await count(store, "p0") == 9000


async def test_what_came_late_for_a_compressed_week_is_compressed_too(store: PostgresStore) -> None:
    batch = two_points(weeks=3)
    await store.write(batch.take(np.arange(0, len(batch), 2)))
    await store.compress(NOW_NS)
    await store.write(batch.take(np.arange(1, len(batch), 2)))

    again, then = await store.compress(NOW_NS), await store.compress(NOW_NS)

    assert (again > 0) == (store.tier.name == "community")
    assert then == 0
    assert await count(store, "p5") == len(batch) / 2


async def gauges(store: PostgresStore) -> list[tuple[str, float, int, float, float, float]]:
    found = await store.pool.fetch(
        "SELECT point, extract(epoch FROM time)::float8 AS at, n, mean, min, max FROM board.sample_15m ORDER BY 1, 2"
    )
    return [(r["point"], r["at"] - START_NS / NS_PER_S, r["n"], r["mean"], r["min"], r["max"]) for r in found]


async def test_roll_ups_outlive_their_samples_and_late_ones_wipe_nothing(
    store: PostgresStore, plant: Plant
) -> None:
    gauge = Point("g0", "active_power_total", "kW", Kind.GAUGE, source=MqttSource("meters/all", "$.kw"))
    await store.adopt(replace(plant, points=(*plant.points, gauge), fingerprint="f2"))
    old_ns = NOW_NS - 60 * DAY_NS + np.arange(100) * 900 * NS_PER_S
    table = PointTable((gauge.id,))
    await store.write(
        sample_batch(table, np.zeros(200), np.repeat(old_ns, 2) + [0, 1000] * 100, np.arange(200))
    )
    await store.refresh_gauges()
    before = await gauges(store)
    await tidy(store, NOW_NS, Retention(other_days=30))

    late_ns = np.array([old_ns[3], old_ns[50] + 2000, old_ns[0] - DAY_NS])
    report = await store.write(sample_batch(table, np.zeros(3), late_ns, [7.0, 8.0, 9.0]))
    await store.pool.execute(
        "INSERT INTO ecmc.dirty_gauge (start_time, end_time) VALUES ('2026-08-01', '2026-10-01')"
    )
    await store.refresh_gauges()

    assert report.accepted == 3
    assert len(before) == 100
    assert (await gauges(store))[1:] == before
    assert (await gauges(store))[0][2:4] == (1, 9.0)


async def test_a_gauges_quarters_are_what_its_samples_say_after_any_change(
    store: PostgresStore, with_gauge: Point
) -> None:
    table = PointTable((with_gauge.id, "p0"))
    at_s = np.array([0, 100, 899, 900, 5000])
    time_ns = START_NS + at_s * NS_PER_S
    await store.write(sample_batch(table, np.zeros(5), time_ns, [1.0, 2.0, 6.0, 4.0, 5.0]))
    await store.write(sample_batch(table, np.ones(5), time_ns, np.ones(5)))
    await store.refresh_gauges()
    first = await gauges(store)

    await store.write(
        sample_batch(table, [0, 0], time_ns[[2, 3]], [3.0, np.nan], [0, BAD]),
        Correction("li", "drift", NOW_NS),
    )
    await store.refresh_gauges()

    name = with_gauge.id
    assert first == [
        (name, 0, 3, 3.0, 1.0, 6.0),
        (name, 900, 1, 4.0, 4.0, 4.0),
        (name, 4500, 1, 5.0, 5.0, 5.0),
    ]
    assert await gauges(store) == [(name, 0, 3, 2.0, 1.0, 3.0), (name, 4500, 1, 5.0, 5.0, 5.0)]
    assert await store.refresh_gauges() == 0


@pytest.mark.parametrize(
    ("refresh_s", "pauses_s"), [(0.01, [5.0, 5.0]), (1.0, [5.0, 30.0]), (9.0, [5.0, 60.0])]
)
async def test_open_quarters_are_refreshed_in_seconds_where_that_is_cheap(
    monkeypatch: pytest.MonkeyPatch, refresh_s: float, pauses_s: list[float]
) -> None:
    pauses: list[float] = []
    now_s = 0.0

    class Busy:
        room = None

        async def refresh_gauges(self) -> int:
            nonlocal now_s
            now_s += refresh_s
            return 1

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 2:
            raise asyncio.CancelledError

    monkeypatch.setattr("core.store.upkeep.asyncio.sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    with pytest.raises(asyncio.CancelledError):
        await keep_store(Busy(), SystemClock(), Retention, Health())  # type: ignore[arg-type]

    assert pauses[:2] == pauses_s
