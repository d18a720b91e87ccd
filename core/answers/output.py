"""Output that a PLC or a scale counts, by the hour."""

from __future__ import annotations

import numpy as np

from core.energy.register import register_energy
from core.plant.model import Plant, Product
from core.quality import is_bad
from core.results import HOUR_NS
from core.samples import NS_PER_S, Floats, Times
from core.store.seam import Figures


async def counted_output(
    plant: Plant, store: Figures, product: Product, start_ns: int, end_ns: int
) -> tuple[Times, Floats]:
    """Starts of the hours that [start, end) touches and what the product's counter moved in each, shape (H,).

    A counter is read as an energy register is: it may roll over or be reset, and a silence is spread. NaN where
    it says nothing, or the product has none.
    """
    hours = np.arange(start_ns // HOUR_NS, -(-end_ns // HOUR_NS) + 1) * HOUR_NS
    nothing = np.full(hours.size - 1, np.nan)
    if product.counter is None:
        return hours[:-1], nothing
    point = plant.point_by_id[product.counter]
    batch = await store.readings([point.id], int(hours[0]), int(hours[-1]), HOUR_NS)
    batch = batch.take(~is_bad(batch.status) & np.isfinite(batch.value))
    if len(batch) < 2:
        return hours[:-1], nothing
    counted = register_energy(
        batch.time_ns,
        batch.value,
        batch.status,
        hours,
        gap_after_ns=int(max(3 * point.period_s, 3 * plant.base_interval_s) * NS_PER_S),
        modulus=point.counter_modulus,
        resolution=point.resolution,
    )
    return hours[:-1], counted.energy_kwh
