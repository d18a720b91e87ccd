"""A past window computed again: what changed, by how much, and what made it change.

The window goes through the pipeline piece by piece, so memory does not grow with
its length, and each piece is what a late reading there would have made of it. Of
a piece whose figures changed, the computation behind the old ones is repeated
with one thing after the other brought up to now: the readings, then the factor
rows, then the meter events, then the model. What a step changes is that thing's
part, and the parts add up to the difference.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from zoneinfo import ZoneInfo

import asyncpg
import numpy as np

from core.carbon.factor_row import published_ns
from core.clock import datetime_of, rfc3339, time_ns_of
from core.compute.history import History, Known
from core.compute.pipeline import Pipeline, computed
from core.compute.workers import Workers
from core.errors import BadRequest
from core.results import HOUR_NS, WindowResult
from core.seal import hour_digests
from core.store.postgres import PostgresStore
from core.store.seam import Pin, Stocks

PIECE_HOURS = 7 * 24
PIECES_AT_ONCE = 4
_ROUNDING = 1e-12  # of a figure, as sums of a year's intervals differ by their order


class Cause(StrEnum):
    """What made a figure change."""

    READING = "reading"  # readings that came or were corrected; of results of an older ecmc, its program too
    FACTOR = "factor"
    EVENT = "event"
    MODEL = "model"


@dataclass(slots=True)
class Changed:
    """A figure over the window; `by` adds up to after - before."""

    before: float = 0.0
    after: float = 0.0
    by: dict[Cause, float] = field(default_factory=dict)

    def forget_rounding(self) -> None:
        """Drop causes that made no more than adding up in another order does."""
        least = _ROUNDING * max(abs(self.before), abs(self.after))
        self.by = {cause: part for cause, part in self.by.items() if abs(part) > least}


@dataclass(slots=True)
class Recomputed:
    """What a recomputation did.

    Attributes:
        figures: Those that changed, by a name people can read; kWh and kgCO2e.
        seen: How many figures there are.
        resumed_ns: Where a run that was broken off went on; None: it ran from the start.
    """

    start_ns: int
    end_ns: int
    known_at_ns: int
    figures: dict[str, Changed] = field(default_factory=dict)
    seen: int = 0
    resumed_ns: int | None = None


async def recompute(
    pipeline: Pipeline,
    store: PostgresStore,
    start_ns: int,
    end_ns: int,
    *,
    now_ns: int,
    known_at_ns: int | None = None,
    current_model: bool = False,
    who: str = "",
    progress: Callable[[int, int], None] = lambda done_ns, end_ns: None,
) -> Recomputed:
    """Compute every hour that [start, end) touches again, between the first and the last reading; write what follows.

    Args:
        known_at_ns: Factors published later do not count; None: now, and the same now when it goes on after a kill.
        current_model: State that the present model held over the window too, and compute with it.
        progress: Told how far it is.

    Raises:
        BadRequest: The window is empty, or there are no readings in it.
    """
    await pipeline.history.refresh()
    first_ns, last_ns = await _with_readings(store, pipeline.history, start_ns, end_ns)
    asked = f"known at {known_at_ns or 'now'}, model {'current' if current_model else 'of its time'}"
    whole = (
        start_ns // HOUR_NS * HOUR_NS,
        -(-end_ns // HOUR_NS) * HOUR_NS,
    )  # the last reading moves on meanwhile
    job = await _Job.begun(store.pool, *whole, asked, known_at_ns or now_ns, who)
    history = pipeline.history
    is_new, from_ns = job.done_ns == whole[0], max(job.done_ns, first_ns)
    if current_model and is_new:
        await store.restate(
            history.current.fingerprint, first_ns, last_ns, who, "recomputed with the current model"
        )
    await history.refresh()
    made = Recomputed(first_ns, last_ns, job.known_at_ns)
    made.resumed_ns = None if is_new else from_ns
    names: set[str] = set()
    carried: _Carried = {}
    pieces = _pieces(from_ns, last_ns, history)
    # What a storage holds hands one piece on to the next; without one, pieces go side by side.
    at_once = 1 if await _has_storages(history, from_ns, last_ns) else PIECES_AT_ONCE
    for first in range(0, len(pieces), at_once):
        group = pieces[first : first + at_once]
        done = await asyncio.gather(
            *(_piece(pipeline, store, job.known_at_ns, piece, carried, made) for piece in group)
        )
        carried = done[-1][1]
        names.update(name for seen, _ in done for name in seen)
        await job.reached(group[-1][1])
        progress(group[-1][1] - first_ns, last_ns - first_ns)
    await job.done()
    made.seen = len(names)
    for figure in made.figures.values():
        figure.forget_rounding()
    made.figures = {name: figure for name, figure in sorted(made.figures.items()) if figure.by}
    return made


async def _with_readings(
    store: PostgresStore, history: History, start_ns: int, end_ns: int
) -> tuple[int, int]:
    """The hours of [start, end) from the network's first reading to its last: beyond there is nothing to compute."""
    if end_ns <= start_ns:
        raise BadRequest("the window to compute again is empty")
    segments = await history.segments(start_ns, end_ns)
    span = await store.span(sorted({point for s in segments for point in s.engine.points}))
    if span is None:
        raise BadRequest("there is nothing to compute: no meter of the network was ever read")
    first_ns = max(start_ns, span[0]) // HOUR_NS * HOUR_NS
    last_ns = min(-(-end_ns // HOUR_NS), span[1] // HOUR_NS + 1) * HOUR_NS
    if last_ns <= first_ns:
        raise BadRequest(
            f"there are no readings from {rfc3339(start_ns)} to {rfc3339(end_ns)}: the first is of "
            f"{rfc3339(span[0])}, the last of {rfc3339(span[1])}"
        )
    return first_ns, last_ns


_Carried = dict[int, Stocks]  # what each step's computation of the piece before left in the storages


async def _piece(
    pipeline: Pipeline,
    store: PostgresStore,
    known_at_ns: int,
    piece: tuple[int, int],
    carried: _Carried,
    made: Recomputed,
) -> tuple[set[str], _Carried]:
    """Compute and write one piece; the names of its figures, and what each step leaves in the storages."""
    from_ns, until_ns = piece
    history = pipeline.history
    before = await store.stored(from_ns, until_ns)
    pins = await store.pins(from_ns, until_ns)
    opening = await _opening(store, history, before, from_ns)
    after = await pipeline.recompute(from_ns, until_ns, known_at_ns, "recompute")
    names = {name for part in after for name in _figures(part)}
    if _digests(before) == _digests(after):
        return names, {}
    steps = _Steps(store, history, known_at_ns, pipeline.workers)
    return names, await steps.between(before, after, pins, opening, carried, made.figures)


async def _has_storages(history: History, start_ns: int, end_ns: int) -> bool:
    return any(
        segment.engine.storages for segment in await history.segments(start_ns, max(end_ns, start_ns + 1))
    )


class _Steps:
    """Repeats a piece with one thing after the other as it is now."""

    def __init__(self, store: PostgresStore, history: History, known_at_ns: int, workers: Workers) -> None:
        self._store = store
        self._history = history
        self._known_at_ns = known_at_ns
        self._workers = workers

    async def between(
        self,
        before: Sequence[WindowResult],
        after: Sequence[WindowResult],
        pins: Sequence[Pin],
        opening: Stocks | None,
        carried: _Carried,
        figures: dict[str, Changed],
    ) -> _Carried:
        """Add a piece's differences to the figures, each to its cause; returns the stocks each step ends with."""
        left: _Carried = {}
        span = after[0].start_ns, after[-1].end_ns
        for name in {name for part in (*before, *after) for name in _figures(part)}:
            figures.setdefault(name, Changed())
        _add(figures, before, "before")
        _add(figures, after, "after")
        if not pins:  # nothing was computed before: what there is now came with its readings
            for name, kwh in _summed(after).items():
                _by(figures[name], Cause.READING, kwh)
            return left
        previous = _summed(before)
        for step, (cause, knowing) in enumerate(_STEPS):
            if cause is Cause.MODEL:  # the last: what was written
                now = _summed(after)
            else:
                results = await self._repeated(span, pins, knowing, carried.get(step, opening))
                now = _summed(results)
                left[step] = _stocks_after(results[-1])
            for name in now.keys() | previous.keys():
                _by(figures[name], cause, now.get(name, 0.0) - previous.get(name, 0.0))
            previous = now
        return left

    async def _repeated(
        self, span: tuple[int, int], pins: Sequence[Pin], fresh: frozenset[Cause], stocks: Stocks | None
    ) -> list[WindowResult]:
        """The piece as its computation of then makes it, but with these things as they are now."""
        results: list[WindowResult] = []
        for start_ns, end_ns, pin in self._alike(span, pins):
            known = Known(
                pin.computed_ns,
                None if Cause.FACTOR in fresh else pin.computed_ns,
                None if Cause.EVENT in fresh else pin.computed_ns,
            )
            known_at_ns = self._known_at_ns if Cause.FACTOR in fresh else pin.known_at_ns
            segments = await self._history.segments(start_ns, end_ns, known)
            if results:
                stocks = _stocks_after(results[-1])
            if stocks is not None:
                first = segments[0].engine
                stocks = _of(stocks, first.storages)
            results.append(await computed(self._store, segments, stocks, known_at_ns, workers=self._workers))
        return results

    def _alike(self, span: tuple[int, int], pins: Sequence[Pin]) -> list[tuple[int, int, Pin]]:
        """Stretches whose computations knew the same; hours that were never computed go with those before them."""
        moments = _moments(self._history)
        knew = [
            (bisect_right(moments, pin.known_at_ns), bisect_right(moments, pin.computed_ns)) for pin in pins
        ]
        cuts = [0, *(i for i in range(1, len(pins)) if knew[i] != knew[i - 1]), len(pins)]
        stretches = [(pins[a].hour_ns, pins[b - 1]) for a, b in pairwise(cuts)]
        starts = [span[0], *(start for start, _ in stretches[1:]), span[1]]
        return [(a, b, pin) for (a, b), (_, pin) in zip(pairwise(starts), stretches, strict=True)]


_STEPS: Sequence[tuple[Cause, frozenset[Cause]]] = (
    (Cause.READING, frozenset({Cause.READING})),
    (Cause.FACTOR, frozenset({Cause.READING, Cause.FACTOR})),
    (Cause.EVENT, frozenset({Cause.READING, Cause.FACTOR, Cause.EVENT})),
    (Cause.MODEL, frozenset(Cause)),
)


def _moments(history: History) -> list[int]:
    """When something became known that a computation may stand on."""
    utc = ZoneInfo("UTC")
    moments = {published_ns(row.published, utc) for row in history.current.library.rows if row.published}
    moments.update(v.at_ns for v in history.said)
    for _, event in history.current.events:
        moments.update(at for at in (event.known_ns, event.withdrawn_ns) if at is not None)
    return sorted(moments)


def _pieces(start_ns: int, end_ns: int, history: History) -> list[tuple[int, int]]:
    """Stretches of at most a week, cut where the model changes."""
    cuts = {
        *range(start_ns, end_ns, PIECE_HOURS * HOUR_NS),
        end_ns,
        *history.hours_of_change(start_ns, end_ns),
    }
    return list(pairwise(sorted(cuts)))


async def _opening(
    store: PostgresStore, history: History, before: Sequence[WindowResult], start_ns: int
) -> Stocks | None:
    """What the storages held at the start by the figures of before."""
    if not before or not before[0].storages or not await store.has_run(start_ns - HOUR_NS):
        return None
    first = before[0]
    held = Stocks(first.storages, first.flows, first.stock_kwh[:, 0], first.stock_kg[:, :, 0])
    return _of(held, (await history.engine_at(start_ns - 1)).storages)


def _of(stocks: Stocks, storages: Sequence[str]) -> Stocks:
    rows = [i for i, name in enumerate(stocks.storages) if name in storages]
    return Stocks(tuple(stocks.storages[i] for i in rows), stocks.flows, stocks.kwh[rows], stocks.kg[rows])


def _stocks_after(result: WindowResult) -> Stocks:
    return Stocks(result.storages, result.flows, result.stock_kwh[:, -1], result.stock_kg[:, :, -1])


def _digests(parts: Sequence[WindowResult]) -> dict[int, bytes]:
    return {hour: digest for part in parts for hour, digest in hour_digests(part).items()}


def _figures(part: WindowResult) -> dict[str, float]:
    """Sums over a result: energy of every edge, emissions of every node by flow. What is unknown adds nothing."""
    kwh = np.nansum(part.energy.energy_kwh, axis=-1).tolist()
    figures = {f"energy {edge} kWh": value for edge, value in zip(part.edges, kwh, strict=True)}
    for node, row in zip(part.nodes, np.nansum(part.emissions_kg, axis=-1).tolist(), strict=True):
        for flow, kg in zip(part.flows, row, strict=True):
            figures[f"emissions {node} scope {flow.scope} {flow.basis} {flow.method_set} kgCO2e"] = kg
    return figures


def _summed(parts: Sequence[WindowResult]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in _figures(part).items():
            total[name] = total.get(name, 0.0) + value
    return total


def _add(figures: dict[str, Changed], parts: Sequence[WindowResult], when: str) -> None:
    for name, value in _summed(parts).items():
        setattr(figures[name], when, getattr(figures[name], when) + value)


def _by(figure: Changed, cause: Cause, value: float) -> None:
    if value:
        figure.by[cause] = figure.by.get(cause, 0.0) + value


class _Job:
    """How far a recomputation is, in the database."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], row: asyncpg.Record) -> None:
        self._pool = pool
        self._id: int = row["id"]
        self.known_at_ns = time_ns_of(row["known_at"])
        self.done_ns = time_ns_of(row["done_until"])

    @classmethod
    async def begun(
        cls,
        pool: asyncpg.Pool[asyncpg.Record],
        start_ns: int,
        end_ns: int,
        asked: str,
        known_at_ns: int,
        who: str,
    ) -> _Job:
        """A new one, or the same one that was broken off."""
        row = await pool.fetchrow(
            "INSERT INTO ecmc.recompute (start_time, end_time, asked, known_at, done_until, who)"
            " VALUES ($1, $2, $3, $4, $1, $5)"
            " ON CONFLICT (start_time, end_time, asked) DO UPDATE SET who = excluded.who RETURNING *",
            datetime_of(start_ns),
            datetime_of(end_ns),
            asked,
            datetime_of(known_at_ns),
            who,
        )
        assert row is not None
        return cls(pool, row)

    async def reached(self, done_ns: int) -> None:
        await self._pool.execute(
            "UPDATE ecmc.recompute SET done_until = $2 WHERE id = $1", self._id, datetime_of(done_ns)
        )

    async def done(self) -> None:
        await self._pool.execute("DELETE FROM ecmc.recompute WHERE id = $1", self._id)
