"""Samples in, results out: drains the dirty ledger and keeps every result true.

There is one way to compute a window (`Engine.compute`) and this module only
decides which windows need it. A commit leaves a dirty range in the ledger; the
pipeline widens it to what those readings can influence, computes the base
intervals touched and replaces the hours they lie in, dropping the ledger rows
in the same transaction. Late data, an import, a correction and a live second
all pass here, so a crash between two steps only means the step is done again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from core.bus import COMMITTED, LocalBus
from core.clock import Clock, rfc3339
from core.compute.engine import STANDSTILL_NS, Bearing, Engine
from core.compute.history import History, Segment
from core.compute.workers import HERE, Workers
from core.energy.register import LONGEST_SHAPED_NS
from core.errors import BadRequest, StoreTrouble
from core.health import Health, Part, Status
from core.lookback import WEEK_NS, WEEKS, Wanted
from core.metrics import CONSERVATION_ERROR, ENGINE_LAG_S, ENGINE_SECONDS, ENGINE_WINDOWS
from core.plant.watched import CONSERVED
from core.results import HOUR_NS, WindowResult
from core.samples import NS_PER_S, SampleBatch, concatenate
from core.store.seam import DirtyRange, Run, Stocks, Store

log = logging.getLogger(__name__)

_READ = ("samples", "correction", "event")  # reasons that change what readings say
OPEN_INTERVAL_EVERY_NS = 10 * NS_PER_S  # how often an interval still filling is written, at most
OPEN_INTERVAL_SHARE = 0.05  # of the time: what that may take, so that a large plant's is written less often
LONG_ROUND_S = 0.5
GATHER_S = 15.0  # the longest that a round waits for rows still coming
LONG_RANGE_NS = 24 * HOUR_NS  # a longer dirty range is taken whole, without reading all that is in it
CHUNK_HOURS = 7 * 24  # the longest window computed at once, and
CHUNK_READINGS = (
    4_000_000  # the most readings it may be expected to need: memory stays bounded whatever the span
)


@dataclass(frozen=True, slots=True)
class Span:
    """[start_ns, end_ns), aligned to base intervals."""

    start_ns: int
    end_ns: int


class Pipeline:
    """The one that computes a plant's results; `history` says with which model."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        bus: LocalBus,
        health: Health,
        clock: Clock,
        workers: Workers = HERE,
    ) -> None:
        self._engine = engine
        self.history = History(engine, store)
        self._store = store
        self._bus = bus
        self._health = health
        self._clock = clock
        self.workers = workers
        self._open: WindowResult | None = (
            None  # the newest hour, so that a new minute is not a new hour's work
        )
        self._open_written_ns = 0
        self._open_every_ns = OPEN_INTERVAL_EVERY_NS

    def adopt(self, engine: Engine) -> None:
        """Run with a new plant model; the store says from when on it holds."""
        self._engine = engine
        self.history.adopt(engine)
        self._open = None

    def stocks_now(self) -> Stocks | None:
        """What the storages held when that was last known."""
        hour = self._open
        if hour is None or hour.interval_stock_kwh is None or hour.interval_stock_kg is None:
            return None
        known = np.isfinite(hour.interval_stock_kwh).all(axis=0) & np.isfinite(hour.interval_stock_kg).all(
            axis=(0, 1)
        )
        if not known.any():
            return None
        at = int(np.flatnonzero(known)[-1])
        return Stocks(
            hour.storages, hour.flows, hour.interval_stock_kwh[:, at], hour.interval_stock_kg[:, :, at]
        )

    async def run(self, may_compute: Callable[[], Awaitable[bool]]) -> None:
        """Drain the ledger until cancelled; a database that is away, or another engine's, is waited for."""
        wait_s = 1.0
        with self._bus.subscribe(COMMITTED, depth=1) as news:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    busy = await may_compute() and await self.step()
                    if busy:
                        await self._gather(asyncio.get_running_loop().time() - began)
                    self._health.report("engine", Status.OK)
                    wait_s = 1.0
                except StoreTrouble as why:
                    self._health.report("engine", Status.DEGRADED, f"waiting for the database: {why}")
                    busy, wait_s = False, min(wait_s * 2, 10.0)
                    await asyncio.sleep(wait_s)
                except (BadRequest, ValueError, ArithmeticError, LookupError) as why:
                    # Readings or a model that nobody thought of must not stop the collecting: the ledger waits.
                    if self._health.parts.get("engine", Part(Status.OK)).status is not Status.DOWN:
                        log.exception("results cannot be computed")
                    self._health.report("engine", Status.DOWN, f"cannot compute, tries again: {why}")
                    busy, wait_s = False, min(wait_s * 2, 10.0)
                    await asyncio.sleep(wait_s)
                if not busy:
                    try:
                        async with asyncio.timeout(1.0):
                            await news.get()
                    except TimeoutError:
                        pass
                    await asyncio.sleep(0.2)  # let a burst of commits gather

    async def _gather(self, spent_s: float) -> None:
        """After a long round wait twice as long while rows keep coming: an hour caught up is not computed over and
        over. Nothing but samples is waited for."""
        if spent_s < LONG_ROUND_S:
            return
        loop = asyncio.get_running_loop()
        until, newest = loop.time() + min(2 * spent_s, GATHER_S), -1
        while (left_s := until - loop.time()) > 0:
            await asyncio.sleep(min(left_s, LONG_ROUND_S))
            ranges = await self._store.dirty()
            if not ranges or ranges[-1].id == newest or any(r.reason != "samples" for r in ranges):
                return
            newest = ranges[-1].id

    async def drain(self) -> int:
        """Compute all that is dirty now, open intervals too; returns how many windows were written."""
        windows = 0
        while await self.step(everything=True):
            windows += 1
        return windows

    async def step(self, everything: bool = False) -> bool:
        """One round over the ledger; True when something was written."""
        ranges = await self._store.dirty()
        if not ranges:
            ENGINE_LAG_S.set(0.0)
            return False
        await self.history.refresh()
        if not self._engine.points:  # a plant without a metered network: nothing to compute
            await self._store.forget_dirty([r.id for r in ranges])
            return True
        now_ns = self._clock.now_ns()
        base_ns = self._engine.base_ns
        open_from_ns = now_ns // base_ns * base_ns
        ENGINE_LAG_S.set(max(0.0, (now_ns - min(r.end_ns for r in ranges)) / NS_PER_S))
        still_open = all(r.start_ns >= open_from_ns and r.reason == "samples" for r in ranges)
        since_written_ns = abs(now_ns - self._open_written_ns)  # the clock may have been set back
        if still_open and not everything and since_written_ns < self._open_every_ns:
            return False
        started = asyncio.get_running_loop().time()
        spans = await self._influence(ranges)
        if any(r.reason in _READ for r in ranges):
            await self._mark_weeks_after(spans, now_ns)
        for n, span in enumerate(spans):
            done = [r.id for r in ranges] if n == len(spans) - 1 else []
            await self._compute_span(span, done, ranges[0].reason)
        if not spans:
            await self._store.forget_dirty([r.id for r in ranges])
        self._open_written_ns = now_ns
        spent_s = asyncio.get_running_loop().time() - started
        if still_open:
            self._open_every_ns = max(OPEN_INTERVAL_EVERY_NS, int(spent_s / OPEN_INTERVAL_SHARE * NS_PER_S))
        ENGINE_SECONDS.observe(spent_s)
        return True

    async def recompute(
        self, start_ns: int, end_ns: int, known_at_ns: int | None, reason: str
    ) -> list[WindowResult]:
        """Compute and write every hour that [start, end) touches, with the factors known at `known_at_ns`."""
        span = Span(start_ns // HOUR_NS * HOUR_NS, -(-end_ns // HOUR_NS) * HOUR_NS)
        self._open = None
        await self.history.refresh()
        written: list[WindowResult] = []
        await self._compute_span(span, [], reason, written.append, known_at_ns)
        return written

    async def _influence(self, ranges: Sequence[DirtyRange]) -> list[Span]:
        """What the changed readings can influence, as few spans, oldest first."""
        base_ns = self._engine.base_ns
        spans: list[Span] = []
        for group in _grouped(ranges):
            start_ns = min(r.start_ns for r in group)
            end_ns = max(r.end_ns for r in group)
            models = await self.history.segments(start_ns, end_ns + 1)
            mine = frozenset(point for model in models for point in model.engine.points)
            reach = start_ns, end_ns
            if any(r.reason in _READ for r in group):
                points: set[str] = set()
                for r in group:
                    points |= mine if r.points is None else mine & frozenset(r.points)
                if not points:
                    continue
                corrected = any(r.reason != "samples" for r in group)
                bearing = Bearing.joined(model.engine.bearing for model in models)
                reach = await self._reach(sorted(points), start_ns, end_ns, corrected, bearing)
                if reach[1] > end_ns:  # but not beyond all there is
                    there = await self._store.span(sorted(mine))
                    reach = reach[0], min(reach[1], max(end_ns, there[1] if there else end_ns))
            else:
                there = await self._store.span(sorted(mine))
                if there is None or there[1] < start_ns or end_ns < there[0]:
                    continue  # before the first reading and after the last there is nothing to compute
                reach = max(start_ns, there[0]), min(end_ns, there[1])
            spans.append(Span(reach[0] // base_ns * base_ns, (reach[1] // base_ns + 1) * base_ns))
        return await self._computable(_merged(spans))

    async def _computable(self, spans: list[Span]) -> list[Span]:
        """Less what stands for good: hours computed from readings that are no longer kept."""
        recent_ns = self._clock.now_ns() - LONG_RANGE_NS
        if all(span.start_ns >= recent_ns for span in spans):
            return spans
        kept_ns = await self._store.computable_from(self._engine.points)
        if kept_ns is None:
            return spans
        left: list[Span] = []
        for span in spans:
            at_ns = span.start_ns
            old_to_ns = min(span.end_ns, -(-kept_ns // HOUR_NS) * HOUR_NS)
            for run in await self._store.runs(span.start_ns // HOUR_NS * HOUR_NS, max(at_ns, old_to_ns)):
                log.warning(
                    "readings came for a time whose others are no longer kept; its figures stand",
                    extra={"start": rfc3339(run.start_ns), "end": rfc3339(run.end_ns)},
                )
                if at_ns < run.start_ns:
                    left.append(Span(at_ns, run.start_ns))
                at_ns = run.end_ns
            if at_ns < span.end_ns:
                left.append(Span(at_ns, span.end_ns))
        return left

    async def _mark_weeks_after(self, spans: Sequence[Span], now_ns: int) -> None:
        """Have computed again what later silences took from the weekdays that lie in these spans."""
        for span in spans:
            if span.start_ns + WEEK_NS >= now_ns:
                continue
            first_ns = (span.start_ns + WEEK_NS) // HOUR_NS * HOUR_NS
            last_ns = min(span.end_ns + len(WEEKS) * WEEK_NS, now_ns)
            around_ns = first_ns - LONGEST_SHAPED_NS, last_ns + LONGEST_SHAPED_NS
            for begin_ns, end_ns in runs_of_hours(await self._store.silent_hours(*around_ns)):
                touched = any(
                    begin_ns < span.end_ns + week * WEEK_NS and end_ns > span.start_ns + week * WEEK_NS
                    for week in WEEKS
                )
                if touched:
                    await self._store.mark_dirty(begin_ns, end_ns - 1000, None, "weekday")

    async def _reach(
        self, points: list[str], start_ns: int, end_ns: int, corrected: bool, bearing: Bearing
    ) -> tuple[int, int]:
        spread_ns = self._engine.step_spread_ns
        if end_ns - start_ns <= LONG_RANGE_NS:
            context = await self._store.readings(points, start_ns, end_ns + 1000, spread_ns)
            return influence(context, start_ns, end_ns, bearing, corrected)
        ends = [await self._store.readings(points, at, at + 1000, spread_ns) for at in (start_ns, end_ns)]
        after_ns = max([STANDSTILL_NS if bearing.compared else 0, *bearing.after_ns.values()])
        return (
            min([start_ns, *ends[0].time_ns.tolist()]),
            max([end_ns, *ends[1].time_ns.tolist()]) + after_ns,
        )

    async def _compute_span(
        self,
        span: Span,
        done: Sequence[int],
        reason: str,
        seen: Callable[[WindowResult], None] = lambda _: None,
        known_at_ns: int | None = None,
    ) -> None:
        """Compute and write a span, in chunks; then on through later hours while storages still differ."""
        hour_from = span.start_ns // HOUR_NS * HOUR_NS
        hour_to = -(-span.end_ns // HOUR_NS) * HOUR_NS
        at_ns = hour_from
        chunk = max(1, min(CHUNK_HOURS, int(CHUNK_READINGS / self._engine.readings_per_hour)))
        while at_ns < hour_to:
            until_ns = min(at_ns + chunk * HOUR_NS, hour_to)
            until_ns = next(iter(self.history.hours_of_change(at_ns, until_ns)), until_ns)
            last = until_ns == hour_to
            partial = span if hour_to - hour_from == HOUR_NS else None
            seen(
                await self._compute_hours(at_ns, until_ns, partial, done if last else [], reason, known_at_ns)
            )
            at_ns = until_ns

    async def _compute_hours(
        self,
        start_ns: int,
        end_ns: int,
        span: Span | None,
        done: Sequence[int],
        reason: str,
        known_at_ns: int | None = None,
    ) -> WindowResult:
        known_at_ns = known_at_ns or self._clock.now_ns()
        segments = await self.history.segments(start_ns, end_ns)
        patched = await self._patched(span, segments, known_at_ns) if span is not None else None
        if patched is None:
            before = await stocks_before(self._store, self.history, start_ns, segments[0].engine)
            result = await self._computed(segments, before, known_at_ns)
        else:
            result = patched
        stocks_then = await self._store.stocks(end_ns, result.storages, result.flows)
        run = Run(known_at_ns, segments[-1].engine.fingerprint, reason)
        await self._store.write_window(result, run, done)
        ENGINE_WINDOWS.inc()
        CONSERVATION_ERROR.set(result.conservation_error)
        if result.conservation_error > CONSERVED:
            where = {"from": rfc3339(start_ns), "to": rfc3339(end_ns), "error": result.conservation_error}
            log.error("carbon is not conserved", extra=where)
        newest_ns = self._open.start_ns if self._open is not None else -1
        if end_ns - HOUR_NS >= newest_ns:
            self._open = result.last_hour()
        later_ns = self._clock.now_ns()
        if end_ns <= later_ns and stocks_then is not None and not _same_stocks(stocks_then, result):
            # What a storage holds at the end has changed, and with it what it gives back in the hours that follow.
            reach_ns = min(end_ns + 2 * (end_ns - start_ns), later_ns)
            follow = (await self._store.computed(end_ns, reach_ns + 1)).stretches
            if follow and follow[0][0] == end_ns:
                await self._store.mark_dirty(end_ns, min(reach_ns, follow[0][1] - 1000), None, "stock")
        log.debug("window %s .. %s computed (%s)", rfc3339(start_ns), rfc3339(end_ns), reason)
        return result

    async def _patched(
        self, span: Span, segments: Sequence[Segment], known_at_ns: int
    ) -> WindowResult | None:
        """The newest hour with only the span's base intervals computed anew; None where that hour isn't at hand."""
        hour, engine = self._open, segments[0].engine
        if hour is None or hour.start_ns != span.start_ns // HOUR_NS * HOUR_NS or len(segments) > 1:
            return None
        if (hour.edges, hour.nodes, hour.base_ns) != (engine.edge_names, engine.nodes, engine.base_ns):
            return None
        stock_kwh, stock_kg = hour.interval_stock_kwh, hour.interval_stock_kg
        if stock_kwh is None or stock_kg is None:
            return None
        first = (span.start_ns - hour.start_ns) // hour.base_ns
        stocks = Stocks(hour.storages, hour.flows, stock_kwh[:, first], stock_kg[:, :, first])
        # To the hour's end, for the stocks of later intervals rest on these.
        rest = Segment(hour.start_ns + first * hour.base_ns, hour.end_ns, engine)
        part = await self._computed([rest], stocks, known_at_ns)
        return hour.patched(part)

    async def _computed(
        self, segments: Sequence[Segment], stocks: Stocks | None, known_at_ns: int
    ) -> WindowResult:
        return await computed(self._store, segments, stocks, known_at_ns, workers=self.workers)


async def computed(
    store: Store,
    segments: Sequence[Segment],
    stocks: Stocks | None,
    known_at_ns: int,
    as_of_ns: int | None = None,
    workers: Workers = HERE,
) -> WindowResult:
    """The results of neighbouring segments; several lie in one hour. The only way a figure comes about.

    Args:
        stocks: What the storages hold at the start.
        known_at_ns: Factors published later do not count.
        as_of_ns: Nor do readings that came later; None: all there are.
    """
    parts: list[WindowResult] = []
    for segment in segments:
        engine = segment.engine
        span = segment.start_ns, segment.end_ns
        readings = await store.readings(engine.points, *span, engine.step_spread_ns, as_of_ns)
        part = await workers.compute(engine, readings, *span, stocks, known_at_ns)
        if part.wanted:
            earlier = await _earlier(store, part.wanted, engine.step_spread_ns, as_of_ns)
            part = await workers.compute(engine, readings, *span, stocks, known_at_ns, earlier)
        assert part.interval_stock_kwh is not None
        assert part.interval_stock_kg is not None
        last_kg = part.interval_stock_kg[..., -1]
        stocks = Stocks(part.storages, part.flows, part.interval_stock_kwh[..., -1], last_kg)
        parts.append(part)
    return parts[0] if len(parts) == 1 else WindowResult.joined(parts)


async def stocks_before(store: Store, history: History, start_ns: int, engine: Engine) -> Stocks | None:
    """What the hour before left in the storages; None where it was never computed.

    Stocks stored at an hour that nothing leads up to are how that hour began by itself, which it does anew:
    so they do not depend on which of its readings came first.
    """
    if not engine.storages or not await store.has_run(start_ns - HOUR_NS):
        return None
    model = await history.engine_at(start_ns - 1)
    carried = [name for name in engine.storages if name in model.storages]
    return await store.stocks(start_ns, carried, engine.flows)


async def _earlier(
    store: Store, wanted: Sequence[Wanted], spread_ns: int, as_of_ns: int | None
) -> dict[int, SampleBatch]:
    """The readings that a window asked for, by weeks back."""
    found: dict[int, list[SampleBatch]] = {}
    for ask in wanted:
        back_ns = ask.weeks * WEEK_NS
        span = ask.start_ns - back_ns, ask.end_ns - back_ns
        found.setdefault(ask.weeks, []).append(await store.readings(ask.points, *span, spread_ns, as_of_ns))
    return {weeks: concatenate(batches) for weeks, batches in found.items()}


def influence(
    context: SampleBatch, start_ns: int, end_ns: int, bearing: Bearing, corrected: bool = False
) -> tuple[int, int]:
    """First and last instant whose energy the readings in [start_ns, end_ns] can change.

    `context` is what `Store.readings` gives: the readings themselves and, on both sides, their neighbours and the
    plateaus those stand on. A live register that moves on only reaches back to its last readings; one that leaves
    a plateau reaches back to where the plateau began, for the step may have to be spread over it. A point's newest
    reading says for a while after it that the point is not silent. `corrected`: a reading may have gone, so a point
    counts though it has none left inside.
    """
    first_ns, last_ns = start_ns, end_ns
    if len(context) == 0:
        return first_ns, last_ns
    cuts = np.flatnonzero(np.diff(context.point)) + 1
    bounds = [0, *cuts.tolist(), len(context)]
    for begin, end in pairwise(bounds):
        name = context.points.names[int(context.point[begin])]
        time_ns = context.time_ns[begin:end]
        value = context.value[begin:end]
        inside = int(np.searchsorted(time_ns, start_ns))
        after = int(np.searchsorted(time_ns, end_ns, side="right"))
        if inside == after and not corrected:
            continue
        late = after < time_ns.size
        if corrected or late:  # what follows may continue a plateau or show a glitch
            first_ns = min(first_ns, int(time_ns[0]))
            last_ns = max(last_ns, int(time_ns[-1]))
            if name in bearing.compared:
                last_ns = max(last_ns, end_ns + STANDSTILL_NS)
        elif inside > 0:
            left_plateau = (
                name in bearing.registers
                and inside >= 2
                and bool(value[inside - 1] == value[inside - 2])
                and bool(np.any(value[inside:after] != value[inside - 1]))
            )
            first_ns = min(first_ns, int(time_ns[0 if left_plateau else max(0, inside - 2)]))
        if not late:
            newest_ns = end_ns if corrected else int(time_ns[-1])
            last_ns = max(last_ns, newest_ns + bearing.after_ns.get(name, 0))
    return first_ns, last_ns


def runs_of_hours(hours_ns: Sequence[int]) -> list[tuple[int, int]]:
    """[first, last) of runs of hours that follow each other; the hours come in order."""
    runs: list[tuple[int, int]] = []
    for hour_ns in hours_ns:
        if runs and runs[-1][1] == hour_ns:
            runs[-1] = runs[-1][0], hour_ns + HOUR_NS
        else:
            runs.append((hour_ns, hour_ns + HOUR_NS))
    return runs


def _grouped(ranges: Sequence[DirtyRange]) -> list[list[DirtyRange]]:
    """Ranges in time order; neighbours in one group as long as it spans no more than an hour."""
    groups: list[list[DirtyRange]] = []
    for r in sorted(ranges, key=lambda r: r.start_ns):
        if groups and max(r.end_ns, *(g.end_ns for g in groups[-1])) - groups[-1][0].start_ns <= HOUR_NS:
            groups[-1].append(r)
        else:
            groups.append([r])
    return groups


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: s.start_ns):
        if merged and span.start_ns // HOUR_NS * HOUR_NS <= merged[-1].end_ns:
            merged[-1] = replace(merged[-1], end_ns=max(merged[-1].end_ns, span.end_ns))
        else:
            merged.append(span)
    return merged


def _same_stocks(then: Stocks, result: WindowResult) -> bool:
    """Whether stored stocks are, bit for bit, those the result ends with."""
    return bool(
        np.array_equal(then.kwh, result.stock_kwh[:, -1], equal_nan=True)
        and np.array_equal(then.kg, result.stock_kg[:, :, -1], equal_nan=True)
    )
