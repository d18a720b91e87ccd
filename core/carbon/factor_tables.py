"""Reads factor tables: those shipped in `tables/`, and a plant's own `factors.csv`.

A table is checked whole: a row without source or unit, a number that is none,
an id that stands twice and a default that contradicts its own formula are all
reported in one go, by line and column, and nothing half-read is handed on.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from core.carbon.factor_row import KG_PER_KWH, UNKNOWN, FactorRow, Fuel, level_of, published_ns, valid_ns
from core.carbon.sheet import Record, Sheet
from core.carbon.steam import SteamTable
from core.clock import parse_rfc3339, rfc3339
from core.errors import Fault, FaultyInput
from core.results import HOUR_NS
from core.samples import Floats, Times

_UTC = ZoneInfo("UTC")  # where a time is only checked or compared with its like
_A_TIME = "a year, month, date or RFC 3339 time"

TABLES = Path(__file__).parent / "tables"


class Tables(NamedTuple):
    """A folder of tables, read."""

    rows: tuple[FactorRow, ...]
    fuels: Mapping[str, Fuel]
    grid_region_of: Mapping[str, str]  # province -> grid region
    ipcc_fuel_of: Mapping[str, str]  # our fuel code -> IPCC's, where they differ
    steam: SteamTable


@dataclass(frozen=True, slots=True, eq=False)
class HourlySeries:
    """Grid intensity by the hour; hours that are not in it are without factor. `row` says where it is from."""

    row: FactorRow
    start_ns: Times  # (n,), ascending
    end_ns: Times
    kg_per_kwh: Floats


# The plant's own and its suppliers' factors

OWN_COLUMNS = (
    "id",
    "value",
    "unit",
    "valid_from",
    "valid_to",
    "published",
    "region",
    "gas",
    "gwp_set",
    "source",
    "document",
    "uncertainty_pct",
    "approved_by",
    "note",
)
_OWN_REQUIRED = ("id", "value", "unit", "valid_from", "source")


def read_own_factors(content: bytes, file: str) -> tuple[FactorRow, ...]:
    """Rows of a plant's `factors.csv`, columns OWN_COLUMNS; the first five named in the header are required.

    `id` names a series, a row adds one value from `valid_from` (year, date or RFC 3339 time) on, until
    `valid_to` or the next row. A row without `approved_by` is used and marked unverified.

    Raises:
        FaultyInput: Every fault by line and column: a missing column or cell, a number that is none or
            negative, a unit that is no emission per energy, a wrong date, a row twice, overlapping periods.
    """
    sheet = Sheet.read(content, file)
    sheet.require(_OWN_REQUIRED)
    rows: list[FactorRow] = []
    for record in sheet.records():
        id_, unit = record.text("id"), record.text("unit")
        if unit and unit not in KG_PER_KWH:
            record.fault(
                "unit", f"unit {unit!r} is no emission per energy, wanted one of {', '.join(KG_PER_KWH)}"
            )
        if id_ == "grid" or ":" in id_ or "@" in id_:
            record.fault("id", f"id {id_!r} is taken or holds ':' or '@', which ids of tables use")
        published = record.optional("published")
        valid_from = record.text("valid_from")
        valid_to = record.optional("valid_to")
        for column, parse in (("valid_from", valid_ns), ("valid_to", valid_ns), ("published", published_ns)):
            record.parsed(column, partial(parse, zone=_UTC), _A_TIME)
        uncertainty = record.optional("uncertainty_pct")
        rows.append(
            FactorRow(
                id=f"{id_}:{valid_from}" + (f"@{published}" if published else ""),
                series=id_,
                quantity="supplied energy",
                value=record.number("value"),
                unit=unit,
                source=record.text("source"),
                confidence="approved" if record.optional("approved_by") else UNKNOWN,
                region=record.optional("region") or "",
                level="own",
                gas=record.optional("gas") or "CO2e",
                gwp_set=record.optional("gwp_set"),
                valid_from=valid_from,
                valid_to=valid_to,
                published=published,
                document=record.optional("document") or "",
                uncertainty=None if uncertainty is None else record.number("uncertainty_pct") / 100,
                note=record.optional("note") or "",
            )
        )
        record.unique(rows[-1].id)
    sheet.raise_faults()
    _check_overlaps(rows, file)
    return tuple(rows)


def _check_overlaps(rows: Sequence[FactorRow], file: str) -> None:
    in_time = sorted(rows, key=lambda row: (row.series, valid_ns(str(row.valid_from), _UTC)))
    faults = [
        Fault(file, 0, 0, f"factor {after.id} begins before {before.id} ends")
        for before, after in pairwise(in_time)
        if before.series == after.series
        and before.valid_to is not None
        and before.valid_from != after.valid_from  # the same period published anew
        and valid_ns(str(after.valid_from), _UTC) < valid_ns(before.valid_to, _UTC)
    ]
    if faults:
        raise FaultyInput(faults)


THRESHOLDS_FILE = "indicator_thresholds.csv"


def read_own_thresholds(content: bytes, file: str) -> tuple[FactorRow, ...]:
    """Thresholds of a local scheme in a plant's `indicator_thresholds.csv`, columns as in the shipped table.

    Raises:
        FaultyInput: Every fault by line and column.
    """
    sheet = Sheet.read(content, file)
    sheet.require(("scheme", "indicator", "stage", "value", "unit", "better", "source", "confidence"))
    table = next(table for table in _SHIPPED if table.quantity == "threshold")
    rows = []
    for record in sheet.records():
        if record.text("better") not in ("at_most", "at_least"):
            record.fault("better", f"better is {record.text('better')!r}, wanted at_most or at_least")
        rows.append(_shipped_row(table, record))
    sheet.raise_faults()
    return tuple(rows)


# The shipped tables


@dataclass(frozen=True, slots=True)
class _Table:
    """Which columns of a shipped table mean what; `key` makes the row's id, `series` that of its series."""

    name: str
    quantity: str
    key: tuple[str, ...]
    series: tuple[str, ...]
    value: str = "value"
    unit: str = "unit"
    region: str | None = None
    year: str | None = None
    kind: str | None = None
    gas: str | None = None
    fixed_kind: str = ""
    published: str | None = None
    gwp_set: str | None = None
    document: str | None = None


_SHIPPED = (
    _Table(
        "grid_cn",
        "electricity",
        ("region_code", "year", "kind"),
        ("region_code", "kind"),
        region="region_code",
        year="year",
        kind="kind",
        published="published_on",
    ),
    _Table(
        "grid_world",
        "electricity",
        ("iso3", "year", "=average"),
        ("iso3", "=average"),
        region="iso3",
        year="year",
        fixed_kind="average",
    ),
    _Table(
        "grid_cn_history",
        "electricity",
        ("series", "data_year"),
        ("series",),
        year="data_year",
        kind="series",
        published="published_on",
        document="used_for",
    ),
    _Table(
        "generation_footprint_cn",
        "electricity generation, life cycle",
        ("generation_type", "data_year"),
        ("generation_type",),
        year="data_year",
        kind="generation_type",
    ),
    _Table(
        "fuels", "fuel", ("fuel_code", "set_id"), ("fuel_code", "set_id"), "ef_co2", "ef_unit", kind="set_id"
    ),
    _Table("heat", "heat", ("code",), ("code",)),
    _Table("process", "process", ("code",), ("code",), gas="gas"),
    _Table("tce", "tce", ("code",), ("code",), kind="kind"),
    _Table(
        "gwp",
        "gwp",
        ("gas_code", "report"),
        ("gas_code", "report"),
        gas="formula",
        kind="formula",
        gwp_set="report",
    ),
    _Table(
        "materials",
        "material",
        ("code", "route"),
        ("code", "route"),
        year=None,
        kind="route",
        document="boundary",
    ),
    _Table(
        "ipcc_2006",
        "fuel, IPCC default",
        ("fuel_code", "sector", "gas"),
        ("fuel_code", "sector", "gas"),
        kind="sector",
        gas="gas",
    ),
    _Table(
        "indicator_thresholds",
        "threshold",
        ("scheme", "indicator", "stage"),
        ("scheme", "indicator"),
        kind="better",
    ),
    _Table("cbam_markup", "CBAM mark-up", ("year",), ("=default",), year="year"),
    _Table("fuel_density", "net calorific value", ("fuel_en",), ("fuel_en",), "net_cv", "net_cv_unit"),
)


def read_tables(folder: Path = TABLES) -> Tables:
    """A folder of tables laid out like the shipped one.

    Raises:
        FaultyInput: Every fault of every table.
    """
    rows: list[FactorRow] = []
    faults: list[Fault] = []
    fuels: dict[str, Fuel] = {}
    for table in _SHIPPED:
        sheet = Sheet.read((folder / f"{table.name}.csv").read_bytes(), f"{table.name}.csv")
        sheet.require((table.value, table.unit, "source", "confidence"))
        for record in sheet.records():
            row = _shipped_row(table, record)
            rows.append(row)
            if table.name == "fuels":
                fuel = _fuel(record, row)
                fuels[fuel.id] = fuel
        faults += sheet.faults
    steam, steam_faults = _steam_table(folder)
    faults += steam_faults
    if faults:
        raise FaultyInput(faults)
    regions = Sheet.read((folder / "grid_cn_map.csv").read_bytes(), "grid_cn_map.csv")
    region_of = {
        record.text("province_code"): record.text("grid_region_code")
        for record in regions.records()
        if record.optional("grid_region_code")
    }
    names = Sheet.read((folder / "ipcc_fuel.csv").read_bytes(), "ipcc_fuel.csv")
    ipcc_fuel_of = {record.text("fuel_code"): record.text("ipcc_code") for record in names.records()}
    return Tables(tuple(rows), fuels, region_of, ipcc_fuel_of, steam)


def _shipped_row(table: _Table, record: Record) -> FactorRow:
    def joined(columns: Sequence[str]) -> str:
        parts = (column[1:] if column.startswith("=") else record.text(column) for column in columns)
        separator = "@" if table.name == "fuels" else ":"
        return f"{table.name}:{separator.join(parts)}"

    unit = record.text(table.unit)
    region = record.text(table.region) if table.region else ""
    published = record.optional(table.published) if table.published else None
    if table.published:
        record.parsed(table.published, partial(published_ns, zone=_UTC), _A_TIME)
    if table.year and not (record.text(table.year).isdigit() and len(record.text(table.year)) == 4):
        record.fault(table.year, f"not a year: {record.text(table.year)!r}")
    id_ = joined(table.key)
    if not record.unique(id_, again_by=published):
        id_ = f"{id_}@{published}"  # the same year published anew: a further row beside the first
    gas = (
        (record.optional(table.gas) or "")
        if table.gas
        else ("CO2e" if "CO2e" in unit else "CO2" if "CO2" in unit else "")
    )
    return FactorRow(
        id=id_,
        series=joined(table.series),
        quantity=table.quantity,
        value=record.number(table.value),
        unit=unit,
        source=record.text("source"),
        confidence=record.text("confidence"),
        region=region,
        level=level_of(region) if region else "",
        kind=(record.optional(table.kind) or "" if table.kind else table.fixed_kind),
        gas=gas,
        gwp_set=record.text(table.gwp_set) if table.gwp_set else None,
        valid_from=record.text(table.year) if table.year else None,
        published=published,
        document=record.optional(table.document) or "" if table.document else "",
        note=record.optional("note") or "",
    )


def _fuel(record: Record, row: FactorRow) -> Fuel:
    per = {"GJ/t": ("t", 1.0), "GJ/10^4 Nm3": ("Nm3", 1e4)}
    unit = record.text("ncv_unit")
    if unit not in per:
        record.fault("ncv_unit", f"unit {unit!r} not understood, wanted one of {', '.join(per)}")
    amount_unit, amounts = per.get(unit, ("t", 1.0))
    fuel = Fuel(
        id=f"{record.text('fuel_code')}@{record.text('set_id')}",
        name_zh=record.text("name_zh"),
        name_en=record.text("name_en"),
        amount_unit=amount_unit,
        ncv_gj=record.number("ncv") / amounts,
        carbon_t_per_gj=record.number("carbon_content"),
        oxidation=record.number("oxidation_rate"),
        biogenic=record.text("biogenic") == "true",
        row=row,
    )
    computed = fuel.kgco2_per_kwh(oxidised=True) * fuel.kwh_per_amount * amounts / 1000
    if not math.isclose(computed, row.value, rel_tol=1e-4):
        record.fault(
            "ef_co2", f"{fuel.id}: NCV x C x OF x 44/12 gives {computed:.5f}, the table says {row.value}"
        )
    return fuel


def _steam_table(folder: Path) -> tuple[SteamTable, list[Fault]]:
    sheet = Sheet.read((folder / "steam_enthalpy.csv").read_bytes(), "steam_enthalpy.csv")
    saturated: list[tuple[float, float, float]] = []
    superheated: dict[float, list[tuple[float, float]]] = {}
    for record in sheet.records():
        pressure, temperature = record.number("pressure_abs"), record.number("temperature")
        enthalpy = record.number("enthalpy_steam")
        if record.text("state") == "saturated":
            saturated.append((pressure, temperature, enthalpy))
        else:
            superheated.setdefault(pressure, []).append((temperature, enthalpy))
    boiling = np.array(sorted(saturated))
    isobars = tuple(
        (pressure, np.array(sorted(points))[:, 0], np.array(sorted(points))[:, 1])
        for pressure, points in sorted(superheated.items())
    )
    return SteamTable(boiling[:, 0], boiling[:, 1], boiling[:, 2], isobars), sheet.faults


@lru_cache(maxsize=64)
def hourly_file(factor: str) -> tuple[Path, str] | None:
    """File and column of a shipped hourly series, `hourly:US-MISO:direct`; None where the id names no such."""
    table, _, rest = factor.partition(":")
    zone, _, kind = rest.partition(":")
    if table != "hourly" or kind not in ("direct", "lifecycle") or not zone.replace("-", "").isalnum():
        return None
    found = sorted(TABLES.glob(f"hourly_intensity_{zone.lower().replace('-', '_')}_*.csv.gz"))
    return (found[-1], kind) if found else None


@lru_cache(maxsize=16)
def hourly_series(path: Path, kind: str) -> HourlySeries:
    sheet = Sheet.read(gzip.decompress(path.read_bytes()), path.name)
    sheet.require(("ts_utc", "zone", f"intensity_{kind}", "unit", "quality"))
    start_ns, kg, zone = [], [], ""
    for record in sheet.records():
        if not record.optional(f"intensity_{kind}"):
            continue
        zone = record.text("zone")
        start_ns.append(parse_rfc3339(record.text("ts_utc")))
        kg.append(record.number(f"intensity_{kind}") * KG_PER_KWH[record.text("unit")])
    sheet.raise_faults()
    start, kg_per_kwh = np.array(start_ns, np.int64), np.array(kg)
    row = FactorRow(
        id=f"hourly:{zone}:{kind}",
        series=f"hourly:{zone}:{kind}",
        quantity="electricity",
        value=float(kg_per_kwh.mean()),
        unit="kgCO2e/kWh",
        source="US EIA form EIA-930, hourly net generation by fuel, times a factor per fuel",
        confidence="computed",
        region=zone,
        level="zone",
        kind=kind,
        gas="CO2e",
        valid_from=rfc3339(int(start[0])),
        valid_to=rfc3339(int(start[-1]) + HOUR_NS),
        note="mean of the series; when it was published is not known",
    )
    return HourlySeries(row, start, start + HOUR_NS, kg_per_kwh)
