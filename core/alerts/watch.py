"""The engine doubts its own figures: what it notices about them, as readings that alarm rules stand on.

The rules are core/plant/watched.py's. Each hour that has closed is looked at once: whether nodes balance within
the errors of their meters, whether carbon is conserved, whether a storage gave
more than it held, a register stood still under load or jumped. Each day, every
register is compared with the power of its own meter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from core.answers.ledger import counter_ledger
from core.bus import LiveUpdate
from core.clock import Clock, datetime_of, rfc3339, time_ns_of
from core.compute.history import History
from core.errors import EcmcError
from core.metrics import LIVE_ERROR, POWER_DIFFERENCE
from core.plant.model import Edge, Node, NodeKind, PointMeter, Role
from core.results import HOUR_NS, Basis, Mark, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.seam import Store

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 30.0
AFTER_FAULT_S: Final = 600.0
SETTLED_NS: Final = (
    180 * NS_PER_S
)  # how long after its end an hour is looked at: the last readings are in by then
_PICTURES: Final = 1800  # live pictures an hour needs to be compared: half of them
_RESOLUTION: Final = 0.01  # of a register that does not state its own, in its unit


def observed(
    nodes: Sequence[Node],
    edges: Sequence[Edge],
    error_of: Mapping[str, float],
    resolution_kwh: Mapping[str, float],
    hour: WindowResult,
) -> SampleBatch:
    """An hour's figures about its figures, at its end; NaN where they cannot be said.

    Args:
        error_of: Relative error of each metered edge by its class (0.01), NaN where no class is known.
        resolution_kwh: One step of each metered edge's register.
    """
    told: dict[str, float] = {"conservation": hour.conservation_error}
    kwh = dict(zip(hour.edges, hour.energy.energy_kwh.sum(axis=-1).tolist(), strict=True))
    marks = dict(zip(hour.edges, hour.energy.mark, strict=True))
    minutes = hour.base_ns / (60 * NS_PER_S)
    residual = dict(zip(hour.nodes, hour.residual_kwh.sum(axis=-1).tolist(), strict=True))
    by_mark = {name: (hour.energy.energy_kwh[row], marks[name]) for row, name in enumerate(hour.edges)}
    touching: dict[str, list[Edge]] = {node.id: [] for node in nodes}
    for edge in edges:
        if edge.id in kwh:
            touching[edge.source].append(edge)
            touching[edge.target].append(edge)
    for node in nodes:
        mine = touching[node.id]
        if node.kind is NodeKind.BUS or node.efficiency is not None:
            # A meter's class error holds all hour long; a register may be one step off at either end.
            variance = sum(
                (error_of[e.id] * kwh[e.id]) ** 2 + 2 * resolution_kwh[e.id] ** 2
                for e in mine
                if e.id in error_of
            )
            band = float(np.sqrt(variance))
            rest = residual.get(node.id, np.nan)
            told[f"balance:{node.id}"] = abs(rest) / band if band > 0 else np.nan
        if node.kind is NodeKind.STORAGE:
            out = [by_mark[e.id] for e in mine if e.source == node.id]
            told[f"overdrawn:{node.id}"] = sum(float(np.nansum(e[(m & Mark.OVERDRAWN) != 0])) for e, m in out)
    for edge in edges:
        if edge.id in by_mark:
            energy, mark = by_mark[edge.id]
            told[f"jump:{edge.id}"] = float(np.nansum(energy[(mark & Mark.JUMP) != 0]))
            told[f"frozen:{edge.id}"] = float(((mark & Mark.FROZEN) != 0).sum() * minutes)
    return _batch(told, hour.end_ns)


def _batch(told: Mapping[str, float], time_ns: int) -> SampleBatch:
    value = np.array(list(told.values()), dtype=np.float64)
    point = np.arange(value.size, dtype=np.int32)
    return sample_batch(PointTable(tuple(told)), point, np.full(value.size, time_ns), value)


class Watch:
    """Looks at what was computed, and tells the alarms.

    Args:
        tell: Takes readings of the rules' points.
    """

    def __init__(
        self, store: Store, history: Callable[[], History], clock: Clock, tell: Callable[[SampleBatch], None]
    ) -> None:
        self._store = store
        self._history = history
        self._clock = clock
        self._tell = tell
        self._looked_until_ns = 0
        self._day_until_ns = 0
        self._heard: dict[int, dict[str, tuple[int, float]]] = {}  # hour -> node -> pictures, sum of kgCO2e/h

    def heard(self, picture: LiveUpdate) -> None:
        """Count a live picture in until its hour has closed."""
        hour = self._heard.setdefault(picture.time_ns // HOUR_NS * HOUR_NS, {})
        for node in picture.nodes:
            if node.emissions_kgco2e_per_h is not None:
                pictures, total = hour.get(node.node, (0, 0.0))
                hour[node.node] = pictures + 1, total + node.emissions_kgco2e_per_h
        while len(self._heard) > 3:
            del self._heard[min(self._heard)]

    async def run(self) -> None:
        """Look until cancelled; a day of many meters takes a while, and hours go on meanwhile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again(self._look_at_hour))
            group.create_task(self._again(self._look_at_day))

    async def _again(self, look: Callable[[], Awaitable[None]]) -> None:
        """What cannot be read now is looked at the next time; what nobody thought of must not stop the collecting."""
        while True:
            wait_s = LOOK_EVERY_S
            try:
                await look()
            except EcmcError as why:
                log.debug("figures not looked at: %s", why)
            except (ValueError, ArithmeticError, LookupError):
                log.exception("figures cannot be looked at")
                wait_s = AFTER_FAULT_S
            await asyncio.sleep(wait_s)

    async def look(self) -> None:
        """Look at the hour and the day that closed last, each once."""
        await self._look_at_hour()
        await self._look_at_day()

    async def _look_at_hour(self) -> None:
        hour_ns = (self._clock.now_ns() - SETTLED_NS) // HOUR_NS * HOUR_NS
        if hour_ns > self._looked_until_ns:
            for hour in await self._store.stored(hour_ns - HOUR_NS, hour_ns):
                if np.isfinite(hour.energy.energy_kwh).any():
                    self._tell(await self._observed(hour))
                    self._compare(hour)
            self._looked_until_ns = hour_ns

    async def _look_at_day(self) -> None:
        engine = self._history().current
        here = datetime_of(self._clock.now_ns() - SETTLED_NS).astimezone(engine.plant.zone)
        midnight = datetime(here.year, here.month, here.day, tzinfo=engine.plant.zone)
        day_ns = time_ns_of(midnight)
        if day_ns > self._day_until_ns:
            before = midnight - timedelta(days=1)
            start_ns = time_ns_of(datetime(before.year, before.month, before.day, tzinfo=engine.plant.zone))
            self._tell(await self._observed_day(start_ns, day_ns))
            self._day_until_ns = day_ns

    def _compare(self, hour: WindowResult) -> None:
        """Publish how far the live estimates of an hour were from what closed."""
        heard = self._heard.pop(hour.start_ns, {})
        first = self._history().current.methods[0].id
        shown = [i for i, f in enumerate(hour.flows) if f.method_set == first and f.basis == Basis.LOCATION]
        for row, node in enumerate(hour.nodes):
            pictures, total = heard.get(node, (0, 0.0))
            closed_kg = float(hour.through_kg[row, shown].sum())  # NaN: not known for the whole hour
            if pictures >= _PICTURES and closed_kg > 0:
                LIVE_ERROR.labels(node).set(total / pictures / closed_kg - 1.0)

    async def _observed(self, hour: WindowResult) -> SampleBatch:
        engine = await self._history().engine_at(hour.start_ns)
        plant = engine.plant
        error_of, resolution = {}, {}
        for edge in plant.edges:
            if isinstance(edge.meter, PointMeter):
                point = plant.point_by_id[edge.meter.point]
                device = plant.device_by_id.get(point.device or "")
                accuracy_class = None if device is None else device.accuracy_class
                error_of[edge.id] = np.nan if accuracy_class is None else accuracy_class / 100
                counts = edge.meter.role is Role.REGISTER
                resolution[edge.id] = (
                    engine.kwh_per_unit(edge.id) * (point.resolution or _RESOLUTION) if counts else 0.0
                )
        runs = await self._store.runs(hour.start_ns, hour.end_ns)
        batch = observed(plant.nodes, plant.edges, error_of, resolution, hour)
        batch.value[0] = max((run.conservation_error for run in runs), default=np.nan)
        return batch

    async def _observed_day(self, start_ns: int, end_ns: int) -> SampleBatch:
        engine = self._history().current
        told: dict[str, float] = {}
        for edge in engine.plant.edges:
            meter = edge.meter
            if (
                isinstance(meter, PointMeter)
                and meter.role is Role.REGISTER
                and meter.power_point is not None
            ):
                days = await counter_ledger(engine, self._store, meter.point, start_ns, end_ns)
                told[f"power:{edge.id}"] = abs(days[0].difference_share)
                if np.isfinite(days[0].difference_share):
                    POWER_DIFFERENCE.labels(edge.id).set(days[0].difference_share)
        log.debug(
            "registers compared with their power", extra={"day": rfc3339(start_ns), "meters": len(told)}
        )
        return _batch(told, end_ns)
