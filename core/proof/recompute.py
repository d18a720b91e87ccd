"""A past window computed again: what changed, by how much, and what made it change.

The window goes through the pipeline piece by piece, so memory does not grow with
its length, and each piece is what a late reading there would have made of it. Of
a piece whose figures changed, the computation behind the old ones is repeated
with one thing after the other brought up to now: the readings, then the factor
rows, then the meter events, then the model. What a step changes is that thing's
part, and the parts add up to the difference.

What was changed so far is kept in the database with how far it has come, and so
is how the pieces under way stood before: killed anywhere and begun again, it
says in the end what it would have said.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any
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
        has_forgotten: It was begun by an ecmc that kept no figures: those from before `resumed_ns` are missing.
    """

    start_ns: int
    end_ns: int
    known_at_ns: int
    figures: dict[str, Changed] = field(default_factory=dict)
    seen: int = 0
    resumed_ns: int | None = None
    has_forgotten: bool = False


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
    finish: Callable[[], Awaitable[None]] | None = None,
) -> Recomputed:
    """Compute every hour that [start, end) touches again, between the first and the last reading; write what follows.

    Args:
        known_at_ns: Factors published later do not count; None: now, and the same now when it goes on after a kill.
        current_model: State that the present model held over the window too, and compute with it.
        progress: Told how far it is.
        finish: What is left to do before it counts as done; killed in there, it goes on there.

    Raises:
        BadRequest: The window is empty, or there are no readings in it.
    """
    await pipeline.history.refresh()
    first_ns, last_ns = await _with_readings(store, pipeline.history, start_ns, end_ns)
    job = await _Job.begun(
        store.pool, _Key.of(start_ns, end_ns, known_at_ns, current_model), known_at_ns or now_ns, who
    )
    history = pipeline.history
    is_new = job.done_ns == job.start_ns
    if current_model and is_new:
        await store.restate(
            history.current.fingerprint, first_ns, last_ns, who, "recomputed with the current model"
        )
    await history.refresh()
    made = Recomputed(first_ns, last_ns, job.known_at_ns, job.figures)
    if not is_new:
        made.resumed_ns, made.has_forgotten = max(job.done_ns, first_ns), job.has_forgotten
    pieces = _pieces(job, first_ns, last_ns, history)
    # What a storage holds hands one piece on to the next; without one, pieces go side by side.
    at_once = 1 if await _has_storages(history, first_ns, last_ns) else PIECES_AT_ONCE
    for first in range(0, len(pieces), at_once):
        group = pieces[first : first + at_once]
        before = await asyncio.gather(*(_before(store, history, piece, job.pieces) for piece in group))
        await job.begin(dict(zip(group, before, strict=True)))
        done = await asyncio.gather(
            *(_piece(pipeline, store, job, *piece) for piece in zip(group, before, strict=True))
        )
        for changed, _ in done:  # in the order of time: the sums are the same however the pieces ended
            _merge(job.figures, changed)
        await job.reached(group[-1][1], done[-1][1])
        progress(group[-1][1] - first_ns, last_ns - first_ns)
    if finish is not None:
        await finish()
    await job.done()
    made.seen = len(made.figures)
    for figure in made.figures.values():
        figure.forget_rounding()
    made.figures = {name: figure for name, figure in sorted(made.figures.items()) if figure.by}
    return made


async def is_under_way(
    store: PostgresStore, start_ns: int, end_ns: int, known_at_ns: int | None, current_model: bool
) -> bool:
    """Whether the same recomputation was begun and is not done."""
    key = _Key.of(start_ns, end_ns, known_at_ns, current_model)
    return bool(
        await store.pool.fetchval(
            "SELECT EXISTS (SELECT FROM ecmc.recompute WHERE (start_time, end_time, asked) = ($1, $2, $3))",
            datetime_of(key.start_ns),
            datetime_of(key.end_ns),
            key.asked,
        )
    )


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


@dataclass(frozen=True, slots=True)
class _Before:
    """A piece as it stood before it was computed again.

    Attributes:
        sums: By figure.
        digest: Of its hours.
        opening: What the storages held at the start; None: not known.
    """

    sums: dict[str, float]
    digest: str
    pins: list[Pin]
    opening: Stocks | None

    def said(self) -> dict[str, Any]:
        return {
            "sums": self.sums,
            "digest": self.digest,
            "pins": [[pin.hour_ns, pin.known_at_ns, pin.computed_ns] for pin in self.pins],
            "opening": None if self.opening is None else self.opening.said(),
        }

    @classmethod
    def of_said(cls, said: Mapping[str, Any]) -> _Before:
        opening = said["opening"]
        return cls(
            said["sums"],
            said["digest"],
            [Pin(*pin) for pin in said["pins"]],
            None if opening is None else Stocks.of_said(opening),
        )


async def _before(
    store: PostgresStore, history: History, piece: tuple[int, int], kept: Mapping[tuple[int, int], _Before]
) -> _Before:
    """As it is stored; of a piece that was broken off, as it was kept then."""
    if piece in kept:
        return kept[piece]
    parts = await store.stored(*piece)
    return _Before(
        _summed(parts),
        _digest(parts),
        list(await store.pins(*piece)),
        await _opening(store, history, parts, piece[0]),
    )


async def _piece(
    pipeline: Pipeline, store: PostgresStore, job: _Job, piece: tuple[int, int], before: _Before
) -> tuple[dict[str, Changed], _Carried]:
    """Compute and write one piece; what became of its figures, and what each step leaves in the storages."""
    after = await pipeline.recompute(*piece, job.known_at_ns, "recompute")
    now = _summed(after)
    changed = {
        name: Changed(before.sums.get(name, 0.0), now.get(name, 0.0))
        for name in sorted(now.keys() | before.sums.keys())
    }
    if before.digest == _digest(after):
        return changed, {}
    steps = _Steps(store, pipeline.history, job.known_at_ns, pipeline.workers)
    span = after[0].start_ns, after[-1].end_ns
    return changed, await steps.between(span, before, now, job.carried, changed)


def _merge(figures: dict[str, Changed], piece: Mapping[str, Changed]) -> None:
    """Add a piece's figures to those of the pieces before."""
    for name, part in piece.items():
        figure = figures.setdefault(name, Changed())
        figure.before += part.before
        figure.after += part.after
        for cause, value in part.by.items():
            _by(figure, cause, value)


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
        span: tuple[int, int],
        before: _Before,
        after: Mapping[str, float],
        carried: _Carried,
        changed: dict[str, Changed],
    ) -> _Carried:
        """Give a piece's differences to their causes; returns the stocks each step ends with."""
        left: _Carried = {}
        if not before.pins:  # nothing was computed before: what there is now came with its readings
            for name, value in after.items():
                _by(changed[name], Cause.READING, value)
            return left
        previous: Mapping[str, float] = before.sums
        for step, (cause, knowing) in enumerate(_STEPS):
            if cause is Cause.MODEL:  # the last: what was written
                now = after
            else:
                results = await self._repeated(span, before.pins, knowing, carried.get(step, before.opening))
                now = _summed(results)
                left[step] = _stocks_after(results[-1])
            for name in now.keys() | previous.keys():
                _by(changed.setdefault(name, Changed()), cause, now.get(name, 0.0) - previous.get(name, 0.0))
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


def _pieces(job: _Job, start_ns: int, end_ns: int, history: History) -> list[tuple[int, int]]:
    """What is left of [start, end): at most a week each, cut where the model changes, and as they were when broken off."""
    cuts = {
        start_ns,
        *range(job.start_ns, end_ns, PIECE_HOURS * HOUR_NS),
        end_ns,
        *history.hours_of_change(start_ns, end_ns),
        job.done_ns,
        *(at_ns for piece in job.pieces for at_ns in piece),
    }
    first_ns = max(start_ns, job.done_ns)
    return list(pairwise(sorted(at_ns for at_ns in cuts if first_ns <= at_ns <= end_ns)))


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


def _digest(parts: Sequence[WindowResult]) -> str:
    """The same where every hour is."""
    hours = sorted(hour for part in parts for hour in hour_digests(part).items())
    return hashlib.sha256(repr(hours).encode()).hexdigest()


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


def _by(figure: Changed, cause: Cause, value: float) -> None:
    if value:
        figure.by[cause] = figure.by.get(cause, 0.0) + value


@dataclass(frozen=True, slots=True)
class _Key:
    """What makes two recomputations the same."""

    start_ns: int
    end_ns: int
    asked: str

    @classmethod
    def of(cls, start_ns: int, end_ns: int, known_at_ns: int | None, current_model: bool) -> _Key:
        asked = f"known at {known_at_ns or 'now'}, model {'current' if current_model else 'of its time'}"
        # The hours asked for and not those with readings: the last reading moves on meanwhile.
        return cls(start_ns // HOUR_NS * HOUR_NS, -(-end_ns // HOUR_NS) * HOUR_NS, asked)


class _Job:
    """A recomputation in the database: how far it is, and what it changed.

    Attributes:
        figures: Of the pieces that are done.
        carried: What the last of them left in the storages.
        pieces: Those under way, as they stood before.
        has_forgotten: Whether an ecmc began it that kept no figures.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], row: asyncpg.Record) -> None:
        self._pool = pool
        self._id: int = row["id"]
        self.start_ns = time_ns_of(row["start_time"])
        self.known_at_ns = time_ns_of(row["known_at"])
        self.done_ns = time_ns_of(row["done_until"])
        self.has_forgotten = row["made"] is None
        made = json.loads(row["made"] or '{"figures": {}, "carried": {}}')
        self.figures = {
            name: Changed(before, after, {Cause(cause): part for cause, part in by.items()})
            for name, (before, after, by) in made["figures"].items()
        }
        self.carried: _Carried = {int(step): Stocks.of_said(held) for step, held in made["carried"].items()}
        self.pieces = {
            (start_ns, end_ns): _Before.of_said(said)
            for start_ns, end_ns, said in json.loads(row["begun"] or "[]")
        }

    @classmethod
    async def begun(cls, pool: asyncpg.Pool[asyncpg.Record], key: _Key, known_at_ns: int, who: str) -> _Job:
        """A new one, or the same one that was broken off."""
        row = await pool.fetchrow(
            "INSERT INTO ecmc.recompute (start_time, end_time, asked, known_at, done_until, who, made)"
            " VALUES ($1, $2, $3, $4, $1, $5, $6)"
            " ON CONFLICT (start_time, end_time, asked) DO UPDATE SET who = excluded.who RETURNING *",
            datetime_of(key.start_ns),
            datetime_of(key.end_ns),
            key.asked,
            datetime_of(known_at_ns),
            who,
            json.dumps({"figures": {}, "carried": {}}),
        )
        assert row is not None
        return cls(pool, row)

    async def begin(self, pieces: Mapping[tuple[int, int], _Before]) -> None:
        """Keep how these pieces stand, before they are written."""
        said = [[*piece, before.said()] for piece, before in pieces.items()]
        await self._pool.execute(
            "UPDATE ecmc.recompute SET begun = $2 WHERE id = $1", self._id, json.dumps(said)
        )

    async def reached(self, done_ns: int, carried: _Carried) -> None:
        """The pieces under way are done, and their figures added."""
        self.carried = carried
        made = {
            "figures": {name: [f.before, f.after, f.by] for name, f in self.figures.items()},
            "carried": {step: held.said() for step, held in carried.items()},
        }
        await self._pool.execute(
            "UPDATE ecmc.recompute SET done_until = $2, made = $3, begun = NULL WHERE id = $1",
            self._id,
            datetime_of(done_ns),
            json.dumps(made),
        )

    async def done(self) -> None:
        await self._pool.execute("DELETE FROM ecmc.recompute WHERE id = $1", self._id)
