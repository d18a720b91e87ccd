"""What the recordings are known to hold, and the traps their stamps set."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from core.clock import time_ns_of
from simulators.recording import recording, steel, steel_register, write_steel_import


def test_the_steel_year_has_every_quarter_hour_and_every_kilowatt_hour() -> None:
    year = steel()

    assert len(year) == 35_040
    assert set(np.diff(year.time_ns).tolist()) == {900 * 10**9}
    assert year.time_ns[0] == time_ns_of(datetime(2017, 12, 31, 15, tzinfo=UTC))
    assert year["energy_kwh"].sum() == pytest.approx(959_636.71, abs=1e-6)


def test_the_midnight_rows_stay_in_the_day_they_end() -> None:
    year = steel()

    # The row stamped "01/01/2018 00:00" is 1 January's last quarter hour, 3.42 kWh.
    assert year["energy_kwh"][95] == 3.42
    assert year.time_ns[95] == time_ns_of(datetime(2018, 1, 1, 14, 45, tzinfo=UTC))
    # The only row without load is stamped "07/11/2018 00:00", row index 29,855.
    assert np.flatnonzero(year["energy_kwh"] == 0).tolist() == [29_855]


def test_rounding_each_interval_loses_a_twelfth_of_the_carbon() -> None:
    year = steel()

    unrounded_t = year["energy_kwh"].sum() * 0.45848 / 1000

    assert unrounded_t == pytest.approx(439.97, abs=0.005)
    assert year["co2_t"].sum() == pytest.approx(403.81, abs=0.005)
    silent = (year["co2_t"] == 0) & (year["energy_kwh"] >= 10.91)
    assert np.count_nonzero(silent) == 47
    assert year["energy_kwh"][silent].sum() == pytest.approx(3_725.55, abs=0.005)


def test_the_steel_register_begins_at_nothing_and_ends_at_the_year() -> None:
    times, register_kwh = steel_register()

    assert len(times) == len(register_kwh) == 35_041
    assert (times[0], register_kwh[0]) == (datetime(2017, 12, 31, 15, tzinfo=UTC), 0.0)
    assert (times[-1], register_kwh[-1]) == (datetime(2018, 12, 31, 15, tzinfo=UTC), 959_636.71)
    assert register_kwh[1] == 3.17


def test_the_import_file_holds_one_line_a_reading(tmp_path: Path) -> None:
    file = tmp_path / "steel.csv.gz"

    written = write_steel_import(file, "feeder.energy")

    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    assert written == len(lines) - 1 == 35_041
    assert lines[:3] == [
        "point,time,value",
        "feeder.energy,2017-12-31T15:00:00Z,0.00",
        "feeder.energy,2017-12-31T15:15:00Z,3.17",
    ]
    assert lines[-1] == "feeder.energy,2018-12-31T15:00:00Z,959636.71"


def test_the_metal_works_profile_is_one_megawatt_hour_a_year() -> None:
    year = recording("metal_processing")

    assert len(year) == 35_040
    assert year["power_w_per_mwh_a"].sum() / 4 == pytest.approx(1e6, rel=1e-6)
    assert year.time_ns[0] == time_ns_of(datetime(2017, 12, 31, 23, tzinfo=UTC))


def test_holes_in_a_recording_are_nan_and_never_zero() -> None:
    pv = recording("pv_system50")

    assert len(pv) == 95_232
    assert np.count_nonzero(np.isnan(pv["power_kw"])) == 2_904
    assert np.nanmax(pv["power_kw"]) == pytest.approx(3.367927)


def test_stamps_off_the_raster_are_kept() -> None:
    roof = recording("pv_serf_west")
    compressor = recording("air_compressor")

    minutes = (roof.time_ns // 60_000_000_000) % 60
    steps_s = np.diff(compressor.time_ns) // 10**9

    assert set(minutes.tolist()) == {1, 16, 31, 46}
    assert (np.count_nonzero(steps_s == 10), np.count_nonzero(steps_s == 9)) == (910, 89)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("irradiance_system15", 165_588),
        ("pv_rsf2", 480),
        ("weather_rmis", 1_151),
        ("inverter_stale", 3_000),
        ("inverter_interpolated", 3_000),
    ],
)
def test_every_recording_reads(name: str, rows: int) -> None:
    read = recording(name)

    assert len(read) == rows
    assert all(column.shape == (rows,) and np.isfinite(column).any() for column in read.columns.values())
