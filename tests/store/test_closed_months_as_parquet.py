"""Closed months of samples in files: others read them, and so does the store once the database has dropped them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest

from core.clock import parse_rfc3339
from core.errors import StoreUnavailable
from core.plant.model import Retention
from core.quality import BAD, UNCERTAIN
from core.registers.withdrawal import withdraw
from core.results import HOUR_NS
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.archive import Archive
from core.store.postgres import PostgresStore
from core.store.seam import Correction
from core.store.upkeep import tidy

FIRST_NS = parse_rfc3339("2026-01-10T00:00:00Z")
LAST_NS = parse_rfc3339("2026-04-20T00:00:00Z")
APRIL = "2026-04-01T00:00:00Z"
SPREAD_NS = 6 * HOUR_NS
NAMES = tuple(f"p{i}" for i in range(6))


def history() -> SampleBatch:
    """Registers that stand still for hours or days, one silent for weeks, one bad now and then."""
    random = np.random.default_rng(3)
    parts = []
    for point, (step_h, moves) in enumerate([(1, 0.9), (2, 0.3), (6, 0.05), (400, 0.5), (3, 0.5), (24, 0.0)]):
        time_ns = np.arange(FIRST_NS + point * NS_PER_S, LAST_NS, step_h * HOUR_NS)
        value = np.cumsum(random.random(time_ns.size) < moves).astype(float)
        status = np.where(random.random(time_ns.size) < (0.2 if point == 4 else 0), BAD, 0)
        status = np.where(random.random(time_ns.size) < 0.05, UNCERTAIN, status)
        value = np.where(status == BAD, np.nan, value)
        parts.append((np.full(time_ns.size, point), time_ns, value, status))
    point_, time_, value_, status_ = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sample_batch(PointTable(NAMES), point_, time_, value_, status_)


@pytest.fixture
async def filled(store: PostgresStore, tmp_path: Path) -> PostgresStore:
    """A store with the history, closed up to April, whose archive is empty."""
    store.archive = Archive(tmp_path / "parquet" / "samples")
    store.archive.begin()
    await store.write(history())
    await close_until(store, APRIL)
    return store


async def close_until(store: PostgresStore, until: str) -> None:
    await store.pool.execute(f"UPDATE ecmc.seal_horizon SET closed_until = '{until}'")


async def drop_all_old(store: PostgresStore) -> None:
    now_ns = parse_rfc3339("2026-06-01T00:00:00Z")
    await tidy(store, now_ns, Retention(feeding_days=20, other_days=20))


async def stored(store: PostgresStore) -> int:
    return int(await store.pool.fetchval("SELECT count(*) FROM ecmc.sample"))


def same(a: SampleBatch, b: SampleBatch) -> bool:
    return all(
        np.array_equal(getattr(a, column), getattr(b, column))
        for column in ("point", "time_ns", "value", "status")
    )


async def test_duckdb_and_arrow_read_every_closed_month_by_its_partition(filled: PostgresStore) -> None:
    assert filled.archive is not None
    await filled.archive.keep_up(filled.pool)
    wanted = [
        tuple(row)
        for row in await filled.pool.fetch(
            "SELECT to_char(time, 'YYYY-MM'), count(*), sum(value) FILTER (WHERE status >= 0) FROM ecmc.sample"
            f" WHERE time < '{APRIL}' GROUP BY 1 ORDER BY 1"
        )
    ]

    files = f"{filled.archive.folder}/*/*.parquet"
    query = f"SELECT month, count(*), sum(value) FROM read_parquet('{files}', hive_partitioning = true) GROUP BY 1 ORDER BY 1"
    by_duckdb = duckdb.sql(query).fetchall()
    by_arrow = ds.dataset(filled.archive.folder, partitioning="hive").to_table()

    assert by_duckdb == wanted
    assert [month for month, *_ in wanted] == ["2026-01", "2026-02", "2026-03"]
    assert by_arrow.num_rows == sum(count for _, count, _ in wanted)
    assert set(by_arrow["quality"].to_pylist()) == {"good", "uncertain", "bad"}


async def test_windows_read_the_same_after_the_database_has_dropped_their_samples(
    filled: PostgresStore,
) -> None:
    random = np.random.default_rng(5)
    starts = [*random.integers(FIRST_NS - 9 * 24 * HOUR_NS, LAST_NS, 40).tolist(), parse_rfc3339(APRIL)]
    windows = [
        (start // 1000 * 1000, start // 1000 * 1000 + int(length))
        for start, length in zip(
            starts, random.choice([HOUR_NS, 24 * HOUR_NS, 60 * 24 * HOUR_NS], 41), strict=True
        )
    ]
    archive, filled.archive = filled.archive, None
    wanted = [await filled.readings(NAMES, start, end, SPREAD_NS) for start, end in windows]
    filled.archive, before = archive, await stored(filled)

    await drop_all_old(filled)

    assert await stored(filled) < before / 2
    for (start, end), there in zip(windows, wanted, strict=True):
        here = await filled.readings(NAMES, start, end, SPREAD_NS)
        assert same(here, there), (start, end)


async def test_nothing_leaves_the_database_before_its_month_is_closed_and_filed(
    filled: PostgresStore,
) -> None:
    await close_until(filled, "2026-02-15T00:00:00Z")

    await drop_all_old(filled)

    assert filled.archive is not None
    assert len(filled.archive.months()) == 1
    oldest = await filled.pool.fetchval("SELECT min(time) FROM ecmc.sample")
    assert oldest.isoformat() < "2026-02-02"


async def test_a_late_sample_and_a_correction_bring_a_filed_month_up_to_date(filled: PostgresStore) -> None:
    assert filled.archive is not None
    await filled.archive.keep_up(filled.pool)
    files = {path: path.stat().st_mtime_ns for path in filled.archive.months().values()}
    february_ns = parse_rfc3339("2026-02-10T00:00:00Z")
    table = PointTable(("p0",))
    await filled.write(sample_batch(table, [0], [february_ns + 1000], [77.0]))
    await filled.write(sample_batch(table, [0], [february_ns], [88.0]), Correction("li", "misread", LAST_NS))

    await filled.archive.keep_up(filled.pool)
    await filled.archive.keep_up(filled.pool)

    changed = [path.parent.name for path in files if path.stat().st_mtime_ns != files[path]]
    assert changed == ["month=2026-02"]
    rows = filled.archive.rows({"p0": 0}, february_ns, february_ns + HOUR_NS)
    assert rows.value.tolist() == [88.0, 77.0]


async def test_what_is_taken_back_counts_at_once_though_its_file_still_has_it(filled: PostgresStore) -> None:
    assert filled.archive is not None
    await filled.archive.keep_up(filled.pool)
    start_ns, end_ns = parse_rfc3339("2026-02-10T00:00:00Z"), parse_rfc3339("2026-02-11T00:00:00Z")
    correction = Correction("li", "wrong register", LAST_NS)

    gone = [part async for part in withdraw(filled, "p0", start_ns, end_ns, correction)]

    readings = await filled.readings(("p0",), start_ns, end_ns, SPREAD_NS)
    inside = (readings.time_ns >= start_ns) & (readings.time_ns < end_ns)
    assert sum(map(len, gone)) == 24
    assert not inside.any()


async def test_a_late_sample_for_a_dropped_month_joins_those_in_its_file(filled: PostgresStore) -> None:
    assert filled.archive is not None
    await drop_all_old(filled)
    january_ns = parse_rfc3339("2026-01-20T00:00:00Z")
    before = len(filled.archive.rows({"p0": 0}, FIRST_NS, january_ns))
    await filled.write(sample_batch(PointTable(("p0",)), [0], [january_ns - 1000], [5.5]))

    at_once = await filled.readings(["p0"], january_ns - 2 * HOUR_NS, january_ns, SPREAD_NS)
    await drop_all_old(filled)

    inside = at_once.value[(at_once.time_ns >= january_ns - 2 * HOUR_NS) & (at_once.time_ns < january_ns)]
    assert 5.5 in inside.tolist()
    assert inside.size == 3
    assert len(filled.archive.rows({"p0": 0}, FIRST_NS, january_ns)) == before + 1


async def test_a_store_knows_what_it_can_compute_from_files(filled: PostgresStore) -> None:
    await drop_all_old(filled)

    with_files = await filled.computable_from(NAMES)
    filled.archive = None
    without = await filled.computable_from(NAMES)

    assert with_files is None
    assert without is not None
    assert without > parse_rfc3339("2026-03-25T00:00:00Z")


async def test_a_month_that_cannot_be_filed_keeps_its_samples(filled: PostgresStore) -> None:
    assert filled.archive is not None
    filled.archive.folder.rmdir()
    filled.archive.folder.write_text("in the way")
    before = await stored(filled)

    with pytest.raises(StoreUnavailable, match="mend it"):
        await drop_all_old(filled)

    assert await stored(filled) == before


async def test_a_damaged_file_is_named_and_nothing_is_dropped_on_its_word(filled: PostgresStore) -> None:
    assert filled.archive is not None
    await filled.archive.keep_up(filled.pool)
    before = await stored(filled)
    for path in filled.archive.months().values():
        path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(StoreUnavailable, match="put its files back"):
        await filled.readings(NAMES, FIRST_NS, FIRST_NS + HOUR_NS, SPREAD_NS)
    with pytest.raises(StoreUnavailable, match="put its files back"):
        await drop_all_old(filled)

    assert await stored(filled) == before
