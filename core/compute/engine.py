"""From readings to kilograms, as one pure function over a window of base intervals.

An `Engine` is a plant revision compiled once: which point meters which edge and
how its unit becomes kWh, the network, the tracer, the carbon columns of every
method set. `compute` then only moves arrays, so the live second, the late
reading and the recomputation of ten years are the same call and the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.carbon.factors import FactorColumn, FactorLibrary
from core.carbon.method import MethodSet, combustion_kg_per_kwh, method_of, scope_of_source, source_factors
from core.carbon.trace import Tracer, TraceResult, distinct_attributes
from core.energy.medium import WATER_KWH_PER_M3_K, interval_means, steam_kwh_per_kg, water_kwh_per_m3
from core.energy.network import (
    Network,
    NetworkEnergy,
    converter_residual_kwh,
    storage_residual_kwh,
)
from core.energy.register import (
    ABSURD_KW,
    MeterEvent,
    Register,
    Registers,
    decimal_step,
    power_energies,
    since_standing,
)
from core.errors import BadRequest
from core.lookback import WEEK_NS, WEEKS, Columns, Lookback
from core.plant.model import Edge, GapSpread, Kind, Node, NodeKind, Origin, Plant, PointMeter, Role
from core.results import HOUR_NS, NOTHING, SITE, Basis, Flow, IntervalEnergy, Mark, Scope, WindowResult
from core.samples import NS_PER_S, Flags, Floats, SampleBatch, Times
from core.store.seam import Stocks
from core.units import kwh_per_unit

STEP_SPREAD_NS = HOUR_NS  # a coarse register's step is spread over at most this much idle-looking time
STANDSTILL_NS = HOUR_NS  # how far back a register that stands still is compared with its power
POWER_READINGS = 500_000  # of power points integrated at once
_QUANTA = 100  # of the decimal place shown, in an hour without a step: what its true step is nobody said
_BASES = (Basis.LOCATION, Basis.MARKET)


@dataclass(frozen=True, slots=True)
class _Metered:
    """An edge read by a point; `power` where that point (or another of the meter) gives power."""

    edge: str
    point: str
    power: str | None
    direction: str
    kw_per_unit: float


@dataclass(frozen=True, slots=True)
class Bearing:
    """Which intervals a reading bears on besides those next to it.

    Attributes:
        registers: A step off a plateau bears on all of it.
        compared: Registers and their powers: late ones bear on what counts as frozen for STANDSTILL_NS.
        after_ns: By point, how long after its last reading that one still counts.
    """

    registers: frozenset[str]
    compared: frozenset[str]
    after_ns: Mapping[str, int]

    @classmethod
    def joined(cls, parts: Iterable[Bearing]) -> Bearing:
        """Of several models, whichever reaches further."""
        parts = list(parts)
        after_ns: dict[str, int] = {}
        for part in parts:
            for point, ns in part.after_ns.items():
                after_ns[point] = max(ns, after_ns.get(point, 0))
        return cls(
            frozenset().union(*(part.registers for part in parts)),
            frozenset().union(*(part.compared for part in parts)),
            after_ns,
        )


@dataclass(frozen=True, slots=True, eq=False)
class LiveFlow:
    """One instant of the network, extrapolated: per node kW, kgCO2e/h and kgCO2e/kWh, NaN where unknown."""

    nodes: tuple[str, ...]
    power_kw: Floats
    kg_per_h: Floats
    intensity: Floats
    edge_kw: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Newest:
    """The newest reading of each of an engine's `live_points`, shape (P,); NaN and 0 where there is none.

    Attributes:
        time_ns, value: Of the reading.
        since_ns: When that value was first seen.
        before_ns, before: When the value before it was first seen, and that value.
    """

    time_ns: Times
    value: Floats
    since_ns: Times
    before_ns: Times
    before: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Live:
    """How power of edges is read off slots of `Newest`; what an export counts is negative."""

    edge: np.ndarray
    slot: np.ndarray
    per_unit: Floats
    gap_after_ns: Times

    def fresh(self, now_ns: int, newest: Newest) -> Flags:
        fresh: Flags = now_ns - newest.time_ns[self.slot] <= self.gap_after_ns
        return fresh


@dataclass(frozen=True, slots=True, eq=False)
class _NodeFlows:
    emissions_kg: Floats
    through_kg: Floats
    through_kwh: Floats


class Engine:
    """A plant revision, ready to compute.

    Attributes:
        points: Every point `compute` reads.
        live_points: Every point the live picture reads.
        flows: The carbon columns, in the order results have them.
        nodes: Node ids as results have them, `site` last.
        events: What happened to meters, withdrawn events included.
        bearing: What a reading of each point bears on.

    Args:
        as_of_ns: Events as they were known then; None: as they are known now.

    Raises:
        BadRequest: An edge's unit cannot become kWh, or a factor or fuel is not in the library.
    """

    def __init__(
        self,
        plant: Plant,
        library: FactorLibrary,
        events: Sequence[tuple[str, MeterEvent]] = (),
        as_of_ns: int | None = None,
    ) -> None:
        self.plant = plant
        self.library = library
        self.events = tuple(events)
        self.events_now = tuple(event for event in self.events if event[1].known_at(None))
        self.fingerprint = plant.fingerprint
        self.base_ns = plant.base_interval_s * NS_PER_S
        self.step_spread_ns = STEP_SPREAD_NS
        self.edge_names = tuple(edge.id for edge in plant.edges)
        self.storages = tuple(node.id for node in plant.nodes if node.kind is NodeKind.STORAGE)
        self.nodes = (*(node.id for node in plant.nodes), SITE)
        self.methods: tuple[MethodSet, ...] = tuple(method_of(plant, name) for name in plant.method_sets)
        self.flows = tuple(
            Flow(scope, basis, method.id)
            for method in self.methods
            for basis in _BASES
            for scope in (Scope.DIRECT, Scope.ENERGY_INDIRECT)
        )
        self._network = Network(plant)
        self._tracer = Tracer(plant.nodes, plant.edges)
        self._in = [[i for i, e in enumerate(plant.edges) if e.target == node.id] for node in plant.nodes]
        self._sources = [i for i, node in enumerate(plant.nodes) if node.kind is NodeKind.SOURCE]
        self._sinks = [
            i for i, node in enumerate(plant.nodes) if node.kind in (NodeKind.LOAD, NodeKind.EXPORT)
        ]
        self._compile_meters([(name, event) for name, event in events if event.known_at(as_of_ns)])

    # -- compiling ------------------------------------------------------------

    def _compile_meters(self, events: Sequence[tuple[str, MeterEvent]]) -> None:
        plant = self.plant
        registers: list[Register] = []
        self._by_register: list[_Metered] = []
        self._by_power: list[_Metered] = []
        for edge in plant.edges:
            meter = edge.meter
            if not isinstance(meter, PointMeter):
                continue
            point = plant.point_by_id[meter.point]
            device = plant.device_by_id.get(point.device or "")
            factor = self._kwh_per_unit(edge, point.unit)
            if meter.role is Role.POWER:
                self._by_power.append(_Metered(edge.id, point.id, point.id, meter.direction, factor))
                continue
            power = meter.power_point
            kw_per_unit = math.nan
            if power is not None:
                kw_per_unit = self._kwh_per_unit(edge, plant.point_by_id[power].unit)
            self._by_register.append(_Metered(edge.id, point.id, power, meter.direction, kw_per_unit))
            registers.append(
                Register(
                    gap_after_ns=self._gap_after_ns(point.period_s),
                    modulus=point.counter_modulus,
                    resolution=point.resolution,
                    rated_kw=device.rated_kw if device is not None else None,
                    kwh_per_unit=factor,
                    step_spread_ns=self.step_spread_ns,
                    daily=point.kind is Kind.COUNTER_DAILY,
                    events=tuple(event for name, event in events if name in (point.id, point.device)),
                )
            )
        self._registers = Registers(registers)
        self._register_of = dict(
            zip((metered.point for metered in self._by_register), registers, strict=True)
        )
        self._compile_media()
        self._kwh_of_register = {
            metered.edge: register.kwh_per_unit
            for metered, register in zip(self._by_register, registers, strict=True)
        }
        self._soc = tuple(
            (i, node.soc, node.capacity_kwh or 0.0)
            for i, node in enumerate(n for n in plant.nodes if n.kind is NodeKind.STORAGE)
            if node.soc is not None
        )
        metered = [*self._by_register, *self._by_power]
        self.points = tuple(
            dict.fromkeys(
                [m.point for m in metered]
                + [m.power for m in metered if m.power]
                + [soc for _, soc, _ in self._soc]
                + [point for edge in plant.edges if edge.medium is not None for point in edge.medium.points]
            )
        )
        both = [(m.point, m.power) for m in self._by_register if m.power is not None]
        self.bearing = Bearing(
            frozenset(m.point for m in self._by_register),
            frozenset(point for pair in both for point in pair if point is not None),
            {point: self._gap_after_ns(self._period_s(point)) for point in self.points},
        )
        self.live_points = self.points
        self._compile_live()
        self.readings_per_hour = max(
            1.0, sum(3600.0 / max(self._period_s(point), 0.1) for point in self.points)
        )

    def register_of(self, point: str) -> tuple[Register, tuple[str, ...]]:
        """How a point's register counts, and every point that its energy and its meter's power follow from, itself first.

        Raises:
            BadRequest: The point is no register of an edge.
        """
        return self._register_of[point], self._points_of(self._metered_by(point))

    def _metered_by(self, register: str) -> _Metered:
        for metered in self._by_register:
            if metered.point == register:
                return metered
        raise BadRequest(f"point {register!r} is no register of an edge")

    def _points_of(self, metered: _Metered) -> tuple[str, ...]:
        medium = self._media[metered.edge][0].points if metered.edge in self._media else ()
        return tuple(dict.fromkeys(p for p in (metered.point, metered.power, *medium) if p is not None))

    def _compile_live(self) -> None:
        self._slot_of = {point: i for i, point in enumerate(self.live_points)}
        powers = [
            (m.edge, m.power, m.kw_per_unit, m.direction) for m in (*self._by_register, *self._by_power)
        ]
        self._live_powers = self._live([one for one in powers if one[1] is not None])
        self._live_registers = self._live(
            [(m.edge, m.point, self._register_of[m.point].kwh_per_unit, "import") for m in self._by_register]
        )

    def _live(self, ways: Sequence[tuple[str, str | None, float, str]]) -> _Live:
        """Ways to read an edge's power: by which point, what is in its unit, and which direction counts."""
        row_of = {name: row for row, name in enumerate(self.edge_names)}
        points = [point for _, point, _, _ in ways if point is not None]
        return _Live(
            edge=np.array([row_of[edge] for edge, *_ in ways], dtype=np.int64),
            slot=np.array([self._slot_of[point] for point in points], dtype=np.int64),
            per_unit=np.array(
                [factor if direction == "import" else -factor for *_, factor, direction in ways],
                dtype=np.float64,
            ),
            gap_after_ns=np.array(
                [self._gap_after_ns(self._period_s(point)) for point in points], dtype=np.int64
            ),
        )

    def _compile_media(self) -> None:
        """Edges whose unit is worth what points tell of steam or water: what it is worth of what was assumed."""
        self._media = {
            edge.id: (edge.medium, self._kwh_per_unit(edge, unit), _KG[unit.removesuffix("/h")])
            for edge in self.plant.edges
            if edge.medium is not None and edge.medium.points and isinstance(edge.meter, PointMeter)
            for unit in [self.plant.point_by_id[edge.meter.point].unit]
            if unit.removesuffix("/h") in _KG
        }

    def _kwh_per_unit(self, edge: Edge, unit: str) -> float:
        """kWh (or kW) in one unit of a metered quantity of the edge; of measured steam or water what is assumed of it."""
        medium, carrier = edge.medium, edge.carrier
        try:
            return kwh_per_unit(unit)
        except ValueError:
            amount = unit.removesuffix("/h")
        if medium is not None and medium.kwh_per_unit is not None:
            return medium.kwh_per_unit
        if medium is not None and medium.supply is not None:
            fixed = [state for state in (medium.supply, medium.back) if isinstance(state, float)]
            apart = abs(fixed[0] - fixed[1]) if len(fixed) == 2 else 1.0
            return apart * WATER_KWH_PER_M3_K * _KG[amount] / 1000
        for node in self.plant.nodes:
            if node.kind is NodeKind.SOURCE and node.carrier == carrier and node.fuel is not None:
                return self.library.fuel(node.fuel).kwh_per(amount)
        if carrier == "steam" and amount in ("t", "kg"):
            # Saturated steam of 0.7 MPa where nothing says otherwise, less what its feed water holds (C18).
            fixed_state = None if medium is None or medium.points else medium
            feed_water = _feed_water_kj_per_kg(self.library)
            held = float(steam_kwh_per_kg(fixed_state, {}, self.library.steam, feed_water, 1)[0])
            if not math.isfinite(held):
                raise BadRequest(f"edge {edge.id}: steam of {medium} is outside the steam table, or water")
            return held * _KG[amount]
        raise BadRequest(
            f"edge {edge.id}: a meter in {unit} says nothing about kWh of {carrier}; meter energy, name a fuel, or "
            "state its medium"
        )

    def _gap_after_ns(self, period_s: float) -> int:
        """The plant's setting, or the larger of three polling periods and three base intervals."""
        if self.plant.gap_after_s is not None:
            return int(self.plant.gap_after_s * NS_PER_S)
        return max(int(3 * period_s * NS_PER_S), 3 * self.base_ns)

    def kwh_per_unit(self, edge: str) -> float:
        """kWh in one unit of what the edge's meter counts.

        Raises:
            KeyError: No register meters the edge.
        """
        return self._kwh_of_register[edge]

    # -- computing ------------------------------------------------------------

    def compute(
        self,
        readings: SampleBatch,
        start_ns: int,
        end_ns: int,
        stocks: Stocks | None,
        known_at_ns: int,
        earlier: Mapping[int, SampleBatch] | None = None,
    ) -> WindowResult:
        """Results of [start_ns, end_ns), which are aligned to base intervals.

        Args:
            readings: As `Store.readings` gives them for these points and this window, context included.
            stocks: What the storages hold at start_ns; None: begin from the reported state of charge, at the
                purchased electricity's intensity, or from empty.
            known_at_ns: Factors published later do not count.
            earlier: What the result without it had as `wanted`, by weeks back.
        """
        edges_ns = np.arange(start_ns, end_ns + 1, self.base_ns, dtype=np.int64)
        columns, before = Columns(readings), Lookback(earlier)
        network = self._closed(self._measured(columns, edges_ns, before), columns, edges_ns, before)
        soc = self._soc_kwh(columns, edges_ns)
        traced, place = self._traced(start_ns, network, soc, stocks, known_at_ns)
        result = traced.spread(self.flows, place)
        return replace(result, wanted=before.wanted) if before.wanted else result

    def recount(
        self,
        energy: IntervalEnergy,
        soc_kwh: Floats | None,
        start_ns: int,
        stocks: Stocks | None,
        known_at_ns: int,
    ) -> tuple[WindowResult, list[int]]:
        """Results from start_ns on for energies that `compute` has given, in the order of `edge_names`.

        With the same factors known the same bits, for energies do not depend on factors.

        Args:
            energy: Columns of shape (E, T).
            soc_kwh: As `reported_kwh` gives it.

        Returns:
            Results of those flows alone that differ and carry something, and which of them each of the engine's
            `flows` is, NOTHING where none of it carries any.
        """
        return self._traced(start_ns, self._network.balances(energy), soc_kwh, stocks, known_at_ns)

    @property
    def soc_points(self) -> tuple[str, ...]:
        """The points by which storages report what they hold."""
        return tuple(point for _, point, _ in self._soc)

    def reported_kwh(self, readings: SampleBatch, start_ns: int, end_ns: int) -> Floats | None:
        """What storages report to hold at each interval's end, shape (S, T); None where none of them reports."""
        return self._soc_kwh(Columns(readings), np.arange(start_ns, end_ns + 1, self.base_ns, dtype=np.int64))

    def _traced(
        self,
        start_ns: int,
        network: NetworkEnergy,
        soc: Floats | None,
        stocks: Stocks | None,
        known_at_ns: int,
    ) -> tuple[WindowResult, list[int]]:
        intervals = network.in_kwh.shape[-1]
        time_ns = start_ns + np.arange(intervals, dtype=np.int64) * self.base_ns
        intensity, factor_ids = self._source_intensity(time_ns, known_at_ns)
        direct_kg = self._direct_kg(network.energy.energy_kwh)
        to_hour = (HOUR_NS - start_ns % HOUR_NS) // self.base_ns
        first_soc = None if soc is None else soc[:, :to_hour]  # the same whatever the window's end is
        stock_kwh, stock_kg = self._first_stocks(stocks, first_soc, intensity)
        distinct, place = distinct_attributes(intensity, direct_kg, stock_kg)

        def trace(attributes: list[int]) -> TraceResult:
            return self._tracer.trace(
                network.energy.energy_kwh,
                intensity[:, attributes],
                None if direct_kg is None else direct_kg[:, attributes],
                stock_kwh=stock_kwh,
                stock_kg=stock_kg[:, attributes],
                soc_kwh=soc,
                interval_h=self.base_ns / HOUR_NS,
                keep_mean=True,
            )

        columns = [column for column in (intensity, direct_kg, stock_kg) if column is not None]
        bearing = [a for a in distinct if any(column[:, a].any() for column in columns)]
        attributes = bearing or distinct
        traced = trace(attributes)
        if len(attributes) < len(distinct) and not np.isfinite(traced.kg_in.sum()):
            attributes = distinct  # where something is unknown, what carries nothing may be unknown too
            traced = trace(attributes)
        if len(attributes) < len(distinct):
            place = [attributes.index(distinct[k]) if distinct[k] in attributes else NOTHING for k in place]
        self._mark_overdrawn(network.energy, traced)
        flows = tuple(self.flows[i] for i in attributes)
        burned_kg = None if direct_kg is None else direct_kg[:, attributes]
        result = self._result(
            start_ns, network, flows, traced, intensity[:, attributes], burned_kg, factor_ids
        )
        return result, place

    def _result(
        self,
        start_ns: int,
        network: NetworkEnergy,
        flows: tuple[Flow, ...],
        traced: TraceResult,
        intensity: Floats,
        direct_kg: Floats | None,
        factor_ids: dict[str, str],
    ) -> WindowResult:
        of_nodes = self._flows_of(network, traced, intensity, direct_kg)
        residual_kwh = self._residual_kwh(network, traced)
        sources, sinks = self._sources, self._sinks

        def with_site(of_nodes: Floats, site: Floats) -> Floats:
            return np.concatenate([of_nodes, site[None]])

        per_hour = max(1, HOUR_NS // self.base_ns)
        hours = slice(None, None, per_hour) if (traced.stock_kwh.shape[-1] - 1) % per_hour == 0 else [0, -1]
        return WindowResult(
            start_ns=start_ns,
            base_ns=self.base_ns,
            edges=self.edge_names,
            nodes=self.nodes,
            flows=flows,
            storages=self.storages,
            energy=network.energy,
            in_kwh=with_site(network.in_kwh, network.out_kwh[sources].sum(axis=0)),
            out_kwh=with_site(network.out_kwh, network.in_kwh[sinks].sum(axis=0)),
            residual_kwh=with_site(residual_kwh, residual_kwh.sum(axis=0)),
            coverage=with_site(network.coverage, network.coverage[sources].min(axis=0)),
            emissions_kg=of_nodes.emissions_kg,
            through_kg=of_nodes.through_kg,
            through_kwh=of_nodes.through_kwh,
            stock_kwh=traced.stock_kwh[:, hours],
            stock_kg=traced.stock_kg[:, :, hours],
            conservation_error=traced.conservation_error,
            factor_ids=factor_ids,
            interval_stock_kwh=traced.stock_kwh,
            interval_stock_kg=traced.stock_kg,
        )

    def _residual_kwh(self, network: NetworkEnergy, traced: TraceResult) -> Floats:
        """Shape (N, T): in - out - declared losses - change of store of every node."""
        residual = network.residual_kwh.copy()
        interval_h = self.base_ns / HOUR_NS
        for row, node in enumerate(self.plant.nodes):
            flows = network.in_kwh[row], network.out_kwh[row]
            if node.kind is NodeKind.STORAGE:
                stock_kwh = traced.stock_kwh[self.storages.index(node.id)]
                residual[row] = storage_residual_kwh(node, *flows, stock_kwh, interval_h)
            elif node.kind is NodeKind.CONVERTER:
                residual[row] = converter_residual_kwh(node, *flows, interval_h)
        return residual

    def _flows_of(
        self, network: NetworkEnergy, traced: TraceResult, intensity: Floats, direct_kg: Floats | None
    ) -> _NodeFlows:
        """What each node kept or received and what passed through it, `site` last."""
        rows = len(self.plant.nodes) + 1
        intervals = traced.kg_in.shape[-1]
        kg = np.empty((rows, intensity.shape[1], intervals))
        through_kg = np.empty_like(kg)
        through_kwh = np.empty((rows, intervals))
        for row, node in enumerate(self.plant.nodes):
            if node.kind is NodeKind.SOURCE:
                out_kwh = network.out_kwh[row]
                brought = np.where(out_kwh == 0, 0.0, out_kwh * intensity[self._sources.index(row)])
                kg[row] = through_kg[row] = brought
                through_kwh[row] = out_kwh
            elif node.kind in (NodeKind.LOAD, NodeKind.EXPORT):
                kg[row] = through_kg[row] = traced.kg_in[row]
                through_kwh[row] = network.in_kwh[row]
            elif node.kind is NodeKind.STORAGE:
                store = self.storages.index(node.id)
                kg[row] = np.diff(traced.stock_kg[store], axis=-1) + traced.unallocated_kg[row]
                passed = traced.passed_kwh[row]
                through_kg[row] = np.where(passed == 0, 0.0, passed * traced.stock_kappa[store])
                through_kwh[row] = network.out_kwh[row]
            else:
                kg[row] = traced.unallocated_kg[row]
                through_kg[row] = traced.kg_in[row] - traced.unallocated_kg[row]
                through_kwh[row] = network.out_kwh[row]
        site_kg = kg[self._sources].sum(axis=0)
        kg[-1] = through_kg[-1] = site_kg if direct_kg is None else site_kg + direct_kg.sum(axis=0)
        through_kwh[-1] = through_kwh[self._sources].sum(axis=0)
        return _NodeFlows(kg, through_kg, through_kwh)

    def _measured(self, columns: Columns, edges_ns: Times, before: Lookback) -> dict[str, IntervalEnergy]:
        """Interval energy of every edge that has a meter."""
        measured: dict[str, IntervalEnergy] = {}
        batch, starts = columns.of([m.point for m in self._by_register])
        shape = self._shape_of_gaps(before) if self.plant.gap_spread is GapSpread.WEEKDAY else None
        registers = self._registers.energy(batch.time_ns, batch.value, batch.status, starts, edges_ns, shape)
        for row, metered in enumerate(self._by_register):
            energy = IntervalEnergy(
                registers.energy_kwh[row],
                registers.covered[row],
                registers.estimated_kwh[row],
                registers.mark[row],
            )
            self._mark_frozen(energy, columns, metered, edges_ns, before)
            measured[metered.edge] = self._with_medium_and_power(energy, columns, metered, edges_ns)
        for metered, energy in zip(
            self._by_power, self._powers(columns, self._by_power, edges_ns), strict=True
        ):
            measured[metered.edge] = self._with_medium(energy, columns, metered, edges_ns)
        return measured

    def _with_medium_and_power(
        self, energy: IntervalEnergy, columns: Columns, metered: _Metered, edges_ns: Times
    ) -> IntervalEnergy:
        """A register's energy by what its medium held, and by its power where the register says nothing."""
        energy = self._with_medium(energy, columns, metered, edges_ns)
        if metered.power is not None and not np.isfinite(energy.energy_kwh).all():
            energy = _filled(energy, self._power(columns, metered, edges_ns))
        return energy

    def _with_medium(
        self, energy: IntervalEnergy, columns: Columns, metered: _Metered, edges_ns: Times
    ) -> IntervalEnergy:
        if metered.edge in self._media:
            return self._of_medium(energy, columns, metered.edge, edges_ns)
        return energy

    # -- silence --------------------------------------------------------------------------------------------

    def _closed(
        self, measured: dict[str, IntervalEnergy], columns: Columns, edges_ns: Times, before: Lookback
    ) -> NetworkEnergy:
        """The network, with what silent edges usually carry where neither meters nor balances tell.

        A meter is silent after its gap time without a reading, while others speak; one that never spoke is not.
        """
        network = self._network.close(measured)
        kwh = network.energy.energy_kwh
        if not np.isnan(kwh).any():
            return network
        spoken = np.any([np.isfinite(energy.energy_kwh) for energy in measured.values()], axis=0)
        usual = np.full(kwh.shape, np.nan)
        silent = np.zeros(kwh.shape, dtype=np.bool_)
        row_of = {name: row for row, name in enumerate(self.edge_names)}
        for metered in (*self._by_register, *self._by_power):
            row = row_of[metered.edge]
            missing = np.isnan(kwh[row]) & spoken
            if missing.any():
                silent[row] = missing & self._has_fallen_silent(columns, metered, edges_ns)
                if silent[row].any():
                    usual[row] = self._usual_kwh(metered, int(edges_ns[0]), int(edges_ns[-1]), before)
        if not silent.any():
            return network
        usual[~silent] = np.nan
        if not np.isnan(usual).all():
            network = self._network.close(measured, usual)
        network.energy.mark[silent] |= Mark.SILENT
        return network

    def _has_fallen_silent(self, columns: Columns, metered: _Metered, edges_ns: Times) -> Flags:
        """Where by an interval's end an edge's meter has been silent for longer than its gap time; shape (T,)."""
        silent = np.ones(edges_ns.size - 1, dtype=np.bool_)
        spoke = np.zeros(edges_ns.size - 1, dtype=np.bool_)
        for point in (metered.point, metered.power):
            if point is None:
                continue
            batch, _ = columns.of([point])
            last = np.searchsorted(batch.time_ns, edges_ns[1:], side="right") - 1
            ever = last >= 0
            spoke |= ever
            if ever.any():
                quiet_ns = edges_ns[1:] - batch.time_ns[np.maximum(last, 0)]
                silent &= ~ever | (quiet_ns > self._gap_after_ns(self._period_s(point)))
        for point in self._media[metered.edge][0].points if metered.edge in self._media else ():
            batch, _ = columns.of([point])  # without its state a medium says nothing either
            last = np.searchsorted(batch.time_ns, edges_ns[1:], side="right") - 1
            if len(batch):
                quiet_ns = edges_ns[1:] - batch.time_ns[np.maximum(last, 0)]
                silent |= (last >= 0) & (quiet_ns > self._gap_after_ns(self._period_s(point)))
        return silent & spoke

    def _usual_kwh(self, metered: _Metered, start_ns: int, end_ns: int, before: Lookback) -> Floats:
        """What an edge carried at the same time of the four weeks before, their mean; NaN where none is known well.

        Shape (T,) over the base intervals of [start, end). Only intervals that readings back whole count.
        """
        points = self._points_of(metered)
        edges_ns = np.arange(start_ns, end_ns + 1, self.base_ns, dtype=np.int64)
        total, weeks = np.zeros(edges_ns.size - 1), np.zeros(edges_ns.size - 1)
        for back in WEEKS:
            columns = before.columns(points, start_ns, end_ns, back)
            if columns is None:
                continue
            then_ns = edges_ns - back * WEEK_NS
            if metered.point in self._register_of:
                energy = self._counted(columns, metered, then_ns)
                energy = self._with_medium_and_power(energy, columns, metered, then_ns)
            else:
                energy = self._with_medium(self._power(columns, metered, then_ns), columns, metered, then_ns)
            known = (
                np.isfinite(energy.energy_kwh) & (energy.estimated_kwh == 0) & (energy.covered >= 1 - 1e-9)
            )
            total += np.where(known, energy.energy_kwh, 0.0)
            weeks += known
        usual: Floats = np.divide(total, weeks, out=np.full(total.shape, np.nan), where=weeks > 0)
        return usual

    def _shape_of_gaps(self, before: Lookback) -> Callable[[int, Times], Floats]:
        """How the energy of a register's gap lies over the pieces between times: as its weekdays usually carry it."""

        def shape(row: int, cuts_ns: Times) -> Floats:
            base_ns = self.base_ns
            first_ns, last_ns = cuts_ns[0] // base_ns * base_ns, -(-cuts_ns[-1] // base_ns) * base_ns
            usual = self._usual_kwh(self._by_register[row], int(first_ns), int(last_ns), before)
            weight: Floats = usual * (np.diff(cuts_ns) / base_ns)
            return weight

        return shape

    def _of_medium(
        self, energy: IntervalEnergy, columns: Columns, edge: str, edges_ns: Times
    ) -> IntervalEnergy:
        """The energy of a medium by the state that was measured.

        Where none was: steam as assumed and marked, for it holds about the same; water unknown.
        """
        medium = self._media[edge][0]
        state = {point: self._means(columns, point, edges_ns) for point in medium.points}
        share = self._share_of_medium(edge, state, edges_ns.size - 1)
        unknown = np.isnan(share)
        if medium.supply is None:
            share = np.where(unknown, 1.0, share)
        kwh, estimated = energy.energy_kwh * share, energy.estimated_kwh * share
        assumed = unknown & np.isfinite(kwh)
        mark = np.where(assumed, energy.mark | np.int16(Mark.SUBSTITUTED), energy.mark).astype(np.int16)
        return IntervalEnergy(
            kwh,
            np.where(unknown, 0.0, energy.covered),
            np.where(unknown, np.nan_to_num(kwh), estimated),
            mark,
        )

    def _share_of_medium(self, edge: str, state: Mapping[str, Floats], intervals: int) -> Floats:
        """What a metered unit held of what was assumed of it, shape (T,); NaN where its state is not known."""
        medium, assumed, kg_per_unit = self._media[edge]
        if medium.supply is not None:
            held = water_kwh_per_m3(medium, state, intervals) / 1000
        else:
            feed_water = _feed_water_kj_per_kg(self.library)
            held = steam_kwh_per_kg(medium, state, self.library.steam, feed_water, intervals)
        share: Floats = held * kg_per_unit / assumed
        return share

    def _means(self, columns: Columns, point: str, edges_ns: Times) -> Floats:
        """A gauge's mean by interval, shape (T,); NaN where it was not read and its last reading is stale."""
        batch, _ = columns.of([point])
        if len(batch) == 0:
            return np.full(edges_ns.size - 1, np.nan)
        cell = np.searchsorted(edges_ns, batch.time_ns, side="right") - 1
        cell = np.where((cell >= 0) & (cell < edges_ns.size - 1), cell, -1)
        at = np.searchsorted(batch.time_ns, edges_ns[1:], side="left") - 1
        fresh = (at >= 0) & (edges_ns[1:] - batch.time_ns[at] <= self._gap_after_ns(self._period_s(point)))
        last = np.where(fresh, batch.value[at], np.nan)
        return interval_means(cell, batch.value, last, edges_ns.size - 1)

    def _mark_overdrawn(self, energy: IntervalEnergy, traced: TraceResult) -> None:
        """Mark the discharge of a storage that delivered more than it held."""
        for row in np.flatnonzero(traced.overdrawn.any(axis=1)).tolist():
            for e, edge in enumerate(self.plant.edges):
                if edge.source == self.storages[row]:
                    energy.mark[e][traced.overdrawn[row] & (energy.energy_kwh[e] > 0)] |= Mark.OVERDRAWN

    def _mark_frozen(
        self, energy: IntervalEnergy, columns: Columns, metered: _Metered, edges_ns: Times, before: Lookback
    ) -> None:
        """Mark the intervals in which a register stands still while its meter's power was worth steps of it.

        What flowed since it stands, at most an hour back, is compared with two of its steps: of the largest it
        made in that hour, or as it is declared; a register that made none and declares none gets more time.
        """
        still = (energy.energy_kwh == 0) & (energy.covered > 0)
        if metered.power is None or not still.any():
            return
        power_kwh = np.nan_to_num(self._power(columns, metered, edges_ns).energy_kwh)
        register = self._register_of[metered.point]
        step_kwh, standing_ns = self._standing(columns, metered.point, register, edges_ns)
        # Most registers that do not move are between two steps: only those that should have made them are looked at.
        still &= power_kwh * (np.minimum(standing_ns, STANDSTILL_NS // 2) / self.base_ns) > 2 * step_kwh
        if not still.any():
            return
        counted_kwh, flowed_kwh = energy.energy_kwh, power_kwh
        per_hour = STANDSTILL_NS // self.base_ns
        if still[: per_hour - 1].any():
            start_ns = int(edges_ns[0])
            hour_ns = np.arange(start_ns - (per_hour - 1) * self.base_ns, start_ns + 1, self.base_ns)
            earlier = before.columns((metered.point, metered.power), int(hour_ns[0]), start_ns, 0)
            if earlier is not None:
                alone = self._counted(earlier, metered, hour_ns)
                counted_kwh = np.concatenate([alone.energy_kwh, counted_kwh])
                power = self._power(earlier, metered, hour_ns)
                flowed_kwh = np.concatenate([np.nan_to_num(power.energy_kwh), flowed_kwh])
        since_kwh, largest_kwh = since_standing(counted_kwh, flowed_kwh, per_hour)
        ours = slice(-still.size, None)
        unknown = (largest_kwh[ours] == 0) & (register.resolution is None)
        least = np.where(unknown, _QUANTA, 2) * step_kwh
        frozen = still & (since_kwh[ours] > np.maximum(least, 2 * largest_kwh[ours]))
        energy.mark[frozen] |= Mark.FROZEN
        energy.covered[frozen] = 0.0

    def _standing(
        self, columns: Columns, point: str, register: Register, edges_ns: Times
    ) -> tuple[Floats, Times]:
        """One step of a register in kWh, as declared or by the place its last reading shows; how long that stands."""
        batch, _ = columns.of([point])
        last = np.maximum(np.searchsorted(batch.time_ns, edges_ns[1:], side="right") - 1, 0)
        fresh = np.concatenate(([True], batch.value[1:] != batch.value[:-1]))
        since = np.flatnonzero(fresh)[np.cumsum(fresh)[last] - 1]
        shown = decimal_step(batch.value[last], register.resolution)
        return shown * register.kwh_per_unit, edges_ns[1:] - batch.time_ns[since]

    def register_and_power(
        self, point: str, readings: SampleBatch, edges_ns: Times
    ) -> tuple[IntervalEnergy, IntervalEnergy | None]:
        """What a register alone counted and what the same meter's power says, None where it gives none; by medium both.

        Args:
            point: A register, read with the other points of `register_of`, context included.

        Raises:
            BadRequest: The point is no register of an edge.
        """
        columns, metered = Columns(readings), self._metered_by(point)
        counted = self._with_medium(self._counted(columns, metered, edges_ns), columns, metered, edges_ns)
        if metered.power is None:
            return counted, None
        return counted, self._with_medium(self._power(columns, metered, edges_ns), columns, metered, edges_ns)

    def _counted(self, columns: Columns, metered: _Metered, edges_ns: Times) -> IntervalEnergy:
        """Energy by the register of one meter alone, a gap's spread flat."""
        batch, starts = columns.of([metered.point])
        alone = Registers([self._register_of[metered.point]]).energy(
            batch.time_ns, batch.value, batch.status, starts, edges_ns
        )
        return IntervalEnergy(*(getattr(alone, name)[0] for name in IntervalEnergy.__slots__))

    def _power(self, columns: Columns, metered: _Metered, edges_ns: Times) -> IntervalEnergy:
        """Energy by the power of a meter that gives power."""
        (energy,) = self._powers(columns, [metered], edges_ns)
        return energy

    def _powers(
        self, columns: Columns, metered: Sequence[_Metered], edges_ns: Times
    ) -> Iterator[IntervalEnergy]:
        """Energy by power of one meter after another; in groups, so that memory stays bounded."""
        points = [one.power for one in metered if one.power is not None]
        counts = columns.counts(points)
        group = np.cumsum(counts) // POWER_READINGS
        for number in np.unique(group).tolist():
            mine = np.flatnonzero(group == number).tolist()
            batch, starts = columns.of([points[i] for i in mine])
            per_unit = np.array(
                [metered[i].kw_per_unit * (1 if metered[i].direction == "import" else -1) for i in mine]
            )
            energy = power_energies(
                batch.time_ns,
                batch.value * np.repeat(per_unit, np.diff(starts)),
                batch.status,
                starts,
                edges_ns,
                np.array([self._gap_after_ns(self._period_s(points[i])) for i in mine], dtype=np.int64),
            )
            for row in range(len(mine)):
                yield IntervalEnergy(*(getattr(energy, name)[row] for name in IntervalEnergy.__slots__))

    def _soc_kwh(self, columns: Columns, edges_ns: Times) -> Floats | None:
        """What storages report to hold at each interval's end, kWh: shape (S, T), NaN where no report is fresh."""
        if not self._soc:
            return None
        soc = np.full((len(self.storages), edges_ns.size - 1), np.nan)
        for row, point, capacity_kwh in self._soc:
            batch, _ = columns.of([point])
            if len(batch) == 0:
                continue
            at = np.searchsorted(batch.time_ns, edges_ns[1:], side="right") - 1
            fresh = (at >= 0) & (
                edges_ns[1:] - batch.time_ns[at] <= self._gap_after_ns(self._period_s(point))
            )
            soc[row] = np.where(fresh, np.clip(batch.value[at] / 100.0, 0.0, 1.0) * capacity_kwh, np.nan)
        return soc

    def _period_s(self, point: str) -> float:
        return self.plant.point_by_id[point].period_s

    def _source_intensity(self, time_ns: Times, known_at_ns: int) -> tuple[Floats, dict[str, str]]:
        """kg per kWh each source brings in, shape (sources, F, T); and the factor rows used."""
        plant = self.plant
        intensity = np.zeros((len(self._sources), len(self.flows), time_ns.size))
        used: dict[str, str] = {}
        columns: dict[object, FactorColumn] = {}  # many sources are of one kind
        for row, at in enumerate(self._sources):
            node = plant.nodes[at]
            for method in self.methods:
                scope = scope_of_source(node, method)
                for basis in _BASES:
                    kind = node.factor, node.fuel is None, scope, method.id, basis
                    if kind not in columns:
                        columns[kind] = source_factors(
                            node, method, basis, time_ns, known_at_ns, plant.zone, plant.region, self.library
                        )
                    column = columns[kind]
                    intensity[row, self._flow(scope, basis, method)] = column.kg_per_kwh
                    if column.row_ids:
                        used[f"{node.id} {basis} {method.id}"] = " ".join(
                            self.library.gathered(column.row_ids)
                        )
        return intensity, used

    def _flow(self, scope: Scope, basis: Basis, method: MethodSet) -> int:
        return self.flows.index(Flow(scope, basis, method.id))

    def _direct_kg(self, energy_kwh: Floats) -> Floats | None:
        """Carbon that arises at each node by burning what arrives: shape (N, F, T); None where nothing burns."""
        plant = self.plant
        if all(node.burns is None for node in plant.nodes):
            return None
        direct = np.zeros((len(plant.nodes), len(self.flows), energy_kwh.shape[-1]))
        for row, node in enumerate(plant.nodes):
            if node.burns is None:
                continue
            burned = [i for i in self._in[row] if plant.edges[i].carrier == node.burns]
            burned_kwh = energy_kwh[burned].sum(axis=0)
            fuel = self.library.fuel(self._fuel_of(node))
            for method in self.methods:
                for basis in _BASES:
                    kg_per_kwh = combustion_kg_per_kwh(fuel, method, self.library)
                    direct[row, self._flow(Scope.DIRECT, basis, method)] = burned_kwh * kg_per_kwh
        return direct

    def _fuel_of(self, node: Node) -> str:
        """The fuel a burning node burns: that of the source of the carrier."""
        for source in self.plant.nodes:
            if source.kind is NodeKind.SOURCE and source.carrier == node.burns and source.fuel is not None:
                return source.fuel
        raise BadRequest(f"node {node.id} burns {node.burns}, and no source of it names its fuel")

    def _first_stocks(
        self, stocks: Stocks | None, soc_kwh: Floats | None, intensity: Floats
    ) -> tuple[Floats, Floats]:
        """Stocks to begin from, shape (S,) and (S, F); a storage `stocks` says nothing of begins by itself."""
        held = None
        if stocks is not None:
            stocks, held = stocks.onto(self.storages, self.flows)
            if held.all():
                return stocks.kwh, stocks.kg
        kwh = np.zeros(len(self.storages))
        for row, _, _ in self._soc:
            reported = soc_kwh[row][np.isfinite(soc_kwh[row])] if soc_kwh is not None else np.empty(0)
            kwh[row] = reported[0] if reported.size else 0.0
        kg = np.zeros((len(self.storages), len(self.flows)))
        for row, at in enumerate(self._sources):
            node = self.plant.nodes[at]
            if node.origin is Origin.PURCHASED and node.carrier == "electricity":
                kg = kwh[:, None] * np.nan_to_num(intensity[row, :, 0])[None, :]
                break
        if stocks is None or held is None:
            return kwh, kg
        return np.where(held, stocks.kwh, kwh), np.where(held[:, None], stocks.kg, kg)

    # -- the live picture ------------------------------------------------------

    def live_power_kw(self, now_ns: int, newest: Newest) -> Floats:
        """Power of each edge now, shape (E,), kW; NaN where nothing fresh is known, or no meter is.

        A register whose meter gives no power tells it by its last step: over the time that took or, if that is
        longer, since.
        """
        power_kw = np.full(len(self.edge_names), np.nan)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            ways = self._live_registers
            value, before = newest.value[ways.slot], newest.before[ways.slot]
            since_ns = newest.since_ns[ways.slot]
            took_ns = np.maximum(since_ns - newest.before_ns[ways.slot], now_ns - since_ns)
            stepped = np.where(value >= before, value - before, np.nan) * (HOUR_NS / took_ns)
            stands = np.isnan(before) & (newest.time_ns[ways.slot] > since_ns)  # seen twice, and no step yet
            counted = np.where(stands, 0.0, stepped) * ways.per_unit
            power_kw[ways.edge] = np.where(ways.fresh(now_ns, newest), counted, np.nan)
            ways = self._live_powers
            told = np.maximum(newest.value[ways.slot] * ways.per_unit, 0.0)
            known = ways.fresh(now_ns, newest) & np.isfinite(told)
            power_kw[ways.edge[known]] = told[known]
            power_kw[~(power_kw <= ABSURD_KW)] = np.nan
        for row, edge in enumerate(self.edge_names):
            if edge in self._media:
                power_kw[row] *= self._share_of_medium(edge, self._live_state(edge, now_ns, newest), 1)[0]
        return power_kw

    def _live_state(self, edge: str, now_ns: int, newest: Newest) -> dict[str, Floats]:
        state: dict[str, Floats] = {}
        for point in self._media[edge][0].points:
            slot = self._slot_of[point]
            fresh = now_ns - newest.time_ns[slot] <= self._gap_after_ns(self._period_s(point))
            state[point] = newest.value[slot : slot + 1] if fresh else np.array([np.nan])
        return state

    def live_flow(self, now_ns: int, power_kw: Floats, stocks: Stocks | None) -> LiveFlow:
        """Trace the powers of now as if they held for an interval; the first method set, location-based, all scopes."""
        network = self._network.close_powers(power_kw)
        intensity, _ = self._source_intensity(np.array([now_ns], dtype=np.int64), now_ns)
        direct_kg = self._direct_kg(network.energy.energy_kwh)
        stock_kwh, stock_kg = self._first_stocks(stocks, None, intensity)
        shown = [
            i
            for i, f in enumerate(self.flows)
            if f.method_set == self.methods[0].id and f.basis == Basis.LOCATION
        ]
        intensity = intensity[:, shown]
        direct_kg = None if direct_kg is None else direct_kg[:, shown]
        traced = self._tracer.trace(
            network.energy.energy_kwh,
            intensity,
            direct_kg,
            # A whole interval's discharge may be more than is left; its intensity is the stock's all the same.
            stock_kwh=stock_kwh * _LIVE_STOCK,
            stock_kg=stock_kg[:, shown] * _LIVE_STOCK,
        )
        flows = self._flows_of(network, traced, intensity, direct_kg)
        per_h = HOUR_NS / self.base_ns
        through_kg, through_kwh = flows.through_kg[:, :, 0].sum(axis=1), flows.through_kwh[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = through_kg / through_kwh
        edge_kw = network.energy.energy_kwh[:, 0] * per_h
        return LiveFlow(self.nodes, through_kwh * per_h, through_kg * per_h, ratio, edge_kw)


_LIVE_STOCK = 1e3


_KG = {"t": 1000.0, "kg": 1.0, "m3": 1000.0, "L": 1.0}  # of water, and of steam where its mass is metered


def _feed_water_kj_per_kg(library: FactorLibrary) -> float:
    return library.row("heat:feedwater_enthalpy_20C").value


def _filled(register: IntervalEnergy, power: IntervalEnergy) -> IntervalEnergy:
    """The register's energy, power's where the register says nothing."""
    use = np.isnan(register.energy_kwh) & np.isfinite(power.energy_kwh)
    return IntervalEnergy(
        np.where(use, power.energy_kwh, register.energy_kwh),
        np.where(use, power.covered, register.covered),
        np.where(use, power.estimated_kwh, register.estimated_kwh),
        np.where(use, power.mark, register.mark),
    )
