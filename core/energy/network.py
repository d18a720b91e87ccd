"""The plant's energy network: what every edge carried and how every node balances, interval by interval.

Meters give some edges; formulas and remainders give others, in the order they
depend on each other. An edge that is silent while all others of its bus speak, or
of its converter with declared losses, is what the balance leaves, marked as
substituted. Energy below zero carries zero, and the deficit shows as the
residual of the node it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.plant.model import Edge, FormulaMeter, Node, NodeKind, Plant, PointMeter, RemainderMeter
from core.results import IntervalEnergy, Mark
from core.samples import Flags, Floats

_SINKS = (NodeKind.LOAD, NodeKind.EXPORT)
_LONG = 64  # intervals from which on adding column by column is faster than counting all cells at once


@dataclass(frozen=True, slots=True, eq=False)
class NetworkEnergy:
    """Energies of E edges and balances of N nodes over T intervals, in the network's order.

    Attributes:
        energy: Columns (E, T), none below zero; NaN where nothing is known.
        in_kwh, out_kwh: Shape (N, T). Of a source both are what it delivers; a load lets nothing out. NaN as soon
            as one of the node's edges is unknown.
        residual_kwh: Shape (N, T), in - out: of a bus what does not balance, of a converter its loss, of a storage
            what it kept or lost; zero of sources and loads. See `converter_residual_kwh`, `storage_residual_kwh`.
        coverage: Shape (N, T), of the least covered edge the node stands on.
    """

    energy: IntervalEnergy
    in_kwh: Floats
    out_kwh: Floats
    residual_kwh: Floats
    coverage: Floats
    _network: Network = field(repr=False)

    @property
    def residual_band_kwh(self) -> Floats:
        """Shape (N, T), 95 % half-width of the residual by the classes of the node's meters; NaN where a meter's class
        is not known.
        """
        return self._network.band_kwh(self.energy.energy_kwh)

    @property
    def outside_band(self) -> Flags:
        """Where a residual is more than its meters' errors explain; shape (N, T)."""
        return np.abs(self.residual_kwh) > self.residual_band_kwh


class Network:
    """A plant's nodes and edges, compiled.

    Attributes:
        nodes, edges: Ids in the order of every array's axis.
        metered: Edge -> point id, of those that a point meters.

    Raises:
        ValueError: An edge, formula or remainder names what is not there, or they depend on each other in a ring.
    """

    def __init__(self, plant: Plant) -> None:
        nodes, edges = plant.nodes, plant.edges
        self.nodes = tuple(node.id for node in nodes)
        self.edges = tuple(edge.id for edge in edges)
        self._records = nodes
        self._edge_records = edges
        self._node_index = {name: i for i, name in enumerate(self.nodes)}
        self._edge_index = {name: i for i, name in enumerate(self.edges)}
        for edge in edges:
            for end in (edge.source, edge.target):
                if end not in self._node_index:
                    raise ValueError(f"edge {edge.id!r} names node {end!r}, which is not in the network")
        self._source = np.array([self._node_index[edge.source] for edge in edges], dtype=np.int64)
        self._target = np.array([self._node_index[edge.target] for edge in edges], dtype=np.int64)
        self.metered = {edge.id: edge.meter.point for edge in edges if isinstance(edge.meter, PointMeter)}
        self._class = np.array([_class_of(plant, edge) for edge in edges], dtype=np.float64)
        self._is_metered = np.array([edge.id in self.metered for edge in edges], dtype=np.bool_)
        self._is_source = np.array([node.kind is NodeKind.SOURCE for node in nodes], dtype=np.bool_)
        self._is_sink = np.array([node.kind in _SINKS for node in nodes], dtype=np.bool_)
        self._inputs = {e: self._inputs_of(e) for e in range(len(edges)) if not self._is_metered[e]}
        self._virtual = self._in_dependency_order()
        self._interval_h = plant.base_interval_s / 3600
        self._balanced = [
            n for n, node in enumerate(nodes) if node.kind is NodeKind.BUS or node.efficiency is not None
        ]
        self._of_node: list[list[int]] = [[] for _ in nodes]
        for e in range(len(edges)):
            self._of_node[self._source[e]].append(e)
            self._of_node[self._target[e]].append(e)
        self._stands_on = [self._coverage_of(n) for n in range(len(nodes))]

    def close(
        self, measured: Mapping[str, IntervalEnergy], profile_kwh: Floats | None = None
    ) -> NetworkEnergy:
        """Every edge's energy and every node's balance.

        Args:
            measured: By edge id, columns of shape (T,); an edge left out is silent.
            profile_kwh: Shape (E, T), what each edge usually carries then, for metered edges that neither meter
                nor balance gives; NaN or None where there is no profile. Without one they stay NaN.

        Raises:
            ValueError: Nothing is measured at all.
        """
        if not measured:
            raise ValueError("no edge of the network is measured")
        shape = (len(self.edges), next(iter(measured.values())).energy_kwh.size)
        energy = IntervalEnergy(
            np.full(shape, np.nan), np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int16)
        )
        for name, column in measured.items():
            e = self._edge_index[name]
            energy.energy_kwh[e] = column.energy_kwh
            energy.covered[e] = column.covered
            energy.estimated_kwh[e] = column.estimated_kwh
            energy.mark[e] = column.mark
        return self._closed(energy, profile_kwh)

    def close_powers(self, kw: Floats) -> NetworkEnergy:
        """The same of powers that hold for a base interval, shape (E,); NaN where silent or not metered."""
        column = np.array(kw, dtype=np.float64)[:, None] * self._interval_h
        zero = np.zeros(column.shape)
        energy = IntervalEnergy(column, np.ones(column.shape), zero, np.zeros(column.shape, dtype=np.int16))
        return self._closed(energy, None)

    def _closed(self, energy: IntervalEnergy, profile_kwh: Floats | None) -> NetworkEnergy:
        shape = energy.energy_kwh.shape
        self._clip(energy, np.arange(shape[0]), np.ones(shape, dtype=np.bool_))
        self._compute_virtual(energy)
        if np.isnan(energy.energy_kwh).any():
            self._close_by_balance(energy)
            if profile_kwh is not None:
                missing = np.isnan(energy.energy_kwh) & self._is_metered[:, None] & ~np.isnan(profile_kwh)
                energy.energy_kwh[missing] = np.maximum(profile_kwh[missing], 0.0)
                self._mark_substituted(energy, missing)
                self._compute_virtual(energy)
                self._close_by_balance(energy)
        return self.balances(energy)

    # -- edges nobody meters --------------------------------------------------------------------------------

    def _inputs_of(self, e: int) -> list[int]:
        meter = self._edge_records[e].meter
        if isinstance(meter, FormulaMeter):
            for name in meter.formula.edges:
                if name not in self._edge_index:
                    raise ValueError(
                        f"the formula of edge {self.edges[e]!r} names edge {name!r}, which is not there"
                    )
            return [self._edge_index[name] for name in meter.formula.edges]
        assert isinstance(meter, RemainderMeter)
        if meter.node not in (self._edge_records[e].source, self._edge_records[e].target):
            raise ValueError(
                f"edge {self.edges[e]!r} is the remainder of {meter.node!r}, but does not touch it"
            )
        n = self._node_index[meter.node]
        return [i for i in range(len(self.edges)) if i != e and n in (self._source[i], self._target[i])]

    def _in_dependency_order(self) -> list[int]:
        """Virtual edges, each after those it reads."""
        order: list[int] = []
        state: dict[int, bool] = {}  # False while being visited

        def visit(e: int, path: tuple[int, ...]) -> None:
            if state.get(e):
                return
            if e in state:
                ring = " -> ".join(self.edges[i] for i in (*path[path.index(e) :], e))
                raise ValueError(f"edges depend on each other in a ring: {ring}")
            state[e] = False
            for i in self._inputs[e]:
                if i in self._inputs:
                    visit(i, (*path, e))
            state[e] = True
            order.append(e)

        for e in self._inputs:
            visit(e, ())
        return order

    def _compute_virtual(self, energy: IntervalEnergy) -> None:
        """Compute formulas and remainders where they are not known yet."""
        columns = {name: energy.energy_kwh[e] for e, name in enumerate(self.edges)}
        for e in self._virtual:
            inputs = self._inputs[e]
            wanted = np.isnan(energy.energy_kwh[e])
            if not wanted.any():
                continue
            meter = self._edge_records[e].meter
            if isinstance(meter, FormulaMeter):
                computed = meter.formula.evaluate(columns)
            else:
                assert isinstance(meter, RemainderMeter)
                computed = self._left_over(energy.energy_kwh, self._node_index[meter.node], e)
            wanted &= ~np.isnan(computed)
            energy.energy_kwh[e][wanted] = computed[wanted]
            self._clip(energy, np.array([e]), wanted[None, :])
            shares = _share(energy.estimated_kwh[inputs], energy.energy_kwh[inputs])
            share = np.fmax.reduce(shares, axis=0, initial=0.0)
            covered = np.minimum.reduce(energy.covered[inputs], axis=0, initial=1.0)
            mark = np.bitwise_or.reduce(energy.mark[inputs], axis=0, dtype=np.int16)
            energy.covered[e][wanted] = covered[wanted]
            energy.estimated_kwh[e][wanted] = (energy.energy_kwh[e] * share)[wanted]
            energy.mark[e][wanted] |= mark[wanted] & ~np.int16(Mark.NEGATIVE)

    def _left_over(self, kwh: Floats, n: int, e: int) -> Floats:
        """What all other edges of node n leave for edge e, in e's own direction; declared losses are taken off."""
        node = self._records[n]
        gain = 1.0 if node.efficiency is None else node.efficiency
        rest = np.full(kwh.shape[1], -node.no_load_kw * self._interval_h)
        for i in self._of_node[n]:
            if i != e:
                rest = rest + kwh[i] * gain if self._target[i] == n else rest - kwh[i]
        return (rest if self._source[e] == n else -rest / gain) + 0.0  # no negative zero

    def _close_by_balance(self, energy: IntervalEnergy) -> None:
        """Give the one silent edge of a node what the others leave, until nothing changes any more.

        Of a bus, and of a converter whose losses are declared; what others lose nobody knows.
        """
        changed = True
        while changed:
            changed = False
            for n in self._balanced:
                edges = self._of_node[n]
                missing = np.isnan(energy.energy_kwh[edges])
                single = missing.sum(axis=0) == 1
                if not single.any() or len(edges) < 2:
                    continue
                for e, silent in zip(edges, missing, strict=True):
                    here = np.zeros(energy.energy_kwh.shape, dtype=np.bool_)
                    here[e] = silent & single
                    if not here[e].any():
                        continue
                    energy.energy_kwh[here] = self._left_over(energy.energy_kwh, n, e)[here[e]]
                    self._clip(energy, np.array([e]), here[e][None, :])
                    self._mark_substituted(energy, here)
                    changed = True
            if changed:
                self._compute_virtual(energy)

    @staticmethod
    def _clip(energy: IntervalEnergy, edges: npt.NDArray[np.int64], where: Flags) -> None:
        below = (energy.energy_kwh[edges] < 0) & where
        if below.any():
            row, column = np.nonzero(below)
            energy.energy_kwh[edges[row], column] = 0.0
            energy.mark[edges[row], column] |= Mark.NEGATIVE

    @staticmethod
    def _mark_substituted(energy: IntervalEnergy, where: Flags) -> None:
        energy.covered[where] = 0.0
        energy.estimated_kwh[where] = energy.energy_kwh[where]
        energy.mark[where] |= Mark.SUBSTITUTED

    # -- nodes ----------------------------------------------------------------------------------------------

    def balances(self, energy: IntervalEnergy) -> NetworkEnergy:
        """How every node balances, of energies that `close` has given for every edge."""
        kwh = energy.energy_kwh
        arriving = self._by_node(self._target, kwh)
        leaving = self._by_node(self._source, kwh)
        in_kwh = np.where(self._is_source[:, None], leaving, arriving)
        still = (self._is_source | self._is_sink)[:, None]
        residual = np.where(still, np.where(np.isnan(in_kwh), np.nan, 0.0), in_kwh - leaving)
        return NetworkEnergy(energy, in_kwh, leaving, residual, self._coverage(energy.covered), self)

    def band_kwh(self, kwh: Floats) -> Floats:
        """The nodes' error bands by their edges' energies (E, T); see `NetworkEnergy.residual_band_kwh`."""
        still = (self._is_source | self._is_sink)[:, None]
        spread = np.where(self._is_metered[:, None], self._class[:, None] * kwh, 0.0)
        spread[kwh == 0] = 0.0
        variance = self._by_node(self._source, spread**2) + self._by_node(self._target, spread**2)
        return np.where(still, 0.0, np.sqrt(variance))

    def _by_node(self, node: npt.NDArray[np.int64], columns: Floats) -> Floats:
        """Sum by node of the edges' columns, each node's in the edges' order; shape (N, T)."""
        intervals = columns.shape[1]
        if intervals >= _LONG:
            sums = np.zeros((len(self.nodes), intervals))
            for n, column in zip(node.tolist(), columns, strict=True):
                sums[n] += column
            return sums
        cell = (node[:, None] * intervals + np.arange(intervals)).ravel()
        total = np.bincount(cell, weights=columns.ravel(), minlength=len(self.nodes) * intervals)
        return np.asarray(total, dtype=np.float64).reshape(len(self.nodes), intervals)

    def _coverage_of(self, n: int) -> list[int]:
        """The edges a node stands on: its inflows; its outflows where nothing flows in; of a storage both."""
        edges = self._of_node[n]
        inflows = [e for e in edges if self._target[e] == n]
        return edges if self._records[n].kind is NodeKind.STORAGE else inflows or edges

    def _coverage(self, covered: Floats) -> Floats:
        """Of the least covered edge each node stands on."""
        coverage = np.zeros((len(self.nodes), covered.shape[1]))
        for n, edges in enumerate(self._stands_on):
            if len(edges) == 1:
                np.minimum(1.0, covered[edges[0]], out=coverage[n])
            elif edges:
                np.minimum.reduce(covered[edges], axis=0, initial=1.0, out=coverage[n])
        return coverage


def storage_residual_kwh(
    node: Node, in_kwh: Floats, out_kwh: Floats, stock_kwh: Floats, interval_h: float
) -> Floats:
    """What a storage's flows and its stock do not explain: in - out - declared losses - change of store, (T,).

    Args:
        in_kwh, out_kwh: Shape (T,), at the terminals.
        stock_kwh: Shape (T + 1,), anchored to the state of charge where there is one.
    """
    kept = in_kwh * node.charge_efficiency - out_kwh / node.discharge_efficiency
    lost = np.minimum(node.standing_loss_kw * interval_h, np.maximum(stock_kwh[:-1] + kept, 0.0))
    rest: Floats = kept - lost - np.diff(stock_kwh)
    return rest


def converter_residual_kwh(node: Node, in_kwh: Floats, out_kwh: Floats, interval_h: float) -> Floats:
    """What a converter's flows and its declared losses do not explain, (T,); in - out where none are declared."""
    gain = 1.0 if node.efficiency is None else node.efficiency
    rest: Floats = in_kwh * gain - node.no_load_kw * interval_h - out_kwh
    return rest


def _class_of(plant: Plant, edge: Edge) -> float:
    """Relative error of an edge's meter by its accuracy class, NaN where unknown or not metered."""
    if not isinstance(edge.meter, PointMeter):
        return np.nan
    device = plant.point_by_id[edge.meter.point].device
    accuracy_class = None if device is None else plant.device_by_id[device].accuracy_class
    return np.nan if accuracy_class is None else accuracy_class / 100.0


def _share(part: Floats, whole: Floats) -> Floats:
    share = np.zeros(whole.shape)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
