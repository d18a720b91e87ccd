"""Recordings of real plants come in through `ecmc import` as they were measured: gaps, odd raster, night-time watts."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.clock import rfc3339
from core.quality import is_bad
from core.samples import NS_PER_S, SampleBatch
from core.store.postgres import PostgresStore
from ecmc.folder import read_plant
from simulators.recording import FOLDER, Recording, recording

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def roof(tmp_path: Path) -> Path:
    """A plant whose roof is known by its power alone."""
    folder = tmp_path / "roof"
    folder.mkdir()
    (folder / "plant.yaml").write_text(
        """\
plant: roof
name: {zh: 屋顶, en: Roof}
zone: America/Denver
region: CN-CQ
base_interval_s: 900
method_sets: [zero-carbon-factory]
network:
  nodes:
    - {id: sun, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: hall, kind: load, carrier: electricity}
  edges:
    - {id: e-roof, from: sun, to: hall, meter: roof}
""",
        "utf-8",
    )
    (folder / "points.csv").write_text(
        "point,device,name,quantity,unit,period_s\n"
        "roof,,,active_power_total,kW,900\noil,,,temperature,degC,10\n",
        "utf-8",
    )
    return folder


def written(file: Path, point: str, given: Recording, column: str) -> Path:
    """A recording's column as people would hand it over; what was not measured is empty."""
    cells = ["" if np.isnan(v) else repr(v) for v in given[column].tolist()]
    lines = [f"{point},{rfc3339(t)},{cell}" for t, cell in zip(given.time_ns.tolist(), cells, strict=True)]
    file.write_bytes(gzip.compress("\n".join(["point,time,value", *lines]).encode(), 1))
    return file


def stored(dsn: str, plant: Path, point: str) -> SampleBatch:
    async def read() -> SampleBatch:
        store = await PostgresStore.open(dsn, read_plant(plant))
        batch = await store.samples(point, 0, 2**62, 200_000)
        await store.close()
        return batch

    return asyncio.run(read())


def test_two_months_of_a_roof_with_their_missing_quarters(
    cli: Cli, roof: Path, database: str, tmp_path: Path
) -> None:
    year = recording("pv_system50")
    excerpt = slice(0, 6_000)
    given = Recording(year.time_ns[excerpt], {"power_kw": year["power_kw"][excerpt]})
    file = written(tmp_path / "roof.csv.gz", "roof", given, "power_kw")

    done = cli("import", file, "--plant", roof, "--dsn", database)

    assert "accepted 6000, repeated 0, conflicting 0, faulty 0" in done.stdout
    batch = stored(database, roof, "roof")
    np.testing.assert_array_equal(batch.value, given["power_kw"][np.argsort(given.time_ns)])
    np.testing.assert_array_equal(is_bad(batch.status), np.isnan(batch.value))
    assert is_bad(batch.status).sum() > 0

    async def energy_kwh() -> float:
        store = await PostgresStore.open(database, read_plant(roof))
        rows = await store.energy(["e-roof"], int(batch.time_ns[0]), int(batch.time_ns[-1]), "1y")
        await store.close()
        return float(np.nansum(rows.columns["energy_kwh"]))

    measured_kwh = np.nansum(given["power_kw"]) / 4
    assert asyncio.run(energy_kwh()) == pytest.approx(measured_kwh, rel=0.01)


def test_an_odd_raster_is_kept_to_the_second(cli: Cli, roof: Path, database: str, tmp_path: Path) -> None:
    serf, compressor = recording("pv_serf_west"), recording("air_compressor")
    files = [
        written(tmp_path / "roof.csv.gz", "roof", serf, "power_kw"),
        written(tmp_path / "oil.csv.gz", "oil", compressor, "oil_temperature_degc"),
    ]

    for file in files:
        assert cli("import", file, "--plant", roof, "--dsn", database).returncode == 0

    minutes = set((stored(database, roof, "roof").time_ns // (60 * NS_PER_S) % 15).tolist())
    steps_s = set((np.diff(stored(database, roof, "oil").time_ns) // NS_PER_S).tolist())
    assert minutes == {1}
    assert steps_s == {9, 10}


def test_a_recording_as_it_was_published_is_refused_with_the_header_wanted(
    cli: Cli, roof: Path, database: str
) -> None:
    done = cli("import", FOLDER / "pv_nrel_serf_west_15min_5d.csv.gz", "--plant", roof, "--dsn", database)

    assert done.returncode == 2
    assert "header point,time,value[,quality] wanted" in done.stdout
