"""Whatever is shuffled, late, repeated, disputed or corrected, the tables end as they should."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.clock import parse_rfc3339
from core.quality import BAD, BAD_TIMEOUT, BAD_WITHDRAWN, GOOD, UNCERTAIN
from core.registers.withdrawal import withdraw
from core.samples import NS_PER_S, PointTable, batch_of_rows, sample_batch
from core.store.postgres import PostgresStore
from core.store.seam import Correction

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
DAY_NS = 86_400 * NS_PER_S
Row = tuple[str, int, float, int]


def rows(*given: tuple[str, float, float, int]) -> list[Row]:
    return [(point, START_NS + round(at_s * NS_PER_S), value, status) for point, at_s, value, status in given]


async def stored(store: PostgresStore) -> list[tuple[str, float, float, int]]:
    """All of `sample` as (point, seconds after START_NS, value, status)."""
    found = await store.pool.fetch(
        "SELECT p.name, extract(epoch FROM s.time)::float8 AS at, s.value, s.status"
        " FROM ecmc.sample AS s JOIN ecmc.point AS p ON p.id = s.point_id ORDER BY 1, 2"
    )
    return [(r["name"], r["at"] - START_NS / NS_PER_S, r["value"], r["status"]) for r in found]


async def test_a_batch_is_there_after_the_write_and_newest_values_beside_it(store: PostgresStore) -> None:
    batch = batch_of_rows(
        rows(("p0", 2, 12.0, GOOD), ("p1", 1, math.nan, BAD_TIMEOUT), ("p0", 1, 11.0, UNCERTAIN))
    )

    report = await store.write(batch)

    latest = await store.latest(["p1", "p0", "p5"])
    page = await store.samples("p0", START_NS, START_NS + DAY_NS, limit=10)
    assert (report.accepted, report.repeated, report.conflict_count) == (3, 0, 0)
    assert dict(zip(latest.points, latest.status.tolist(), strict=True)) == {"p0": GOOD, "p1": BAD_TIMEOUT}
    assert dict(zip(latest.points, latest.time_ns.tolist(), strict=True))["p0"] == START_NS + 2 * NS_PER_S
    assert page.value.tolist() == [11.0, 12.0]
    assert page.status.tolist() == [UNCERTAIN, GOOD]


async def test_pages_of_samples_follow_each_other_without_a_gap(store: PostgresStore) -> None:
    await store.write(batch_of_rows(rows(*(("p0", i, float(i), GOOD) for i in range(7)))))

    first = await store.samples("p0", START_NS, START_NS + DAY_NS, limit=3)
    then = await store.samples("p0", START_NS, START_NS + DAY_NS, limit=9, after_ns=int(first.time_ns[-1]))

    assert [*first.value, *then.value] == [0, 1, 2, 3, 4, 5, 6]


async def test_the_same_batch_again_changes_nothing_and_makes_nothing_dirty(store: PostgresStore) -> None:
    batch = batch_of_rows(rows(("p0", 1, 1.0, GOOD), ("p1", 1, math.nan, BAD)))
    await store.write(batch)
    await store.forget_dirty([r.id for r in await store.dirty()])

    report = await store.write(batch)

    assert (report.accepted, report.repeated) == (0, 2)
    assert await store.dirty() == []


async def test_a_good_value_replaces_a_bad_one_and_any_other_difference_is_reported(
    store: PostgresStore,
) -> None:
    await store.write(
        batch_of_rows(rows(("p0", 1, math.nan, BAD), ("p0", 2, 5.0, GOOD), ("p0", 3, 7.0, UNCERTAIN)))
    )

    report = await store.write(
        batch_of_rows(
            rows(("p0", 1, 4.0, GOOD), ("p0", 2, 6.0, GOOD), ("p0", 3, 8.0, BAD), ("p0", 4, 9.0, GOOD))
        )
    )

    assert (report.accepted, report.replaced, report.conflict_count) == (2, 1, 2)
    assert [(c.point, c.stored, c.offered) for c in report.conflicts] == [("p0", 5.0, 6.0), ("p0", 7.0, 8.0)]
    assert [(value, status) for _, _, value, status in await stored(store)] == [
        (4.0, GOOD),
        (5.0, GOOD),
        (7.0, UNCERTAIN),
        (9.0, GOOD),
    ]
    assert (await store.latest(["p0"])).value.tolist() == [9.0]


async def test_a_correction_takes_over_and_keeps_the_old_value_with_who_and_why(store: PostgresStore) -> None:
    await store.write(batch_of_rows(rows(("p0", 1, 5.0, GOOD), ("p0", 2, 6.0, GOOD))))
    await store.forget_dirty([r.id for r in await store.dirty()])
    correction = Correction("li", "misread", START_NS)

    report = await store.write(batch_of_rows(rows(("p0", 1, 5.5, GOOD), ("p0", 2, 6.0, GOOD))), correction)

    kept = await store.pool.fetchrow("SELECT old_value, new_value, who, why FROM ecmc.correction")
    dirty = await store.dirty()
    assert (report.corrected, report.repeated, report.conflict_count) == (1, 1, 0)
    assert tuple(kept) == (5.0, 5.5, "li", "misread")
    assert [(r.reason, r.points, r.start_ns) for r in dirty] == [("correction", ("p0",), START_NS + NS_PER_S)]


async def test_what_was_corrected_does_not_come_back_with_the_next_delivery(store: PostgresStore) -> None:
    given = batch_of_rows(rows(("p0", 1, 5.0, GOOD), ("p0", 2, 6.0, GOOD), ("p0", 3, 7.0, GOOD)))
    await store.write(given)
    correction = Correction("li", "misread", START_NS)
    said = rows(("p0", 1, math.nan, BAD), ("p0", 2, 6.5, UNCERTAIN))
    await store.write(batch_of_rows(said), correction)

    again = await store.write(given)

    assert (again.accepted, again.repeated, again.conflict_count) == (0, 1, 2)
    assert repr([(v, s) for _, _, v, s in await stored(store)]) == repr(
        [(math.nan, BAD), (6.5, UNCERTAIN), (7.0, GOOD)]
    )


async def test_samples_taken_back_leave_their_key_missing_and_their_value_on_record(
    store: PostgresStore,
) -> None:
    given = batch_of_rows(rows(*(("p0", i, float(i), GOOD) for i in range(5)), ("p0", 5, math.nan, BAD)))
    await store.write(given)
    await store.forget_dirty([r.id for r in await store.dirty()])
    correction = Correction("li", "wired to the wrong feeder", START_NS)
    until_ns = START_NS + 6 * NS_PER_S

    gone = [part async for part in withdraw(store, "p0", START_NS + 2 * NS_PER_S, until_ns, correction)]

    again = await store.write(given)
    kept = await store.corrections(["p0"], START_NS, until_ns, 10)
    assert [len(part) for part in gone] == [3]
    assert [status for *_, status in await stored(store)] == [GOOD, GOOD, *[BAD_WITHDRAWN] * 3, BAD]
    assert (again.repeated, again.conflict_count) == (3, 3)
    assert sorted(c.old for c in kept) == [2.0, 3.0, 4.0]
    assert {(math.isnan(c.new), c.who, c.why) for c in kept} == {(True, "li", "wired to the wrong feeder")}
    assert [(r.reason, r.points) for r in await store.dirty()] == [("correction", ("p0",))]


async def test_an_unknown_point_is_named_and_the_rest_of_the_batch_lands(store: PostgresStore) -> None:
    report = await store.write(batch_of_rows(rows(("p0", 1, 1.0, GOOD), ("nobody", 1, 2.0, GOOD))))

    assert (report.accepted, report.unknown_points) == (1, ("nobody",))


async def test_samples_of_any_age_find_room(store: PostgresStore) -> None:
    old_ns = [parse_rfc3339(f"{year}-06-15T12:00:00Z") for year in (1969, 1999, 2019, 2031)]

    report = await store.write(sample_batch(PointTable(("p0",)), [0] * 4, old_ns, [1.0, 2.0, 3.0, 4.0]))

    assert report.accepted == 4
    assert await store.span() == (old_ns[0], old_ns[-1])


async def test_the_ledger_tells_changes_far_apart_apart(store: PostgresStore) -> None:
    await store.write(
        batch_of_rows(rows(("p0", 0, 1.0, GOOD), ("p1", 90_000, 2.0, GOOD), ("p2", 90_060, 2.0, GOOD)))
    )

    dirty = await store.dirty()

    assert [
        ((r.start_ns - START_NS) // NS_PER_S, (r.end_ns - START_NS) // NS_PER_S, r.points) for r in dirty
    ] == [
        (0, 0, ("p0",)),
        (90_000, 90_060, ("p1", "p2")),
    ]


async def test_many_writers_of_overlapping_batches_lose_and_double_nothing(store: PostgresStore) -> None:
    table = PointTable(("p0", "p1", "p2"))
    time_ns = START_NS + np.arange(300) * NS_PER_S
    batches = [
        sample_batch(
            table,
            np.repeat([0, 1, 2], 100),
            np.tile(time_ns[i : i + 100], 3),
            np.tile(np.arange(i, i + 100), 3),
        )
        for i in range(0, 201, 20)
    ]

    reports = await asyncio.gather(*(store.write(batch) for batch in batches))

    assert sum(r.accepted for r in reports) == 900
    assert sum(r.repeated for r in reports) == 300 * len(batches) - 900
    assert [value for _, at_s, value, _ in await stored(store) if at_s != value] == []


async def test_two_processes_keep_the_newest_values_together(
    store: PostgresStore, store_dsn: str, plant: Any
) -> None:
    """Each remembers what it wrote itself, and what it remembers is soon no longer what stands."""
    other = await PostgresStore.open(store_dsn, plant)
    random = np.random.default_rng(7)
    table = PointTable(("p0", "p1", "p2", "p3"))

    async def write(mine: PostgresStore, first: int) -> None:
        for step in range(first, 40, 2):
            point = np.flatnonzero(random.random(4) < 0.6)
            late_s = random.integers(-50, 1, point.size)
            batch = sample_batch(
                table, point, START_NS + (step + late_s) * NS_PER_S, random.random(point.size)
            )
            await mine.write(batch)

    await asyncio.gather(write(store, 0), write(other, 1))
    await other.close()

    assert await newest_values(store) == await newest_of_samples(store)


async def newest_values(store: PostgresStore) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await store.pool.fetch(_LATEST + "ecmc.latest ORDER BY 1")]


async def newest_of_samples(store: PostgresStore) -> list[tuple[Any, ...]]:
    newest = (
        "(SELECT DISTINCT ON (point_id) *, min(time) OVER (PARTITION BY point_id) AS first_time"
        " FROM ecmc.sample ORDER BY point_id, time DESC) AS newest ORDER BY 1"
    )
    return [tuple(row) for row in await store.pool.fetch(_LATEST + newest)]


_LATEST = "SELECT point_id, time, value::text, status, first_time FROM "


sample = st.tuples(
    st.sampled_from(["p0", "p1"]),
    st.sampled_from([0.0, 1.0, 2.0, 3600.0, 700_000.0]),
    st.sampled_from([1.0, 2.0, math.nan]),
    st.sampled_from([GOOD, UNCERTAIN, BAD]),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batches=st.lists(st.lists(sample, min_size=1, max_size=12), min_size=1, max_size=5), data=st.data())
async def test_any_history_ends_in_the_tables_the_rule_says(
    store: PostgresStore, batches: list[list[tuple[str, float, float, int]]], data: st.DataObject
) -> None:
    """The oracle is the contract's rule played over a dictionary, batch by batch."""
    for table in ("sample", "latest_block", "dirty_range"):
        await store.pool.execute(f"TRUNCATE ecmc.{table}")
    standing: dict[tuple[str, float], tuple[float, int]] = {}
    counts = defaultdict(int)

    for batch in batches:
        # Within a batch the order is no matter: the best of each key first, then the smallest.
        shuffled = data.draw(st.permutations(batch))
        report = await store.write(batch_of_rows(rows(*shuffled)))
        clean = [(p, t, v, BAD if math.isnan(v) and s == GOOD else s) for p, t, v, s in batch]
        for point, at_s, value, status in sorted(clean, key=_standing_order):
            counts[_offered(standing, (point, at_s), value, status)] += 1
        counts["told accepted"] += report.accepted
        counts["told repeated"] += report.repeated
        counts["told conflict"] += report.conflict_count

    found = {(p, t): (v, s) for p, t, v, s in await stored(store)}
    assert repr(sorted(found.items())) == repr(sorted(standing.items()))
    assert counts["told accepted"] == counts["accepted"]
    assert counts["told accepted"] + counts["told repeated"] + counts["told conflict"] == sum(
        map(len, batches)
    )
    assert await newest_values(store) == await newest_of_samples(store)


def _standing_order(row: tuple[str, float, float, int]) -> tuple[int, float, int]:
    _, _, value, status = row
    rank = 0 if status == GOOD else 2 if status < 0 else 1
    return rank, math.inf if math.isnan(value) else value, status


def _offered(
    standing: dict[tuple[str, float], tuple[float, int]], key: tuple[str, float], value: float, status: int
) -> str:
    if key not in standing:
        standing[key] = (value, status)
        return "accepted"
    if status == GOOD and standing[key][1] != GOOD:
        standing[key] = (value, status)
        return "accepted"
    return "not accepted"


@pytest.mark.parametrize("seed", range(3))
async def test_a_shuffled_import_with_repeats_ends_in_identical_rows(store: PostgresStore, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = PointTable(("p0", "p1", "p2", "p3"))
    point = np.tile(np.arange(4), 500)
    time_ns = START_NS + np.repeat(np.arange(500), 4) * 900 * NS_PER_S
    value = np.arange(2000) * 0.1
    order = random.permutation(np.concatenate([np.arange(2000), random.integers(0, 2000, 300)]))

    for part in np.array_split(order, 7):
        await store.write(sample_batch(table, point[part], time_ns[part], value[part]))

    assert [round(v, 9) for _, _, v, _ in await stored(store)] == [
        round(float(v), 9) for p in range(4) for v in value[point == p]
    ]
