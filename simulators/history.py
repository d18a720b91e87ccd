"""The demo plant's past, in bulk: what every device would have delivered, had it been read all along.

The same model and the same registers as the live servers', so history and the
live readings join without a seam. For the demo's first look back, and for
benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from core.clock import SystemClock
from core.plant.model import ModbusSource, MqttSource, OpcuaSource, Plant, Point
from core.samples import NS_PER_S, Floats, PointTable, SampleBatch, Times, sample_batch
from simulators.faults import Faults
from simulators.meter import Meters
from simulators.opcua import node_value
from simulators.plant import DemoPlant
from simulators.register import held

_ROWS_A_BATCH: Final = 100_000


def history(
    plant: Plant,
    start_ns: int,
    end_ns: int,
    step_s: float = 60.0,
    points: Sequence[str] | None = None,
    model: DemoPlant | None = None,
) -> Iterator[SampleBatch]:
    """Good samples of the demo plant over [start, end) each `step_s`, at whole multiples of it, oldest first.

    Args:
        points: These points; None for all that a device delivers.
        model: The model the servers run, where they are not played at 1 x.

    Yields:
        Batches over the plant's point table, each of some 100,000 rows.

    Raises:
        ValueError: The step is not positive, or the start lies before the plant's commissioning.
    """
    if step_s <= 0:
        raise ValueError(f"history needs a step above 0 s, got {step_s}")
    meters = Meters(plant, model or DemoPlant(), SystemClock(), Faults())
    names = [point.id for point in plant.points if point.device] if points is None else list(points)
    step_ns = round(step_s * NS_PER_S)
    first_ns = -(-start_ns // step_ns) * step_ns
    moments_a_batch = max(1, _ROWS_A_BATCH // max(1, len(names)))
    for begin_ns in range(first_ns, end_ns, moments_a_batch * step_ns):
        time_ns = np.arange(
            begin_ns, min(end_ns, begin_ns + moments_a_batch * step_ns), step_ns, dtype=np.int64
        )
        values = meters.history(names, time_ns)
        yield _batch(plant.point_table, time_ns, [(plant.point_by_id[name], values[name]) for name in names])


def _batch(table: PointTable, time_ns: Times, columns: Sequence[tuple[Point, Floats]]) -> SampleBatch:
    indices = np.array([table.index[point.id] for point, _ in columns], dtype=np.int32)
    # Oldest first: all points of one moment, then the next moment.
    value = np.stack([delivered(point, column) for point, column in columns], axis=1)
    return sample_batch(
        table, np.tile(indices, time_ns.size), np.repeat(time_ns, indices.size), value.ravel()
    )


def delivered(point: Point, value: Floats) -> Floats:
    """What a reader gets of a value: cut by its register, its node's type or the payload's decimals."""
    if isinstance(point.source, ModbusSource):
        return held(point, value)
    if isinstance(point.source, OpcuaSource):
        return node_value(point.source, value)
    if isinstance(point.source, MqttSource) and point.unit == "V":
        return np.rint(value)
    return np.round(value, 3)
