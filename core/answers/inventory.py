"""The inventory of a period: what emitted, by month, scope, ISO category and basis, and on which factors it stands.

Everything is read from the roll-ups, so a year answers at once, and every line
names its meters and factor rows, so that it can be opened. What surprises: the
lines of scope 1 are worked out here once more from burned energy and factor,
while the totals are the engine's own. They agree because both use the same
function, and a difference shows as a line of its own instead of vanishing.

Source: ISO 14064-1:2018, 5.2 (categories) and 6.3; GHG Protocol Corporate
Standard, chapter 9; Scope 2 Guidance 7.1 (both bases side by side).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from core.answers.period import Periods, sum_of_source, sum_of_target
from core.answers.then import FactorsUsed, FiguresThen
from core.carbon.accounting import Effects, effects
from core.carbon.factors import FactorLibrary, Fuel
from core.carbon.indicators import NATIONAL, Indicator, Move, PeriodSums, indicators
from core.carbon.method import (
    TCE_ELECTRICITY,
    MethodSet,
    TceBasis,
    biogenic_kg_per_kwh,
    combustion_kg_per_kwh,
    method_of,
    other_gases,
    scope_of_source,
    stand_ins,
)
from core.carbon.uncertainty import Term, combined_uncertainty
from core.errors import BadRequest
from core.plant.model import Edge, Label, Node, NodeKind, Plant, PointMeter
from core.registers.activity import Activity, activity_carbon, spread_over
from core.registers.book import Register
from core.registers.shelf import Registers
from core.results import SITE, Basis, Scope
from core.samples import Floats, Times
from core.store.bucket import bucket_edges
from core.store.seam import Figures, Series, Store

CATEGORIES = {
    1: Label("直接排放与清除", "Direct emissions and removals"),
    2: Label("外购能源间接排放", "Imported energy"),
    3: Label("运输", "Transportation"),
    4: Label("组织使用的产品", "Products used by the organisation"),
    5: Label("组织产品的使用", "Use of the organisation's products"),
    6: Label("其他", "Other"),
}


_SCOPES_OF = {"emissions_scope_1": (1,), "emissions_scope_2": (2,)}  # other carbon stands on both


class LineKind(StrEnum):
    SOURCE = "source"  # what a source brings in
    COMBUSTION = "combustion"  # what burns at a node
    ACTIVITY = "activity"  # what people wrote down
    CLAIMS = "claims"  # what trade and certificates change of the market basis
    DIFFERENCE = "difference"  # what the engine's total holds beyond the lines


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One source of emissions.

    Attributes:
        id: Node id, or what an activity is about.
        removed_kg: Shape (M,), CO2 kept from the air on record; never subtracted.
        basis: None where both bases say the same.
        kg: Shape (M,), by month; NaN where nothing is known.
        biogenic_kg: Shape (M,), outside the scopes and not in `kg`.
        energy_kwh: NaN where the line is no energy; carrier: what was bought, of an activity.
        coverage, estimated_share: Of the energy behind it, over the months that have data.
        terms: What the uncertainty of the whole period is made of; `unstated` names meters and factors that
            do not say how far they may be off.
        factors: Ids of the factor rows; stand_ins: those of them that stand in for what was asked.
    """

    id: str
    kind: LineKind
    name: Label
    scope: int
    category: int
    basis: Basis | None
    kg: Floats
    biogenic_kg: Floats
    energy_kwh: float
    coverage: float
    estimated_share: float
    removed_kg: Floats | None = None
    carrier: str = ""
    factors: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    unstated: tuple[str, ...] = ()

    @property
    def total_kg(self) -> float:
        return known_sum(self.kg)

    def joined(self, other: Line) -> Line:
        """This line and another entry of the same subject."""
        assert self.removed_kg is not None
        assert other.removed_kg is not None
        return replace(
            self,
            kg=self.kg + other.kg,
            biogenic_kg=self.biogenic_kg + other.biogenic_kg,
            removed_kg=self.removed_kg + other.removed_kg,
            energy_kwh=self.energy_kwh + other.energy_kwh,
            factors=tuple(dict.fromkeys((*self.factors, *other.factors))),
            terms=self.terms + other.terms,
            unstated=tuple(dict.fromkeys((*self.unstated, *other.unstated))),
        )

    @property
    def total_biogenic_kg(self) -> float:
        return known_sum(self.biogenic_kg)

    @property
    def uncertainty(self) -> float:
        """Half of the relative 95 % interval, from what is stated; NaN where nothing is."""
        return _uncertainty(self.terms)


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """A scope on one basis, as the engine's `node=site` gives it."""

    scope: int
    basis: Basis
    kg: Floats  # shape (M,)
    coverage: Floats  # shape (M,)
    uncertainty: float

    @property
    def total_kg(self) -> float:
        return known_sum(self.kg)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a figure stands on: ids of its factor rows, the levels of those of the grid, whether one is unverified."""

    factors: tuple[str, ...]
    levels: tuple[str, ...]
    unverified: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A line of two periods; the two effects add up to the difference (NaN where one period is unknown).

    The uncertainties are half of the relative 95 % intervals of the two amounts, NaN where none is stated.
    """

    line: str
    scope: int
    before_kg: float
    after_kg: float
    energy_kg: float
    factor_kg: float
    before_uncertainty: float
    after_uncertainty: float


@dataclass(frozen=True, slots=True, eq=False)
class Inventory:
    """Lines and totals of [start_ns, end_ns) by one method set; `month_ns` the months' starts, shape (M,).

    `exported_kg` is what left with sold energy by month, as tracing gives it; shown apart, part of every total.
    `meter_moves` says by meter or entry what the sums would hold more, were it off by its uncertainty; `edge_kwh` is the
    energy of each edge, NaN where none is known.
    """

    start_ns: int
    end_ns: int
    method: MethodSet
    month_ns: Times
    lines: tuple[Line, ...]
    totals: tuple[Total, ...]
    meter_moves: Mapping[str, Move] = field(default_factory=dict)
    exported_kg: Mapping[Basis, Floats] = field(default_factory=dict)
    edge_kwh: Mapping[str, float] = field(default_factory=dict)

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """Ids of the factor rows in use, each with the lines that stand on it."""
        used: dict[str, dict[str, None]] = {}
        for line in self.lines:
            for row in line.factors:
                used.setdefault(row, {})[line.id] = None
        return {row: tuple(lines) for row, lines in used.items()}

    @property
    def stand_ins(self) -> frozenset[str]:
        """Ids of the factor rows that stand in for what was asked somewhere."""
        return frozenset(row for line in self.lines for row in line.stand_ins)

    @property
    def biogenic_kg(self) -> Floats:
        """Shape (M,), CO2 outside the scopes."""
        total = np.zeros(self.month_ns.size)
        for line in self.lines:
            total += line.biogenic_kg
        return total

    @property
    def removed_kg(self) -> Floats:
        """Shape (M,), CO2 kept from the air on record."""
        total = np.zeros(self.month_ns.size)
        for line in self.lines:
            if line.removed_kg is not None:
                total += line.removed_kg
        return total

    @property
    def unstated(self) -> tuple[str, ...]:
        """Meters and factors behind these figures that do not say how far they may be off."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.unstated))

    def against(self, before: Inventory, basis: Basis) -> list[Change]:
        """Each line's difference to an earlier period, apart by energy and by factor; other lines by amount alone."""
        earlier = {
            (line.id, line.kind, line.scope): line for line in before.lines if line.basis in (None, basis)
        }
        later = {(line.id, line.kind, line.scope): line for line in self.lines if line.basis in (None, basis)}
        changes = []
        for key in dict.fromkeys([*earlier, *later]):
            old, new = earlier.get(key), later.get(key)
            before_kg = 0.0 if old is None else old.total_kg
            after_kg = 0.0 if new is None else new.total_kg
            parts = Effects(after_kg - before_kg, 0.0)
            if old is not None and new is not None and old.energy_kwh > 0:
                parts = effects(old.energy_kwh, before_kg, new.energy_kwh, after_kg)
            changes.append(
                Change(
                    key[0],
                    key[2],
                    before_kg,
                    after_kg,
                    parts.energy_kg,
                    parts.factor_kg,
                    math.nan if old is None else old.uncertainty,
                    math.nan if new is None else new.uncertainty,
                )
            )
        return changes

    def net_kg(self, basis: Basis) -> Floats:
        """Shape (M,), scopes 1 and 2 less what left with sold energy: the net form some regimes ask for (C18)."""
        gross = [total.kg for total in self.totals if total.basis is basis and total.scope <= 2]
        exported = self.exported_kg.get(basis, np.zeros(self.month_ns.size))
        return np.sum(gross, axis=0) - np.nan_to_num(exported) if gross else np.full(exported.shape, np.nan)

    def metered(self) -> Inventory:
        """The lines that meters say, without entries and claims."""
        kinds = (LineKind.SOURCE, LineKind.COMBUSTION)
        return replace(self, lines=tuple(line for line in self.lines if line.kind in kinds))

    def of_nodes(self, nodes: Container[str]) -> Inventory:
        """The metered lines of these nodes."""
        return replace(self, lines=tuple(line for line in self.metered().lines if line.id in nodes))

    def standing(self, library: FactorLibrary, basis: Basis, *scopes: int) -> Standing:
        """What the sum of these scopes on a basis stands on."""
        lines = [line for line in self.lines if line.basis in (None, basis) and line.scope in scopes]
        ids = tuple(dict.fromkeys(row for line in lines for row in line.factors))
        rows = [library.row(id_) for id_ in ids]
        levels = tuple(
            dict.fromkeys(row.level for row in rows if row.quantity == "electricity" and row.level)
        )
        unverified = any(row.unverified for row in rows) or bool(self.stand_ins.intersection(ids))
        return Standing(ids, levels, unverified)

    def terms(self, basis: Basis, *scopes: int) -> tuple[Term, ...]:
        """What is summed on a basis; of these scopes only, where some are named."""
        lines = [line for line in self.lines if line.basis in (None, basis)]
        return tuple(term for line in lines if not scopes or line.scope in scopes for term in line.terms)

    def moves(self) -> Iterator[Move]:
        """What each meter and each factor changes of the sums, were it off by its uncertainty; those that state one."""
        kg: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
        for basis in Basis:
            for line in self.lines:
                if line.basis not in (None, basis):
                    continue
                for term in line.terms:
                    for kind, name, share in (
                        ("meter", term.activity, term.activity_uncertainty),
                        ("factor", term.factor, term.factor_uncertainty),
                    ):
                        if share > 0:
                            of_name = kg.setdefault((kind, name), {})
                            key = line.scope, basis.value
                            of_name[key] = of_name.get(key, 0.0) + term.value * share
        for kind, name in dict.fromkeys([*kg, *(("meter", meter) for meter in self.meter_moves)]):
            metered = self.meter_moves.get(name) if kind == "meter" else None
            yield replace(metered or Move(), kg=kg.get((kind, name), {}))

    def uncertainty(self, basis: Basis, *scopes: int) -> float:
        """Half of the relative 95 % interval of a sum, from what is stated; NaN where nothing is."""
        return _uncertainty(self.terms(basis, *scopes))


class Inventories:
    """Makes the inventory of one plant.

    Args:
        factors_used: What stored results stand on.
    """

    def __init__(
        self, plant: Plant, store: Store, periods: Periods, registers: Registers, factors_used: FactorsUsed
    ) -> None:
        self._plant = plant
        self._kept = store
        self._used = factors_used
        self._store: Figures = store
        self._periods = periods
        self._registers = registers
        self._then: FiguresThen | None = None

    def known_at(self, known_at_ns: int) -> Inventories:
        """The same of what was known at a past time: of closed days as they were sealed, entries as they stood."""
        then = FiguresThen(self._kept, self._plant.zone, known_at_ns, self._used)
        registers = self._registers.known_at(known_at_ns)
        periods = Periods(self._plant, then, self._library, registers)
        made = Inventories(self._plant, self._kept, periods, registers, self._used)
        made._store = made._then = then
        return made

    @property
    def _library(self) -> FactorLibrary:
        return self._registers.library

    async def of(self, start_ns: int, end_ns: int, method_set_id: str) -> Inventory:
        """The inventory of [start, end).

        Raises:
            BadRequest: No such method set.
        """
        method = method_of(self._plant, method_set_id)
        month_ns = bucket_edges(start_ns, end_ns, "1mo", self._plant.zone)[:-1]
        edges = [edge.id for edge in self._plant.edges]
        energy = _Energies(await self._store.energy(edges, start_ns, end_ns, "1mo"), month_ns)
        used = await self._factors_used(start_ns, end_ns, method.id)
        lines = [self._combustion(node, method, energy) for node in self._plant.nodes if node.burns]
        totals = []
        sources = [node for node in self._plant.nodes if node.kind is NodeKind.SOURCE and node.fuel is None]
        exports = [node.id for node in self._plant.nodes if node.kind is NodeKind.EXPORT]
        exported: dict[Basis, Floats] = {}
        for basis in Basis:
            names = [SITE, *(node.id for node in sources), *exports]
            series = await self._store.emissions(names, start_ns, end_ns, "1mo", basis.value, method.id)
            carbon = _by_node_and_scope(series, "emissions_kgco2e", month_ns)
            coverage = _by_node_and_scope(series, "coverage", month_ns)
            for node in sources:
                rows = self._library.gathered(used.get((node.id, basis.value), ()))
                lines += self._brought(node, method, basis, carbon, energy, rows)
            totals += [
                Total(scope, basis, kg, coverage[name, scope], math.nan)
                for (name, scope), kg in carbon.items()
                if name == SITE
            ]
            sold = [kg for (name, _), kg in carbon.items() if name in exports]
            if sold:
                exported[basis] = np.sum(sold, axis=0)
        lines += _differences(totals, lines)
        beside = [
            *await self._activities(start_ns, end_ns, method, month_ns),
            *await self._claims(start_ns, end_ns, method, energy),
        ]
        lines += beside
        return Inventory(
            start_ns,
            end_ns,
            method,
            month_ns,
            tuple(lines),
            tuple(_with_beside(totals, beside, lines)),
            self._meter_moves(energy, lines),
            exported,
            {edge.id: known_sum(energy.kwh([edge])) for edge in self._plant.edges},
        )

    async def indicators(
        self, start_ns: int, end_ns: int, method_set_id: str, scheme: str = NATIONAL
    ) -> list[Mapping[str, object]]:
        """The period's indicators, each with half of its relative 95 % interval (C24), None where nobody states any.

        Each meter and each factor is moved by its own uncertainty, the indicators made again, and the differences
        added as squares: so a ratio knows that both its sides stand on the same meter, and one in which it cancels
        altogether (what a roof makes and what of it is used, where nothing is sold) is off by 0.
        """
        sums = await self._periods.sums(start_ns, end_ns, method_set_id)
        made = await self.of(start_ns, end_ns, method_set_id)
        rows = indicators(sums, self._library, scheme)
        off = await asyncio.to_thread(self._off, rows, sums, made, scheme)
        return [
            {**asdict(row), "uncertainty": off.get(row.key), **asdict(self._standing_of(row, made))}
            for row in rows
        ]

    def _off(
        self, rows: Sequence[Indicator], sums: PeriodSums, made: Inventory, scheme: str
    ) -> dict[tuple[str, str, str | None], float]:
        """How far each indicator may be off, by its key, where somebody states it."""
        moves = list(made.moves())

        def values(move: Move) -> dict[tuple[str, str, str | None], float | None]:
            return {row.key: row.value for row in indicators(sums.moved(move), self._library, scheme)}

        squares = dict.fromkeys((row.key for row in rows), 0.0)
        for moved in map(values, moves):
            for row in rows:
                there = moved.get(row.key)
                if row.value is not None and there is not None:
                    squares[row.key] += (there - row.value) ** 2
        off = {
            row.key: math.sqrt(squares[row.key]) / abs(row.value)
            for row in rows
            if row.value and squares[row.key] > 0
        }
        still = [row.key for row in rows if row.value and row.key not in off]
        if still:
            unknown = values(Move.into_unknown(moves))
            off |= {key: 0.0 for key in still if unknown.get(key) is None}
        return off

    def _standing_of(self, row: Indicator, made: Inventory) -> Standing:
        """What an indicator stands on: the factors of its carbon, the coefficient of its tce."""
        words = (row.basis or "").split(",")
        basis = next((basis for basis in Basis if basis.value in words), Basis.LOCATION)
        scopes = _SCOPES_OF.get(row.indicator, (1, 2) if basis.value in words else ())
        carbon = made.standing(self._library, basis, *scopes)
        tce = [self._library.tce_per_unit(TCE_ELECTRICITY[one]) for one in TceBasis if one.value in words]
        return Standing(
            (*carbon.factors, *(factor.id for factor in tce)),
            carbon.levels,
            carbon.unverified or any(factor.unverified for factor in tce),
        )

    async def unverified(
        self, start_ns: int, end_ns: int, method_set_id: str, basis: Basis
    ) -> dict[int, bool]:
        """By scope, whether a factor behind the metered emissions is unverified or stands in for what was asked.

        Asks the store which rows were used and nothing else, so it may stand beside every read of a roll-up.
        """
        method = method_of(self._plant, method_set_id)
        used = await self._factors_used(start_ns, end_ns, method.id)
        marked: dict[int, bool] = {}
        for node in self._plant.nodes:
            if node.burns:
                fuel = self._library.fuel(fuel_of(self._plant, node))
                scope, ids = Scope.DIRECT, self._of_fuel(fuel, method)
            elif node.kind is NodeKind.SOURCE and node.fuel is None:
                scope, ids = scope_of_source(node, method), used.get((node.id, basis.value), ())
            else:
                continue
            marked[scope] = marked.get(scope, False) or self._doubted(node, method, basis, ids)
        return marked

    def _doubted(self, node: Node, method: MethodSet, basis: Basis, ids: tuple[str, ...]) -> bool:
        """Whether one of a node's rows is unverified, stands in for another, or is in the library no longer."""
        try:
            rows = self._library.gathered(ids)
            unverified = any(self._library.row(id_).unverified for id_ in rows)
            return unverified or (not node.burns and bool(self._stand_ins(node, method, basis, rows)))
        except BadRequest:  # withdrawn, and these hours are not computed again yet
            return True

    def _of_fuel(self, fuel: Fuel, method: MethodSet) -> tuple[str, ...]:
        """The rows that burning it stands on."""
        return fuel.row.id, *(row.id for row, _ in other_gases(fuel, method, self._library))

    def _stand_ins(
        self, node: Node, method: MethodSet, basis: Basis, rows: tuple[str, ...]
    ) -> tuple[str, ...]:
        asked = method, basis.value, rows, self._plant.zone, self._plant.region, self._library
        return stand_ins(node, *asked)

    def own_meter_uncertainties(self) -> dict[str, float]:
        """Of what each load and export takes: its least certain meter's; only those of which one is stated.

        The meter of a source is none of the load's own: what came in is as uncertain as that already.
        """
        nodes = self._plant.node_by_id
        worst: dict[str, float] = {}
        for edge in self._plant.edges:
            takes = nodes[edge.target].kind in (NodeKind.LOAD, NodeKind.EXPORT)
            if takes and nodes[edge.source].kind is not NodeKind.SOURCE:
                _, share = self._meter_uncertainty(edge)
                if share is not None:
                    worst[edge.target] = max(share, worst.get(edge.target, 0.0))
        return worst

    def of_intensities(
        self, made: Inventory, nodes: Sequence[str], basis: Basis
    ) -> dict[str, tuple[float, Standing]]:
        """Of the carbon intensity of each node or `site`: half of the relative 95 % interval, and what it stands on."""
        known: dict[Container[str], tuple[float, Standing]] = {}
        found = {}
        for name in dict.fromkeys(nodes):
            alike = self._alike(name)
            if alike not in known:
                behind, bringing = self._behind(made, name)
                off = self._intensity_uncertainty(behind, bringing, basis)
                known[alike] = off, behind.standing(self._library, basis, *Scope)
            found[name] = known[alike]
        return found

    def _alike(self, node_id: str) -> Container[str]:
        """The same for nodes whose intensity is the same: loads that buses feed and in which nothing burns."""
        nodes = self._plant.node_by_id
        feeding = frozenset(edge.source for edge in self._edges_at[0].get(node_id, ()))
        node = nodes.get(node_id)
        fed = node is not None and node.kind in (NodeKind.LOAD, NodeKind.EXPORT) and not node.burns
        return feeding if fed and all(nodes[at].kind is NodeKind.BUS for at in feeding) else node_id

    def _behind(self, made: Inventory, node_id: str) -> tuple[Inventory, Sequence[Edge]]:
        """What the intensity of a node or `site` stands on.

        The lines of all nodes that energy reaches it from, its own included, and the edges that bring the energy whose
        carbon it is: out of sources and converters, through buses and storages.
        """
        nodes, (into, out_of) = self._plant.node_by_id, self._edges_at
        ends = NodeKind.SOURCE, NodeKind.CONVERTER
        if node_id == SITE:
            return made.metered(), [e for e in self._plant.edges if nodes[e.source].kind is NodeKind.SOURCE]
        if nodes[node_id].kind in ends:
            bringing = out_of.get(node_id, [])
        else:
            passed = self._reached(node_id, ends)
            bringing = [e for at in passed for e in into.get(at, ()) if nodes[e.source].kind in ends]
        return made.of_nodes(self._reached(node_id)), bringing

    def _intensity_uncertainty(self, made: Inventory, bringing: Sequence[Edge], basis: Basis) -> float:
        """Half of the relative 95 % interval of the carbon of these lines over the energy of these edges.

        A meter on both sides cancels as far as it stands on both; NaN where nothing is stated or there is no carbon.
        """
        terms = made.terms(basis)
        kg = sum(term.value for term in terms)
        kwh = sum(made.edge_kwh[edge.id] for edge in bringing)
        if not (math.isfinite(kg) and kg != 0 and kwh > 0):
            return math.nan
        more: dict[tuple[str, str], tuple[float, float]] = {}

        def move(kind: str, name: str, more_kg: float, more_kwh: float) -> None:
            held_kg, held_kwh = more.get((kind, name), (0.0, 0.0))
            more[kind, name] = held_kg + more_kg, held_kwh + more_kwh

        for term in terms:
            move("meter", term.activity, term.value * term.activity_uncertainty, 0.0)
            move("factor", term.factor, term.value * term.factor_uncertainty, 0.0)
        for edge in bringing:
            meter, share = self._meter_uncertainty(edge)
            move("meter", meter, 0.0, made.edge_kwh[edge.id] * (share or 0.0))
        moved = [(1 + more_kg / kg) / (1 + more_kwh / kwh) - 1 for more_kg, more_kwh in more.values()]
        return math.hypot(*moved) if any(any(pair) for pair in more.values()) else math.nan

    @cached_property
    def _edges_at(self) -> tuple[dict[str, list[Edge]], dict[str, list[Edge]]]:
        """Edges by the node they go into, and by the node they come out of."""
        into: dict[str, list[Edge]] = {}
        out_of: dict[str, list[Edge]] = {}
        for edge in self._plant.edges:
            into.setdefault(edge.target, []).append(edge)
            out_of.setdefault(edge.source, []).append(edge)
        return into, out_of

    def _reached(self, node_id: str, ends: Container[NodeKind] = ()) -> set[str]:
        """The nodes that energy reaches this one from, itself included, not beyond nodes of these kinds."""
        reached, waiting = {node_id}, [node_id]
        while waiting:
            for edge in self._edges_at[0].get(waiting.pop(), ()):
                if edge.source not in reached and self._plant.node_by_id[edge.source].kind not in ends:
                    reached.add(edge.source)
                    waiting.append(edge.source)
        return reached

    def _meter_moves(self, energy: _Energies, lines: Sequence[Line]) -> Mapping[str, Move]:
        """By meter and entry, what its uncertainty is worth in the sums of energy and in the hours across the fence."""
        moves: dict[str, Move] = {}

        def add(name: str, share: float | None, fields: Sequence[str], carrier: str, kwh: float) -> None:
            if share and math.isfinite(kwh) and kwh != 0:
                for field_ in fields:
                    held = moves.setdefault(name, Move()).energy
                    held[field_, carrier] = held.get((field_, carrier), 0.0) + kwh * share

        nodes = self._plant.node_by_id
        for edge in self._plant.edges:
            fields = [*sum_of_source(nodes[edge.source]), *sum_of_target(nodes[edge.target])]
            meter, share = self._meter_uncertainty(edge)
            add(meter, share, fields, edge.carrier, known_sum(energy.kwh([edge])))
            if meter in moves and share and fields and fields != ["end_use_kwh"]:
                moves[meter].edges[edge.id] = share
        for line in lines:
            if line.carrier:
                share = max((term.activity_uncertainty for term in line.terms), default=None)
                add(line.id, share, ("purchased_kwh", "end_use_kwh"), line.carrier, line.energy_kwh)
        return moves

    async def _factors_used(
        self, start_ns: int, end_ns: int, method_set_id: str
    ) -> Mapping[tuple[str, str], tuple[str, ...]]:
        if self._then is not None:
            return await self._then.factors_used(start_ns, end_ns, method_set_id)
        return await self._used(start_ns, end_ns, method_set_id, None)

    async def _activities(self, start_ns: int, end_ns: int, method: MethodSet, month_ns: Times) -> list[Line]:
        """What people wrote down, one line a subject, laid over the months by its own rule."""
        lines: dict[tuple[str, int, int], Line] = {}
        ends_ns = [*month_ns[1:].tolist(), end_ns]
        zone = self._plant.zone
        for entry in await self._registers.book.counted(Register.ACTIVITY, start_ns, end_ns):
            activity = Activity.of(entry.body)
            known_ns = entry.approved_at_ns or entry.at_ns
            carbon = activity_carbon(activity, entry.start_ns, known_ns, method, zone, self._library)
            part = np.array(
                [
                    spread_over(entry, activity.spread, max(begin_ns, start_ns), until_ns)
                    for begin_ns, until_ns in zip(month_ns.tolist(), ends_ns, strict=True)
                ]
            )
            category = activity.category or carbon.scope if carbon.scope < 3 else activity.category or 4
            key = activity.line, carbon.scope, category
            kg = carbon.kg * part
            factor, unstated, terms = "", [], []
            if kg.sum() != 0:
                rows = tuple(row.id for row in carbon.rows)
                factor, share = self._factor_uncertainty(rows, rows[:1] or (activity.line,))
                if activity.uncertainty is None:
                    unstated.append(activity.line)
                if share is None and carbon.rows:
                    unstated.append(factor)
                terms.append(
                    Term(float(kg.sum()), activity.line, activity.uncertainty or 0.0, factor, share or 0.0)
                )
            line = Line(
                id=activity.line,
                kind=LineKind.ACTIVITY,
                name=Label(activity.line, activity.line),
                scope=carbon.scope,
                category=category,
                basis=None,
                kg=kg,
                biogenic_kg=carbon.biogenic_kg * part,
                energy_kwh=carbon.energy_kwh * float(part.sum()) if carbon.energy_kwh else math.nan,
                coverage=math.nan,
                estimated_share=math.nan,
                removed_kg=carbon.removed_kg * part,
                carrier=carbon.carrier,
                factors=tuple(row.id for row in carbon.rows),
                terms=tuple(terms),
                unstated=tuple(unstated),
            )
            lines[key] = line if key not in lines else lines[key].joined(line)
        return [
            line for line in lines.values() if line.scope in method.scopes or line.scope == Scope.VALUE_CHAIN
        ]

    async def _claims(self, start_ns: int, end_ns: int, method: MethodSet, energy: _Energies) -> list[Line]:
        """What trade and certificates change of the market basis, laid over the months by the off-take."""
        kg = await self._periods.claims_kg(start_ns, end_ns, method.id)
        grid = {node.id for node in self._plant.nodes if node.factor == "grid"}
        offtake = energy.kwh([edge for edge in self._plant.edges if edge.source in grid])
        whole = known_sum(offtake)
        if kg == 0 or not whole > 0:
            return []
        # What is taken out was counted at the grid's own factor: that one's uncertainty goes with it.
        stated = next((node.id, str(node.factor)) for node in self._plant.nodes if node.id in grid)
        factor, share = self._factor_uncertainty((), stated)
        return [
            Line(
                id="green-power",
                kind=LineKind.CLAIMS,
                name=Label("绿电交易与绿证", "Green-power trade and certificates"),
                scope=int(Scope.ENERGY_INDIRECT),
                category=2,
                basis=Basis.MARKET,
                kg=kg * offtake / whole,
                biogenic_kg=np.zeros_like(offtake),
                energy_kwh=math.nan,
                coverage=math.nan,
                estimated_share=math.nan,
                terms=(Term(kg, "green-power", 0.0, factor, share or 0.0),),
            )
        ]

    def _combustion(self, node: Node, method: MethodSet, energy: _Energies) -> Line:
        """What burns at a node: fuel energy x the fuel's factor, the biogenic part apart."""
        fuel = self._library.fuel(fuel_of(self._plant, node))
        burned = [e for e in self._plant.edges if e.target == node.id and e.carrier == node.burns]
        kwh = energy.kwh(burned)
        kg = kwh * combustion_kg_per_kwh(fuel, method, self._library)
        return self._line(
            node.id,
            LineKind.COMBUSTION,
            node.name or Label(node.id, node.id),
            Scope.DIRECT,
            None,
            kg,
            kwh * biogenic_kg_per_kwh(fuel, method),
            burned,
            energy,
            self._of_fuel(fuel, method),
            (fuel.id,),
        )

    def _brought(
        self,
        node: Node,
        method: MethodSet,
        basis: Basis,
        carbon: Mapping[tuple[str, int], Floats],
        energy: _Energies,
        rows: tuple[str, ...],
    ) -> list[Line]:
        """What a source brings in, by scope; a scope in which it never brings anything has no line."""
        out = [edge for edge in self._plant.edges if edge.source == node.id]
        own = scope_of_source(node, method)
        stated = (node.id, str(node.factor)) if node.factor is not None else (node.id,)
        standing = self._stand_ins(node, method, basis, rows)
        made = [
            self._line(
                node.id,
                LineKind.SOURCE,
                node.name or Label(node.id, node.id),
                Scope(scope),
                basis,
                kg,
                np.zeros_like(kg),
                out,
                energy,
                rows,
                stated,
            )
            for (name, scope), kg in carbon.items()
            if name == node.id and scope == own
        ]
        return [replace(line, stand_ins=standing) for line in made]

    def _line(
        self,
        id_: str,
        kind: LineKind,
        name: Label,
        scope: Scope,
        basis: Basis | None,
        kg: Floats,
        biogenic_kg: Floats,
        edges: Sequence[Edge],
        energy: _Energies,
        rows: tuple[str, ...],
        stated: tuple[str, ...],
    ) -> Line:
        terms, unstated = self._terms(known_sum(kg), edges, energy, rows, stated)
        return Line(
            id=id_,
            kind=kind,
            name=name,
            scope=int(scope),
            category=int(scope),
            basis=basis,
            kg=kg,
            biogenic_kg=biogenic_kg,
            energy_kwh=known_sum(energy.kwh(edges)),
            coverage=energy.coverage(edges),
            estimated_share=energy.estimated_share(edges),
            factors=rows,
            terms=terms,
            unstated=unstated,
        )

    def _terms(
        self,
        kg: float,
        edges: Sequence[Edge],
        energy: _Energies,
        rows: tuple[str, ...],
        stated: tuple[str, ...],
    ) -> tuple[tuple[Term, ...], tuple[str, ...]]:
        """The line as meter x factor for each of its meters, and who of them states no uncertainty."""
        if not math.isfinite(kg) or kg == 0:
            return (), ()
        factor, factor_share = self._factor_uncertainty(rows, stated)
        kwh = [known_sum(energy.kwh([edge])) for edge in edges]
        whole = sum(kwh)
        terms, unstated = [], [] if factor_share is not None else [factor]
        for edge, part in zip(edges, kwh, strict=True):
            meter, meter_share = self._meter_uncertainty(edge)
            if meter_share is None:
                unstated.append(meter)
            terms.append(
                Term(
                    kg * part / whole if whole else kg, meter, meter_share or 0.0, factor, factor_share or 0.0
                )
            )
        return tuple(terms), tuple(unstated)

    def _factor_uncertainty(self, rows: tuple[str, ...], stated: tuple[str, ...]) -> tuple[str, float | None]:
        """The factor's name and half-width: the row's own, else what the plant states for it."""
        name = stated[-1]
        own = [row.uncertainty for row in map(self._library.row, rows) if row.uncertainty is not None]
        if own:
            return name, max(own)
        declared = self._plant.statement.uncertainty
        return name, next((declared[key] for key in (*stated, *rows) if key in declared), None)

    def _meter_uncertainty(self, edge: Edge) -> tuple[str, float | None]:
        """The meter's name and half-width by its accuracy class; a remainder or formula has none of its own."""
        if not isinstance(edge.meter, PointMeter):
            return edge.id, None
        point = self._plant.point_by_id[edge.meter.point]
        if point.device is None:
            return point.id, None
        accuracy_class = self._plant.device_by_id[point.device].accuracy_class
        return point.device, None if accuracy_class is None else accuracy_class / 100


def fuel_of(plant: Plant, burner: Node) -> str:
    """The fuel a burning node burns: that of the source of its carrier."""
    return next(
        node.fuel
        for node in plant.nodes
        if node.kind is NodeKind.SOURCE and node.carrier == burner.burns and node.fuel is not None
    )


def known_sum(column: Floats) -> float:
    """Sum over the months that have data; NaN where none has."""
    known = column[np.isfinite(column)]
    return float(known.sum()) if known.size else math.nan


def _with_beside(totals: Sequence[Total], beside: Sequence[Line], lines: Sequence[Line]) -> list[Total]:
    """Metered totals and what stands beside them, with how sure each is."""
    held = {(total.scope, total.basis): total for total in totals}
    keys = dict.fromkeys(
        [*held, *((line.scope, basis) for line in beside for basis in Basis if line.basis in (None, basis))]
    )
    made = []
    for scope, basis in sorted(keys):
        mine = [line for line in lines if line.scope == scope and line.basis in (None, basis)]
        added = [line.kg for line in mine if line in beside]
        total = held.get((scope, basis))
        months = mine[0].kg.size if total is None else total.kg.size
        kg = np.full(months, np.nan) if total is None else total.kg
        for column in added:
            # A month in which nothing is metered and nothing was written down stays unknown.
            kg = np.where(np.isnan(kg) & (column != 0), column, kg + column)
        terms = [term for line in mine for term in line.terms]
        coverage = np.full(months, np.nan) if total is None else total.coverage
        made.append(Total(scope, basis, kg, coverage, _uncertainty(terms)))
    return made


def _uncertainty(terms: Sequence[Term]) -> float:
    stated = any(term.activity_uncertainty or term.factor_uncertainty for term in terms)
    return combined_uncertainty(terms) if stated else math.nan


def _differences(totals: Sequence[Total], lines: Sequence[Line]) -> list[Line]:
    """What a total holds beyond its lines, where that is more than rounding."""
    made = []
    for total in totals:
        listed = np.zeros_like(total.kg)
        for line in lines:
            if line.scope == total.scope and line.basis in (None, total.basis):
                listed += np.nan_to_num(line.kg)
        rest = total.kg - listed
        if np.any(np.abs(rest) > 1e-6 * np.abs(total.kg) + 1e-6):
            made.append(
                Line(
                    id="difference",
                    kind=LineKind.DIFFERENCE,
                    name=Label("与合计之差", "Beyond the lines"),
                    scope=total.scope,
                    category=total.scope,
                    basis=total.basis,
                    kg=rest,
                    biogenic_kg=np.zeros_like(rest),
                    energy_kwh=math.nan,
                    coverage=math.nan,
                    estimated_share=math.nan,
                )
            )
    return made


class _Energies:
    """Energy of edges by month."""

    def __init__(self, series: Series, month_ns: Times) -> None:
        at = np.searchsorted(month_ns, series.start_ns)
        self._months = month_ns.size
        self._column: dict[tuple[str, str], Floats] = {}
        for column in ("energy_kwh", "coverage", "estimated_share"):
            for name, month, amount in zip(series.name, at, series.columns[column], strict=True):
                self._column.setdefault((name, column), np.full(self._months, np.nan))[month] = amount

    def kwh(self, edges: Sequence[Edge]) -> Floats:
        """Shape (M,), NaN where one of them is unknown."""
        total = np.zeros(self._months)
        for edge in edges:
            total = total + self._of(edge, "energy_kwh")
        return total if edges else np.full(self._months, np.nan)

    def coverage(self, edges: Sequence[Edge]) -> float:
        """The least covered edge's, over the months that have data."""
        return _least([self._of(edge, "coverage") for edge in edges])

    def estimated_share(self, edges: Sequence[Edge]) -> float:
        kwh = sum(known_sum(self._of(edge, "energy_kwh")) for edge in edges)
        estimated = sum(
            known_sum(self._of(edge, "energy_kwh") * self._of(edge, "estimated_share")) for edge in edges
        )
        return estimated / kwh if kwh > 0 else math.nan

    def _of(self, edge: Edge, column: str) -> Floats:
        return self._column.get((edge.id, column), np.full(self._months, np.nan))


def _least(columns: Sequence[Floats]) -> float:
    means = [float(column[np.isfinite(column)].mean()) for column in columns if np.isfinite(column).any()]
    return min(means) if means else math.nan


def _by_node_and_scope(series: Series, column: str, month_ns: Times) -> dict[tuple[str, int], Floats]:
    assert series.flow is not None
    at = np.searchsorted(month_ns, series.start_ns)
    by: dict[tuple[str, int], Floats] = {}
    for name, flow, month, amount in zip(series.name, series.flow, at, series.columns[column], strict=True):
        by.setdefault((name, series.flows[flow].scope), np.full(month_ns.size, np.nan))[month] = amount
    return by
