"""Closing periods, and proving later that nothing in them was touched.

A day closes some days after its end, a month after its days. What arrives later
still changes the figures, but not silently: the closed ones are kept under their
revision, and the day gets a new seal that says why. `verify` walks the chain,
hashes what is stored, computes every closed day again from the readings, the
model and the factors of then, and names the first thing that differs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from core.answers.inventory import fuel_of
from core.carbon.factors import FactorLibrary
from core.clock import Clock, rfc3339, time_ns_of
from core.compute.engine import Engine
from core.compute.history import History, Known
from core.compute.pipeline import computed, runs_of_hours
from core.energy.register import LONGEST_SHAPED_NS
from core.errors import BadRequest, EcmcError, StoreTrouble
from core.lookback import WEEK_NS, WEEKS
from core.results import HOUR_NS
from core.seal import Seal, day_digest, first_difference, hour_digests, month_digest, whole_hours
from core.store.seam import Stocks, Store

log = logging.getLogger(__name__)

EVERY_S = 300.0
_DAY_NS = 24 * HOUR_NS
_ENDED_AGO_NS = 2 * HOUR_NS  # no day closes sooner after its end, by hand neither
SYSTEM = "ecmc"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found.

    Attributes:
        difference: The first thing that is not as it was sealed, in words; None where all is.
        replayed, hashed: Days computed again from their readings; days checked by their hashes alone.
        lost_before_ns: Readings before this are no longer kept; None where all are.
        link: What the chain ends in. Written down elsewhere, it shows later that nothing was cut off the end.
    """

    seals: int
    replayed: int
    hashed: int
    difference: str | None = None
    lost_before_ns: int | None = None
    link: str = ""


class Sealing:
    """Closes the periods of one plant and verifies them."""

    def __init__(self, store: Store, history: History, clock: Clock) -> None:
        self._store = store
        self._history = history
        self._clock = clock

    # closing ------------------------------------------------------------------

    async def run(self, may_close: Callable[[], Awaitable[bool]]) -> None:
        """Close what is due until cancelled; a database that is away is tried again the next time."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                if not await may_close():
                    continue
                async for seal in self.close_due():
                    if seal.revision > 1:
                        log.warning(
                            "closed figures changed: %s revision %d, %s", seal.label, seal.revision, seal.why
                        )
            except StoreTrouble as why:
                log.warning("sealing put off: %s", why)

    async def close_due(self) -> AsyncIterator[Seal]:
        """Close every day and month that is due, and close again those whose figures have changed since."""
        await self._history.refresh()
        async for changed in self._days_changed():
            yield changed
        plant = self._history.current.plant
        due_ns = self._clock.now_ns() - plant.seal_after_days * _DAY_NS
        for label in await self._store.open_days(plant.zone.key, due_ns):
            seal = await self._close_day(label, SYSTEM, f"{plant.seal_after_days} days after its end")
            if seal is not None:
                yield seal
        async for seal in self._months_due(due_ns):
            yield seal

    async def close_changed(self) -> AsyncIterator[Seal]:
        """Close again the days and months whose figures have changed since: a new revision beside the old."""
        await self._history.refresh()
        async for seal in self._days_changed():
            yield seal
        async for seal in self._months_due(None):
            yield seal

    async def _days_changed(self) -> AsyncIterator[Seal]:
        for label, why in await self._store.reopened_days():
            seal = await self._close_day(label, SYSTEM, why or "figures changed")
            if seal is not None:
                yield seal

    async def _months_due(self, due_ns: int | None) -> AsyncIterator[Seal]:
        """Closed months of which a day has a newer revision, and those over by `due_ns` whose days are all closed."""
        days: dict[str, Seal] = {}
        months: dict[str, Seal] = {}
        for seal in await self._store.seal_chain():
            (days if seal.period == "day" else months)[seal.label] = seal
        by_month: dict[str, list[Seal]] = {}
        for day in days.values():
            by_month.setdefault(day.label[:7], []).append(day)
        for label, mine in sorted(by_month.items()):
            _, end_ns = span_of(label, self._zone)
            digest = month_digest({day.label: day.digest for day in mine})
            closed = months.get(label)
            if closed is None and (due_ns is None or end_ns > due_ns or await self._open_in(label)):
                continue
            if closed is not None and closed.digest == digest:
                continue
            newest = max(mine, key=lambda day: day.sealed_at_ns)
            why = "its days are closed" if closed is None else f"day {newest.label}: {newest.why}"
            month = await self._close_month(label, SYSTEM, why)
            if month is not None:
                yield month

    async def _open_in(self, month: str) -> bool:
        _, end_ns = span_of(month, self._zone)
        return any(day.startswith(month) for day in await self._store.open_days(self._zone.key, end_ns))

    async def close(self, label: str, who: str, why: str) -> Seal:
        """Close a day or month by hand; a month closes its open days first.

        Raises:
            BadRequest: It is not over, has nothing stored, is closed as it stands, or is still being computed.
        """
        await self._history.refresh()
        _, end_ns = span_of(label, self._zone)
        if end_ns > self._clock.now_ns() - _ENDED_AGO_NS:
            raise BadRequest(
                f"{label} ends at {rfc3339(end_ns)}: a period closes two hours after its end or later"
            )
        changed = [day for day, _ in await self._store.reopened_days()]
        open_days = await self._store.open_days(self._zone.key, end_ns)
        wanted = [
            day for day in sorted({*changed, *open_days}) if day == label or day.startswith(f"{label}-")
        ]
        if len(label) == 10:
            if not wanted:
                raise BadRequest(f"{label} is closed as it stands, or nothing was ever stored of it")
            return await self._closed_day(label, who, why)
        for day in wanted:
            await self._closed_day(day, who, why)
        seal = await self._close_month(label, who, why)
        if seal is None:
            raise BadRequest(f"nothing was ever stored of {label}")
        return seal

    async def _closed_day(self, label: str, who: str, why: str) -> Seal:
        seal = await self._close_day(label, who, why)
        if seal is None:
            raise BadRequest(f"{label} is still being computed: try again in a moment")
        return seal

    async def _close_day(self, label: str, who: str, why: str) -> Seal | None:
        start_ns, end_ns = span_of(label, self._zone)
        engines = [segment.engine for segment in await self._history.segments(start_ns, end_ns)]

        def describe(ids: set[str]) -> dict[str, object]:
            return factors_said(ids, engines)

        return await self._store.close_day(label, *whole_hours(start_ns, end_ns), describe, who, why)

    async def _close_month(self, label: str, who: str, why: str) -> Seal | None:
        return await self._store.close_month(label, *whole_hours(*span_of(label, self._zone)), who, why)

    @property
    def _zone(self) -> ZoneInfo:
        return self._history.current.plant.zone

    # verifying ----------------------------------------------------------------

    async def verify(self, link: str | None = None) -> Verdict:
        """Check every seal; stops at the first difference.

        Args:
            link: What the chain once ended in, which must still be in it.
        """
        await self._history.refresh()
        chain = await self._store.seal_chain()
        difference = _chain_difference(chain)
        if difference is None and link is not None and link.lower() not in {s.chain.hex() for s in chain}:
            difference = f"the chain no longer holds {link}: what was closed then was cut off or written anew"
        days = [seal for seal in chain if seal.period == "day"]
        newest = {seal.label: seal.revision for seal in days}
        points = {p for d in days[:1] for p in (await self._history.engine_at(d.start_ns)).points}
        points.update(self._history.current.points)
        lost_ns = await self._store.kept_from(sorted(points))
        replayed = hashed = 0
        for seal in days:
            if difference is not None:
                break
            difference = await self._stored_difference(seal)
            replayable = lost_ns is None or seal.start_ns >= lost_ns + _DAY_NS
            if lost_ns is not None and replayable:
                # A silence is filled by the weeks before it, and a gap by those before its beginning.
                back_ns = len(WEEKS) * WEEK_NS + LONGEST_SHAPED_NS
                silent = await self._store.silent_hours(*whole_hours(seal.start_ns, seal.end_ns))
                replayable = not silent or seal.start_ns - back_ns >= lost_ns
            if difference is None and replayable:
                difference = await self._replay_difference(seal)
            if difference is None and seal.revision == newest[seal.label]:
                difference = await self._rollup_difference(seal)
            difference = difference and f"day {seal.label} revision {seal.revision}: {difference}"
            replayed, hashed = replayed + replayable, hashed + (not replayable)
        if difference is None:
            difference = _month_difference(chain)
        ends_in = chain[-1].chain.hex() if chain else ""
        return Verdict(len(chain), replayed, hashed, difference, lost_ns, ends_in)

    async def _stored_difference(self, seal: Seal) -> str | None:
        """Whether the figures stored are those that were sealed; which one is not, where a replay can tell."""
        hours: dict[int, bytes] = {}
        for part in await self._store.stored(seal.start_ns, seal.end_ns, seal.revision):
            hours |= hour_digests(part)
        if day_digest(hours) == seal.digest:
            return self._factor_difference(seal)
        try:
            named = await self._replay_difference(seal)
        except EcmcError:
            named = None
        return named or "the stored figures are not those that were sealed"

    def _factor_difference(self, seal: Seal) -> str | None:
        """A factor row that says something else than at the seal."""
        library = self._history.current.library
        for row_id, then in seal.factors.items():
            if row_id not in library.row_by_id:
                continue  # of an older folder: the replay reads it from there
            now = _row_said(library, row_id)
            if now != then:
                return f"factor {row_id} said {then} when this was sealed, now {now}"
        return None

    async def _replay_difference(self, seal: Seal) -> str | None:
        """The first figure that does not follow from the readings, model and factors of the seal."""
        pins = await self._store.pins(seal.start_ns, seal.end_ns, seal.sealed_at_ns)
        for first_ns, last_ns in runs_of_hours([pin.hour_ns for pin in pins]):
            cuts = [first_ns, *self._history.hours_of_change(first_ns, last_ns), last_ns]
            for start_ns, end_ns in pairwise(cuts):
                known = sorted({pin.known_at_ns for pin in pins if start_ns <= pin.hour_ns < end_ns})
                difference = await self._piece_difference(seal, start_ns, end_ns, known[-1])
                if difference is not None and len(known) > 1:  # factors may have become known within the day
                    difference = None
                    for pin in pins:
                        if start_ns <= pin.hour_ns < end_ns and difference is None:
                            hour = pin.hour_ns
                            difference = await self._piece_difference(
                                seal, hour, hour + HOUR_NS, pin.known_at_ns
                            )
                if difference is not None:
                    return difference
        return None

    async def _piece_difference(self, seal: Seal, start_ns: int, end_ns: int, known_at_ns: int) -> str | None:
        (stored,) = (await self._store.stored(start_ns, end_ns, seal.revision))[:1]
        stocks: Stocks | None = None
        if await self._store.has_run(start_ns - HOUR_NS):
            before = await self._history.engine_at(start_ns - 1, Known.at(seal.sealed_at_ns))
            held = [name for name in stored.storages if name in before.storages]
            rows = [stored.storages.index(name) for name in held]
            stocks = Stocks(tuple(held), stored.flows, stored.stock_kwh[rows, 0], stored.stock_kg[rows, :, 0])
        segments = await self._history.segments(start_ns, end_ns, Known.at(seal.sealed_at_ns))
        again = await computed(self._store, segments, stocks, known_at_ns, seal.sealed_at_ns)
        return first_difference(stored, again)

    async def _rollup_difference(self, seal: Seal) -> str | None:
        for part in await self._store.stored(seal.start_ns, seal.end_ns):
            difference = await self._store.rollup_difference(part)
            if difference is not None:
                return difference
        return None


def span_of(label: str, zone: ZoneInfo) -> tuple[int, int]:
    """[start, end) of a day (2026-10-05) or month (2026-10) in the zone.

    Raises:
        BadRequest: It is neither.
    """
    try:
        if len(label) == 7:
            first = date.fromisoformat(f"{label}-01")
            last = (first + timedelta(days=31)).replace(day=1)
        elif len(label) == 10:
            first = date.fromisoformat(label)
            last = first + timedelta(days=1)
        else:
            raise ValueError
    except ValueError:
        raise BadRequest(f"{label!r} is no day such as 2026-10-05 and no month such as 2026-10") from None
    start, end = (datetime(day.year, day.month, day.day, tzinfo=zone) for day in (first, last))
    return time_ns_of(start), time_ns_of(end)


def factors_said(ids: set[str], engines: list[Engine]) -> dict[str, object]:
    """What the rows say that figures stand on: those used, and the fuels that burn."""
    said: dict[str, object] = {}
    for engine in engines:
        plant, library = engine.plant, engine.library
        for row_id in ids:
            if row_id in library.row_by_id:
                said[row_id] = _row_said(library, row_id)
        for node in plant.nodes:
            if node.burns is not None:
                fuel = library.fuel(fuel_of(plant, node))
                said.update(
                    (row.id, _row_said(library, row.id)) for row in (fuel.row, *library.burning_rows(fuel))
                )
    return dict(sorted(said.items()))


def _row_said(library: FactorLibrary, row_id: str) -> dict[str, object]:
    row = library.row(row_id)
    said: dict[str, object] = {"value": row.value, "unit": row.unit}
    return said | {"valid_from": row.valid_from, "published": row.published}


def _chain_difference(chain: list[Seal]) -> str | None:
    """Where the chain does not hold: a seal altered, taken out or put in."""
    before = b""
    revisions: dict[tuple[str, str], int] = {}
    for seal in chain:
        named = f"{seal.period} {seal.label} revision {seal.revision}"
        if seal.chain != seal.linked(before):
            return f"the chain breaks at {named}: this seal, or the one before it, is not what was written"
        expected = revisions.get((seal.period, seal.label), 0) + 1
        if seal.revision != expected:
            return f"{named}: revision {expected} was to come first"
        revisions[seal.period, seal.label] = seal.revision
        before = seal.chain
    return None


def _month_difference(chain: list[Seal]) -> str | None:
    """A month that is not its days as they stood when it was closed."""
    days: dict[str, bytes] = {}
    for seal in chain:
        if seal.period == "day":
            days[seal.label] = seal.digest
        elif month_digest({d: v for d, v in days.items() if d.startswith(seal.label)}) != seal.digest:
            return f"month {seal.label} revision {seal.revision}: not the sum of its days"
    return None
