"""Carbon of what was made: each batch, shift or order with the part of its nodes' carbon that it bears.

Hour by hour, a node's carbon goes to the batches in work there, by the declared
rule. What surprises: an hour in which nothing was made belongs to no batch; it
is shown as idle, because hiding it in the next batch would make a footprint
depend on when the order book was empty.

Source: ISO 14067:2018, 6.4.6 and GB/T 24067-2024 (allocation); (EU) 2023/956
annex IV for goods of that regulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.answers.output import counted_output
from core.carbon.product import Allocation, CbamSector, Embedded, Precursor, specific_embedded
from core.clock import datetime_of, rfc3339
from core.errors import BadRequest
from core.plant.model import Plant, Product
from core.registers.book import Register
from core.registers.production import Production
from core.registers.shelf import Registers
from core.results import HOUR_NS, Scope
from core.samples import Flags, Floats, Times
from core.store.seam import Store

LONGEST_HOURS = 400 * 24


@dataclass(frozen=True, slots=True)
class Made:
    """Good output of a product in [start_ns, end_ns) on some nodes."""

    id: str
    product: Product
    nodes: tuple[str, ...]
    start_ns: int
    end_ns: int
    good: float
    scrap: float
    driver: float
    precursors: tuple[Precursor, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchFootprint:
    """What one batch bears, kgCO2e; `per_good_kg` is NaN where nothing good came out.

    Attributes:
        direct_kg: By scope, of the nodes it was made on; shared_kg: its part of shared nodes, likewise.
        electricity_kwh: Used on its nodes.
        life_cycle_kg: That electricity by its life-cycle factor; beside the footprint, never inside. NaN: not declared.
        embedded: For goods of CBAM.
    """

    made: Made
    direct_kg: dict[int, float]
    shared_kg: dict[int, float]
    electricity_kwh: float
    life_cycle_kg: float
    embedded: Embedded | None

    @property
    def total_kg(self) -> float:
        return sum(self.direct_kg.values()) + sum(self.shared_kg.values())

    @property
    def per_good_kg(self) -> float:
        return self.total_kg / self.made.good if self.made.good > 0 else math.nan

    def uncertainty(self, of_scope: Mapping[int, float]) -> float:
        """Half of the relative 95 % interval of the total, from that of what the plant took in, by scope.

        What reaches a batch is as uncertain as what it came from; amounts of output are taken as counted. NaN
        where nothing is stated.

        Source: 2006 IPCC Guidelines, volume 1, chapter 3, equation 3.2 (C24).
        """
        kg = {
            scope: self.direct_kg.get(scope, 0.0) + self.shared_kg.get(scope, 0.0)
            for scope in (*self.direct_kg, *self.shared_kg)
        }
        stated = [
            amount * of_scope[s] for s, amount in kg.items() if math.isfinite(of_scope.get(s, math.nan))
        ]
        return math.hypot(*stated) / abs(self.total_kg) if stated and self.total_kg else math.nan


@dataclass(frozen=True, slots=True)
class Footprints:
    product: Product
    batches: tuple[BatchFootprint, ...]
    idle_kg: float  # of the product's own nodes, in hours no batch was in work there
    unknown_hours: int  # hours in which a batch was in work and the carbon of its node is not known


class FootprintBook:
    """Footprints of one plant's products."""

    def __init__(self, plant: Plant, store: Store, registers: Registers, now_ns: Callable[[], int]) -> None:
        self._plant = plant
        self._store = store
        self._registers = registers
        self._now_ns = now_ns

    async def of(
        self, product_id: str, start_ns: int, end_ns: int, basis: str, method_set: str
    ) -> Footprints:
        """Footprints of what was made of a product in [start, end).

        Raises:
            BadRequest: The plant declares no such product, the range is too long, or a good of CBAM needs
                what a precursor does not say.
        """
        product = next((p for p in self._plant.products if p.id == product_id), None)
        if product is None:
            known = ", ".join(p.id for p in self._plant.products) or "none"
            raise BadRequest(f"plant.yaml declares no product {product_id!r}: {known}")
        if end_ns - start_ns > LONGEST_HOURS * HOUR_NS:
            raise BadRequest(f"at most {LONGEST_HOURS // 24} days in one answer")
        everything = await self._made(start_ns, end_ns)
        nodes = tuple(dict.fromkeys([*product.nodes, *product.shared, *(
            node for made in everything if made.product is product for node in made.nodes
        )]))  # fmt: skip
        hours = np.arange(start_ns // HOUR_NS, -(-end_ns // HOUR_NS)) * HOUR_NS
        carbon = await self._carbon(nodes, hours, basis, method_set)
        energy = await self._electricity(nodes, hours)
        mine = [made for made in everything if made.product is product]
        direct, shared = ({made.id: dict.fromkeys(map(int, Scope), 0.0) for made in mine} for _ in range(2))
        kwh = dict.fromkeys(direct, 0.0)
        life_cycle_kg = dict.fromkeys(direct, math.nan if product.life_cycle_factor is None else 0.0)
        factor = self._life_cycle(product, hours)
        idle_kg, unknown_hours = 0.0, 0
        for node in nodes:
            claimants = [m for m in everything if node in m.nodes or node in m.product.shared]
            parts, worked = _parts(claimants, hours)
            own = node in product.nodes or any(node in made.nodes for made in mine)
            for scope, kg in carbon.get(node, {}).items():
                for made, (span, part) in zip(claimants, parts, strict=True):
                    if made.product is not product:
                        continue
                    borne = float(np.nansum(kg[span] * part))
                    if node in made.nodes:
                        direct[made.id][scope] += borne
                    else:
                        shared[made.id][scope] += borne
                unknown_hours += int((np.isnan(kg) & worked).sum())
                if own:
                    idle_kg += float(np.nansum(kg[~worked]))
            electricity = energy.get(node, np.zeros(hours.size))
            for made, (span, part) in zip(claimants, parts, strict=True):
                if made.product is product and node in made.nodes:
                    used = electricity[span] * part
                    kwh[made.id] += float(np.nansum(used))
                    some = np.isfinite(used) & (used != 0)
                    life_cycle_kg[made.id] += float(used[some] @ factor[span][some])
        batches = [
            self._batch(made, direct[made.id], shared[made.id], kwh[made.id], life_cycle_kg[made.id])
            for made in mine
        ]
        return Footprints(product, tuple(batches), idle_kg, unknown_hours)

    def _batch(
        self,
        made: Made,
        direct_kg: dict[int, float],
        shared_kg: dict[int, float],
        kwh: float,
        life_cycle_kg: float,
    ) -> BatchFootprint:
        kept = {scope: kg for scope, kg in direct_kg.items() if kg}
        borne = {scope: kg for scope, kg in shared_kg.items() if kg}

        def attributed(scope: Scope) -> float:
            return kept.get(int(scope), 0.0) + borne.get(int(scope), 0.0)

        embedded = None
        product = made.product
        if product.cbam_sector is not None and product.cn_code is not None and made.good > 0:
            embedded = specific_embedded(
                product.cn_code,
                CbamSector(product.cbam_sector),
                made.good,
                attributed(Scope.DIRECT),
                attributed(Scope.ENERGY_INDIRECT),
                made.precursors,
            )
        return BatchFootprint(made, kept, borne, kwh, life_cycle_kg, embedded)

    def _life_cycle(self, product: Product, hours: Times) -> Floats:
        """The life-cycle factor of each hour as known now, shape (H,); NaN where none is declared or in force."""
        if product.life_cycle_factor is None:
            return np.full(hours.size, math.nan)
        column = self._registers.library.factor_column(
            product.life_cycle_factor, hours, zone=self._plant.zone, known_at_ns=self._now_ns()
        )
        return column.kg_per_kwh

    async def _made(self, start_ns: int, end_ns: int) -> list[Made]:
        """Everything made in [start, end), written down or counted; an entry that the range cuts is cut with it."""
        products = {product.id: product for product in self._plant.products}
        made: list[Made] = []
        for entry in await self._registers.book.counted(Register.PRODUCTION, start_ns, end_ns):
            production = Production.of(entry.body)
            product = products.get(production.product)
            if product is None:
                continue
            part = entry.part_in(start_ns, end_ns)
            good = production.amount * part
            made.append(
                Made(
                    id=production.batch or f"{product.id} {entry.id}",
                    product=product,
                    nodes=(production.node,) if production.node else product.nodes,
                    start_ns=max(start_ns, entry.start_ns),
                    end_ns=min(end_ns, entry.end_ns),
                    good=good,
                    scrap=production.scrap * part,
                    driver=_driver(product, production, part),
                    precursors=tuple(
                        replace(p, mass_t=p.mass_t * part)
                        for p in production.precursors_of(self._year(entry.start_ns), self._registers.library)
                    ),
                )
            )
        for product in self._plant.products:
            if product.counter is not None:
                made += await self._counted(product, start_ns, end_ns)
        return made

    def _year(self, time_ns: int) -> int:
        return datetime_of(time_ns).astimezone(self._plant.zone).year

    async def _counted(self, product: Product, start_ns: int, end_ns: int) -> list[Made]:
        """A counter's output, one batch an hour in which it moved."""
        hours, counted = await counted_output(self._plant, self._store, product, start_ns, end_ns)
        return [
            Made(
                f"{product.id} {rfc3339(at_ns)}",
                product,
                product.nodes,
                at_ns,
                at_ns + HOUR_NS,
                amount,
                0.0,
                amount,
            )
            for at_ns, amount in zip(hours.tolist(), counted.tolist(), strict=True)
            if amount > 0
        ]

    async def _carbon(
        self, nodes: Sequence[str], hours: Times, basis: str, method_set: str
    ) -> dict[str, dict[int, Floats]]:
        """kg by node and scope, shape (H,)."""
        series = await self._store.emissions(
            nodes, int(hours[0]), int(hours[-1]) + HOUR_NS, "1h", basis, method_set
        )
        assert series.flow is not None
        kg: dict[str, dict[int, Floats]] = {}
        columns = (series.name, series.flow.tolist(), series.start_ns, series.columns["emissions_kgco2e"])
        for name, flow, at_ns, amount in zip(*columns, strict=True):
            column = kg.setdefault(name, {}).setdefault(series.flows[flow].scope, np.zeros(hours.size))
            column[(at_ns - hours[0]) // HOUR_NS] = amount
        return kg

    async def _electricity(self, nodes: Sequence[str], hours: Times) -> dict[str, Floats]:
        """kWh of electricity into each node, shape (H,)."""
        edges = {
            edge.id: edge.target
            for edge in self._plant.edges
            if edge.target in nodes and edge.carrier == "electricity"
        }
        series = await self._store.energy([*edges], int(hours[0]), int(hours[-1]) + HOUR_NS, "1h")
        kwh: dict[str, Floats] = {}
        for name, at_ns, amount in zip(
            series.name, series.start_ns, series.columns["energy_kwh"], strict=True
        ):
            column = kwh.setdefault(edges[name], np.zeros(hours.size))
            column[(at_ns - hours[0]) // HOUR_NS] += amount
        return kwh


def _parts(claimants: Sequence[Made], hours: Times) -> tuple[list[tuple[slice, Floats]], Flags]:
    """Each claimant's hours and its share of each of them, by its driver per hour in work; and in which any works.

    The shares of an hour add up to 1 or 0. A counter makes a batch of every hour, so only their own hours are held.
    """
    weights: list[tuple[slice, Floats]] = []
    whole = np.zeros(hours.size)
    for made in claimants:
        span = slice(
            int(np.searchsorted(hours, made.start_ns - HOUR_NS, "right")),
            int(np.searchsorted(hours, made.end_ns)),
        )
        inside = np.minimum(hours[span] + HOUR_NS, made.end_ns) - np.maximum(hours[span], made.start_ns)
        weight = inside / (made.end_ns - made.start_ns) * made.driver
        whole[span] += weight
        weights.append((span, weight))
    parts = [
        (span, np.divide(weight, whole[span], out=np.zeros(weight.size), where=whole[span] > 0))
        for span, weight in weights
    ]
    return parts, whole > 0


def _driver(product: Product, production: Production, part: float) -> float:
    """The amount of the declared rule: mass is the output itself, scrap included; others are written down."""
    if production.driver > 0:
        return production.driver * part
    if product.allocation == Allocation.VALUE and production.value_cny is not None:
        return production.value_cny * part
    return (production.amount + production.scrap) * part
