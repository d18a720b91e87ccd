"""Measured load, generation and weather, read into clean columns.

Each file has its own way of stamping time, and reading one naively is a trap:
the steel set stamps the END of each quarter hour but writes the date of its
START, so its midnight rows stand a day early; others have no zone, or a fixed
offset. Here every row gets the time its interval STARTS, in UTC, and every
column is named with its unit. What the files are and who measured them stands
in recordings/README.md.

    python -m simulators.recording steel.csv.gz    # the steel works as an import file
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import numpy as np

from core.clock import rfc3339, time_ns_of
from core.samples import NS_PER_S, Floats, Times

FOLDER: Final = Path(__file__).parent / "recordings"
QUARTER_S: Final = 900

_KOREA: Final = timezone(timedelta(hours=9))
_MOUNTAIN: Final = timezone(timedelta(hours=-7))  # NREL's loggers know no daylight saving


@dataclass(frozen=True, slots=True)
class Recording:
    """Columns over one time axis.

    Attributes:
        time_ns: Shape (n,), UTC; where the interval starts, or the moment of a momentary reading.
        columns: Each of shape (n,), NaN where the recording has a hole; the name ends in the unit.
    """

    time_ns: Times
    columns: Mapping[str, Floats]

    def __getitem__(self, column: str) -> Floats:
        return self.columns[column]

    def __len__(self) -> int:
        return int(self.time_ns.size)


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _us_date(text: str) -> datetime:
    return datetime.strptime(text, "%m/%d/%Y %H:%M")


@dataclass(frozen=True, slots=True)
class _File:
    """One recording's file: `columns` maps our names to the file's, with a factor to our unit."""

    name: str
    stamp: str
    columns: Mapping[str, tuple[str, float]]
    parse: Callable[[str], datetime] = _iso
    zone: timezone = timezone.utc  # noqa: UP017 - for stamps that bear none


_FILES: Final = {
    "metal_processing": _File(
        "metal_processing_15min.csv.gz", "interval_start", {"power_w_per_mwh_a": ("watt_per_MWh_a", 1.0)}
    ),
    "pv_system50": _File("pv_nrel_system50_15min.csv.gz", "measured_on", {"power_kw": ("ac_power_w", 1e-3)}),
    "irradiance_system15": _File(
        "pv_nrel_system15_poa_15min.csv.gz", "measured_on", {"irradiance_w_m2": ("poa_w_m2", 1.0)}
    ),
    "pv_rsf2": _File(
        "pv_nrel_rsf2_15min_5d.csv.gz",
        "measured_on",
        {
            "power_kw": ("ac_power_kw_1137", 1.0),
            "inverter_2_power_kw": ("inv2_ac_power_w__1047", 1e-3),
            "inverter_temperature_degc": ("inv2_temp__1050", 1.0),
            "module_temperature_degc": ("module_temp__1056", 1.0),
            "ambient_temperature_degc": ("ambient_temp__1053", 1.0),
            "irradiance_w_m2": ("poa_irradiance__1055", 1.0),
            "wind_m_s": ("wind_speed__1051", 1.0),
        },
        _us_date,
        _MOUNTAIN,
    ),
    "pv_serf_west": _File(
        "pv_nrel_serf_west_15min_5d.csv.gz",
        "measured_on",
        {
            "power_kw": ("ac_power__773", 1e-3),
            "dc_power_kw": ("dc_power__772", 1e-3),
            "current_a": ("ac_current__779", 1.0),
            "voltage_v": ("ac_volts__778", 1.0),
            "ambient_temperature_degc": ("ambient_temp__780", 1.0),
            "module_temperature_degc": ("module_temp_1__781", 1.0),
            "irradiance_w_m2": ("poa_irradiance__771", 1.0),
        },
        zone=_MOUNTAIN,
    ),
    "weather_rmis": _File(
        "weather_nrel_rmis_5min_4d.csv.gz",
        "measured_on",
        {
            "ambient_temperature_degc": ("Ambient Temperature", 1.0),
            "pressure_kpa": ("Barometric Pressure", 0.1),
            "irradiance_w_m2": ("Global Horizontal", 1.0),
            "humidity_percent": ("Relative Humidity", 1.0),
            "wind_m_s": ("Wind Speed", 1.0),
        },
        _us_date,
        _MOUNTAIN,
    ),
    "inverter_stale": _File(
        "pv_inverter_stale_labelled_15min.csv.gz",
        "timestamp",
        {"power_share": ("value_normalized", 1.0), "is_stale": ("stale_data_mask", 1.0)},
    ),
    "inverter_interpolated": _File(
        "pv_inverter_interpolated_labelled_15min.csv.gz",
        "timestamp",
        {"power_share": ("value_normalized", 1.0), "is_interpolated": ("interpolated_data_mask", 1.0)},
    ),
    "air_compressor": _File(
        "air_compressor_metropt3_10s.csv.gz",
        "timestamp",
        {
            "outlet_pressure_kpa": ("TP3", 100.0),
            "reservoir_pressure_kpa": ("Reservoirs", 100.0),
            "oil_temperature_degc": ("Oil_temperature", 1.0),
            "motor_current_a": ("Motor_current", 1.0),
        },
    ),
}


def recording(name: str) -> Recording:
    """A recording by its short name; `steel()` is apart, its stamps are no times.

    Raises:
        KeyError: There is no recording of that name.
    """
    file = _FILES[name]
    rows = _rows(file.name)
    head = rows[0]
    at = head.index(file.stamp)
    moments = [file.parse(row[at]) for row in rows[1:]]
    time_ns = [time_ns_of(m if m.tzinfo else m.replace(tzinfo=file.zone)) for m in moments]
    columns = {
        ours: _column(rows, head.index(theirs)) * factor for ours, (theirs, factor) in file.columns.items()
    }
    return Recording(np.array(time_ns, dtype=np.int64), columns)


def steel() -> Recording:
    """The steel works' year 2018 by quarter hours, 35,040 rows from 2018-01-01 00:00 Korean time.

    Columns: energy_kwh, lagging_kvarh, leading_kvarh (two registers, both may rise in one interval)
    and co2_t, which the publisher rounded to 10 kg an interval.

    Raises:
        ValueError: The file is not the one expected: a row's clock is not where its number says.
    """
    rows = _rows("steel_daewoo_15min.csv.gz")
    head = rows[0]
    start = datetime(2018, 1, 1, tzinfo=_KOREA)
    for number, row in enumerate(rows[1:]):
        end = start + timedelta(seconds=QUARTER_S * (number + 1))
        # The stamp's clock is the interval's end, its date the interval's start.
        begun = end - timedelta(seconds=QUARTER_S)
        if row[0] != f"{begun:%d/%m/%Y} {end:%H:%M}":
            raise ValueError(
                f"steel recording row {number}: stamp {row[0]}, wanted the end {end:%d/%m/%Y %H:%M}"
            )
    count = len(rows) - 1
    time_ns = time_ns_of(start) + np.arange(count, dtype=np.int64) * QUARTER_S * NS_PER_S
    return Recording(
        time_ns,
        {
            "energy_kwh": _column(rows, head.index("Usage_kWh")),
            "lagging_kvarh": _column(rows, head.index("Lagging_Current_Reactive_Power_kVarh")),
            "leading_kvarh": _column(rows, head.index("Leading_Current_Reactive_Power_kVarh")),
            "co2_t": _column(rows, head.index("CO2(tCO2)")),
        },
    )


def steel_register() -> tuple[list[datetime], list[float]]:
    """The steel works as the readings of one cumulative register, kWh, to the recording's 10 Wh.

    35,041 readings: 0 at 2018-01-01 00:00 Korean time, then one at each quarter hour's end.
    """
    year = steel()
    hundredths = np.concatenate([[0], np.cumsum(np.rint(year["energy_kwh"] * 100).astype(np.int64))])
    start = datetime(2018, 1, 1, tzinfo=_KOREA).astimezone(UTC)
    times = [start + timedelta(seconds=QUARTER_S * number) for number in range(len(year) + 1)]
    return times, [count / 100 for count in hundredths.tolist()]


def write_steel_import(file: Path, point: str) -> int:
    """Write the steel register as a file for `ecmc import`; returns its rows. `.gz` is compressed."""
    times, register_kwh = steel_register()
    text = "point,time,value\n" + "".join(
        f"{point},{rfc3339(time_ns_of(at))},{value:.2f}\n"
        for at, value in zip(times, register_kwh, strict=True)
    )
    data = text.encode()
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    return len(times)


def _rows(name: str) -> list[list[str]]:
    with gzip.open(FOLDER / name, "rt", encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


_WORDS: Final = {"": np.nan, "True": 1.0, "False": 0.0}


def _column(rows: list[list[str]], at: int) -> Floats:
    return np.array([_WORDS[row[at]] if row[at] in _WORDS else float(row[at]) for row in rows[1:]])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m simulators.recording FILE.csv[.gz] [POINT]")
    named = sys.argv[2] if len(sys.argv) == 3 else "feeder.active_energy_import_total"
    print(write_steel_import(Path(sys.argv[1]), named), "readings of", named)
