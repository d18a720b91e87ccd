"""The engine's read: what lies inside, and just as much around it as interval energy needs."""

from __future__ import annotations

import numpy as np
import pytest

from core.clock import parse_rfc3339
from core.quality import BAD
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.postgres import PostgresStore

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
SPREAD_NS = 3600 * NS_PER_S


async def put(store: PostgresStore, point: str, *readings: tuple[int, float]) -> None:
    time_ns = [START_NS + at_s * NS_PER_S for at_s, _ in readings]
    await store.write(
        sample_batch(PointTable((point,)), [0] * len(readings), time_ns, [value for _, value in readings])
    )


async def seconds(store: PostgresStore, points: list[str], start_s: int, end_s: int) -> list[list[int]]:
    """Times read, in seconds, point by point."""
    got = await store.readings(points, START_NS + start_s * NS_PER_S, START_NS + end_s * NS_PER_S, SPREAD_NS)
    at_s = (got.time_ns - START_NS) // NS_PER_S
    return [at_s[got.point == i].tolist() for i in range(len(points))]


async def test_a_moving_register_brings_the_two_readings_before_and_the_three_after(
    store: PostgresStore,
) -> None:
    await put(store, "p0", *((i * 10, float(i)) for i in range(20)))

    assert await seconds(store, ["p0"], 95, 115) == [[80, 90, 100, 110, 120, 130, 140]]


async def test_a_plateau_before_brings_its_first_and_last_reading_and_the_one_before_it(
    store: PostgresStore,
) -> None:
    await put(store, "p0", (0, 1.0), (10, 2.0), (20, 3.0), (30, 3.0), (40, 3.0), (50, 4.0))

    assert await seconds(store, ["p0"], 45, 60) == [[10, 20, 40, 50]]


async def test_a_plateau_after_brings_its_first_reading_the_change_and_one_more(store: PostgresStore) -> None:
    await put(store, "p0", (0, 1.0), (10, 2.0), (20, 2.0), (30, 2.0), (40, 3.0), (50, 4.0), (60, 5.0))

    assert await seconds(store, ["p0"], 0, 5) == [[0, 10, 40, 50]]


async def test_a_plateau_longer_than_the_spread_is_followed_no_further(store: PostgresStore) -> None:
    await put(store, "p0", (0, 1.0), *((10 + i * 600, 2.0) for i in range(20)), (20_000, 3.0))

    # The plateau's last reading before is at 9,610 s; within an hour of it the first is at 6,010 s.
    assert await seconds(store, ["p0"], 10_000, 10_100) == [[5410, 6010, 9610, 10_210]]


async def test_context_is_found_however_long_a_point_was_silent(store: PostgresStore) -> None:
    year_s = 365 * 86_400
    await put(store, "p0", (0, 1.0), (10, 2.0), (year_s, 3.0), (2 * year_s, 4.0), (2 * year_s + 5, 5.0))

    assert await seconds(store, ["p0"], year_s, year_s + 60) == [[0, 10, year_s, 2 * year_s, 2 * year_s + 5]]


async def test_bad_readings_are_left_out_and_points_come_in_the_order_asked(store: PostgresStore) -> None:
    await put(store, "p1", (0, 1.0), (10, 2.0))
    await put(store, "p0", (0, 5.0), (20, 6.0))
    bad = sample_batch(PointTable(("p1",)), [0], [START_NS + 5 * NS_PER_S], [9.0], np.array([BAD]))
    await store.write(bad)

    assert await seconds(store, ["p1", "p5", "p0"], 0, 30) == [[0, 10], [], [0, 20]]


@pytest.mark.parametrize("seed", range(4))
async def test_context_is_what_a_plain_reading_of_its_definition_gives(
    store: PostgresStore, seed: int
) -> None:
    random = np.random.default_rng(seed)
    time_s = np.cumsum(random.integers(1, 900, 200))
    value = np.floor(np.cumsum(random.random(200) < 0.3))
    await put(store, "p0", *zip(time_s.tolist(), value.tolist(), strict=True))

    for start_s in random.integers(0, int(time_s[-1]), 12).tolist():
        end_s = start_s + 600
        assert await seconds(store, ["p0"], start_s, end_s) == [_expected(time_s, value, start_s, end_s)]


def _expected(time_s: np.ndarray, value: np.ndarray, start_s: int, end_s: int) -> list[int]:
    keep = set(np.flatnonzero((time_s >= start_s) & (time_s < end_s)).tolist())
    before, after = np.flatnonzero(time_s < start_s), np.flatnonzero(time_s >= end_s)
    if before.size:
        last = first = int(before[-1])
        while first > 0 and value[first - 1] == value[last] and time_s[first - 1] >= time_s[last] - 3600:
            first -= 1
        keep |= {last, first} | ({first - 1} if first > 0 else set())
    if after.size:
        following = int(after[0])
        keep.add(following)
        others = [
            i
            for i in after.tolist()
            if value[i] != value[following] and time_s[i] <= time_s[following] + 3600
        ]
        if others:
            keep |= {others[0]} | ({others[0] + 1} if others[0] + 1 < time_s.size else set())
    return [int(time_s[i]) for i in sorted(keep)]
