"""Method sets: which rules turn the same readings into the figure one regime asks for.

A method set is a row of a table: edition, GWP set, whether oxidation counts,
which grid factor stands for location and market, what is in scope; a plant adds
its own in `method_sets.csv` of its folder. All of them are *designed toward*
their documents; one that claims to conform is refused. What surprises: the
national ETS leaves electricity out, so its purchased energy carries zero and
says so in the factor id, where every other gap is NaN.

The engine needs two calls: `source_factors` for what energy brings in, and
`combustion_kg_per_kwh` for what is burned here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from core.carbon.factor_row import GJ_PER_KWH, FactorRow
from core.carbon.factor_tables import TABLES
from core.carbon.factors import FactorColumn, FactorLibrary, Fuel, constant_column, unknown_column
from core.carbon.sheet import Record, Sheet
from core.errors import BadRequest
from core.plant.model import Label, Node, Origin, Plant
from core.results import Basis, Scope
from core.samples import Times

KWH_TO_TJ = GJ_PER_KWH / 1000


class TceBasis(StrEnum):
    """How a kWh of electricity becomes standard coal; always shown beside a figure in tce."""

    CALORIFIC = "calorific"  # 当量值: what the kWh holds
    PRIMARY = "primary"  # 等价值: what it took to make it


TCE_ELECTRICITY = {
    TceBasis.CALORIFIC: "electricity_equivalent",
    TceBasis.PRIMARY: "electricity_primary_factory",
}


@dataclass(frozen=True, slots=True)
class GridRule:
    """Which grid factor: its kind, and the level a regime prescribes (None: the one the region's code names)."""

    kind: str
    level: str | None = None


@dataclass(frozen=True, slots=True)
class MethodSet:
    """The rules of one regime.

    Attributes:
        edition: The documents it is designed toward, with number and year.
        gwp_set: AR4, AR5 or AR6; a property of the method, not of the gas.
        oxidation: Whether a fuel's oxidation factor counts.
        other_gases: Whether CH4 and N2O of burning count beside its CO2.
        scopes: What the regime asks for.
        location: The grid factor of the location basis.
        market: Grid factors of the market basis for what no contract or certificate covers, the first
            that is published for the region's country.
        tce_basis: The basis its energy figures in tce stand on.
        heat_is_direct: Whether bought heat and cooling count as direct emissions, wherever they were made.
        nets_sold_energy: Whether sold electricity and heat are subtracted.
    """

    id: str
    name: Label
    edition: str
    gwp_set: str
    oxidation: bool
    scopes: frozenset[Scope]
    location: GridRule
    market: tuple[GridRule, ...]
    tce_basis: TceBasis
    nets_sold_energy: bool
    other_gases: bool = False
    heat_is_direct: bool = False

    def __post_init__(self) -> None:
        if not self.edition:
            raise ValueError(f"method set {self.id}: a method set names its edition")


METHOD_SETS_FILE = "method_sets.csv"  # of the shipped tables, and of a plant folder that has its own
_COLUMNS = (
    "id",
    "name_zh",
    "name_en",
    "edition",
    "gwp_set",
    "oxidation",
    "other_gases",
    "scopes",
    "location",
    "market",
    "tce_basis",
    "nets_sold_energy",
)
_GWP_SETS = ("AR4", "AR5", "AR6")
_KINDS = ("average", "excluding_traded_renewables", "fossil")
_LEVELS = ("national", "regional", "provincial")
_YES = {"yes": True, "no": False}


def read_method_sets(content: bytes, file: str) -> dict[str, MethodSet]:
    """Method sets of a table, by id.

    Raises:
        FaultyInput: Every fault by line and column: a set without an edition, or one that claims to conform; an id
            that stands twice; a word that is none of those that are meant.
    """
    sheet = Sheet.read(content, file)
    sheet.require(_COLUMNS)
    found: dict[str, MethodSet] = {}
    for record in sheet.records():
        id_, edition = record.text("id"), record.text("edition")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", id_ or "-"):
            record.fault("id", f"id is {id_!r}: wanted small letters, digits and '-'")
        if "conform" in edition.lower() or "符合" in edition:
            record.fault("edition", f"edition is {edition!r}: a method set is designed toward a document")
        record.unique(id_)
        location = record.text("location").split()
        if len(location) != 1:
            record.fault("location", f"location is {' '.join(location)!r}, wanted one grid factor")
        market = tuple(_grid_rule(record, "market", word) for word in record.text("market").split())
        scopes = record.text("scopes").split()
        if record.optional("heat") not in (None, "direct", "indirect"):
            record.fault("heat", f"heat is {record.optional('heat')!r}, wanted direct or indirect")
        if any(word not in ("1", "2") for word in scopes):
            record.fault("scopes", f"scopes is {' '.join(scopes)!r}, wanted some of 1 2")
        found[id_] = MethodSet(
            id=id_,
            name=Label(record.text("name_zh"), record.text("name_en")),
            edition=edition or "-",
            gwp_set=_one_of(record, "gwp_set", _GWP_SETS),
            oxidation=_YES.get(_one_of(record, "oxidation", tuple(_YES)), False),
            other_gases=_YES.get(_one_of(record, "other_gases", tuple(_YES)), False),
            scopes=frozenset(Scope(int(word)) for word in scopes if word in ("1", "2")),
            location=_grid_rule(record, "location", (location or [""])[0]),
            market=market,
            tce_basis=TceBasis(_one_of(record, "tce_basis", tuple(TceBasis))),
            heat_is_direct=record.optional("heat") == "direct",
            nets_sold_energy=_YES.get(_one_of(record, "nets_sold_energy", tuple(_YES)), False),
        )
    sheet.raise_faults()
    return found


def _one_of(record: Record, column: str, words: Sequence[str]) -> str:
    """The cell, or the first of the words where it is another; that leaves a fault."""
    text = record.text(column)
    if text and text not in words:
        record.fault(column, f"{column} is {text!r}, wanted one of {', '.join(words)}")
    return text if text in words else words[0]


def _grid_rule(record: Record, column: str, text: str) -> GridRule:
    """`average` at the level the region's code names, `average:national` at one that is prescribed."""
    kind, _, level = text.partition(":")
    if kind not in _KINDS or (level and level not in _LEVELS):
        wanted = f"{', '.join(_KINDS)}, with :{', :'.join(_LEVELS)} or without"
        record.fault(column, f"{column} is {text!r}, wanted one of {wanted}")
    return GridRule(kind, level or None)


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, MethodSet]:
    path = TABLES / METHOD_SETS_FILE
    return read_method_sets(path.read_bytes(), path.name)


METHOD_SET_IDS = tuple(_shipped())


def method_set(method_set_id: str) -> MethodSet:
    """A shipped method set by id.

    Raises:
        BadRequest: There is none; the message names those there are.
    """
    if method_set_id not in _shipped():
        raise BadRequest(f"no method set {method_set_id!r}, wanted one of {', '.join(METHOD_SET_IDS)}")
    return _shipped()[method_set_id]


def method_of(plant: Plant, method_set_id: str) -> MethodSet:
    """A method set by id, the plant's own ones included.

    Raises:
        BadRequest: As `method_set`.
    """
    return plant.own_method_sets.get(method_set_id) or method_set(method_set_id)


def scope_of_source(node: Node, method: MethodSet) -> Scope:
    """Where a method set counts what a source brings in."""
    if node.origin is Origin.OWN or (method.heat_is_direct and node.carrier != "electricity"):
        return Scope.DIRECT
    return Scope.ENERGY_INDIRECT


def source_factors(
    node: Node,
    method: MethodSet,
    basis: str,
    time_ns: Times,
    known_at_ns: int,
    zone: ZoneInfo,
    region: str,
    library: FactorLibrary,
) -> FactorColumn:
    """What a kWh from this source node carries in, by one method set and basis.

    Args:
        basis: `Basis.LOCATION` or `Basis.MARKET`; they differ for `factor: grid` only.
        time_ns: Shape (n,), the start of each base interval, any order.

    Returns:
        Shape (n,) columns. Where a series by the hour says nothing of the grid's electricity, the annual factor
        that `grid` would give holds, marked unverified. A fuel carries zero: its carbon arises where it burns. Energy outside the
        regime's scopes carries zero under the id `out-of-scope:<method set>`. Else NaN is "without factor".

    Raises:
        BadRequest: The node's factor is no id of the library.
    """
    if node.fuel is not None:
        return FactorColumn(np.zeros(time_ns.shape), (), np.zeros(time_ns.shape, dtype=np.bool_))
    if scope_of_source(node, method) not in method.scopes:
        return constant_column(0.0, f"out-of-scope:{method.id}", time_ns)
    if node.factor is None:
        return unknown_column(time_ns)
    if node.factor == "grid":
        rule = grid_rule(method, basis, region, library)
        return _grid_column(rule, time_ns, known_at_ns, zone, region, library)
    column = library.factor_column(node.factor, time_ns, zone=zone, known_at_ns=known_at_ns)
    missing = np.isnan(column.kg_per_kwh)
    if node.carrier != "electricity" or not missing.any() or not library.is_by_interval(node.factor, zone):
        return column
    rule = grid_rule(method, basis, region, library)
    annual = _grid_column(rule, time_ns[missing], known_at_ns, zone, region, library)
    kg, unverified = column.kg_per_kwh.copy(), column.unverified.copy()
    kg[missing], unverified[missing] = annual.kg_per_kwh, ~np.isnan(annual.kg_per_kwh)
    return FactorColumn(kg, (*column.row_ids, *annual.row_ids), unverified)


def combustion_kg_per_kwh(fuel: Fuel, method: MethodSet, library: FactorLibrary) -> float:
    """Scope 1 kgCO2e of burning 1 kWh (NCV) of a fuel; of a biogenic one without its CO2, which is shown apart."""
    kg_co2 = 0.0 if fuel.biogenic else fuel.kgco2_per_kwh(oxidised=method.oxidation)
    return kg_co2 + sum(kg for _, kg in other_gases(fuel, method, library))


def other_gases(fuel: Fuel, method: MethodSet, library: FactorLibrary) -> list[tuple[FactorRow, float]]:
    """CH4 and N2O of burning 1 kWh (NCV) in industry: each factor row and its kgCO2e.

    Empty where the method leaves them out, or the fuel is none of those IPCC publishes.

    Source: IPCC 2006 Guidelines, volume 2, chapter 2, table 2.3 (manufacturing industries).
    """
    if not method.other_gases:
        return []
    rows = library.burning_rows(fuel)
    return [(row, row.value * KWH_TO_TJ * library.gwp(row.gas, method.gwp_set)) for row in rows]


def biogenic_kg_per_kwh(fuel: Fuel, method: MethodSet) -> float:
    """CO2 of burning 1 kWh (NCV) that is reported outside the scopes."""
    return fuel.kgco2_per_kwh(oxidised=method.oxidation) if fuel.biogenic else 0.0


def grid_rule(method: MethodSet, basis: str, region: str, library: FactorLibrary) -> GridRule:
    """Which grid factor a method set takes on a basis: of the market's the first that is published for the region."""
    if basis == Basis.LOCATION:
        return method.location
    published = (rule for rule in method.market if library.has_grid_series(region, rule.kind, rule.level))
    return next(published, method.market[-1])


def stand_ins(
    node: Node,
    method: MethodSet,
    basis: str,
    row_ids: Sequence[str],
    zone: ZoneInfo,
    region: str,
    library: FactorLibrary,
) -> tuple[str, ...]:
    """Those of the rows behind a source that stand in for what was asked: of another level, or for a silent hour."""
    rows = [library.row(row_id) for row_id in row_ids]
    if node.factor == "grid":
        level = grid_rule(method, basis, region, library).level
        return tuple(row.id for row in rows if level is not None and row.level not in ("", level))
    if not library.is_by_interval(node.factor, zone):
        return ()
    return tuple(row.id for row in rows if row.series != node.factor)


def _grid_column(
    rule: GridRule, time_ns: Times, known_at_ns: int, zone: ZoneInfo, region: str, library: FactorLibrary
) -> FactorColumn:
    if library.region_at(region, rule.level) is not None:
        return library.grid_factor(
            region, time_ns, zone=zone, known_at_ns=known_at_ns, kind=rule.kind, level=rule.level
        )
    column = library.grid_factor(region, time_ns, zone=zone, known_at_ns=known_at_ns, kind=rule.kind)
    return column._replace(unverified=~np.isnan(column.kg_per_kwh))
