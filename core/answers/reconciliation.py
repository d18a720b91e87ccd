"""A window's energies corrected so that every balance closes, and the meter that is most likely wrong: a view.

Nothing stored is touched by it. Buses balance; a converter balances with its
declared efficiency; a storage's charge and discharge are flows like others of its
bus. A meter whose class nobody stated is taken for a poor one, and said to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.compute.engine import Engine
from core.energy.reconcile import Reconciled, reconcile
from core.errors import BadRequest
from core.plant.model import NodeKind, PointMeter
from core.results import HOUR_NS
from core.store.seam import Store

ASSUMED_CLASS = 2.5  # per cent, of a meter whose class is not stated


@dataclass(frozen=True, slots=True)
class ReconciledEdge:
    """One edge over the window.

    Attributes:
        measured_kwh: NaN where no meter gives it.
        reconciled_kwh: NaN where no balance tells an unmetered one.
        test: Correction over its standard deviation; beyond 3 a gross error is likely. NaN: cannot be tested.
    """

    edge: str
    measured_kwh: float
    reconciled_kwh: float
    class_pct: float | None
    assumed: bool
    test: float
    suspect: bool


async def reconciliation(engine: Engine, store: Store, start_ns: int, end_ns: int) -> list[ReconciledEdge]:
    """Every edge of [start, end), whole base intervals.

    Raises:
        BadRequest: The plant has no balance to close, or nothing is stored of the window.
    """
    plant = engine.plant
    edges = plant.edges
    balanced = [
        node
        for node in plant.nodes
        if node.kind is NodeKind.BUS or (node.kind is NodeKind.CONVERTER and node.efficiency is not None)
    ]
    if not balanced:
        raise BadRequest("the plant has no bus and no converter of declared efficiency: nothing balances")
    series = await store.energy([edge.id for edge in edges], start_ns, end_ns, "1y")
    total: dict[str, float] = {}
    for name, kwh in zip(series.name, series.columns["energy_kwh"].tolist(), strict=True):
        total[name] = total.get(name, 0.0) + kwh
    metered = [isinstance(edge.meter, PointMeter) for edge in edges]
    measured = np.array(
        [
            total.get(edge.id, np.nan) if by_meter else np.nan
            for edge, by_meter in zip(edges, metered, strict=True)
        ]
    )
    if not np.isfinite(measured).any():
        raise BadRequest("nothing is stored of this window")
    stated = [_class_pct(engine, edge.meter) for edge in edges]
    error = np.array([(ASSUMED_CLASS if pct is None else pct) / 100 for pct in stated])
    balances = np.zeros((len(balanced), len(edges)))
    lost_kwh = np.zeros(len(balanced))
    for row, node in enumerate(balanced):
        for column, edge in enumerate(edges):
            if edge.target == node.id:
                balances[row, column] += 1.0 if node.efficiency is None else node.efficiency
            if edge.source == node.id:
                balances[row, column] -= 1.0
        lost_kwh[row] = node.no_load_kw * (end_ns - start_ns) / HOUR_NS
    found: Reconciled = reconcile(measured, error, balances, lost_kwh)
    return [
        ReconciledEdge(
            edge.id,
            float(measured[i]),
            float(found.energy_kwh[i]),
            stated[i] if metered[i] else None,
            metered[i] and stated[i] is None,
            float(found.test[i]),
            i in found.suspects,
        )
        for i, edge in enumerate(edges)
    ]


def _class_pct(engine: Engine, meter: object) -> float | None:
    if not isinstance(meter, PointMeter):
        return None
    device = engine.plant.device_by_id.get(engine.plant.point_by_id[meter.point].device or "")
    return None if device is None else device.accuracy_class
