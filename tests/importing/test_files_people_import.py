"""Sample files in every form people keep them: the same rows, every fault at its place, little memory."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.clock import parse_rfc3339
from core.errors import Fault, FaultyInput
from core.files.by_day import ByDay
from core.files.importer import read_samples
from core.quality import BAD, GOOD, UNCERTAIN
from core.samples import PointTable, SampleBatch, concatenate, sample_batch

POINTS = PointTable(("a", "b", "中文"))
ZONE = ZoneInfo("Europe/Berlin")
ROWS = [
    ("a", "2026-03-02T00:00:00Z", 1.5, "good"),
    ("b", "2026-03-02T01:00:00+01:00", 2.25, "uncertain"),
    ("中文", "2026-03-02T00:00:00.000001Z", None, ""),
]


def read(path: Path, faults: list[Fault] | None = None) -> SampleBatch:
    found: list[Fault] = [] if faults is None else faults
    batch = concatenate(list(read_samples(path, POINTS, ZONE, found.append)))
    assert faults is not None or not found
    return batch


def as_csv(path: Path) -> None:
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in ROWS]
    path.write_text("point,time,value,quality\n" + "\n".join(lines), "utf-8")


def as_gb18030(path: Path) -> None:
    as_csv(path)
    path.write_bytes(path.read_text("utf-8").encode("gb18030"))


def with_bom(path: Path) -> None:
    as_csv(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def packed(path: Path) -> None:
    as_csv(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def as_xlsx(path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in [("Point", "Time", "Value", "Quality"), *ROWS]:
        sheet.append(row)
    book.save(path)


def as_parquet(path: Path) -> None:
    columns: dict[str, Any] = {
        name: [row[i] for row in ROWS] for i, name in enumerate(("point", "time", "value", "quality"))
    }
    columns["time"] = pa.array(
        [datetime.fromisoformat(t) for t in columns["time"]], pa.timestamp("us", "UTC")
    )
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("write", [as_csv, as_gb18030, with_bom, packed, as_xlsx, as_parquet])
def test_every_form_gives_the_same_rows(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "rows")

    batch = read(tmp_path / "rows")

    assert batch.names() == ["a", "b", "中文"]
    start_ns = parse_rfc3339("2026-03-02T00:00:00Z")
    assert batch.time_ns.tolist() == [start_ns, start_ns, start_ns + 1000]
    np.testing.assert_array_equal(batch.value, [1.5, 2.25, np.nan])
    assert batch.status.tolist() == [GOOD, UNCERTAIN, BAD]


def test_date_cells_of_a_workbook_are_the_plants_time(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(("point", "time", "value"))
    sheet.append(("a", datetime(2026, 7, 1, 8, 15), 1))
    sheet.append(("a", datetime(2026, 10, 25, 2, 30), 1))
    book.save(tmp_path / "rows.xlsx")
    faults: list[Fault] = []

    batch = read(tmp_path / "rows.xlsx", faults)

    assert batch.time_ns.tolist() == [parse_rfc3339("2026-07-01T06:15:00Z")]
    assert [(f.line, f.column) for f in faults] == [(3, 2)]
    assert "twice or never" in faults[0].reason


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ("nobody,2026-03-02T00:00:00Z,1,", 1, "unknown point 'nobody'"),
        ("a,2026-03-02T00:00:00,1,", 2, "zone wanted"),
        ("a,02/03/2026 00:00,1,", 2, "zone wanted"),
        ("a,0001-01-01T00:00:00Z,1,", 2, "a time from 1678 to 2261 wanted, got 0001-01-01"),
        ("a,9999-12-31T23:59:59Z,1,", 2, "a time from 1678 to 2261 wanted, got 9999-12-31"),
        ("a,2026-03-02T00:00:00Z,much,", 3, "a number wanted, got 'much'"),
        ("a,2026-03-02T00:00:00Z,inf,", 3, "finite"),
        ("a,2026-03-02T00:00:00Z,1,fine", 4, "good, uncertain or bad wanted"),
        ("a,2026-03-02T00:00:00Z", 1, "3 fields wanted, 2 found"),
    ],
)
def test_a_fault_is_named_at_its_line_and_column_and_the_rest_is_read(
    row: str, column: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    good = "a,2026-03-02T00:00:00Z,1,good"
    path.write_text("\n".join(["point,time,value,quality", good, "", row, good, row]))
    faults: list[Fault] = []

    batch = read(path, faults)

    assert len(batch) == 2
    assert [(f.line, f.column) for f in faults] == [(4, column), (6, column)]
    assert reason in faults[0].reason


def test_spaces_and_capitals_of_a_careless_file_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(" Point , TIME,value,quality,comment\n a , 2026-03-02T00:00:00Z , 5 , GOOD ,x\n")

    assert read(path).value.tolist() == [5.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"time,value\n", "header point,time,value"),
        (gzip.compress(b"point,time,value\n" * 9000)[:-20], "cannot be read"),
        (b"point,time,value\na,\xff\xff\xff", "neither UTF-8 nor GB18030"),
        (b"PK\x03\x04nothing", "cannot be read"),
        (b"PAR1nothing", "cannot be read"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old .xls"),
    ],
)
def test_a_file_that_is_none_says_so(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)

    with pytest.raises(FaultyInput, match=reason):
        read(path, [])


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FaultyInput, match="cannot be read"):
        read(tmp_path / "nowhere.csv", [])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-40_000, 400_000)), min_size=1, max_size=200),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 50),
)
def test_samples_by_day_are_the_sorted_samples_whatever_had_to_wait_on_disk(
    rows: list[tuple[int, int]], in_memory: int, added: int, taken: int
) -> None:
    batch = sample_batch(
        POINTS, [r[0] for r in rows], [r[1] * 1_000_000_000 for r in rows], np.arange(len(rows))
    )
    wanted = batch.take(np.argsort(batch.time_ns, kind="stable"))

    with ByDay(POINTS, in_memory) as by_day:
        for start in range(0, len(batch), added):
            by_day.add(batch.take(np.arange(start, min(start + added, len(batch)))))
        assert by_day.count == len(batch)
        got = list(by_day.batches(taken))

    assert all(len(part) < 2 * taken for part in got)
    both = concatenate(got)
    np.testing.assert_array_equal(both.time_ns, wanted.time_ns)
    np.testing.assert_array_equal(both.value, wanted.value)
    np.testing.assert_array_equal(both.point, wanted.point)


def test_what_waited_on_disk_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    batch = sample_batch(POINTS, [0] * 10, np.arange(10) * 10**15, np.arange(10.0))

    with suppress(KeyError), ByDay(POINTS, 1) as by_day:
        by_day.add(batch)
        assert list(tmp_path.iterdir())
        raise KeyError

    assert not list(tmp_path.iterdir())
