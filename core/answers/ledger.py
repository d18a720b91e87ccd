"""The counter ledger: a register day by day, as a person with pencil and paper would check it.

What the register showed first and last, what was counted from that, which days
hold a gap, a rollover, a reset, a glitch or an event, and what the same meter's
power says. The register is the billing truth; power is there to doubt it.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np

from core.compute.engine import Engine
from core.energy.register import MeterEvent, power_against_register
from core.errors import BadRequest
from core.lookback import Columns
from core.results import IntervalEnergy, Mark
from core.samples import NS_PER_S, SampleBatch, Times
from core.store.bucket import bucket_edges
from core.store.seam import Store

LONGEST_DAYS = 100
DAYS_AT_ONCE = 7  # whose readings are in memory together


@dataclass(frozen=True, slots=True)
class LedgerDay:
    """One day of one register.

    Attributes:
        first, last: Readings inside the day, in the point's unit; None where there is none.
        register_kwh: What last less first is worth, of a medium what it was assumed to hold; NaN where the register
            fell or says nothing.
        energy_kwh: What was counted over the whole day, what was spread into it included.
        gap_s: Time that no good readings back.
        marks: How many base intervals carry each mark.
        power_kwh: By the meter's power, over the same time; difference_kwh: power less register where both saw.
    """

    start_ns: int
    first_ns: int | None
    first: float | None
    last_ns: int | None
    last: float | None
    readings: int
    register_kwh: float
    energy_kwh: float
    estimated_kwh: float
    coverage: float
    gap_s: float
    marks: dict[str, int]
    events: tuple[MeterEvent, ...]
    power_kwh: float
    difference_kwh: float
    difference_share: float


async def counter_ledger(
    engine: Engine, store: Store, point: str, start_ns: int, end_ns: int
) -> list[LedgerDay]:
    """The days of the plant's zone that [start, end) touches, whole, oldest first.

    Raises:
        BadRequest: The point is no register of an edge, or the range is longer than LONGEST_DAYS.
    """
    _, points = engine.register_of(point)
    days = bucket_edges(start_ns, end_ns, "1d", engine.plant.zone)
    if days.size - 1 > LONGEST_DAYS:
        raise BadRequest(f"{days.size - 1} days, at most {LONGEST_DAYS} in one answer")
    made: list[LedgerDay] = []
    for first in range(0, days.size - 1, DAYS_AT_ONCE):
        some = days[first : first + DAYS_AT_ONCE + 1]
        batch = await store.readings(points, int(some[0]), int(some[-1]), engine.step_spread_ns)
        made += await asyncio.to_thread(_told, engine, point, batch, some)
    return made


def _told(engine: Engine, point: str, batch: SampleBatch, days: Times) -> list[LedgerDay]:
    """The days between `days`, from readings with their context."""
    register, _ = engine.register_of(point)
    edges_ns = np.arange(days[0], days[-1] + 1, engine.base_ns, dtype=np.int64)
    whole, flowed = engine.register_and_power(point, batch, edges_ns)
    mine, _ = Columns(batch).of([point])
    made = []
    for begin_ns, until_ns in zip(days[:-1].tolist(), days[1:].tolist(), strict=True):
        cells = slice(*((np.array([begin_ns, until_ns]) - days[0]) // engine.base_ns).tolist())
        day = _cut(whole, cells)
        first, last = np.searchsorted(mine.time_ns, [begin_ns, until_ns]).tolist()
        inside = mine.take(np.arange(first, last))
        seen = len(inside) > 0
        shown = float(inside.value[-1] - inside.value[0]) * register.kwh_per_unit if seen else math.nan
        by_power = math.nan
        difference = math.nan, math.nan
        if flowed is not None:
            part = _cut(flowed, cells)
            by_power = float(np.nansum(part.energy_kwh)) if np.isfinite(part.energy_kwh).any() else math.nan
            difference = power_against_register(day, part)
        made.append(
            LedgerDay(
                start_ns=begin_ns,
                first_ns=int(inside.time_ns[0]) if seen else None,
                first=float(inside.value[0]) if seen else None,
                last_ns=int(inside.time_ns[-1]) if seen else None,
                last=float(inside.value[-1]) if seen else None,
                readings=len(inside),
                register_kwh=shown if shown >= 0 else math.nan,
                energy_kwh=float(np.nansum(day.energy_kwh))
                if np.isfinite(day.energy_kwh).any()
                else math.nan,
                estimated_kwh=float(np.nansum(day.estimated_kwh)),
                coverage=float(day.covered.mean()),
                gap_s=float((1.0 - day.covered).sum()) * engine.base_ns / NS_PER_S,
                marks=_counts(day.mark),
                events=tuple(e for e in register.events if begin_ns <= e.time_ns < until_ns),
                power_kwh=by_power,
                difference_kwh=difference[0],
                difference_share=difference[1],
            )
        )
    return made


def _cut(energy: IntervalEnergy, cells: slice) -> IntervalEnergy:
    return IntervalEnergy(*(getattr(energy, name)[cells] for name in IntervalEnergy.__slots__))


def _counts(mark: np.ndarray) -> dict[str, int]:
    counts = {flag.name.lower(): int(np.count_nonzero(mark & flag)) for flag in Mark if flag and flag.name}
    return {name: count for name, count in counts.items() if count}
