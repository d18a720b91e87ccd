"""Emission factors and coefficients: every row with its source, its valid time and its known time.

A row is never overwritten. *Valid time* is the year or hour a row describes,
*known time* is when it was published; asking with an old known time gives the
answer of that day. What surprises: a look-up never leaves the region it was
asked for. Where no row qualifies the factor is NaN, and that is for people to
see, not for code to fill with a neighbour's. Rows that begin at most an hour
apart are a series by the interval: each holds for one step, so an interval that
the operator left out is without factor instead of carrying the one before on.

The tables lie in `tables/`; a plant adds its own and its suppliers' rows in
`factors.csv` of its folder (`core.carbon.factor_tables.OWN_COLUMNS`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from core.carbon.factor_row import KG_PER_KWH, UNKNOWN, FactorRow, Fuel, level_of, published_ns, valid_ns
from core.carbon.factor_tables import (
    THRESHOLDS_FILE,
    HourlySeries,
    hourly_file,
    hourly_series,
    read_own_factors,
    read_own_thresholds,
    read_tables,
)
from core.carbon.steam import SteamTable
from core.errors import BadRequest, Fault, FaultyInput
from core.results import HOUR_NS
from core.samples import Flags, Floats, Times

__all__ = ["FactorColumn", "FactorLibrary", "FactorRow", "Fuel", "constant_column", "unknown_column"]

_MEAN_OF = "mean-of:"
_MOST_LISTED = 50  # rows of one series that a report lists one by one
_ALWAYS, _NEVER = -(2**62), 2**62  # ns, beyond any time a plant will see


class FactorColumn(NamedTuple):
    """Factors at many times.

    kg_per_kwh: shape (n,), NaN where no row qualifies ("without factor").
    row_ids: the rows used, each once, oldest valid time first.
    unverified: shape (n,), where the row used is marked unverified.
    """

    kg_per_kwh: Floats
    row_ids: tuple[str, ...]
    unverified: Flags


@dataclass(frozen=True, slots=True, eq=False)
class FactorLibrary:
    """All rows at hand; immutable, so a result may keep the library it was made with."""

    rows: tuple[FactorRow, ...]
    fuels: Mapping[str, Fuel]
    grid_region_of: Mapping[str, str]  # province -> grid region
    ipcc_fuel_of: Mapping[str, str]  # our fuel code -> IPCC's, where they differ
    steam: SteamTable
    row_by_id: Mapping[str, FactorRow] = field(init=False)
    series: Mapping[str, tuple[FactorRow, ...]] = field(init=False)
    _read: dict[tuple[str, ZoneInfo], _Dated] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        series: dict[str, list[FactorRow]] = {}
        for row in self.rows:
            series.setdefault(row.series, []).append(row)
        object.__setattr__(self, "row_by_id", {row.id: row for row in self.rows})
        object.__setattr__(self, "series", {id_: tuple(rows) for id_, rows in series.items()})

    @staticmethod
    def shipped() -> FactorLibrary:
        """The tables that come with ecmc.

        Raises:
            FaultyInput: A table has a row without source or unit, a duplicate or a number that is none.
        """
        return _shipped()

    @staticmethod
    def for_plant(folder: str | Path) -> FactorLibrary:
        """The shipped tables and the plant's own `factors.csv` and `indicator_thresholds.csv`, where it has them.

        Raises:
            FaultyInput: Its whole list of faults, by line and column.
        """
        library, faults = FactorLibrary.shipped(), list[Fault]()
        for name, read in (("factors.csv", read_own_factors), (THRESHOLDS_FILE, read_own_thresholds)):
            path = Path(folder) / name
            if path.exists():
                try:
                    library = library.with_rows(read(path.read_bytes(), str(path)))
                except FaultyInput as why:
                    faults += why.faults
        if faults:
            raise FaultyInput(faults)
        return library

    def with_rows(self, rows: Iterable[FactorRow]) -> FactorLibrary:
        """This library and more rows; an id that already stands here is refused, not replaced."""
        added = tuple(rows)
        faults = [
            Fault(row.document or row.id, 0, 0, f"factor id {row.id!r} stands in the library already")
            for row in added
            if row.id in self.row_by_id or f"heat:{row.series}" in self.series
        ]
        if faults:
            raise FaultyInput(faults)
        return replace(self, rows=self.rows + added)

    def row(self, row_id: str) -> FactorRow:
        """The row behind any id that a column names: of a table, a plain number, or an hourly series.

        Raises:
            BadRequest: There is none.
        """
        if row_id in self.row_by_id:
            return self.row_by_id[row_id]
        if row_id.startswith(_MEAN_OF):
            return self._mean_of(row_id)
        hourly = hourly_file(row_id)
        if hourly is not None:
            return hourly_series(*hourly).row
        kind, _, rest = row_id.partition(":")
        if kind == "number":
            return FactorRow(row_id, row_id, "energy", float(rest), "kgCO2e/kWh", "plant folder", "stated")
        if kind == "out-of-scope":
            return FactorRow(
                row_id, row_id, "energy", 0.0, "kgCO2e/kWh", f"scopes of method set {rest}", "stated"
            )
        raise BadRequest(f"no factor {row_id!r} in the library")

    def gathered(self, row_ids: Iterable[str]) -> tuple[str, ...]:
        """The ids as a report lists them: a series by the hour with many rows in use as one `mean-of:` id."""
        of_series: dict[str, dict[str, None]] = {}
        means: set[str] = set()
        for id_ in row_ids:
            ends = self._ends_of(id_) if id_.startswith(_MEAN_OF) else (id_,)
            row = self.row_by_id.get(ends[0])
            series = id_ if row is None else row.series
            of_series.setdefault(series, {}).update(dict.fromkeys(ends))
            if len(ends) > 1:
                means.add(series)
        listed: dict[str, None] = {}
        for series, mine in of_series.items():
            if series in means or len(mine) > _MOST_LISTED:
                in_order = [row.id for row in self.series[series] if row.id in mine]
                mine = dict.fromkeys([f"{_MEAN_OF}{series}:{in_order[0]}..{in_order[-1]}"])
            listed.update(mine)
        return tuple(listed)

    def _ends_of(self, id_: str) -> tuple[str, str]:
        """First and last row of a `mean-of:` id."""
        before, _, last_id = id_.rpartition("..")
        if last_id not in self.row_by_id:
            raise BadRequest(f"no factor {id_!r} in the library")
        return before.removeprefix(f"{_MEAN_OF}{self.row_by_id[last_id].series}:"), last_id

    def _mean_of(self, id_: str) -> FactorRow:
        """One row that stands for those of a series between two of its rows; its value is their mean."""
        first_id, last_id = self._ends_of(id_)
        last = self.row_by_id[last_id]
        rows = self.series[last.series]
        at = [row.id for row in rows]
        mine = rows[at.index(first_id) : at.index(last_id) + 1]
        return replace(
            last,
            id=id_,
            value=float(np.mean([row.value for row in mine])),
            valid_from=mine[0].valid_from,
            confidence=next((row.confidence for row in mine if row.unverified), last.confidence),
            note=f"mean of {len(mine)} values",
        )

    def fuel(self, name: str) -> Fuel:
        """`natural_gas@ndrc_other_industry`.

        Raises:
            BadRequest: There is no such fuel in that set; the message names the sets that have it.
        """
        if name in self.fuels:
            return self.fuels[name]
        code = name.partition("@")[0]
        sets = sorted(other.partition("@")[2] for other in self.fuels if other.partition("@")[0] == code)
        known = f"it stands in {', '.join(sets)}" if sets else "no set has it"
        raise BadRequest(f"no fuel {name!r}, wanted name@set: {known}")

    def burning_rows(self, fuel: Fuel) -> tuple[FactorRow, ...]:
        """CH4 and N2O of burning a fuel in industry, kg per TJ (NCV); empty where IPCC publishes none of it."""
        code = fuel.id.partition("@")[0]
        named = f"ipcc_2006:{self.ipcc_fuel_of.get(code, code)}:manufacturing"
        found = (self.row_by_id.get(f"{named}:{gas}") for gas in ("CH4", "N2O"))
        return tuple(row for row in found if row is not None)

    def gwp(self, gas: str, gwp_set: str) -> float:
        """Global warming potential over 100 years, kgCO2e per kg; see `gwp_row`."""
        return self.gwp_row(gas, gwp_set).value

    def gwp_row(self, gas: str, gwp_set: str) -> FactorRow:
        """The row of a gas by code (HFC-134a, R410A, SF6) or formula (CF4).

        Raises:
            BadRequest: The set (AR4, AR5, AR6) has no such gas.
        """
        row = self.row_by_id.get(f"gwp:{gas}:{gwp_set}")
        if row is None:
            named = {
                r.id: r for r in self.rows if r.quantity == "gwp" and r.kind == gas and r.gwp_set == gwp_set
            }
            if len(named) != 1:
                raise BadRequest(f"no GWP of {gas!r} in {gwp_set}")
            row = next(iter(named.values()))
        return row

    def tce_per_unit(self, code: str) -> FactorRow:
        """A standard-coal coefficient of tce.csv, e.g. `electricity_equivalent` (当量)."""
        return self.row(f"tce:{code}")

    def reason_against(self, factor: str | float, carrier: str) -> str | None:
        """Why a source of that carrier cannot have this factor; None where it can."""
        if not isinstance(factor, str):
            ok = math.isfinite(factor) and factor >= 0
            return None if ok else f"factor {factor} is negative or no number, wanted kg per kWh"
        if factor == "grid":
            return None if carrier == "electricity" else f"factor grid is for electricity, not for {carrier}"
        if hourly_file(factor) is not None:
            return None
        rows = self._rows_named(factor)
        if not rows:
            return f"no factor {factor!r} in the library or in factors.csv"
        wrong = [row.unit for row in rows if row.unit not in KG_PER_KWH]
        return f"factor {factor}: unit {wrong[0]!r} is no emission per energy" if wrong else None

    def region_at(self, region: str, level: str | None) -> str | None:
        """The region's code at another level; None where its code does not say which.

        A province knows its grid region and its country; a country does not know a province.
        """
        if level is None or level == level_of(region):
            return region
        if level == "national" and region.startswith("CN-"):
            return "CN"
        if level == "regional":
            return self.grid_region_of.get(region)
        return None

    def grid_factor(
        self,
        region: str,
        time_ns: Times,
        *,
        zone: ZoneInfo,
        known_at_ns: int,
        kind: str = "average",
        level: str | None = None,
    ) -> FactorColumn:
        """The grid's factor at each time: of the newest data year not after the time's year, in the plant's zone.

        Only rows published by `known_at_ns` qualify, and rows whose publication date is unknown,
        which are marked unverified. No other region stands in for a missing one.

        Args:
            level: national, regional or provincial, up from the region; None: the level its code names.
        """
        at = self.region_at(region, level)
        series = None if at is None else self._grid_series(at, kind)
        if series is None:
            return unknown_column(time_ns)
        return self._dated(series, self.series[series], zone).column(time_ns, known_at_ns)

    def is_by_interval(self, factor: str | float | None, zone: ZoneInfo) -> bool:
        """Whether the factor is a series by the hour or less, shipped or the plant's own."""
        if not isinstance(factor, str) or factor == "grid":
            return False
        if hourly_file(factor) is not None:
            return True
        return factor in self.series and self._dated(factor, self.series[factor], zone).step_ns is not None

    def has_grid_series(self, region: str, kind: str, level: str | None = None) -> bool:
        at = self.region_at(region, level)
        return at is not None and self._grid_series(at, kind) is not None

    def factor_column(
        self, factor: str | float, time_ns: Times, *, zone: ZoneInfo, known_at_ns: int
    ) -> FactorColumn:
        """A factor that is not `grid`: a number in kg per kWh, a series id, or a row id.

        A series is dated like the grid's. A row named by its own id holds at every time, which is how
        a report is made with a fixed factor; it too must be known by the known time.

        Raises:
            BadRequest: No such id, or its unit is no emission per energy.
        """
        if not isinstance(factor, str):
            return constant_column(float(factor), f"number:{float(factor)!r}", time_ns)
        hourly = hourly_file(factor)
        if hourly is not None:
            return _hourly_column(hourly_series(*hourly), time_ns)
        rows = self._rows_named(factor)
        if not rows:
            raise BadRequest(f"no factor {factor!r} in the library or in factors.csv")
        if factor not in self.series:
            rows = tuple(
                replace(row, valid_from=None, valid_to=None, confidence=_pinned(row)) for row in rows
            )
        return self._dated(factor, rows, zone).column(time_ns, known_at_ns)

    def _rows_named(self, factor: str) -> tuple[FactorRow, ...]:
        """Rows of a series, or the one row of that id; a heat factor is also known by its bare code."""
        for name in (factor, f"heat:{factor}"):
            if name in self.series:
                return self.series[name]
            if name in self.row_by_id:
                return (self.row_by_id[name],)
        return ()

    def _grid_series(self, region: str, kind: str) -> str | None:
        named = (f"{table}:{region}:{kind}" for table in ("grid_cn", "grid_world"))
        return next((name for name in named if name in self.series), None)

    def _dated(self, name: str, rows: Sequence[FactorRow], zone: ZoneInfo) -> _Dated:
        key = (name, zone)
        if key not in self._read:
            self._read[key] = _Dated(rows, zone)
        return self._read[key]


def constant_column(kg_per_kwh: float, row_id: str, time_ns: Times) -> FactorColumn:
    """One factor at every time."""
    return FactorColumn(np.full(time_ns.shape, kg_per_kwh), (row_id,), np.zeros(time_ns.shape, np.bool_))


def unknown_column(time_ns: Times) -> FactorColumn:
    """Without factor at every time."""
    return FactorColumn(np.full(time_ns.shape, np.nan), (), np.zeros(time_ns.shape, np.bool_))


@lru_cache(maxsize=1)
def _shipped() -> FactorLibrary:
    return FactorLibrary(*read_tables())


class _Steps(NamedTuple):
    """Piecewise constant: from bound i on, step i + 1 holds; step 0 lies before the first."""

    bound_ns: Times
    kg_per_kwh: Floats  # NaN in a step without factor
    unverified: Flags
    row_id: tuple[str | None, ...]


class _Dated:
    """The rows of one series as one zone reads them, at any known time; remembers what it has worked out."""

    def __init__(self, rows: Sequence[FactorRow], zone: ZoneInfo) -> None:
        known_ns = [_ALWAYS if row.published is None else published_ns(row.published, zone) for row in rows]
        in_order = sorted(range(len(rows)), key=known_ns.__getitem__)
        self._rows = [rows[i] for i in in_order]
        self._known_ns = [known_ns[i] for i in in_order]
        self._zone = zone
        self.step_ns = _step_ns(rows, zone)
        self._steps: dict[int, _Steps] = {}

    def column(self, time_ns: Times, known_at_ns: int) -> FactorColumn:
        known = bisect_right(self._known_ns, known_at_ns)
        if known not in self._steps:
            self._steps[known] = self._of(self._rows[:known])
        steps = self._steps[known]
        step = np.searchsorted(steps.bound_ns, time_ns, side="right")
        used = np.flatnonzero(np.bincount(step.ravel(), minlength=len(steps.row_id)))
        ids = tuple(row_id for i in used.tolist() if (row_id := steps.row_id[i]) is not None)
        return FactorColumn(steps.kg_per_kwh[step], ids, steps.unverified[step])

    def _of(self, known: Sequence[FactorRow]) -> _Steps:
        newest: dict[int, FactorRow] = {}
        for row in known:  # by publication, so a later one of the same valid time takes its place
            newest[_ALWAYS if row.valid_from is None else valid_ns(row.valid_from, self._zone)] = row
        starts_ns = sorted(newest)
        bound_ns: list[int] = []
        rows: list[FactorRow | None] = [None]
        for start_ns, next_ns in zip(starts_ns, [*starts_ns[1:], _NEVER], strict=False):
            row = newest[start_ns]
            bound_ns.append(start_ns)
            rows.append(row)
            end_ns = self._end_ns(row, start_ns)
            if end_ns < next_ns:
                bound_ns.append(end_ns)
                rows.append(None)
        return _Steps(
            np.array(bound_ns, np.int64),
            np.array([np.nan if row is None else row.kg_per_kwh for row in rows]),
            np.array([row is not None and row.unverified for row in rows]),
            tuple(None if row is None else row.id for row in rows),
        )

    def _end_ns(self, row: FactorRow, start_ns: int) -> int:
        if row.valid_to is not None:
            return valid_ns(row.valid_to, self._zone)
        if self.step_ns is not None and row.valid_from is not None and "T" in row.valid_from:
            return start_ns + self.step_ns
        return _NEVER


def _step_ns(rows: Sequence[FactorRow], zone: ZoneInfo) -> int | None:
    """The shortest distance between rows dated by a time, where it is an hour or less."""
    starts_ns = sorted(
        {valid_ns(at, zone) for row in rows if (at := row.valid_from) is not None and "T" in at}
    )
    step_ns = min((after - before for before, after in pairwise(starts_ns)), default=_NEVER)
    return step_ns if step_ns <= HOUR_NS else None


def _hourly_column(series: HourlySeries, time_ns: Times) -> FactorColumn:
    hour = np.searchsorted(series.start_ns, time_ns, side="right") - 1
    inside = (hour >= 0) & (time_ns < series.end_ns[hour])
    ids = (series.row.id,) if bool(inside.any()) else ()
    return FactorColumn(
        np.where(inside, series.kg_per_kwh[hour], np.nan), ids, inside & series.row.unverified
    )


def _pinned(row: FactorRow) -> str:
    return UNKNOWN if row.unverified else row.confidence
