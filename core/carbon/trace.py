"""Which carbon reaches each load, by proportional sharing along the energy that really flowed.

A node's carbon leaves it in proportion to its outflows, losses carried by the
outputs. Topology is ordered once; a window is then swept node by node with whole
columns, and only cyclic components are solved, batched over time. Storages cut
the network: within an interval they give what they held at its start, so a
window is traced with their stocks left open, the stocks' small recurrence is
run, and the window is traced again with them known.

Nothing vanishes, and missing is not zero: a node that passes energy on while
nothing arrives has unknown carbon (NaN), and so has what it feeds. Sums run edge
by edge in one order, so that a window's cut changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from core.errors import BadRequest
from core.plant.model import Node, NodeKind
from core.samples import Flags, Floats

CHUNK = 4096  # intervals swept at once: the columns of one node stay in the cache
_SINKS = (NodeKind.LOAD, NodeKind.EXPORT)
_PASSING = (NodeKind.BUS, NodeKind.CONVERTER)
_OVERDRAFT = 1e-9  # relative; what rounding may take more than a store holds
_EMPTY = 1e-12  # relative; what rounding may leave behind in a store that was emptied


class Link(Protocol):
    """What the tracer needs of an edge."""

    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def weight(self) -> float: ...


@dataclass(frozen=True, eq=False)
class TraceResult:
    """Carbon of a window: N nodes, E edges, S storages in the tracer's order, A attributes, T intervals.

    Attributes:
        kg_in: Shape (N, A, T), carbon arriving by edges plus direct; NaN where unknown; zero of sources.
        passed_kwh: Shape (N, T), weighted energy that carries the node's carbon on; NaN where unknown.
        stock_kwh: Shape (S, T + 1).
        stock_kg: Shape (S, A, T + 1).
        stock_kappa: Shape (S, A, T), what each storage's stock of the interval's start gives per kWh delivered.
        anchored_kg: Shape (S, A, T), what anchoring a stock booked as lost; below zero: found.
        overdrawn: Shape (S, T): more was delivered than held; that interval's discharge has no known carbon.
        conservation_error: Largest relative break of sources + direct = loads + unallocated + change of stocks
            over all intervals and attributes without unknowns.

    What follows from these is worked out when first asked for.
    """

    kg_in: Floats
    passed_kwh: Floats
    stock_kwh: Floats
    stock_kg: Floats
    stock_kappa: Floats
    anchored_kg: Floats
    overdrawn: Flags
    conservation_error: float
    _tracer: Tracer = field(repr=False)
    _edge_kwh: Floats = field(repr=False)
    _source_kappa: Floats = field(repr=False)

    @cached_property
    def kappa(self) -> Floats:
        """Shape (N, A, T), kg per weighted kWh leaving.

        NaN of loads, of a node that passes nothing on or lies in a closed loop, and where unknown. Of a storage:
        what its stock of the interval's start would give.
        """
        kappa = np.full(self.kg_in.shape, np.nan)
        for n in self._tracer.passing:
            passed = self.passed_kwh[n]
            np.divide(self.kg_in[n], passed, out=kappa[n], where=passed > 0)
        for i, n in enumerate(self._tracer.source_nodes):
            kappa[n] = self._source_kappa[i]
        for s, n in enumerate(self._tracer.storage_nodes):
            kappa[n] = self.stock_kappa[s]
        return kappa

    @cached_property
    def unallocated_kg(self) -> Floats:
        """Shape (N, A, T), what a bus or converter received and did not pass on; of a storage, `anchored_kg`."""
        kept = np.zeros(self.kg_in.shape)
        for n in self._tracer.passing:
            kept[n] = np.where((self.passed_kwh[n] == 0) | np.isnan(self.kg_in[n]), self.kg_in[n], 0.0)
        for s, n in enumerate(self._tracer.storage_nodes):
            kept[n] = self.anchored_kg[s]
        return kept

    @cached_property
    def edge_kg(self) -> Floats:
        """Shape (E, A, T), carbon on each edge; NaN where unknown."""
        tracer = self._tracer
        kg = np.empty((len(tracer.edges), *self.kg_in.shape[1:]))
        for e, (source, weight) in enumerate(zip(tracer.source_of, tracer.weight, strict=True)):
            flow_kwh = self._edge_kwh[e] * weight
            idle = (flow_kwh == 0) | (self.passed_kwh[source] == 0)
            kg[e] = np.where(idle, 0.0, flow_kwh * self.kappa[source])
        return kg


def distinct_attributes(
    source_kappa: Floats, direct_kg: Floats | None, stock_kg: Floats
) -> tuple[list[int], list[int]]:
    """Attributes that differ in what they begin with: the first of each kind, and of which kind each one is.

    Method sets often agree, in scope 1 on both bases always, and carbon takes the same way for equal beginnings.
    """
    columns = [column for column in (source_kappa, direct_kg, stock_kg) if column is not None]
    first: list[int] = []
    place: list[int] = []
    for a in range(source_kappa.shape[1]):
        kind = next(
            (k for k, b in enumerate(first) if all(_same_bits(c[:, a], c[:, b]) for c in columns)), len(first)
        )
        if kind == len(first):
            first.append(a)
        place.append(kind)
    return first, place


def _same_bits(one: Floats, other: Floats) -> bool:
    return bool(np.array_equal(one.view(np.int64), other.view(np.int64)))


class Tracer:
    """A network compiled for tracing.

    Attributes:
        nodes, edges, sources, storages: Ids in the order of every array's axis.

    Raises:
        ValueError: An edge names a node that is not there, leaves a load, enters a source, stays at its node, or
            its weight is no finite number from zero up.
    """

    def __init__(self, nodes: Sequence[Node], edges: Sequence[Link]) -> None:
        self.nodes = tuple(node.id for node in nodes)
        self.edges = tuple(edge.id for edge in edges)
        self.kind = [node.kind for node in nodes]
        index = {name: i for i, name in enumerate(self.nodes)}
        self.source_of: list[int] = []
        self.target_of: list[int] = []
        self.weight = [float(edge.weight) for edge in edges]
        self.edges_out_of: list[list[int]] = [[] for _ in nodes]
        self.edges_into: list[list[int]] = [[] for _ in nodes]
        for e, edge in enumerate(edges):
            for end in (edge.source, edge.target):
                if end not in index:
                    raise ValueError(f"edge {edge.id!r} names node {end!r}, which is not in the network")
            source, target = index[edge.source], index[edge.target]
            if source == target:
                raise ValueError(f"edge {edge.id!r} leads from {edge.source!r} to itself")
            if self.kind[source] in _SINKS:
                raise ValueError(f"edge {edge.id!r} leaves {edge.source!r}, a {self.kind[source]}")
            if self.kind[target] is NodeKind.SOURCE:
                raise ValueError(f"edge {edge.id!r} enters {edge.target!r}, a source")
            if not (math.isfinite(edge.weight) and edge.weight >= 0):
                raise ValueError(f"edge {edge.id!r} has weight {edge.weight}, a number from 0 up is wanted")
            self.source_of.append(source)
            self.target_of.append(target)
            self.edges_out_of[source].append(e)
            self.edges_into[target].append(e)
        self.source_nodes = [n for n, kind in enumerate(self.kind) if kind is NodeKind.SOURCE]
        self.storage_nodes = [n for n, kind in enumerate(self.kind) if kind is NodeKind.STORAGE]
        self.passing = [n for n, kind in enumerate(self.kind) if kind in _PASSING]
        self._sinks = [n for n, kind in enumerate(self.kind) if kind in _SINKS]
        self._records = [nodes[n] for n in self.storage_nodes]
        self.sources = tuple(self.nodes[n] for n in self.source_nodes)
        self.storages = tuple(self.nodes[n] for n in self.storage_nodes)
        self.order = self._components()
        self._charging = self._upstream_of_charging()

    def trace(
        self,
        edge_kwh: Floats,
        source_kappa: Floats,
        direct_kg: Floats | None = None,
        *,
        stock_kwh: Floats | None = None,
        stock_kg: Floats | None = None,
        soc_kwh: Floats | None = None,
        interval_h: float = 1.0,
        standing_loss_kwh: Floats | None = None,
        keep_mean: bool = False,
    ) -> TraceResult:
        """Trace a window.

        Args:
            edge_kwh: Shape (E, T), from zero up; NaN where unknown.
            source_kappa: Shape (sources, A, T), kg per kWh; NaN where unknown. A last axis of 1 holds throughout.
            direct_kg: Shape (N, A, T), combustion and process carbon at each node; None: none.
            stock_kwh: Shape (S,), stocks at the start; None: empty.
            stock_kg: Shape (S, A).
            soc_kwh: Shape (S, T), what each storage reports to hold at the interval's end; NaN: no report. The
                stock takes it over with its carbon scaled, except that an empty stock is not anchored upwards,
                for nobody knows the carbon of energy no meter saw.
            interval_h: Length of an interval, for the standing losses of the nodes.
            standing_loss_kwh: Shape (S, T), in their place.
            keep_mean: Energy of unknown carbon joins a stock at the stock's own intensity, as anchoring does, and
                in a stock that knows of none at that of the first known energy to come, so that one blind
                interval does not blank a storage for as long as it is never quite empty. The interval itself
                stays unknown. Without it the stock is unknown until it has been emptied.

        Raises:
            ValueError: Shapes do not fit, or an edge's energy is negative or infinite.
        """
        attributes = source_kappa.shape[1]
        intervals = edge_kwh.shape[1]
        if edge_kwh.shape[0] != len(self.edges) or source_kappa.shape[0] != len(self.sources):
            raise ValueError(
                f"{len(self.edges)} edges and {len(self.sources)} sources wanted, got {edge_kwh.shape[0]} and"
                f" {source_kappa.shape[0]}"
            )
        source_kappa = np.broadcast_to(source_kappa, (len(self.sources), attributes, intervals))
        shape = (len(self.nodes), attributes, intervals)
        if direct_kg is not None and direct_kg.shape != shape:
            raise ValueError(f"direct_kg of shape {shape} wanted, got {direct_kg.shape}")
        stores = len(self.storage_nodes)
        kwh = np.zeros(stores) if stock_kwh is None else np.array(stock_kwh, dtype=np.float64)
        kg = np.zeros((stores, attributes)) if stock_kg is None else np.array(stock_kg, dtype=np.float64)
        if kwh.shape != (stores,) or kg.shape != (stores, attributes):
            raise ValueError(f"stocks of {stores} storages, {attributes} attributes wanted, got {kg.shape}")
        if standing_loss_kwh is None:
            standing_loss_kwh = np.array([[node.standing_loss_kw * interval_h] for node in self._records])
        loss = np.broadcast_to(standing_loss_kwh, (stores, intervals)) if stores else np.zeros((0, intervals))
        soc = np.full((stores, intervals), np.nan) if soc_kwh is None else soc_kwh
        result = TraceResult(
            np.zeros(shape),
            np.zeros((len(self.nodes), intervals)),
            np.empty((stores, intervals + 1)),
            np.empty((stores, attributes, intervals + 1)),
            np.empty((stores, attributes, intervals)),
            np.empty((stores, attributes, intervals)),
            np.zeros((stores, intervals), dtype=np.bool_),
            0.0,
            self,
            edge_kwh,
            source_kappa,
        )
        result.stock_kwh[:, 0], result.stock_kg[:, :, 0] = kwh, kg
        error = 0.0
        for begin in range(0, intervals, CHUNK):
            part = slice(begin, min(begin + CHUNK, intervals))
            direct = None if direct_kg is None else direct_kg[:, :, part]
            flows = _Flows(self, edge_kwh[:, part], direct)
            sources = source_kappa[:, :, part]
            self._run_stocks(flows, sources, direct, loss[:, part], soc[:, part], result, part, keep_mean)
            error = max(error, self._sweep_out(flows, sources, direct, result, part))
        object.__setattr__(result, "conservation_error", error)
        return result

    def participation(self, edge_kwh: Floats) -> Floats:
        """Share of every source, then storage, in what leaves each node (of a load: arrives); shape (N, K, T).

        Per weighted kWh, so that kappa = share . kappa of the sources where nothing is emitted inside. NaN where
        kappa would be.
        """
        heads = self.source_nodes + self.storage_nodes
        share = np.empty((len(self.nodes), len(heads), edge_kwh.shape[1]))
        for begin in range(0, edge_kwh.shape[1], CHUNK):
            part = slice(begin, min(begin + CHUNK, edge_kwh.shape[1]))
            flows = _Flows(self, edge_kwh[:, part], None)
            sweep = _Sweep(flows, _unit_columns(heads, flows.intervals), None, len(heads))
            sweep.run(self.order)
            for n in range(len(self.nodes)):
                if n in heads:
                    share[n, :, part] = sweep.kappa[n]
                elif self.kind[n] in _PASSING:
                    share[n, :, part] = np.where(flows.passed[n] > 0, sweep.kappa[n], np.nan)
                else:
                    with np.errstate(divide="ignore", invalid="ignore"):
                        share[n, :, part] = sweep.arriving(n) / flows.inflow(n)
        return share

    # -- order ----------------------------------------------------------------------------------------------

    def _components(self) -> list[list[int]]:
        """Strongly connected components of the buses and converters, upstream first (Tarjan 1972, without recursion)."""
        number: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        on_stack: set[int] = set()
        found: list[list[int]] = []
        passing = set(self.passing)
        for root in self.passing:
            if root in number:
                continue
            work = [(root, iter(self.edges_out_of[root]))]
            number[root] = low[root] = len(number)
            stack.append(root)
            on_stack.add(root)
            while work:
                node, rest = work[-1]
                for e in rest:
                    target = self.target_of[e]
                    if target not in passing:
                        continue
                    if target not in number:
                        number[target] = low[target] = len(number)
                        stack.append(target)
                        on_stack.add(target)
                        work.append((target, iter(self.edges_out_of[target])))
                        break
                    if target in on_stack:
                        low[node] = min(low[node], number[target])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[node])
                    if low[node] == number[node]:
                        component: list[int] = []
                        while not component or component[-1] != node:
                            component.append(stack.pop())
                            on_stack.discard(component[-1])
                        found.append(sorted(component))
        return found[::-1]

    def _upstream_of_charging(self) -> list[list[int]]:
        """The components whose carbon can come into a storage within an interval."""
        wanted = {self.source_of[e] for n in self.storage_nodes for e in self.edges_into[n]}
        upstream: list[list[int]] = []
        for component in reversed(self.order):
            if wanted.intersection(component):
                upstream.append(component)
                wanted.update(self.source_of[e] for n in component for e in self.edges_into[n])
        return upstream[::-1]

    # -- storages -------------------------------------------------------------------------------------------

    def _run_stocks(
        self,
        flows: _Flows,
        source_kappa: Floats,
        direct_kg: Floats | None,
        loss_kwh: Floats,
        soc_kwh: Floats,
        result: TraceResult,
        part: slice,
        keep_mean: bool,
    ) -> None:
        """Move every stock through the chunk and write what each storage gives per kWh.

        The carbon charged is linear in what the storages give: charged = fixed + sum over r of share_r . kappa_r.
        """
        if not self.storage_nodes:
            return
        attributes = source_kappa.shape[1]
        stores = len(self.storage_nodes)
        held = result.stock_kwh[:, part.start : part.stop + 1]
        keep = np.empty((stores, flows.intervals))
        scale = np.empty((stores, flows.intervals))
        per_kg = np.empty((stores, flows.intervals))
        for s, (n, record) in enumerate(zip(self.storage_nodes, self._records, strict=True)):
            drawn = np.nan_to_num(flows.passed[n]) / record.discharge_efficiency
            held[s, 1:], keep[s], scale[s], overdrawn = _move_stock(
                float(held[s, 0]),
                np.nan_to_num(flows.inflow(n)) * record.charge_efficiency,
                drawn,
                loss_kwh[s],
                soc_kwh[s],
            )
            result.overdrawn[s, part] = overdrawn
            per_kg[s] = np.nan
            known = (held[s, :-1] > 0) & ~overdrawn
            np.divide(1.0, held[s, :-1] * record.discharge_efficiency, out=per_kg[s], where=known)

        heads = {n: source_kappa[i] for i, n in enumerate(self.source_nodes)}
        nothing = np.zeros((attributes, flows.intervals))
        empty = _Sweep(flows, heads | dict.fromkeys(self.storage_nodes, nothing), direct_kg, attributes)
        empty.run(self._charging)
        fixed = np.stack([empty.arriving(n) for n in self.storage_nodes])
        none = dict.fromkeys(self.source_nodes, np.zeros((stores, flows.intervals)))
        given = _Sweep(flows, none | _unit_columns(self.storage_nodes, flows.intervals), None, stores)
        given.run(self._charging)
        share = np.stack([given.arriving(n) for n in self.storage_nodes])
        back = np.where(share == 0, 0.0, share * per_kg)  # of each kg held, what comes back into a store
        kg = result.stock_kg[:, :, part.start : part.stop + 1]
        grown = first = None
        if keep_mean:
            grown = np.full_like(
                scale, np.nan
            )  # what a stock's carbon is multiplied with where its mean is kept
            np.divide(held[:, 1:], held[:, :-1], out=grown, where=held[:, :-1] > 0)
            inflow = np.stack([flows.inflow(n) for n in self.storage_nodes])
            first = inflow - share.sum(axis=1)
            first = np.where(first > 1e-9 * inflow, first, 0.0)
            first *= np.array([[record.charge_efficiency] for record in self._records])
        for a in range(attributes):
            begun = None
            if first is not None:
                begun = np.full_like(scale, np.nan)  # the stock at the intensity of what came from no storage
                np.divide(fixed[:, a] * held[:, 1:], first, out=begun, where=first > 0)
            kg[:, a, 1:] = _move_carbon(kg[:, a, 0].tolist(), keep, scale, back, fixed[:, a], grown, begun)
        result.stock_kappa[:, :, part] = kg[:, :, :-1] * per_kg[:, None]
        result.anchored_kg[:, :, part] = 0.0
        for s in np.flatnonzero((scale != 1.0).any(axis=1)).tolist():
            stock = keep[s] * kg[s, :, :-1] + fixed[s]
            for r in range(stores):
                stock += back[s, r] * kg[r, :, :-1]
            result.anchored_kg[s, :, part] = np.where(scale[s] == 1.0, 0.0, stock - kg[s, :, 1:])

    # -- the final sweep ------------------------------------------------------------------------------------

    def _sweep_out(
        self, flows: _Flows, source_kappa: Floats, direct_kg: Floats | None, result: TraceResult, part: slice
    ) -> float:
        """Sweep with everything known, write the columns, and return the conservation error."""
        attributes = source_kappa.shape[1]
        heads = {n: source_kappa[i] for i, n in enumerate(self.source_nodes)}
        heads |= {n: result.stock_kappa[s, :, part] for s, n in enumerate(self.storage_nodes)}
        kg = {n: result.kg_in[n, :, part] for n in range(len(self.nodes))}
        sweep = _Sweep(flows, heads, direct_kg, attributes, into=kg)
        sweep.run(self.order)
        brought = np.zeros((attributes, flows.intervals))
        found = np.zeros_like(brought)
        for n in self.source_nodes:
            brought += (
                _carried(flows.passed[n], heads[n]) if n in sweep.partial else flows.passed[n] * heads[n]
            )
        for n, ends in flows.ending.items():
            found += np.where(ends, kg[n], 0.0)
        for n in self._sinks:
            found += sweep.arriving(n)
        held = np.zeros_like(brought)
        for s, n in enumerate(self.storage_nodes):
            sweep.arriving(n)
            found += result.anchored_kg[s, :, part]
            found += result.stock_kg[s, :, part.start + 1 : part.stop + 1] - result.stock_kg[s, :, part]
            held += result.stock_kg[s, :, part]
        if direct_kg is not None:
            for n in range(len(self.nodes)):
                brought += direct_kg[n]
        for n, edges in enumerate(self.edges_out_of):
            if edges:
                result.passed_kwh[n, part] = flows.passed[n]
        size = np.maximum(np.abs(brought), held)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(size > 0, np.abs(brought - found) / size, np.abs(found))
        known = np.isfinite(error)
        return float(error[known].max()) if known.any() else 0.0


class _Flows:
    """The flows of one chunk: what passes on at each node, with closed loops cut and silent outflows bridged.

    Attributes:
        flow: By edge, shape (T,), weighted kWh that carries carbon.
        passed: By node, their sum over its outflows and what no edge shows.
    """

    def __init__(self, tracer: Tracer, edge_kwh: Floats, direct_kg: Floats | None) -> None:
        self.tracer = tracer
        self._edge_kwh = edge_kwh
        self.intervals = edge_kwh.shape[1]
        low, high = float(edge_kwh.min(initial=0.0)), float(edge_kwh.max(initial=0.0))
        silent = math.isnan(low)
        if silent:
            low, high = float(np.nanmin(edge_kwh, initial=0.0)), float(np.nanmax(edge_kwh, initial=0.0))
        if low < 0 or math.isinf(high):
            wrong = low if low < 0 else high
            e = int(np.flatnonzero((edge_kwh == wrong).any(axis=1))[0])
            raise ValueError(f"edge {tracer.edges[e]!r} carries {wrong} kWh, a number from 0 up is wanted")
        self.flow = [
            edge_kwh[e] if weight == 1.0 else edge_kwh[e] * weight for e, weight in enumerate(tracer.weight)
        ]
        self.passed = [self._sum(tracer.edges_out_of[n], self.flow) for n in range(len(tracer.nodes))]
        self.hidden: dict[int, Floats] = {}
        if silent:
            self._bridge_silence()
        self._cut_closed_loops()
        self.unfed = {n: unfed for n in tracer.passing if (unfed := self._unfed(n, direct_kg)) is not None}
        self.ending: dict[int, Flags] = {}  # nodes that pass nothing on, and when
        self.divisor: dict[int, Floats] = {}
        for n in tracer.passing:
            self.divisor[n] = passed = self.passed[n]
            if not passed.all():
                self.ending[n] = passed == 0
                self.divisor[n] = np.where(self.ending[n], 1.0, passed)
        self.certain = not (self.unfed or silent)

    def inflow(self, n: int) -> Floats:
        return self._sum(self.tracer.edges_into[n], self._edge_kwh)

    def _sum(self, edges: Sequence[int], columns: Sequence[Floats] | Floats) -> Floats:
        if len(edges) < 2:
            return columns[edges[0]] if edges else np.zeros(self.intervals)
        total: Floats = columns[edges[0]] + columns[edges[1]]
        for e in edges[2:]:
            total += columns[e]
        return total

    def _bridge_silence(self) -> None:
        """Let an unmetered outflow of a bus be what its inflows leave, so that it hides no other outflow's carbon.

        Only a bus without allocation weights is known to pass on what it receives. Elsewhere the carbon of a node
        with an unknown outflow is unknown.
        """
        tracer = self.tracer
        for n in tracer.passing:
            silent = np.isnan(self.passed[n])
            if not silent.any():
                continue
            shown = np.zeros(self.intervals)
            for e in tracer.edges_out_of[n]:
                shown += np.nan_to_num(self.flow[e])
            hidden = np.zeros(self.intervals)
            lossless = tracer.kind[n] is NodeKind.BUS and all(
                tracer.weight[e] == 1.0 for e in tracer.edges_out_of[n]
            )
            rest = np.maximum(self.inflow(n) - shown, 0.0) if lossless else np.full(self.intervals, np.nan)
            hidden[silent] = rest[silent]
            self.hidden[n] = hidden
            self.passed[n] = shown + hidden  # NaN where even the rest is unknown

    def _cut_closed_loops(self) -> None:
        """Take away the flows of nodes from which nothing leads out of the network: they keep their carbon."""
        tracer = self.tracer
        if all(len(component) == 1 for component in tracer.order):
            return
        trapped: dict[int, Flags] = {}
        for component in reversed(tracer.order):
            if len(component) == 1 and not any(
                tracer.target_of[e] in trapped for e in tracer.edges_out_of[component[0]]
            ):
                continue
            free = {n: self.passed[n] == 0 for n in component}
            for n in component:
                for e in tracer.edges_out_of[n]:
                    target = tracer.target_of[e]
                    if target not in free:
                        leads = self.flow[e] != 0
                        free[n] |= leads & ~trapped[target] if target in trapped else leads
                if n in self.hidden:
                    free[n] |= self.hidden[n] != 0
            for _ in component:
                if all(reached.all() for reached in free.values()):
                    break
                for n in component:
                    for e in tracer.edges_out_of[n]:
                        if tracer.target_of[e] in free:
                            free[n] |= (self.flow[e] != 0) & free[tracer.target_of[e]]
            for n in component:
                if not free[n].all():
                    trapped[n] = ~free[n]
        for n, closed in trapped.items():
            for e in tracer.edges_out_of[n]:
                self.flow[e] = np.where(closed, 0.0, self.flow[e])
            self.passed[n] = np.where(closed, 0.0, self.passed[n])

    def _unfed(self, n: int, direct_kg: Floats | None) -> Flags | None:
        """Where node n passes energy on although nothing arrives and nothing is emitted there; None if nowhere."""
        inflow = self.inflow(n)
        if inflow.all():
            return None
        unfed = (inflow == 0) & (self.passed[n] != 0)
        if direct_kg is not None and unfed.any():
            for column in direct_kg[n]:
                unfed &= column == 0
        return unfed if unfed.any() else None


class _Sweep:
    """One pass through the network in its order: carbon received and carbon per weighted kWh, columns (A, T).

    `heads` is the carbon per kWh of the sources and storages; `into` takes what each node receives, new arrays
    where it is None.
    """

    def __init__(
        self,
        flows: _Flows,
        heads: Mapping[int, Floats],
        direct_kg: Floats | None,
        columns: int,
        into: Mapping[int, Floats] | None = None,
    ) -> None:
        self._flows = flows
        self._tracer = flows.tracer
        self._direct_kg = direct_kg
        self._shape = (columns, flows.intervals)
        self.kappa: dict[int, Floats] = dict(heads)
        self.received: dict[int, Floats] = {} if into is None else dict(into)
        self.partial = {n for n, given in heads.items() if np.isnan(given).any()}
        self._certain = (
            flows.certain and not self.partial and (direct_kg is None or not np.isnan(direct_kg).any())
        )
        self._scratch = np.empty(self._shape)

    def run(self, order: Sequence[Sequence[int]]) -> None:
        for component in order:
            looped = len(component) > 1
            for n in component:
                self.arriving(n, besides=component if looped else ())
            if looped:
                self._solve(component)
                continue
            n = component[0]
            self.kappa[n] = self.received[n] / self._flows.divisor[n]
            if not self._certain and np.isnan(self.kappa[n]).any():
                self.partial.add(n)

    def arriving(self, n: int, besides: Sequence[int] = ()) -> Floats:
        """What node n receives, direct carbon included; edges from `besides` left out."""
        kg = self.received.get(n)
        if kg is None:
            kg = self.received[n] = np.empty(self._shape)
        written = self._direct_kg is not None
        if self._direct_kg is not None:
            kg[:] = self._direct_kg[n]
        for e in self._tracer.edges_into[n]:
            m = self._tracer.source_of[e]
            if m in besides:
                continue
            flow, kappa = self._flows.flow[e], self.kappa[m]
            if m in self.partial:
                kg[:] = kg + _carried(flow, kappa) if written else _carried(flow, kappa)
            elif written:
                np.multiply(flow, kappa, out=self._scratch)
                kg += self._scratch
            else:
                np.multiply(flow, kappa, out=kg)
            written = True
        if not written:
            kg[:] = 0.0
        if n in self._flows.unfed:
            kg[:, self._flows.unfed[n]] = np.nan
        return kg

    def _solve(self, component: Sequence[int]) -> None:
        """Carbon per kWh inside a cyclic component, by handing each node's carbon on to the others in turn.

        Elimination without a subtraction, so it stays exact however nearly closed the loop is.
        Source: Grassmann, Taksar and Heyman 1985, regenerative analysis of Markov chains.
        """
        size = len(component)
        place = {n: i for i, n in enumerate(component)}
        between = np.zeros((size, size, self._shape[1]))
        leaving = np.zeros((size, self._shape[1]))
        carbon = np.stack([self.received[n] for n in component])
        for n in component:
            for e in self._tracer.edges_out_of[n]:
                target = self._tracer.target_of[e]
                flow = self._flows.flow[e]
                if self._flows.hidden:
                    flow = np.nan_to_num(flow)
                if target in place:
                    between[place[n], place[target]] += flow
                else:
                    leaving[place[n]] += flow
            if n in self._flows.hidden:
                leaving[place[n]] += np.nan_to_num(self._flows.hidden[n])
        unknown = None if self._certain else self._unknown_inside(component, place, carbon, between)
        if unknown is not None:
            carbon[unknown] = 0.0
        divisor = np.empty_like(leaving)
        for i in range(size):
            out = leaving[i].copy()
            for j in range(i + 1, size):
                out += between[i, j]
            divisor[i] = np.where(out > 0, out, 1.0)
            to = between[i, i + 1 :] / divisor[i]
            back = between[i + 1 :, i]
            between[i + 1 :, i + 1 :] += back[:, None] * to[None, :]
            carbon[i + 1 :] += carbon[i] * to[:, None]
            # What flows into a node that passes nothing on has left for good.
            leaving[i + 1 :] += back * np.where(out > 0, leaving[i] / divisor[i], 1.0)
        solved = np.empty_like(carbon)
        for i in reversed(range(size)):
            kg = carbon[i].copy()
            for j in range(i + 1, size):
                kg += between[j, i] * solved[j]
            solved[i] = kg / divisor[i]
        if unknown is not None:
            solved[unknown] = np.nan
        for i, n in enumerate(component):
            self.kappa[n] = solved[i]
            if unknown is not None and unknown[i].any():
                self.partial.add(n)
        for n in component:
            self.arriving(n)

    def _unknown_inside(
        self, component: Sequence[int], place: Mapping[int, int], carbon: Floats, between: Floats
    ) -> Flags | None:
        """Shape (n, A, T): where unknown carbon reaches inside a component; None if nowhere."""
        unknown = np.isnan(carbon)
        for n in component:
            if n in self._flows.hidden:
                unknown[place[n]] |= np.isnan(self._flows.hidden[n])
            for e in self._tracer.edges_out_of[n]:
                target = self._tracer.target_of[e]
                if target in place:
                    unknown[place[target]] |= np.isnan(self._flows.flow[e])
        if not unknown.any():
            return None
        for _ in component:
            for i in range(len(component)):
                for j in range(len(component)):
                    unknown[j] |= unknown[i] & (between[i, j] > 0)
        return unknown


def _carried(flow_kwh: Floats, kappa: Floats) -> Floats:
    """Carbon of a flow; no flow carries none, whatever is unknown about its origin."""
    return np.where(flow_kwh == 0, 0.0, flow_kwh * kappa)


def _unit_columns(heads: Sequence[int], intervals: int) -> dict[int, Floats]:
    """Each head's own column one, the others zero."""
    columns = {n: np.zeros((len(heads), intervals)) for n in heads}
    for i, n in enumerate(heads):
        columns[n][i] = 1.0
    return columns


def _move_stock(
    kwh: float, gained: Floats, drawn: Floats, lost: Floats, reported: Floats
) -> tuple[Floats, Floats, Floats, Flags]:
    """Run one stock: discharge from what the interval began with, charge, standing loss, anchor.

    Returns:
        The stock at each interval's end; the share of the carbon that stays; what anchoring multiplies it with;
        where more was drawn than held.
    """
    net = gained - drawn - lost
    # As long as nothing runs dry, the stock is a running sum, or at each end what is reported.
    silent = np.isnan(reported)
    if silent.all() or not silent.any():
        ends = np.add.accumulate(np.concatenate(([kwh], net))) if silent.all() else np.append(kwh, reported)
        before, after = ends[:-1], ends[:-1] + net
        if (drawn < before * (1 - _EMPTY)).all() and (after > 0).all():
            scale = np.ones(net.size) if silent.all() else reported / after
            return ends[1:], 1.0 - drawn / before, scale, np.zeros(net.size, dtype=np.bool_)
    stock, keep, scaling = np.empty(net.size), np.empty(net.size), np.ones(net.size)
    overdrawn = np.zeros(net.size, dtype=np.bool_)
    # Plain floats in one order: the same bits as the running sum, in every window.
    columns = (column.tolist() for column in (net, drawn, gained - lost, reported))
    for t, (more, need, dry, report) in enumerate(zip(*columns, strict=True)):
        if need < kwh * (1 - _EMPTY):
            keep[t] = 1.0 - need / kwh
            kwh = kwh + more
        else:
            keep[t] = 0.0 if need > 0 else 1.0
            overdrawn[t] = need > kwh * (1 + _OVERDRAFT)
            kwh = dry
        kwh = max(kwh, 0.0)
        if report >= 0 and kwh > 0:  # NaN: no report
            scaling[t] = report / kwh
            kwh = report
        stock[t] = kwh
    return stock, keep, scaling, overdrawn


def _move_carbon(
    kg: list[float],
    keep: Floats,
    scale: Floats,
    back: Floats,
    fixed: Floats,
    grown: Floats | None = None,
    begun: Floats | None = None,
) -> list[list[float]]:
    """Run one attribute's carbon of all stocks; shape (S, T) at the intervals' ends.

    kg' = scale . (keep . kg + fixed + back @ kg), where nothing kept of an unknown stock is nothing. Where that is
    unknown: kg' = grown . kg, and where this is unknown too, `begun`; without them it stays unknown.
    """
    stores = range(len(kg))
    own = [((keep[s] + back[s, s]) * scale[s]).tolist() for s in stores]
    gain = [np.where(scale[s] == 0, 0.0, fixed[s] * scale[s]).tolist() for s in stores]
    others = [
        [(r, (back[s, r] * scale[s]).tolist()) for r in stores if r != s and back[s, r].any()] for s in stores
    ]
    unknown = [math.nan] * keep.shape[1]
    kept = [unknown if grown is None else grown[s].tolist() for s in stores]
    anew = [unknown if begun is None else begun[s].tolist() for s in stores]
    after: list[list[float]] = [[] for _ in stores]
    if not any(others):
        for s in stores:
            held, append = kg[s], after[s].append
            for t, (share, more) in enumerate(zip(own[s], gain[s], strict=True)):
                stock = share * held + more if share else more
                if math.isnan(stock):
                    stock = held * kept[s][t]
                    stock = anew[s][t] if math.isnan(stock) else stock
                held = stock
                append(held)
        return after
    columns = [(own[s], gain[s], others[s]) for s in stores]
    history = [kg]
    for t in range(keep.shape[1]):
        was = kg
        kg = []
        for s, (share, more, rest) in enumerate(columns):
            stock = share[t] * was[s] + more[t] if share[t] else more[t]
            for r, other in rest:
                if other[t]:
                    stock += other[t] * was[r]
            if math.isnan(stock):
                stock = was[s] * kept[s][t]
                stock = anew[s][t] if math.isnan(stock) else stock
            kg.append(stock)
        history.append(kg)
    return [list(stock) for stock in zip(*history[1:], strict=True)]


def trace_case(case: Mapping[str, object]) -> dict[str, object]:
    """Trace a case of the interchange format (tests/trace/cases/README.md); lists over the intervals, None for unknown.

    Raises:
        BadRequest: The case cannot be meant; the message names the part and what was wanted.
    """
    read = _Case(case)
    tracer = read.tracer
    try:
        result = tracer.trace(
            read.edge_kwh,
            read.source_kappa,
            read.direct_kg,
            stock_kwh=read.stock_kwh,
            stock_kg=read.stock_kg,
            standing_loss_kwh=read.standing_loss_kwh,
        )
    except ValueError as why:
        raise BadRequest(f"case: {why}") from None
    kinds = dict(zip(tracer.nodes, tracer.kind, strict=True))
    return {
        "intensity": {name: _listed(result.kappa[n, 0]) for n, name in enumerate(tracer.nodes)},
        "kg_in": {name: _listed(result.kg_in[n, 0]) for n, name in enumerate(tracer.nodes)},
        "edge_kg": {name: _listed(kg[0]) for name, kg in zip(tracer.edges, result.edge_kg, strict=True)},
        "unallocated_kg": {
            name: _listed(result.unallocated_kg[n, 0])
            for n, name in enumerate(tracer.nodes)
            if kinds[name] in _PASSING
        },
        "stock_kwh": {name: _listed(result.stock_kwh[s, 1:]) for s, name in enumerate(tracer.storages)},
        "stock_kg": {name: _listed(result.stock_kg[s, 0, 1:]) for s, name in enumerate(tracer.storages)},
    }


@dataclass(frozen=True, slots=True)
class _CaseEdge:
    id: str
    source: str
    target: str
    weight: float


class _Case:
    """A case's arrays, every part of it checked."""

    _CASE_KINDS = ("source", "bus", "converter", "storage", "load")

    def __init__(self, case: Mapping[str, object]) -> None:
        intervals = case.get("intervals") if isinstance(case, Mapping) else None
        if not isinstance(intervals, int) or isinstance(intervals, bool) or intervals < 1:
            raise BadRequest(f"case: intervals must be a whole number from 1, got {intervals!r}")
        self._intervals = intervals
        nodes = self._members(case, "nodes")
        edges = self._members(case, "edges")
        records: list[Node] = []
        for node in nodes:
            kind = node.get("kind")
            if kind not in self._CASE_KINDS:
                wanted = ", ".join(self._CASE_KINDS)
                raise BadRequest(f"case: node {node['id']!r} has kind {kind!r}, one of {wanted} is wanted")
            records.append(
                Node(
                    str(node["id"]),
                    NodeKind(kind),
                    charge_efficiency=self._efficiency(node, "charge_efficiency"),
                    discharge_efficiency=self._efficiency(node, "discharge_efficiency"),
                )
            )
        links = [
            _CaseEdge(
                str(edge["id"]),
                str(edge.get("from")),
                str(edge.get("to")),
                self._number(edge, "weight", 1.0, low=0.0),
            )
            for edge in edges
        ]
        kinds = {record.id: record.kind for record in records}
        for link in links:
            if link.weight != 1.0 and kinds.get(link.source) not in _PASSING:
                raise BadRequest(f"case: edge {link.id!r} has a weight, which only buses and converters give")
        try:
            self.tracer = Tracer(records, links)
        except ValueError as why:
            raise BadRequest(f"case: {why}") from None
        sources = [node for node in nodes if node["kind"] == "source"]
        stores = [node for node in nodes if node["kind"] == "storage"]
        self.edge_kwh = self._columns(edges, "kwh", None, low=0.0)
        self.source_kappa = self._columns(sources, "intensity", None)[:, None, :]
        self.direct_kg = np.zeros((len(nodes), 1, intervals))
        for n, node in enumerate(nodes):
            if "direct_kg" in node:
                if kinds[str(node["id"])] not in _PASSING:
                    raise BadRequest(
                        f"case: node {node['id']!r} has direct_kg, which only buses and converters emit"
                    )
                self.direct_kg[n, 0] = self._column(node, "direct_kg", None)
        self.stock_kwh = np.array([self._number(node, "initial_kwh", 0.0, low=0.0) for node in stores])
        self.stock_kg = np.array([[self._number(node, "initial_kg", 0.0)] for node in stores]).reshape(-1, 1)
        self.standing_loss_kwh = self._columns(stores, "standing_loss_kwh", 0.0, low=0.0)

    def _members(self, case: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
        members = case.get(name)
        if not isinstance(members, list) or not all(
            isinstance(member, Mapping) and isinstance(member.get("id"), str) for member in members
        ):
            raise BadRequest(f"case: {name} must be a list of objects, each with an id")
        ids = [member["id"] for member in members]
        twice = next((one for one in ids if ids.count(one) > 1), None)
        if twice is not None:
            raise BadRequest(f"case: {name} hold {twice!r} twice")
        return members

    def _columns(
        self,
        members: Sequence[Mapping[str, object]],
        name: str,
        default: float | None,
        low: float = -math.inf,
    ) -> Floats:
        columns = np.zeros((len(members), self._intervals))
        for i, member in enumerate(members):
            columns[i] = self._column(member, name, default, low)
        return columns

    def _column(
        self, member: Mapping[str, object], name: str, default: float | None, low: float = -math.inf
    ) -> Floats:
        given = member.get(name, default)
        listed = given if isinstance(given, list) else [given] * self._intervals
        if len(listed) != self._intervals:
            raise BadRequest(
                f"case: {member['id']!r} has {len(listed)} numbers of {name}, {self._intervals} are wanted"
            )
        return np.array([self._checked(member, name, number, low) for number in listed], dtype=np.float64)

    def _number(
        self, member: Mapping[str, object], name: str, default: float, low: float = -math.inf
    ) -> float:
        return self._checked(member, name, member.get(name, default), low)

    def _efficiency(self, member: Mapping[str, object], name: str) -> float:
        number = self._number(member, name, 1.0)
        if not 0 < number <= 1:
            raise BadRequest(f"case: {member['id']!r} has {name} {number}, above 0 and at most 1 is wanted")
        return number

    @staticmethod
    def _checked(member: Mapping[str, object], name: str, number: object, low: float) -> float:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise BadRequest(f"case: {member['id']!r} has {name} {number!r}, a number is wanted")
        if number < low:
            raise BadRequest(f"case: {member['id']!r} has {name} {number}, at least {low:g} is wanted")
        return float(number)


def _listed(column: Floats) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in column.tolist()]
