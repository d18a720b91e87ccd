"""A figure opened one level at a time: a tonne, its sources, their meters, a register's readings.

A node's figure is a sum of items, one for each edge, source or burning node it
stands on; each item carries its energy, its intensity and a link that opens it
in turn. Below an edge lie its meter, the readings at the window's ends and what
was unusual in between. Nothing is computed anew: everything is read from stored
results, and `unexplained` says by how much the items miss the figure, so that
an answer that does not add up shows it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar
from urllib.parse import urlencode

import numpy as np

from core.answers.inventory import fuel_of
from core.carbon.factor_row import FactorRow, published_ns
from core.carbon.method import (
    MethodSet,
    combustion_kg_per_kwh,
    method_of,
    other_gases,
    scope_of_source,
    source_factors,
)
from core.clock import rfc3339
from core.compute.engine import Engine
from core.compute.history import NOW, History, Known
from core.errors import BadRequest
from core.plant.model import (
    Device,
    Edge,
    FormulaMeter,
    ModbusSource,
    MqttSource,
    Node,
    NodeKind,
    OpcuaSource,
    Plant,
    Point,
    PointMeter,
)
from core.quality import quality_of
from core.results import HOUR_NS, SITE, Flow, Mark, Scope, WindowResult
from core.samples import NS_PER_S, Floats, SampleBatch, Times
from core.store.rollup import Ends, emission_parts
from core.store.seam import Pin, RunSpan, Series, Store

T = TypeVar("T")

LONGEST_NS = 366 * 24 * HOUR_NS
MOST_ITEMS = 200
MOST_CORRECTIONS = 100
_SPREAD_NS = HOUR_NS

FLOW_TRACING = (
    "docs/engine.md, 4: C_in = sum of E x intensity of the node it comes from, plus what burns there"
)
FORMULAS = {
    SITE: (
        "sum over sources (energy x factor) + sum over burning nodes (energy x NCV-based factor)",
        "ISO 14064-1:2018, 5.2 and 6.3; GHG Protocol Corporate Standard, chapter 4",
    ),
    NodeKind.SOURCE: (
        "energy delivered x factor of the row in force",
        "GHG Protocol Scope 2 Guidance 2015, 6.1",
    ),
    NodeKind.LOAD: ("sum over incoming edges (energy x intensity upstream) + what burns here", FLOW_TRACING),
    NodeKind.EXPORT: ("sum over incoming edges (energy x intensity upstream)", FLOW_TRACING),
    NodeKind.BUS: ("carbon arriving - carbon leaving: what was not passed on", FLOW_TRACING),
    NodeKind.CONVERTER: (
        "carbon arriving + what burns here - carbon leaving: what was not passed on",
        FLOW_TRACING,
    ),
    NodeKind.STORAGE: ("carbon charged - carbon discharged: the change of stock", FLOW_TRACING),
}
COMBUSTION = "GB/T 32150-2015, GB/T 32151: heat x carbon content x oxidation x 44/12"


@dataclass(frozen=True, slots=True)
class FactorUsed:
    """A factor row as published, and what one kWh carries by it."""

    id: str
    value: float
    unit: str
    kgco2e_per_kwh: float
    source: str
    document: str
    confidence: str
    unverified: bool
    region: str
    level: str
    kind: str
    valid_from: str | None
    valid_to: str | None
    published: str | None
    uncertainty: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Meter:
    """Where an edge's energy is read, or of what it is computed."""

    edge: str
    kind: str  # register | power | formula | remainder
    point: str | None = None
    power_point: str | None = None
    unit: str | None = None
    quantity: str | None = None
    device: str | None = None
    profile: str | None = None
    accuracy_class: float | None = None
    ct_ratio: float | None = None
    vt_ratio: float | None = None
    rated_kw: float | None = None
    address: Mapping[str, object] | None = None
    formula: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    point: str
    time: str
    value: float
    quality: str
    status: int


@dataclass(frozen=True, slots=True)
class Item:
    """One summand; `emissions_kgco2e` counts with its sign. Links open the next level."""

    what: str  # arrives | leaves | source | burns | factor
    id: str
    energy_kwh: float
    intensity_kgco2e_per_kwh: float
    emissions_kgco2e: float
    coverage: float
    estimated_share: float
    factor: str | None = None
    start: str | None = None
    end: str | None = None
    explain: str | None = None
    upstream: str | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """One item in one base interval."""

    start: str
    id: str
    energy_kwh: float
    intensity_kgco2e_per_kwh: float
    emissions_kgco2e: float


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[Interval, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Method:
    id: str
    edition: str
    gwp_set: str
    oxidation: bool


@dataclass(frozen=True, slots=True)
class Corrected:
    """A stored value that was replaced on record."""

    point: str
    time: str
    old: float
    new: float
    who: str
    why: str
    at: str


@dataclass(frozen=True, slots=True)
class RunAnswer:
    """Hours computed with one plant model for one reason, and when the knowledge behind them was taken."""

    start: str
    end: str
    first_known_at: str
    last_known_at: str
    plant_fingerprint: str
    reason: str
    conservation_error: float


@dataclass(frozen=True, slots=True)
class NodeExplained:
    """What `/v1/explain?node=` answers; see docs/http.md."""

    node: str
    kind: str
    start: str
    end: str
    scope: int
    basis: str
    emissions_kgco2e: float
    coverage: float
    formula: str
    formula_source: str
    unexplained_kgco2e: float
    method_set: Method
    items: tuple[Item, ...]
    intervals: Page
    factors: tuple[FactorUsed, ...]
    stocks: Mapping[str, float] | None
    meters: tuple[Meter, ...]
    readings: tuple[Reading, ...]
    marks: Mapping[str, Mapping[str, int]]
    corrections: tuple[Corrected, ...]
    runs: tuple[RunAnswer, ...]


@dataclass(frozen=True, slots=True)
class EdgeExplained:
    """What `/v1/explain?edge=` answers."""

    edge: str
    carrier: str
    start: str
    end: str
    energy_kwh: float
    coverage: float
    estimated_share: float
    formula: str
    formula_source: str
    meter: Meter
    inputs: tuple[Item, ...]  # of a formula or remainder
    register: Mapping[str, float] | None  # of a register: its value at both ends and the difference in kWh
    readings: tuple[Reading, ...]
    marks: Mapping[str, int]
    marked: tuple[Mapping[str, object], ...]
    next: str | None
    corrections: tuple[Corrected, ...]
    runs: tuple[RunAnswer, ...]


class Explanations:
    """Opens figures of one plant."""

    def __init__(self, history: History, store: Store) -> None:
        self._history = history
        self.store = store

    async def _model(self, start_ns: int, end_ns: int, name: str, closed_at_ns: int | None) -> Engine:
        """The newest model within [start, end) that has the node or edge; the newest at all where none does."""
        await self._history.refresh()
        known = NOW if closed_at_ns is None else Known.at(closed_at_ns)
        segments = await self._history.segments(start_ns, max(end_ns, start_ns + 1), known)
        models = [segment.engine for segment in segments]
        there = (m for m in reversed(models) if name in m.nodes or name in m.edge_names)
        return next(there, models[-1])

    async def _closed_at(self, start_ns: int, end_ns: int, revision: int | None) -> int | None:
        """When the day that holds [start, end), or else the month, was closed as that revision."""
        if revision is None:
            return None
        seals = await self.store.seals(start_ns, end_ns)
        periods = [seal for seal in seals if seal.start_ns <= start_ns and end_ns <= seal.end_ns]
        for period in ("day", "month"):
            mine = {seal.revision: seal.sealed_at_ns for seal in periods if seal.period == period}
            if revision in mine:
                return mine[revision]
            if mine:
                raise BadRequest(f"no revision {revision} of that {period}: it was closed as {_listed(mine)}")
        raise BadRequest("the range lies in no closed day and in no closed month: it has no revisions")

    async def node(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        scope: int,
        basis: str,
        method_set_id: str,
        limit: int = 60,
        from_ns: int | None = None,
        revision: int | None = None,
    ) -> NodeExplained:
        """Emissions of a node or `site` over [start, end), opened.

        Args:
            limit, from_ns: The page of base intervals: how many, and from when on.
            revision: Everything as it was when the day, or the month, was closed as that revision.

        Raises:
            BadRequest: The range is longer than a year, empty, has no such revision, or the node was not there then.
        """
        closed_at_ns = await self._closed_at(start_ns, end_ns, revision)
        model = await self._model(start_ns, end_ns, name, closed_at_ns)
        plant = model.plant
        flow = Flow(scope, basis, method_set_id)
        closed = revision, closed_at_ns
        opened = await _Opened.read(
            self.store, plant, name, _edges_of(plant, name), start_ns, end_ns, flow, closed
        )
        return await _NodeOpening(self, model, opened, name).answer(limit, from_ns)

    async def edge(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        limit: int = 60,
        from_ns: int | None = None,
        revision: int | None = None,
    ) -> EdgeExplained:
        """Energy of an edge over [start, end), opened down to the readings at its ends.

        Raises:
            BadRequest: As `node`.
        """
        closed_at_ns = await self._closed_at(start_ns, end_ns, revision)
        model = await self._model(start_ns, end_ns, name, closed_at_ns)
        plant = model.plant
        edge = _known(plant.edge_by_id, "edge", name)
        inputs = _inputs(plant, edge)
        flow = Flow(Scope.ENERGY_INDIRECT, "location", plant.method_sets[0])
        closed = revision, closed_at_ns
        opened = await _Opened.read(self.store, plant, SITE, [edge, *inputs], start_ns, end_ns, flow, closed)
        energy = opened.of(edge)
        meter = _meter(plant, edge)
        readings = await self.readings([meter], opened)
        marked, more = opened.marked(edge, limit, from_ns)
        formula, source = _energy_rule(meter)
        return EdgeExplained(
            edge=edge.id,
            carrier=edge.carrier,
            start=rfc3339(opened.start_ns),
            end=rfc3339(opened.end_ns),
            energy_kwh=energy.kwh,
            coverage=energy.coverage,
            estimated_share=energy.estimated_share,
            formula=formula,
            formula_source=source,
            meter=meter,
            inputs=tuple(self._input(opened, one) for one in inputs),
            register=_register(model, meter, readings, opened),
            readings=tuple(_reading(readings, i) for i in range(len(readings))),
            marks=energy.marks,
            marked=marked,
            next=more,
            corrections=await self.corrections([meter], opened),
            runs=_runs(await self.store.runs(opened.start_ns, opened.end_ns, closed_at_ns)),
        )

    def _input(self, opened: _Opened, edge: Edge) -> Item:
        energy = opened.of(edge)
        return Item(
            "input",
            edge.id,
            energy.kwh,
            math.nan,
            math.nan,
            energy.coverage,
            energy.estimated_share,
            explain=opened.edge_link(edge),
        )

    async def readings(self, meters: Sequence[Meter], opened: _Opened) -> SampleBatch:
        """The readings next to both ends of the window, context included."""
        points = list(dict.fromkeys(p for m in meters for p in (m.point, m.power_point) if p is not None))
        parts = [
            await self.store.readings(points, at, at + 1000, _SPREAD_NS, opened.closed_at_ns)
            for at in (opened.start_ns, opened.end_ns)
        ]
        rows: dict[tuple[int, int], tuple[int, int]] = {}
        for which, part in enumerate(parts):
            for i, key in enumerate(zip(part.point.tolist(), part.time_ns.tolist(), strict=True)):
                rows.setdefault(key, (which, i))
        chosen = [rows[key] for key in sorted(rows)]
        table = parts[0].points
        return SampleBatch(
            table,
            np.array([parts[w].point[i] for w, i in chosen], dtype=np.int32),
            np.array([parts[w].time_ns[i] for w, i in chosen], dtype=np.int64),
            np.array([parts[w].value[i] for w, i in chosen], dtype=np.float64),
            np.array([parts[w].status[i] for w, i in chosen], dtype=np.int16),
        )

    async def corrections(self, meters: Sequence[Meter], opened: _Opened) -> tuple[Corrected, ...]:
        points = [p for m in meters for p in (m.point, m.power_point) if p is not None]
        rows = await self.store.corrections(points, opened.start_ns, opened.end_ns, MOST_CORRECTIONS)
        if opened.closed_at_ns is not None:
            rows = [row for row in rows if row.at_ns <= opened.closed_at_ns]
        return tuple(
            Corrected(r.point, rfc3339(r.time_ns), r.old, r.new, r.who, r.why, rfc3339(r.at_ns)) for r in rows
        )


# A revision asked for, and when the period was closed as it; None, None: figures as they stand.
_Closed = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class _Energy:
    """An edge over the whole window."""

    kwh: float
    coverage: float
    estimated_share: float
    marks: dict[str, int]


class _Opened:
    """Stored results of a window, cut to it, and the links that open parts of it."""

    def __init__(
        self, plant: Plant, result: WindowResult, first: int, last: int, flow: Flow, closed: _Closed
    ) -> None:
        self.plant = plant
        self.flow = flow
        self._result = result
        self._cut = slice(first, last)
        self.revision, self.closed_at_ns = closed
        self.base_ns = result.base_ns
        self.start_ns = result.start_ns + first * result.base_ns
        self.end_ns = result.start_ns + last * result.base_ns
        self.time_ns: Times = self.start_ns + np.arange(last - first) * result.base_ns

    @classmethod
    async def read(
        cls,
        store: Store,
        plant: Plant,
        name: str,
        edges: Sequence[Edge],
        start_ns: int,
        end_ns: int,
        flow: Flow,
        closed: _Closed,
    ) -> _Opened:
        """Cut to whole base intervals, as every answer is."""
        base_ns = plant.base_interval_s * NS_PER_S
        start_ns, end_ns = -(-start_ns // base_ns) * base_ns, end_ns // base_ns * base_ns
        if end_ns - start_ns > LONGEST_NS:
            raise BadRequest("a figure is opened over a year at most: ask for a shorter range")
        if end_ns <= start_ns:
            raise BadRequest("the range holds no whole base interval")
        hour_from, hour_to = start_ns // HOUR_NS * HOUR_NS, -(-end_ns // HOUR_NS) * HOUR_NS
        nodes = dict.fromkeys(n for e in edges for n in (e.source, e.target))
        storages = [n for n in nodes if plant.node_by_id[n].kind is NodeKind.STORAGE]
        shared = {e.source for e in plant.edges if e.weight != 1.0}  # carbon is shared out by weight there
        around = dict.fromkeys([*edges, *(e for e in plant.edges if e.source in shared & nodes.keys())])
        result = await store.window(
            hour_from,
            hour_to,
            [e.id for e in around],
            list({**nodes, name: None}),
            [flow],
            storages,
            closed[1],
        )
        first = (start_ns - hour_from) // result.base_ns
        return cls(plant, result, first, first + (end_ns - start_ns) // result.base_ns, flow, closed)

    def kwh(self, edge: Edge) -> Floats:
        """Energy of an edge by interval, shape (T,); nothing known is nothing to count."""
        return np.nan_to_num(self._result.energy.energy_kwh[self._row(edge), self._cut])

    def of(self, edge: Edge) -> _Energy:
        row, energy = self._row(edge), self._result.energy
        kwh = self.kwh(edge)
        total = float(kwh.sum())
        estimated = float(np.nan_to_num(energy.estimated_kwh[row, self._cut]).sum())
        marks = energy.mark[row, self._cut]
        return _Energy(
            total,
            float(energy.covered[row, self._cut].mean()),
            estimated / total if total > 0 else 0.0,
            {m.name.lower(): n for m in Mark if m.name and m and (n := int(((marks & m) != 0).sum()))},
        )

    def kg(self, edge: Edge) -> Floats:
        """Carbon an edge carries by interval: its share of what its from-node passes on; NaN where unknown."""
        node = self._result.nodes.index(edge.source)
        through_kg = self._result.through_kg[node, 0, self._cut]
        kwh = self.kwh(edge)
        siblings = [e for e in self.plant.edges if e.source == edge.source]
        if any(e.weight != 1.0 for e in siblings):
            weighted = sum((self.kwh(e) * e.weight for e in siblings), np.zeros_like(kwh))
            mine = kwh * edge.weight
        else:
            weighted, mine = self._result.through_kwh[node, self._cut], kwh
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(mine == 0, 0.0, through_kg * (mine / weighted))

    def brought_kg(self, node: str) -> Floats:
        """Carbon a source brings in, shape (T,)."""
        row = self._result.nodes.index(node)
        return np.where(
            self._result.through_kwh[row, self._cut] == 0, 0.0, self._result.through_kg[row, 0, self._cut]
        )

    def figure(self, name: str) -> tuple[float, float]:
        """Emissions and coverage of a node as stored here, added up as a roll-up does."""
        r, row, cut = self._result, [self._result.nodes.index(name)], self._cut
        columns = {
            column: getattr(r, column)[row, cut]
            for column in ("in_kwh", "out_kwh", "residual_kwh", "through_kwh")
        }
        kg, through_kg = r.emissions_kg[row, :, cut], r.through_kg[row, :, cut]
        carbon = {"emissions_kg": kg, "through_kg": through_kg}
        parts = emission_parts(carbon, columns, HOUR_NS // r.base_ns, Ends())
        if not parts.counts.any():
            return math.nan, 0.0
        return float(parts.columns["emissions_kg"].sum()), float(r.coverage[row, cut].mean())

    def stocks(self, node: str) -> dict[str, float]:
        """What a storage held at the hours the window begins and ends in."""
        row = self._result.storages.index(node)
        first, last = self._result.stock_kwh[row, [0, -1]].tolist()
        first_kg, last_kg = self._result.stock_kg[row, 0, [0, -1]].tolist()
        return {"start_kwh": first, "start_kgco2e": first_kg, "end_kwh": last, "end_kgco2e": last_kg}

    def marked(
        self, edge: Edge, limit: int, from_ns: int | None
    ) -> tuple[tuple[Mapping[str, object], ...], str | None]:
        """Marked base intervals of an edge, a page of them."""
        mark = self._result.energy.mark[self._row(edge), self._cut]
        at = np.flatnonzero((mark != 0) & (self.time_ns >= (from_ns or 0)))
        kwh = self.kwh(edge)
        rows = tuple(
            {
                "start": rfc3339(int(self.time_ns[i])),
                "marks": [m.name.lower() for m in Mark if m.name and m and mark[i] & m],
                "energy_kwh": float(kwh[i]),
            }
            for i in at[:limit].tolist()
        )
        return rows, rfc3339(int(self.time_ns[at[limit]])) if at.size > limit else None

    def node_link(self, node: str) -> str:
        return self._link(
            node=node, scope=str(self.flow.scope), basis=self.flow.basis, method_set=self.flow.method_set
        )

    def edge_link(self, edge: Edge) -> str:
        return self._link(edge=edge.id)

    def _link(self, **asked: str) -> str:
        span = {"start": rfc3339(self.start_ns), "end": rfc3339(self.end_ns)}
        revision = {} if self.revision is None else {"revision": str(self.revision)}
        return "/v1/explain?" + urlencode({**asked, **span, **revision})

    def _row(self, edge: Edge) -> int:
        return self._result.edges.index(edge.id)


class _NodeOpening:
    """One node's figure, being opened."""

    def __init__(self, to: Explanations, model: Engine, opened: _Opened, name: str) -> None:
        self._to = to
        self._plant = model.plant
        self._library = model.library
        self._opened = opened
        self._name = name
        self._node = model.plant.node_by_id.get(name)
        self._method: MethodSet = method_of(model.plant, opened.flow.method_set)
        self._factors: dict[str, FactorUsed] = {}
        self._columns: list[tuple[str, Floats, Floats]] = []  # item id, kWh and kg by interval

    async def answer(self, limit: int, from_ns: int | None) -> NodeExplained:
        opened, node = self._opened, self._node
        span = opened.start_ns, opened.end_ns, opened.closed_at_ns
        runs = await self._to.store.runs(*span)
        items = self._items(await self._to.store.pins(*span))
        kg, coverage = await self._figure()
        kind = SITE if node is None else node.kind
        formula, source = FORMULAS[kind]
        meters = [_meter(self._plant, e) for e in _edges_of(self._plant, self._name)][:MOST_ITEMS]
        readings = await self._to.readings(meters, opened)
        marks = {e.id: opened.of(e).marks for e in _edges_of(self._plant, self._name)}
        storage = node is not None and node.kind is NodeKind.STORAGE
        known = sum(item.emissions_kgco2e for item in items)
        return NodeExplained(
            node=self._name,
            kind=str(kind),
            start=rfc3339(opened.start_ns),
            end=rfc3339(opened.end_ns),
            scope=opened.flow.scope,
            basis=opened.flow.basis,
            emissions_kgco2e=kg,
            coverage=coverage,
            formula=formula,
            formula_source=source,
            unexplained_kgco2e=kg - known,
            method_set=Method(
                self._method.id, self._method.edition, self._method.gwp_set, self._method.oxidation
            ),
            items=tuple(items[:MOST_ITEMS]),
            intervals=self._intervals(limit, from_ns),
            factors=tuple(self._factors.values()),
            stocks=opened.stocks(self._name) if storage else None,
            meters=tuple(meters),
            readings=tuple(_reading(readings, i) for i in range(len(readings))),
            marks={name: found for name, found in marks.items() if found},
            corrections=await self._to.corrections(meters, opened),
            runs=_runs(runs),
        )

    async def _figure(self) -> tuple[float, float]:
        """The figure as `/v1/emissions` answers it: NaN where something in it is unknown."""
        o = self._opened
        if o.revision is not None:
            return o.figure(self._name)
        series = await self._to.store.emissions(
            [self._name], o.start_ns, o.end_ns, "1y", o.flow.basis, o.flow.method_set
        )
        return _total(series, o.flow.scope)

    def _items(self, pins: Sequence[Pin]) -> list[Item]:
        plant, node = self._plant, self._node
        if node is None:
            sources = [n for n in plant.nodes if n.kind is NodeKind.SOURCE]
            items = [self._brought(n) for n in sources]
            return items + [item for n in plant.nodes if n.burns for item in self._burns(n)]
        if node.kind is NodeKind.SOURCE:
            return self._by_factor(node, pins)
        items = [self._edge(e, "arrives", 1.0) for e in plant.edges if e.target == node.id]
        if node.burns:
            items += self._burns(node)
        if node.kind in (NodeKind.BUS, NodeKind.CONVERTER, NodeKind.STORAGE):
            items += [self._edge(e, "leaves", -1.0) for e in plant.edges if e.source == node.id]
        return items

    def _edge(self, edge: Edge, what: str, sign: float) -> Item:
        kwh, kg = self._opened.kwh(edge), sign * self._opened.kg(edge)
        upstream = self._opened.node_link(edge.source) if what == "arrives" else None
        return self._item(what, edge.id, kwh, kg, edges=[edge], upstream=upstream)

    def _brought(self, node: Node) -> Item:
        edges = [e for e in self._plant.edges if e.source == node.id]
        kwh = sum((self._opened.kwh(e) for e in edges), np.zeros(self._opened.time_ns.size))
        return self._item(
            "source", node.id, kwh, self._opened.brought_kg(node.id), edges, self._opened.node_link(node.id)
        )

    def _burns(self, node: Node) -> list[Item]:
        """What burning brings, in scope 1 alone."""
        if self._opened.flow.scope != Scope.DIRECT:
            return []
        fuel = self._library.fuel(fuel_of(self._plant, node))
        kg_per_kwh = combustion_kg_per_kwh(fuel, self._method, self._library)
        terms = (
            f"NCV {fuel.ncv_gj!r} GJ/{fuel.amount_unit}, carbon {fuel.carbon_t_per_gj!r} t/GJ, "
            f"oxidation {fuel.oxidation!r}, by {COMBUSTION}"
        )
        others = other_gases(fuel, self._method, self._library)
        kg_co2_per_kwh = kg_per_kwh - sum(kg for _, kg in others)
        self._factors[fuel.row.id] = replace(_factor(fuel.row, kg_co2_per_kwh), note=terms)
        for row, kg in others:
            self._factors[row.id] = replace(
                _factor(row, kg), note=f"{row.gas} beside the CO2, by its {self._method.gwp_set} GWP"
            )
        burned = [e for e in self._plant.edges if e.target == node.id and e.carrier == node.burns]
        kwh = sum((self._opened.kwh(e) for e in burned), np.zeros(self._opened.time_ns.size))
        item = self._item("burns", node.id, kwh, kwh * kg_per_kwh, burned)
        link = None if self._node is not None else self._opened.node_link(node.id)
        return [replace(item, factor=fuel.row.id, upstream=link)]

    def _by_factor(self, node: Node, pins: Sequence[Pin]) -> list[Item]:
        """A source's figure by factor row, each stretch of time with its own: energy times what that row says."""
        edges = [e for e in self._plant.edges if e.source == node.id]
        time_ns = self._opened.time_ns
        kwh = sum((self._opened.kwh(e) for e in edges), np.zeros(time_ns.size))
        self._columns.append((node.id, kwh, self._opened.brought_kg(node.id)))
        if node.fuel is not None or self._opened.flow.scope != scope_of_source(node, self._method):
            item = self._item("factor", node.id, kwh, np.zeros(time_ns.size), edges, keep=False)
            return [replace(item, start=rfc3339(self._opened.start_ns), end=rfc3339(self._opened.end_ns))]
        kg_per_kwh, row_ids = np.empty(time_ns.size), list[str | None]()
        for first, last, known_at_ns in self._known(pins):
            column, ids = self._rows_of(node, time_ns[first:last], known_at_ns)
            kg_per_kwh[first:last] = column
            row_ids += ids
        kg = np.where(kwh == 0, 0.0, kwh * kg_per_kwh)
        cuts = [0, *(i for i in range(1, time_ns.size) if row_ids[i] != row_ids[i - 1]), time_ns.size]
        items = []
        for first, last in pairwise(cuts):
            part = slice(first, last)
            item = self._item("factor", node.id, kwh[part], kg[part], edges, keep=False)
            until_ns = int(time_ns[last - 1]) + self._opened.base_ns
            span = rfc3339(int(time_ns[first])), rfc3339(until_ns)
            items.append(replace(item, factor=row_ids[first], start=span[0], end=span[1]))
        return items

    def _known(self, pins: Sequence[Pin]) -> list[tuple[int, int, int]]:
        """(first, last, known time) of runs of intervals computed when the same factor rows were known."""
        time_ns, zone = self._opened.time_ns, self._plant.zone
        moments = sorted({published_ns(row.published, zone) for row in self._library.rows if row.published})
        known = {pin.hour_ns: pin.known_at_ns for pin in pins}
        newest_ns = max(known.values(), default=int(time_ns[-1]))
        hours = time_ns // HOUR_NS * HOUR_NS
        cuts = [0, *(np.flatnonzero(np.diff(hours)) + 1).tolist(), time_ns.size]
        spans: list[tuple[int, int, int]] = []
        for first, last in pairwise(cuts):
            at_ns = known.get(int(hours[first]), newest_ns)
            if spans and bisect_right(moments, spans[-1][2]) == bisect_right(moments, at_ns):
                spans[-1] = (spans[-1][0], last, spans[-1][2])
            else:
                spans.append((first, last, at_ns))
        return spans

    def _rows_of(self, node: Node, time_ns: Times, known_at_ns: int) -> tuple[Floats, list[str | None]]:
        """What a kWh carried in each interval and by which row; bisected, for there are few rows."""
        column = source_factors(
            node,
            self._method,
            self._opened.flow.basis,
            time_ns,
            known_at_ns,
            self._plant.zone,
            self._plant.region,
            self._library,
        )
        known = not np.isnan(column.kg_per_kwh).any()
        if time_ns.size == 1 or (len(column.row_ids) <= 1 and known) or not column.row_ids:
            row_id = column.row_ids[0] if column.row_ids else None
            if row_id is not None and row_id not in self._factors:
                row = self._library.row(row_id)
                self._factors[row_id] = _factor(row, float(column.kg_per_kwh[0]))
            return column.kg_per_kwh, [row_id] * time_ns.size
        half = time_ns.size // 2
        (first, first_ids), (rest, rest_ids) = (
            self._rows_of(node, part, known_at_ns) for part in (time_ns[:half], time_ns[half:])
        )
        return np.concatenate([first, rest]), first_ids + rest_ids

    def _item(
        self,
        what: str,
        id_: str,
        kwh: Floats,
        kg: Floats,
        edges: Sequence[Edge],
        upstream: str | None = None,
        keep: bool = True,
    ) -> Item:
        energies = [self._opened.of(edge) for edge in edges]
        total, total_kg = float(kwh.sum()), float(kg.sum())
        whole = sum(e.kwh for e in energies)
        if keep:
            self._columns.append((id_, kwh, kg))
        return Item(
            what,
            id_,
            total,
            abs(total_kg) / total if total > 0 else math.nan,
            total_kg,
            min((e.coverage for e in energies), default=math.nan),
            sum(e.kwh * e.estimated_share for e in energies) / whole if whole > 0 else 0.0,
            explain=self._opened.edge_link(edges[0]) if len(edges) == 1 else None,
            upstream=upstream,
        )

    def _intervals(self, limit: int, from_ns: int | None) -> Page:
        """Every item by base interval, a page of intervals."""
        time_ns = self._opened.time_ns
        first = 0 if from_ns is None else int(np.searchsorted(time_ns, from_ns))
        last = min(first + limit, time_ns.size)
        rows = [
            Interval(
                rfc3339(int(time_ns[i])),
                id_,
                float(kwh[i]),
                float(abs(kg[i]) / kwh[i]) if kwh[i] > 0 else math.nan,
                float(kg[i]),
            )
            for i in range(first, last)
            for id_, kwh, kg in self._columns
        ]
        return Page(tuple(rows), rfc3339(int(time_ns[last])) if last < time_ns.size else None)


def _edges_of(plant: Plant, name: str) -> list[Edge]:
    """The edges a node's figure stands on; of `site` those of its sources and burning nodes."""
    if name == SITE and SITE not in plant.node_by_id:
        kinds = {n.id: n for n in plant.nodes}
        return [
            e
            for e in plant.edges
            if kinds[e.source].kind is NodeKind.SOURCE or kinds[e.target].burns == e.carrier
        ]
    _known(plant.node_by_id, "node", name)
    return [e for e in plant.edges if name in (e.source, e.target)]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _known(of: Mapping[str, T], what: str, name: str) -> T:
    if name not in of:
        raise BadRequest(f"the plant had no {what} {name!r} then")
    return of[name]


def _inputs(plant: Plant, edge: Edge) -> list[Edge]:
    """What a virtual edge is computed of."""
    if isinstance(edge.meter, FormulaMeter):
        return [plant.edge_by_id[name] for name in edge.meter.formula.edges]
    if isinstance(edge.meter, PointMeter):
        return []
    node = edge.meter.node
    return [e for e in plant.edges if e.id != edge.id and node in (e.source, e.target)]


def _meter(plant: Plant, edge: Edge) -> Meter:
    if isinstance(edge.meter, FormulaMeter):
        return Meter(edge.id, "formula", formula=f"= {edge.meter.formula.text.lstrip('= ')}")
    if not isinstance(edge.meter, PointMeter):
        return Meter(edge.id, "remainder", formula=f"what the other edges of {edge.meter.node} leave")
    point = plant.point_by_id[edge.meter.point]
    device = plant.device_by_id.get(point.device or "")
    return Meter(
        edge.id,
        edge.meter.role.value,
        point=point.id,
        power_point=edge.meter.power_point,
        unit=point.unit,
        quantity=point.quantity,
        device=point.device,
        profile=device.profile if device else None,
        accuracy_class=device.accuracy_class if device else None,
        ct_ratio=device.ct_ratio if device else None,
        vt_ratio=device.vt_ratio if device else None,
        rated_kw=device.rated_kw if device else None,
        address=_address(plant, point, device),
    )


def _address(plant: Plant, point: Point, device: Device | None) -> dict[str, object] | None:
    """Where on the wire the point's value stands; None where it lives from imports."""
    connection = plant.connection_by_id.get((device.connection if device else None) or "")
    link = {"connection": connection.id, "protocol": connection.protocol.value} if connection else {}
    source = point.source
    if isinstance(source, ModbusSource):
        return {
            **link,
            "unit_id": device.unit_id if device else 1,
            "function": source.function,
            "address": source.address,
            "type": source.type,
            "byte_order": source.byte_order.value,
            "word_order": source.word_order.value,
            "scale": source.scale,
            "offset": source.offset,
            "sunspec_model": source.sunspec_model,
        }
    if isinstance(source, OpcuaSource):
        return {**link, "node_id": source.node_id, "scale": source.scale, "offset": source.offset}
    if isinstance(source, MqttSource):
        return {**link, "topic": source.topic, "json_path": source.json_path, "scale": source.scale}
    return None


def _register(model: Engine, meter: Meter, readings: SampleBatch, opened: _Opened) -> dict[str, float] | None:
    """The register at the window's ends, read between its neighbours."""
    if meter.kind != "register" or meter.point not in readings.points.index:
        return None
    mine = readings.point == readings.points.index[meter.point]
    time_ns, value = readings.time_ns[mine], readings.value[mine]
    if time_ns.size == 0 or time_ns[0] > opened.start_ns or time_ns[-1] < opened.end_ns:
        return None
    origin = int(time_ns[0])  # floats hold a window's nanoseconds, not an epoch's
    at = np.array([opened.start_ns - origin, opened.end_ns - origin], dtype=np.float64)
    first, last = np.interp(at, (time_ns - origin).astype(np.float64), value).tolist()
    per_unit = model.kwh_per_unit(meter.edge)
    return {
        "at_start": first,
        "at_end": last,
        "kwh_per_unit": per_unit,
        "difference_kwh": (last - first) * per_unit,
    }


def _energy_rule(meter: Meter) -> tuple[str, str]:
    if meter.kind == "register":
        return (
            "difference of the register's values at the interval's edges, read between its readings",
            "docs/engine.md, 1",
        )
    if meter.kind == "power":
        return "power integrated over time by trapezoids, never across a gap", "docs/engine.md, 1"
    return meter.formula or "", "docs/engine.md, 2"


def _factor(row: FactorRow, kg_per_kwh: float) -> FactorUsed:
    return FactorUsed(
        row.id,
        row.value,
        row.unit,
        kg_per_kwh,
        row.source,
        row.document,
        row.confidence,
        row.unverified,
        row.region,
        row.level,
        row.kind,
        row.valid_from,
        row.valid_to,
        row.published,
        row.uncertainty,
        row.note,
    )


def _runs(spans: Sequence[RunSpan]) -> tuple[RunAnswer, ...]:
    return tuple(
        RunAnswer(
            rfc3339(s.start_ns),
            rfc3339(s.end_ns),
            rfc3339(s.first_known_at_ns),
            rfc3339(s.last_known_at_ns),
            s.plant_fingerprint,
            s.reason,
            s.conservation_error,
        )
        for s in spans[:MOST_ITEMS]
    )


def _reading(batch: SampleBatch, i: int) -> Reading:
    status = int(batch.status[i])
    return Reading(
        batch.points.names[batch.point[i]],
        rfc3339(int(batch.time_ns[i])),
        float(batch.value[i]),
        quality_of(status).value,
        status,
    )


def _total(series: Series, scope: int) -> tuple[float, float]:
    """The scope's sum over the buckets, and its coverage."""
    assert series.flow is not None
    mine = [i for i, flow in enumerate(series.flow.tolist()) if series.flows[flow].scope == scope]
    if not mine:
        return math.nan, 0.0
    kg = series.columns["emissions_kgco2e"][mine]
    return float(kg.sum()), float(series.columns["coverage"][mine].mean())
