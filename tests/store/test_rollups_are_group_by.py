"""After any history of writes, every roll-up is what GROUP BY says over the raw samples, on every kind of server.

A history is late, shuffled and repeated batches, corrections, samples taken back, weeks compressed in between, with
the roll-ups drained at any moment. The oracle is SQL over `sample` as it stands at the end.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import SystemClock, parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.health import Health
from core.plant.model import Kind, Plant, Point
from core.quality import BAD, GOOD, UNCERTAIN
from core.registers.withdrawal import withdraw
from core.results import HOUR_NS
from core.samples import NS_PER_S, SampleBatch, batch_of_rows
from core.store.postgres import PostgresStore
from core.store.seam import Correction

START_NS = parse_rfc3339("2026-03-28T23:00:00Z")  # a Saturday to a Sunday: two weeks, two partitions
QUARTER_NS = 900 * NS_PER_S
QUARTERS = 24
CORRECTION = Correction("li", "read again", START_NS)

# Energy between neighbouring readings of a register, beside what the quarters between them add up to.
STEPS = """
WITH step AS (
    SELECT e.id AS edge, s.time, s.value - lag(s.value) OVER w AS kwh, lag(s.time) OVER w AS since
    FROM ecmc.sample AS s JOIN ecmc.point AS p ON p.id = s.point_id
    JOIN ecmc.edge AS e ON e.name = CASE p.name WHEN 'p0' THEN 'e-grid' ELSE 'e-press' END
    WHERE p.name IN ('p0', 'p1') AND s.status >= 0
    WINDOW w AS (PARTITION BY p.id ORDER BY s.time)
)
SELECT edge, since, time, kwh, (
    SELECT sum(r.energy_kwh) FROM ecmc.energy_15m AS r
    WHERE r.edge_id = step.edge AND r.start >= since AND r.start < time
) AS rolled_up
FROM step WHERE since IS NOT NULL
"""
# Every hour of a roll-up that is not its quarters.
UNLIKE_HOURS = """
SELECT * FROM (
    SELECT {keys}, time_bucket(interval '1 hour', r.start) AS start, {sums} FROM ecmc.{family}_15m AS r
    GROUP BY {keys}, time_bucket(interval '1 hour', r.start)
) AS grouped FULL JOIN ecmc.{family}_1h AS stored USING ({keys}, start)
WHERE {unlike}
"""
GAUGES = """
SELECT point_id, time_bucket(interval '15 minutes', time) AS start, count(*)::int AS n, sum(value), min(value), max(value)
FROM ecmc.sample WHERE status >= 0 AND point_id = (SELECT id FROM ecmc.point WHERE name = 'g0')
GROUP BY 1, 2 ORDER BY 1, 2
"""


def with_quarters(small: Plant) -> Plant:
    points = (*small.points, Point("g0", "active_power_total", "kW", Kind.GAUGE))
    return replace(small, points=points, base_interval_s=900, fingerprint="quarters")


def reading(point: str, quarter: int, offset: float, status: int) -> tuple[str, int, float, int]:
    """A register counts 2 kWh a quarter and is up to half a kWh off; a gauge reads anything, at uneven seconds."""
    if status == BAD:
        return point, START_NS + quarter * QUARTER_NS, math.nan, BAD
    if point == "g0":
        return point, START_NS + quarter * QUARTER_NS // 7, quarter * offset, status
    return point, START_NS + quarter * QUARTER_NS, 1000 + 2.0 * quarter + offset, status


point = st.sampled_from(["p0", "p1", "g0"])
quarter = st.integers(0, QUARTERS)
sample = st.builds(
    reading, point, quarter, st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([GOOD, GOOD, UNCERTAIN, BAD])
)
batch = st.lists(sample, min_size=1, max_size=25)
act = st.one_of(
    st.tuples(st.just("write"), batch),
    st.tuples(st.just("write"), batch),
    st.tuples(st.just("correct"), batch),
    st.tuples(st.just("withdraw"), st.tuples(point, quarter, st.integers(1, 6))),
    st.tuples(st.just("compress"), st.none()),
)
BEFORE = [
    reading(point, quarter, 0.0, GOOD) for point in ("p0", "p1", "g0") for quarter in range(0, QUARTERS, 2)
]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(st.tuples(act, st.booleans()), min_size=1, max_size=8))
async def test_any_history_rolls_up_to_what_group_by_says(
    store: PostgresStore, plant: Plant, history: list[tuple[tuple[str, Any], bool]]
) -> None:
    await emptied(store)
    quarterly = with_quarters(plant)
    await store.adopt(quarterly)
    pipeline = Pipeline(
        Engine(quarterly, FactorLibrary.for_plant("")), store, LocalBus(), Health(), SystemClock()
    )
    written: list[SampleBatch] = []

    for (what, given_), rolls_up in [(("write", BEFORE), True), *history, (("again", None), True)]:
        match what:
            case "write":
                written.append(batch_of_rows(given_))
                await store.write(written[-1])
            case "correct":
                await store.write(batch_of_rows(given_), CORRECTION)
            case "withdraw":
                name, first, quarters = given_
                span = START_NS + first * QUARTER_NS, START_NS + (first + quarters) * QUARTER_NS
                async for _ in withdraw(store, name, *span, CORRECTION):
                    pass
            case "compress":
                await store.compress(START_NS + 1000 * HOUR_NS)
            case "again":
                for batch_ in written:
                    await store.write(batch_)
        if rolls_up:
            await pipeline.drain()
            await store.refresh_gauges()

    steps = await store.pool.fetch(STEPS)
    gauges = await store.pool.fetch("SELECT * FROM ecmc.sample_15m ORDER BY point_id, start")
    assert [tuple(row) for row in gauges] == [tuple(row) for row in await store.pool.fetch(GAUGES)]
    assert [row["rolled_up"] for row in steps] == pytest.approx([row["kwh"] for row in steps], abs=1e-9)
    for family, keys, columns in (
        ("energy", "edge_id", ("energy_kwh", "estimated_kwh", "covered_s")),
        ("node", "node_id", ("in_kwh", "out_kwh", "residual_kwh", "through_kwh", "covered_s")),
        ("emission", "node_id, flow_id", ("emissions_kg", "through_kg")),
    ):
        sums = ", ".join(f"sum({name}) AS {name}" for name in columns)
        unlike = " OR ".join(
            f"(grouped.{name} = stored.{name} OR abs(grouped.{name} - stored.{name}) < 1e-9) IS NOT true"
            for name in columns
        )
        query = UNLIKE_HOURS.format(keys=keys, family=family, sums=sums, unlike=unlike)
        assert await store.pool.fetch(query) == []


async def emptied(store: PostgresStore) -> None:
    """As new, but for its registry."""
    rolled_up = [f"{family}_{level}" for family in ("energy", "node", "emission") for level in ("15m", "1h")]
    blocks = ["energy_block", "node_block", "emission_block", "stock", "stock_carbon", "run"]
    ledgers = ["sample", "latest_block", "correction", "dirty_range", "dirty_gauge", "sample_15m"]
    for table in (*rolled_up, *blocks, *ledgers):
        await store.pool.execute(f"TRUNCATE ecmc.{table}")
