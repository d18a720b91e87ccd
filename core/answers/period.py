"""A period's sums out of the roll-ups and the registers, and the indicators that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np

from core.answers.output import counted_output
from core.carbon.factors import FactorLibrary
from core.carbon.green_power import GreenPower, NonFossil, non_fossil
from core.carbon.indicators import ELECTRICITY, HourlyPower, PeriodSums, green_power_of, indicators
from core.carbon.method import MethodSet, method_of
from core.clock import datetime_of, rfc3339
from core.plant.model import Node, NodeKind, Origin, Plant, PointMeter
from core.registers.activity import Activity, activity_carbon, spread_over
from core.registers.book import Entry, Register
from core.registers.production import added_value_cny, output
from core.registers.shelf import Registers
from core.results import HOUR_NS, SITE, Basis, Scope
from core.samples import Floats
from core.store.seam import Figures, Series

_DAY_NS = 24 * HOUR_NS
_ENERGY_SUMS = (
    "purchased_kwh",
    "own_kwh",
    "direct_line_kwh",
    "other_own_kwh",
    "exported_kwh",
    "end_use_kwh",
)
RESIDUAL = "excluding_traded_renewables"


class Periods:
    """Answers `/v1/indicators` and the green electricity ledger for one plant."""

    def __init__(
        self, plant: Plant, store: Figures, library: FactorLibrary, registers: Registers | None = None
    ) -> None:
        self._plant = plant
        self._store = store
        self._tables = library
        self._registers = registers

    @property
    def library(self) -> FactorLibrary:
        return self._tables if self._registers is None else self._registers.library

    async def indicators(self, start_ns: int, end_ns: int, method_set: str) -> list[Mapping[str, object]]:
        """Every indicator of [start, end) by one method set, as `/v1/indicators` answers it."""
        sums = await self.sums(start_ns, end_ns, method_set)
        return [asdict(row) for row in indicators(sums, self.library)]

    async def sums(self, start_ns: int, end_ns: int, method_set: str) -> PeriodSums:
        """Energy by carrier and origin, emissions by scope and basis, what people registered included.

        A period without data is unknown, not zero. The market-based scope 2 stands as the ledger of green
        electricity leaves it.
        """
        hourly = await self._hourly(start_ns, end_ns)
        match = math.nan if hourly is None else hourly.match()
        sums = replace(
            await self._metered(start_ns, end_ns, method_set),
            hourly_match=None if math.isnan(match) else match,
            hourly=hourly,
        )
        if self._registers is None:
            return sums
        sums = await self._with_registered(self._registers, sums, start_ns, end_ns)
        claims_kg = await self._claims_kg(sums, start_ns, end_ns)
        key = (int(Scope.ENERGY_INDIRECT), Basis.MARKET.value)
        if not claims_kg or key not in sums.emissions_kg:
            return sums
        return replace(sums, emissions_kg={**sums.emissions_kg, key: sums.emissions_kg[key] + claims_kg})

    async def ledger(self, start_ns: int, end_ns: int, method_set: str) -> tuple[PeriodSums, NonFossil]:
        """The period's sums and its ledger of non-fossil electricity (发改能源〔2026〕622号)."""
        sums = await self.sums(start_ns, end_ns, method_set)
        return sums, non_fossil(green_power_of(sums))

    async def claims_kg(self, start_ns: int, end_ns: int, method_set: str) -> float:
        """What trade and certificates change of a period's market-based scope 2; 0 where they change nothing."""
        if self._registers is None or not await self._power(self._registers, start_ns, end_ns):
            return 0.0
        metered = await self._metered(start_ns, end_ns, method_set)
        sums = await self._with_registered(self._registers, metered, start_ns, end_ns)
        return await self._claims_kg(sums, start_ns, end_ns)

    async def by_hour(self, start_ns: int, end_ns: int, method_set: str) -> list[dict[str, object]]:
        """The ledger hour by hour: off-take and physical kWh as metered, the rest in proportion to the off-take."""
        _, ledger = await self.ledger(start_ns, end_ns, method_set)
        offtake = self._edges_from(lambda node: node.origin is Origin.PURCHASED)
        physical = self._edges_from(lambda node: node.origin is not Origin.PURCHASED and is_non_fossil(node))
        series = await self._store.energy([*offtake, *physical], start_ns, end_ns, "1h")
        hours = np.unique(series.start_ns)
        drawn, made = (_hourly(series, names, hours) for names in (offtake, physical))
        known = float(np.nansum(drawn))
        rows: list[dict[str, object]] = []
        for hour_ns, offtake_kwh, physical_kwh in zip(
            hours.tolist(), drawn.tolist(), made.tolist(), strict=True
        ):
            part = offtake_kwh / known if known > 0 else math.nan
            rows.append(
                {
                    "start": rfc3339(hour_ns),
                    "offtake_kwh": offtake_kwh,
                    "physical_kwh": physical_kwh,
                    "traded_kwh": ledger.traded_kwh * part,
                    "certificate_kwh": ledger.certificate_kwh * part,
                    "share_kwh": ledger.share_kwh * part,
                }
            )
        return rows

    async def _power(self, registers: Registers, start_ns: int, end_ns: int) -> GreenPower | None:
        return await registers.green_power(
            start_ns, end_ns, generation_of(start_ns, end_ns, self._plant.zone)
        )

    async def _claims_kg(self, sums: PeriodSums, start_ns: int, end_ns: int) -> float:
        """What trade and certificates change of market-based scope 2: less what they cover, plus what was sold.

        Nothing where the regime counts no claims, or no residual factor is published for the region: with the
        average for the rest the same clean power would count twice.
        """
        if sums.power is None or not counts_claims(
            method_of(self._plant, sums.method_set), self._plant, self.library
        ):
            return 0.0
        ledger = non_fossil(green_power_of(sums))
        residual = await self.residual_kg_per_kwh(start_ns, end_ns, sums.method_set)
        if math.isnan(residual):
            return 0.0
        return (ledger.claim_lost_kwh - ledger.traded_kwh - ledger.certificate_kwh) * residual

    async def residual_kg_per_kwh(self, start_ns: int, end_ns: int, method_set: str) -> float:
        """The market-based factor that the period's grid purchase stands on, its vintages weighted by energy."""
        grid = [node.id for node in self._plant.nodes if node.factor == "grid"]
        edges = [edge.id for edge in self._plant.edges if edge.source in grid]
        if not grid:
            return math.nan
        kwh = sum(_summed(await self._store.energy(edges, start_ns, end_ns, "1y"), "energy_kwh").values())
        market = await self._store.emissions(grid, start_ns, end_ns, "1y", Basis.MARKET.value, method_set)
        return float(market.columns["emissions_kgco2e"].sum()) / kwh if kwh > 0 else math.nan

    async def _metered(self, start_ns: int, end_ns: int, method_set: str) -> PeriodSums:
        plant = self._plant
        edges = await self._store.energy([edge.id for edge in plant.edges], start_ns, end_ns, "1y")
        kwh = _summed(edges, "energy_kwh")
        emissions: dict[tuple[int, str], float] = {}
        exported: dict[str, float] = {}
        coverage = math.nan
        exports = [node.id for node in plant.nodes if node.kind is NodeKind.EXPORT]
        for basis in Basis:
            series = await self._store.emissions(
                [SITE, *exports], start_ns, end_ns, "1y", basis.value, method_set
            )
            assert series.flow is not None
            kg = series.columns["emissions_kgco2e"]
            for name, flow, amount in zip(series.name, series.flow.tolist(), kg.tolist(), strict=True):
                if name == SITE:
                    key = (series.flows[flow].scope, basis.value)
                    emissions[key] = emissions.get(key, 0.0) + amount
                else:
                    exported[basis.value] = exported.get(basis.value, 0.0) + amount
            at_site = np.array([name == SITE for name in series.name], dtype=np.bool_)
            if at_site.any():
                coverage = float(series.columns["coverage"][at_site].mean())

        sums: dict[str, dict[str, float]] = {name: {} for name in _ENERGY_SUMS}
        for edge in plant.edges:
            source, target = plant.node_by_id[edge.source], plant.node_by_id[edge.target]
            for name in (*sum_of_source(source), *sum_of_target(target)):
                column = sums[name]
                column[edge.carrier] = column.get(edge.carrier, 0.0) + kwh.get(edge.id, math.nan)
        return PeriodSums(
            method_set=method_set,
            nets_sold_energy=method_of(plant, method_set).nets_sold_energy,
            coverage=0.0 if math.isnan(coverage) else coverage,
            purchased_kwh=sums["purchased_kwh"],
            own_kwh=sums["own_kwh"],
            direct_line_kwh=sums["direct_line_kwh"],
            other_own_kwh=sums["other_own_kwh"],
            exported_kwh=sums["exported_kwh"],
            end_use_kwh=sums["end_use_kwh"],
            emissions_kg=emissions,
            exported_kg=exported,
            collected_share=_collected(plant, edges),
            days=(end_ns - start_ns) / _DAY_NS,
        )

    async def _with_registered(
        self, registers: Registers, sums: PeriodSums, start_ns: int, end_ns: int
    ) -> PeriodSums:
        """Activity data, production and green power on top of what was metered."""
        method, zone = method_of(self._plant, sums.method_set), self._plant.zone
        emissions = dict(sums.emissions_kg)
        purchased, end_use = dict(sums.purchased_kwh), dict(sums.end_use_kwh)
        renewable_kwh = removed_kg = 0.0
        for entry in await registers.book.counted(Register.ACTIVITY, start_ns, end_ns):
            activity = Activity.of(entry.body)
            part = spread_over(entry, activity.spread, start_ns, end_ns)
            known_ns = entry.approved_at_ns or entry.at_ns
            carbon = activity_carbon(activity, entry.start_ns, known_ns, method, zone, self.library)
            if carbon.scope in method.scopes:
                for basis in Basis:
                    key = (carbon.scope, basis.value)
                    emissions[key] = emissions.get(key, 0.0) + carbon.kg * part
            removed_kg += carbon.removed_kg * part
            if carbon.energy_kwh:
                for by_carrier in (purchased, end_use):
                    held = by_carrier.get(carbon.carrier, 0.0)
                    by_carrier[carbon.carrier] = held + carbon.energy_kwh * part
                renewable_kwh += carbon.energy_kwh * part if carbon.biogenic_kg > 0 else 0.0
        made = await registers.book.counted(Register.PRODUCTION, start_ns, end_ns)
        return replace(
            sums,
            emissions_kg=emissions,
            purchased_kwh=purchased,
            end_use_kwh=end_use,
            renewable_fuel_kwh=renewable_kwh,
            removed_kg=removed_kg,
            output=await self._output(made, start_ns, end_ns),
            value_cny=added_value_cny(made, start_ns, end_ns),
            power=await self._power(registers, start_ns, end_ns),
        )

    async def _output(self, made: Sequence[Entry], start_ns: int, end_ns: int) -> dict[str, float]:
        """Good output written down and counted, by unit."""
        amounts = output(made, start_ns, end_ns)
        for product in self._plant.products:
            if product.counter is not None:
                _, counted = await counted_output(self._plant, self._store, product, start_ns, end_ns)
                if np.isfinite(counted).any():
                    amounts[product.unit] = amounts.get(product.unit, 0.0) + float(np.nansum(counted))
        return amounts

    async def _hourly(self, start_ns: int, end_ns: int) -> HourlyPower | None:
        """What the hourly match is computed from; None without own or direct-line power that carries nothing."""
        clean = self._edges_from(lambda node: node.origin is not Origin.PURCHASED and is_non_fossil(node))
        other = self._edges_from(lambda node: node.origin is Origin.PURCHASED or not is_non_fossil(node))
        if not clean:
            return None
        sold = [
            edge.id
            for edge in self._plant.edges
            if self._plant.node_by_id[edge.target].kind is NodeKind.EXPORT and edge.carrier == ELECTRICITY
        ]
        edges = tuple(dict.fromkeys([*clean, *other, *sold]))
        series = await self._store.energy(edges, start_ns, end_ns, "1h")
        hours = np.unique(series.start_ns)
        if hours.size == 0:
            return None
        return HourlyPower(edges, _by_edge(series, edges, hours), np.isin(edges, clean), np.isin(edges, sold))

    def _edges_from(self, wanted: Callable[[Node], bool]) -> list[str]:
        """Edges by which electricity comes in from these sources."""
        nodes = self._plant.node_by_id
        return [
            edge.id
            for edge in self._plant.edges
            if nodes[edge.source].kind is NodeKind.SOURCE
            and wanted(nodes[edge.source])
            and edge.carrier == ELECTRICITY
        ]


def sum_of_source(node: Node) -> tuple[str, ...]:
    """The field of `PeriodSums` that energy from this node is part of."""
    if node.kind is not NodeKind.SOURCE:
        return ()
    if node.origin is Origin.PURCHASED:
        return ("purchased_kwh",)
    if not is_non_fossil(node):
        return ("other_own_kwh",)
    return ("own_kwh",) if node.origin is Origin.OWN else ("direct_line_kwh",)


def sum_of_target(node: Node) -> tuple[str, ...]:
    """The field of `PeriodSums` that energy to this node is part of."""
    return {NodeKind.EXPORT: ("exported_kwh",), NodeKind.LOAD: ("end_use_kwh",)}.get(node.kind, ())


def is_non_fossil(node: Node) -> bool:
    """Whether a source's power carries nothing: a factor of 0 and no fuel. One with carbon is nobody's clean power."""
    return node.factor == 0 and node.fuel is None


def counts_claims(method: MethodSet, plant: Plant, library: FactorLibrary) -> bool:
    """Whether trade and certificates count in this regime's market-based figure, with a residual factor for the rest."""
    rule = method.market[0]
    return rule.kind == RESIDUAL and library.has_grid_series(plant.region, rule.kind, rule.level)


def generation_of(start_ns: int, end_ns: int, zone: ZoneInfo) -> str:
    """The year or month that [start, end) is, as certificates write it; else `-`, of which there is none."""
    first = datetime_of(start_ns).astimezone(zone).date()
    after = datetime_of(end_ns).astimezone(zone).date()
    if (first.day, after.day) == (1, 1) and (after - timedelta(days=1)).replace(day=1) == first:
        return f"{first:%Y-%m}"
    if first == first.replace(month=1, day=1) and after == first.replace(year=first.year + 1):
        return f"{first:%Y}"
    return "-"


def _collected(plant: Plant, energy: Series) -> float | None:
    """Share of the edges with a meter of their own that a good reading came from."""
    metered = {edge.id for edge in plant.edges if isinstance(edge.meter, PointMeter)}
    covered = zip(energy.name, energy.columns["coverage"].tolist(), strict=True)
    heard = {name for name, share in covered if name in metered and share > 0}
    return len(heard) / len(metered) if metered and energy.name else None


def _summed(series: Series, column: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, amount in zip(series.name, series.columns[column].tolist(), strict=True):
        total[name] = total.get(name, 0.0) + amount
    return total


def _hourly(series: Series, names: Sequence[str], hours: np.ndarray) -> Floats:
    """Sum of these edges by hour; an hour an edge says nothing about is unknown."""
    total: Floats = _by_edge(series, names, hours).sum(axis=0)
    return total


def _by_edge(series: Series, names: Sequence[str], hours: np.ndarray) -> Floats:
    """Shape (E, H), NaN in an hour that an edge says nothing about."""
    kwh = np.full((len(names), hours.size), np.nan)
    place = {name: i for i, name in enumerate(names)}
    rows = np.array([place.get(name, -1) for name in series.name], dtype=np.int64)
    wanted = rows >= 0
    at = np.searchsorted(hours, series.start_ns[wanted])
    kwh[rows[wanted], at] = series.columns["energy_kwh"][wanted]
    return kwh
