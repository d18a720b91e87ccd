"""A period's sums out of the roll-ups, and the indicators that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from core.carbon.factors import FactorLibrary
from core.carbon.green_power import hourly_match
from core.carbon.indicators import ELECTRICITY, PeriodSums, indicators
from core.plant.model import NodeKind, Origin, Plant
from core.results import HOUR_NS, SITE, Basis
from core.samples import Floats
from core.store.seam import Series, Store

_DAY_NS = 24 * HOUR_NS


class Periods:
    """Answers `/v1/indicators` for one plant."""

    def __init__(self, plant: Plant, store: Store, library: FactorLibrary) -> None:
        self._plant = plant
        self._store = store
        self._library = library

    async def indicators(self, start_ns: int, end_ns: int, method_set: str) -> list[Mapping[str, object]]:
        """Every indicator of [start, end) by one method set, as `/v1/indicators` answers it."""
        sums = await self.sums(start_ns, end_ns, method_set)
        return [asdict(row) for row in indicators(sums, self._library)]

    async def sums(self, start_ns: int, end_ns: int, method_set: str) -> PeriodSums:
        """Energy by carrier and origin, emissions by scope and basis. A period without data is unknown, not zero."""
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

        def by_carrier(wanted: Iterable[str], ends: str) -> dict[str, float]:
            total: dict[str, float] = {}
            names = frozenset(wanted)
            for edge in plant.edges:
                if getattr(edge, ends) in names:
                    total[edge.carrier] = total.get(edge.carrier, 0.0) + kwh.get(edge.id, math.nan)
            return total

        def sources(origin: Origin) -> list[str]:
            return [node.id for node in plant.nodes if node.kind is NodeKind.SOURCE and node.origin is origin]

        return PeriodSums(
            method_set=method_set,
            coverage=0.0 if math.isnan(coverage) else coverage,
            purchased_kwh=by_carrier(sources(Origin.PURCHASED), "source"),
            own_kwh=by_carrier(sources(Origin.OWN), "source"),
            direct_line_kwh=by_carrier(sources(Origin.DIRECT_LINE), "source"),
            exported_kwh=by_carrier(exports, "target"),
            end_use_kwh=by_carrier((node.id for node in plant.nodes if node.kind is NodeKind.LOAD), "target"),
            emissions_kg=emissions,
            exported_kg=exported,
            hourly_match=await self._hourly_match(start_ns, end_ns),
            days=(end_ns - start_ns) / _DAY_NS,
        )

    async def _hourly_match(self, start_ns: int, end_ns: int) -> float | None:
        """Hour by hour, how much of the load own and direct-line electricity covered; None without such sources."""
        clean = self._edges_from((Origin.OWN, Origin.DIRECT_LINE))
        bought = self._edges_from((Origin.PURCHASED,))
        if not clean:
            return None
        sold = [
            edge.id
            for edge in self._plant.edges
            if self._plant.node_by_id[edge.target].kind is NodeKind.EXPORT and edge.carrier == ELECTRICITY
        ]
        series = await self._store.energy([*clean, *bought, *sold], start_ns, end_ns, "1h")
        hours = np.unique(series.start_ns)
        if hours.size == 0:
            return None
        clean_kwh, bought_kwh, sold_kwh = (_hourly(series, names, hours) for names in (clean, bought, sold))
        load_kwh = clean_kwh + bought_kwh - sold_kwh
        match = hourly_match(load_kwh, np.minimum(clean_kwh, load_kwh))
        return None if math.isnan(match) else match

    def _edges_from(self, origins: Sequence[Origin]) -> list[str]:
        nodes = self._plant.node_by_id
        return [
            edge.id
            for edge in self._plant.edges
            if nodes[edge.source].kind is NodeKind.SOURCE
            and nodes[edge.source].origin in origins
            and edge.carrier == ELECTRICITY
        ]


def _summed(series: Series, column: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, amount in zip(series.name, series.columns[column].tolist(), strict=True):
        total[name] = total.get(name, 0.0) + amount
    return total


def _hourly(series: Series, names: Sequence[str], hours: np.ndarray) -> Floats:
    """Sum of these edges by hour; an hour an edge says nothing about is unknown."""
    total = np.zeros(hours.size)
    for name in names:
        rows = [i for i, other in enumerate(series.name) if other == name]
        column = np.full(hours.size, np.nan)
        column[np.searchsorted(hours, series.start_ns[rows])] = series.columns["energy_kwh"][rows]
        total += column
    return total
