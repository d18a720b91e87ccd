"""What is exported reads back as what is stored, in every form; and says no plainly."""

from __future__ import annotations

import asyncio
import csv
import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow.parquet as pq
import pytest

from core.clock import parse_rfc3339
from core.errors import BadRequest, FaultyInput
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.postgres import PostgresStore
from ecmc.command import import_samples, settle
from ecmc.export import Basis, BucketWidth, What, export
from ecmc.folder import read_plant

START, END = "2026-03-02T00:00:00Z", "2026-03-03T00:00:00Z"
START_NS = parse_rfc3339(START)
FORMS = ["rows.csv", "rows.csv.gz", "rows.xlsx", "rows.parquet"]


@pytest.fixture
def stored(plant_folder: Path, database: str) -> str:
    """A database with a day of samples, one of them missing, and their results."""

    async def fill() -> None:
        plant = read_plant(plant_folder)
        store = await PostgresStore.open(database, plant)
        n = 96 * 15
        time_ns = START_NS + np.arange(n) * 60 * NS_PER_S
        value = np.cumsum(np.random.default_rng(1).uniform(0, 1, n))
        table = PointTable(("a", "t"))
        await store.write(sample_batch(table, [0] * n, time_ns, value))
        await store.write(
            sample_batch(
                table, [1] * 3, START_NS + np.array([0, 1, 2]) * 1000, [1.1, np.nan, -3], [0, -32768, 16384]
            )
        )
        await settle(plant, store)
        await store.close()

    asyncio.run(fill())
    return database


def rows_of(dsn: str, plant_folder: Path) -> dict[str, list[tuple[int, float, int]]]:
    async def read() -> dict[str, list[tuple[int, float, int]]]:
        store = await PostgresStore.open(dsn, read_plant(plant_folder))
        found: dict[str, list[tuple[int, float, int]]] = {}
        for point in ("a", "t"):
            batch = await store.samples(point, 0, 2**62, 10_000)
            found[point] = [
                (t, v, s)
                for t, v, s in zip(
                    batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist(), strict=True
                )
            ]
        await store.close()
        return found

    return asyncio.run(read())


def read_table(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    if file.suffix == ".xlsx":
        sheet = openpyxl.load_workbook(file).worksheets[0]
        head, *body = sheet.iter_rows(values_only=True)
        return [dict(zip(map(str, head), row, strict=True)) for row in body]
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return list(csv.DictReader(text.decode("utf-8").splitlines()))


def test_exported_samples_imported_elsewhere_are_the_same_rows(
    stored: str, plant_folder: Path, databases: Any, tmp_path: Path
) -> None:
    here = rows_of(stored, plant_folder)
    for name in FORMS:
        other = databases.new()

        export(What.SAMPLES, tmp_path / name, plant_folder, START, END, dsn=stored)
        report = asyncio.run(import_samples(read_plant(plant_folder), tmp_path / name, None, other))

        assert (report.accepted, report.faults) == (1443, 0)
        there = rows_of(other, plant_folder)
        for point, rows in here.items():
            assert [(t, s) for t, _, s in there[point]] == [(t, s) for t, _, s in rows]
            digits = 1e-15 if name.endswith(".xlsx") else 0  # a workbook keeps 16 of them
            np.testing.assert_allclose([v for _, v, _ in there[point]], [v for _, v, _ in rows], rtol=digits)


def test_exported_energy_and_emissions_are_the_stores_own_figures(
    stored: str, plant_folder: Path, tmp_path: Path
) -> None:
    async def ask() -> tuple[list[float], list[float]]:
        store = await PostgresStore.open(stored, read_plant(plant_folder))
        end_ns = parse_rfc3339(END)
        energy = await store.energy(["e-press"], START_NS, end_ns, "1h")
        carbon = await store.emissions(["press"], START_NS, end_ns, "1h", "location", "zero-carbon-factory")
        await store.close()
        assert carbon.flow is not None
        scope_2 = np.array([flow.scope == 2 for flow in carbon.flows])[carbon.flow]
        return energy.columns["energy_kwh"].tolist(), carbon.columns["emissions_kgco2e"][scope_2].tolist()

    energy_wanted, carbon_wanted = asyncio.run(ask())
    for name in FORMS:
        export(What.ENERGY, tmp_path / name, plant_folder, START, END, dsn=stored)
        energy = [float(row["energy_kwh"]) for row in read_table(tmp_path / name)]
        export(What.EMISSIONS, tmp_path / name, plant_folder, START, END, node=["press"], dsn=stored)
        carbon = [float(r["emissions_kgco2e"]) for r in read_table(tmp_path / name) if r["scope"] in (2, "2")]

        digits = 1e-15 if name.endswith(".xlsx") else 0  # a workbook keeps 16 of them
        assert len(energy) == 24
        np.testing.assert_allclose(energy, energy_wanted, rtol=digits)
        np.testing.assert_allclose(carbon, carbon_wanted, rtol=digits)


def test_pieces_of_a_long_export_cut_no_bucket(stored: str, plant_folder: Path, tmp_path: Path) -> None:
    export(What.ENERGY, tmp_path / "day.csv", plant_folder, START, END, dsn=stored)
    export(
        What.ENERGY,
        tmp_path / "years.csv",
        plant_folder,
        "2025-01-01T00:00:00Z",
        "2027-01-01T00:00:00Z",
        dsn=stored,
    )

    assert (tmp_path / "years.csv").read_text() == (tmp_path / "day.csv").read_text()


def test_a_workbook_has_dates_to_calculate_with(stored: str, plant_folder: Path, tmp_path: Path) -> None:
    export(What.ENERGY, tmp_path / "rows.xlsx", plant_folder, START, END, bucket=BucketWidth.D1, dsn=stored)

    first = read_table(tmp_path / "rows.xlsx")[0]
    assert first["local_time"].isoformat() == "2026-03-02T00:00:00"


def test_nothing_to_write_is_a_file_with_a_header(database: str, plant_folder: Path, tmp_path: Path) -> None:
    for name in FORMS:
        export(What.SAMPLES, tmp_path / name, plant_folder, START, END, dsn=database)

        assert read_table(tmp_path / name) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"file": "rows.txt"}, "one of csv, csv.gz, xlsx, parquet wanted"),
        ({"end": START}, "is not after"),
        ({"start": "yesterday"}, "not an RFC 3339 time"),
        ({"what": What.ENERGY, "edge": ["nowhere"]}, "unknown edge 'nowhere'"),
        ({"what": What.EMISSIONS, "node": ["nowhere"]}, "unknown node 'nowhere'"),
        ({"what": What.EMISSIONS, "method_set": "mine"}, "unknown method set 'mine'"),
        ({"point": ["nowhere"]}, "unknown point 'nowhere'"),
    ],
)
def test_what_cannot_be_meant_is_said_and_leaves_no_file(
    words: dict[str, Any], reason: str, database: str, plant_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / words.pop("file", "rows.csv")
    given = {"what": What.SAMPLES, "start": START, "end": END, "basis": Basis.LOCATION, **words}

    with pytest.raises(BadRequest, match=reason):
        export(file=file, plant=plant_folder, dsn=database, **given)

    assert [path.name for path in tmp_path.iterdir()] == ["plant"]


def test_a_folder_that_is_not_there_is_a_fault(database: str, plant_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FaultyInput, match="cannot be written"):
        export(What.SAMPLES, tmp_path / "no" / "rows.csv", plant_folder, START, END, dsn=database)


def test_the_command_says_how_many_rows_it_wrote(
    cli: Callable[..., subprocess.CompletedProcess[str]], stored: str, plant_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "day"
    words = ["export", "samples", file, "--plant", plant_folder, "--start", START, "--end", END]

    done = cli(*words, "--point", "t", "--format", "csv.gz", "--dsn", stored)

    assert done.stdout == f"{file}: 3 rows\n"
    assert (
        gzip.decompress(file.read_bytes()).decode().splitlines()[2]
        == "t,2026-03-02T00:00:00.000001Z,,bad,-32768,degC"
    )
