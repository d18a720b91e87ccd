"""What a node's energy was made of: each source's part, its cost, its non-fossil part.

Units of energy are traced like carbon: every source brings one column of its own,
so what arrives at a load in a column is that source's kWh, the losses on the way
included. A storage mixes what it was charged with; what it held when the window
began came from nobody the window knows, and is shown as `earlier`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from core.carbon.trace import Tracer
from core.clock import datetime_of
from core.compute.history import History
from core.errors import BadRequest
from core.plant.model import Node, NodeKind, Origin, Plant, Tariff
from core.results import HOUR_NS, SITE, WindowResult
from core.samples import NS_PER_S, Floats, Times
from core.store.seam import Store

EARLIER = "earlier"
LONGEST_NS = 400 * 24 * HOUR_NS
_PIECE_HOURS = 7 * 24


@dataclass(slots=True)
class Made:
    """What a node took over a window; kWh at the source, losses on the way included.

    Attributes:
        energy_kwh: What its meters say it took (for `site`: all loads and exports).
        source_kwh: By source node, and EARLIER.
        unknown_kwh: Taken while the origin of it could not be told.
        cost: By currency, of sources with a tariff.
        priced_kwh: Source kWh that have one; non_fossil_kwh: source kWh of non-fossil origin.
    """

    node: str
    energy_kwh: float = 0.0
    unknown_kwh: float = 0.0
    source_kwh: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    priced_kwh: float = 0.0
    non_fossil_kwh: float = 0.0


class Shares:
    """Answers for one plant's store."""

    def __init__(self, store: Store, history: History) -> None:
        self._store = store
        self._history = history

    async def of(self, nodes: Sequence[str], start_ns: int, end_ns: int) -> list[Made]:
        """What loads, exports or `site` took over the whole hours of [start, end).

        Raises:
            BadRequest: The window holds no whole hour, is too long, or a node is neither.
        """
        start_ns, end_ns = -(-start_ns // HOUR_NS) * HOUR_NS, end_ns // HOUR_NS * HOUR_NS
        if end_ns <= start_ns:
            raise BadRequest("the range holds no whole hour")
        if end_ns - start_ns > LONGEST_NS:
            raise BadRequest("at most 400 days in one answer: ask for a shorter range")
        made = {name: Made(name) for name in nodes}
        held: dict[str, dict[str, float]] | None = None
        await self._history.refresh()
        for segment in await self._history.segments(start_ns, end_ns):
            plant = segment.engine.plant
            for name in nodes:
                _check(plant, name)
            first, last = segment.start_ns // HOUR_NS * HOUR_NS, segment.end_ns // HOUR_NS * HOUR_NS
            cuts = [*range(first, last, _PIECE_HOURS * HOUR_NS), last]
            for from_ns, until_ns in pairwise(cuts):
                window = await self._store.window(
                    from_ns,
                    until_ns,
                    [edge.id for edge in plant.edges],
                    [SITE],
                    [],
                    [node.id for node in plant.nodes if node.kind is NodeKind.STORAGE],
                )
                held = await asyncio.to_thread(_add, plant, window, made, held)
        return [made[name] for name in nodes]


def _check(plant: Plant, name: str) -> None:
    node = plant.node_by_id.get(name)
    if name != SITE and (node is None or node.kind not in (NodeKind.LOAD, NodeKind.EXPORT)):
        raise BadRequest(
            f"{name} is no load and no export: only what takes energy for good has a composition"
        )


def _add(
    plant: Plant, window: WindowResult, made: dict[str, Made], held: dict[str, dict[str, float]] | None
) -> dict[str, dict[str, float]]:
    """Add a piece; returns by storage what it holds of each source at the end."""
    tracer = Tracer(plant.nodes, plant.edges)
    energy = window.energy.energy_kwh
    known = np.isfinite(energy).all(axis=0)
    time_ns = window.start_ns + np.arange(window.intervals) * window.base_ns
    sources = [plant.nodes[n] for n in tracer.source_nodes]
    names = [*(node.id for node in sources), EARLIER]
    brings = np.zeros((len(sources), len(names), window.intervals))
    for i in range(len(sources)):
        brings[i, i] = 1.0
    stock_kwh = np.nan_to_num(window.stock_kwh[:, 0])
    stores = [plant.nodes[n].id for n in tracer.storage_nodes]
    stock = np.zeros((len(stores), len(names)))
    for s, store in enumerate(stores):
        composed = None if held is None else held.get(store)
        if composed is None or not sum(composed.values()) > 0:
            stock[s, -1] = stock_kwh[s]
        else:
            stock[s] = [composed.get(name, 0.0) for name in names]
    # The stocks of the results, hour by hour, are what the storages really held.
    soc = np.full((len(stores), window.intervals), np.nan)
    per_hour = HOUR_NS // window.base_ns
    soc[:, per_hour - 1 :: per_hour] = window.stock_kwh[:, 1:]
    traced = tracer.trace(
        np.where(known, energy, 0.0),
        brings,
        stock_kwh=stock_kwh,
        stock_kg=stock,
        soc_kwh=soc,
        interval_h=window.base_ns / HOUR_NS,
        keep_mean=True,
    )
    prices = [None if node.tariff is None else prices_at(node.tariff, time_ns, plant) for node in sources]
    clean = [non_fossil_share(node) for node in sources]
    index = {node.id: n for n, node in enumerate(plant.nodes)}
    for name, sums in made.items():
        ends = [n for n, node in enumerate(plant.nodes) if node.kind in (NodeKind.LOAD, NodeKind.EXPORT)]
        for n in ends if name == SITE else [index[name]]:
            _add_node(sums, tracer, traced.kg_in[n], energy, n, names, sources, prices, clean)
    return {
        store: dict(zip(names, np.nan_to_num(traced.stock_kg[s, :, -1]).tolist(), strict=True))
        for s, store in enumerate(stores)
    }


def _add_node(
    sums: Made,
    tracer: Tracer,
    arrived: Floats,
    energy: Floats,
    n: int,
    names: Sequence[str],
    sources: Sequence[Node],
    prices: Sequence[Floats | None],
    clean: Sequence[float],
) -> None:
    took = np.nansum(energy[[e for e, target in enumerate(tracer.target_of) if target == n]], axis=0)
    known = np.isfinite(arrived).all(axis=0)
    sums.energy_kwh += float(took.sum())
    sums.unknown_kwh += float(took[~known].sum())
    for a, name in enumerate(names):
        kwh = np.where(known, arrived[a], 0.0)
        total = float(kwh.sum())
        if total == 0.0:
            continue
        sums.source_kwh[name] = sums.source_kwh.get(name, 0.0) + total
        if a == len(sources):
            continue
        sums.non_fossil_kwh += total * clean[a]
        price, tariff = prices[a], sources[a].tariff
        if price is not None and tariff is not None:
            sums.cost[tariff.currency] = sums.cost.get(tariff.currency, 0.0) + float((kwh * price).sum())
            sums.priced_kwh += total


def non_fossil_share(node: Node) -> float:
    """As the plant states it; else own and direct-line energy without carbon is all non-fossil, and nothing else."""
    if node.non_fossil_share is not None:
        return node.non_fossil_share
    return 1.0 if node.factor == 0 and node.origin in (Origin.OWN, Origin.DIRECT_LINE) else 0.0


def prices_at(tariff: Tariff, time_ns: Times, plant: Plant) -> Floats:
    """Price of a kWh in each interval that starts at these times, shape (T,)."""
    quarter_ns = 900 * NS_PER_S
    starts, place = np.unique(time_ns // quarter_ns, return_inverse=True)
    prices = np.array([_price(tariff, int(start) * quarter_ns, plant) for start in starts.tolist()])
    column: Floats = prices[place]
    return column


def _price(tariff: Tariff, time_ns: int, plant: Plant) -> float:
    here = datetime_of(time_ns).astimezone(plant.zone)
    minute = 60 * here.hour + here.minute
    for period in tariff.periods:
        inside = (
            period.begin <= minute < period.end
            if period.begin < period.end
            else minute >= period.begin or minute < period.end
        )
        if inside and here.month in period.months and here.weekday() in period.days:
            return period.price
    return tariff.price
