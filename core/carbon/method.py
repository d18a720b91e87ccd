"""Method sets: which rules turn the same readings into the figure one regime asks for.

A method set is data: edition, GWP set, whether oxidation counts, which grid
factor stands for location and market, what is in scope. All of them are
*designed toward* their documents; none claims to conform. What surprises: the
national ETS leaves electricity out, so its purchased energy carries zero and
says so in the factor id, where every other gap is NaN.

The engine needs two calls: `source_factors` for what energy brings in, and
`combustion_kg_per_kwh` for what is burned here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from zoneinfo import ZoneInfo

import numpy as np

from core.carbon.factor_row import GJ_PER_KWH, FactorRow
from core.carbon.factors import FactorColumn, FactorLibrary, Fuel, constant_column, unknown_column
from core.errors import BadRequest
from core.plant.model import Label, Node, Origin
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


_AVERAGE = GridRule("average")
_NATIONAL = GridRule("average", "national")
# Published for the country alone; what is left of the grid once traded non-fossil power is taken out.
_RESIDUAL = GridRule("excluding_traded_renewables", "national")


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

    def __post_init__(self) -> None:
        if not self.edition:
            raise ValueError(f"method set {self.id}: a method set names its edition")


_SCOPES_1_2 = frozenset({Scope.DIRECT, Scope.ENERGY_INDIRECT})

_METHOD_SETS = {
    method.id: method
    for method in (
        MethodSet(
            id="zero-carbon-factory",
            name=Label("国家零碳工厂", "National zero-carbon factory"),
            edition="designed toward 工信厅节函〔2026〕334号, 13 July 2026; accounting as GB/T 32150-2015",
            gwp_set="AR5",
            oxidation=True,
            scopes=_SCOPES_1_2,
            # The provincial factor by second-hand evidence; a plant that names no province keeps its region, marked.
            location=GridRule("average", "provincial"),
            market=(_RESIDUAL, _AVERAGE),
            # Entry values 1.8 tCO2/tce and 30 % fit each other only on this basis; annex 1 has to confirm it.
            tce_basis=TceBasis.PRIMARY,
            nets_sold_energy=True,
        ),
        MethodSet(
            id="ghg-protocol",
            name=Label("温室气体核算体系", "GHG Protocol, ISO 14064-1"),
            edition="designed toward GHG Protocol Corporate Standard 2004, Scope 2 Guidance 2015, ISO 14064-1:2018",
            gwp_set="AR6",
            oxidation=True,
            scopes=_SCOPES_1_2,
            location=_AVERAGE,
            market=(_RESIDUAL, _AVERAGE),
            tce_basis=TceBasis.CALORIFIC,
            nets_sold_energy=False,
            other_gases=True,
        ),
        MethodSet(
            id="gb-t-32150",
            name=Label("工业企业温室气体核算 GB/T 32150", "GB/T 32150 and GB/T 32151"),
            edition="designed toward GB/T 32150-2015 and GB/T 32151 (parts of 2015 and 2024)",
            gwp_set="AR5",
            oxidation=True,
            scopes=_SCOPES_1_2,
            location=_AVERAGE,
            market=(_AVERAGE,),  # traded green power still counts at the grid average
            tce_basis=TceBasis.CALORIFIC,
            nets_sold_energy=True,
        ),
        MethodSet(
            id="national-ets",
            name=Label("全国碳市场(钢铁)", "National ETS, steel"),
            edition="designed toward the national ETS monthly evidence sheet for steel, June 2026",
            gwp_set="AR5",
            oxidation=False,
            scopes=frozenset({Scope.DIRECT}),
            location=_NATIONAL,
            market=(_NATIONAL,),
            tce_basis=TceBasis.CALORIFIC,
            nets_sold_energy=False,
        ),
        MethodSet(
            id="cbam",
            name=Label("欧盟碳边境调节机制", "CBAM"),
            edition="designed toward (EU) 2023/956 and (EU) 2025/2547, definitive period from 2026",
            gwp_set="AR5",
            oxidation=False,
            scopes=_SCOPES_1_2,
            location=_NATIONAL,
            market=(_NATIONAL,),  # certificates are no direct link and no PPA
            tce_basis=TceBasis.CALORIFIC,
            nets_sold_energy=False,
        ),
        MethodSet(
            id="in-house",
            name=Label("企业内部", "In-house"),
            edition="in-house rules, edition 1: the region's own grid level, oxidation, CH4 and N2O counted, AR6",
            gwp_set="AR6",
            oxidation=True,
            scopes=_SCOPES_1_2,
            location=_AVERAGE,
            market=(_RESIDUAL, _AVERAGE),
            tce_basis=TceBasis.CALORIFIC,
            nets_sold_energy=False,
            other_gases=True,
        ),
    )
}

METHOD_SET_IDS = tuple(_METHOD_SETS)


def method_set(method_set_id: str) -> MethodSet:
    """One method set by id.

    Raises:
        BadRequest: There is none; the message names those there are.
    """
    if method_set_id not in _METHOD_SETS:
        raise BadRequest(f"no method set {method_set_id!r}, wanted one of {', '.join(METHOD_SET_IDS)}")
    return _METHOD_SETS[method_set_id]


def scope_of_source(node: Node) -> Scope:
    """Where what a source brings in is counted."""
    return Scope.DIRECT if node.origin is Origin.OWN else Scope.ENERGY_INDIRECT


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
    if scope_of_source(node) not in method.scopes:
        return constant_column(0.0, f"out-of-scope:{method.id}", time_ns)
    if node.factor is None:
        return unknown_column(time_ns)
    if node.factor == "grid":
        rule = method.location if basis == Basis.LOCATION else _market_rule(method, region, library)
        return _grid_column(rule, time_ns, known_at_ns, zone, region, library)
    column = library.factor_column(node.factor, time_ns, zone=zone, known_at_ns=known_at_ns)
    missing = np.isnan(column.kg_per_kwh)
    if node.carrier != "electricity" or not missing.any() or not library.is_by_interval(node.factor, zone):
        return column
    rule = method.location if basis == Basis.LOCATION else _market_rule(method, region, library)
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


def _market_rule(method: MethodSet, region: str, library: FactorLibrary) -> GridRule:
    published = (rule for rule in method.market if library.has_grid_series(region, rule.kind, rule.level))
    return next(published, method.market[-1])


def _grid_column(
    rule: GridRule, time_ns: Times, known_at_ns: int, zone: ZoneInfo, region: str, library: FactorLibrary
) -> FactorColumn:
    if library.region_at(region, rule.level) is not None:
        return library.grid_factor(
            region, time_ns, zone=zone, known_at_ns=known_at_ns, kind=rule.kind, level=rule.level
        )
    column = library.grid_factor(region, time_ns, zone=zone, known_at_ns=known_at_ns, kind=rule.kind)
    return column._replace(unverified=~np.isnan(column.kg_per_kwh))
