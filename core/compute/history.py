"""The plant's models in time: which engine computes which stretch of it.

Results before a change of the network keep the network they had. The database
says which model holds when (core/store/model.py); a past one is read from its
kept documents. What does not follow the model in time is knowledge: factor rows
are those known at the known time, whatever model the energy is counted by.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from core.carbon.factor_row import FactorRow
from core.carbon.factors import FactorLibrary
from core.compute.engine import Engine
from core.errors import EcmcError
from core.plant.archive import PastPlant, read_documents
from core.plant.model import Plant
from core.results import HOUR_NS
from core.store.seam import Store, Validity

log = logging.getLogger(__name__)

_PLANTS_KEPT = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """[start_ns, end_ns) computed by one engine."""

    start_ns: int
    end_ns: int
    engine: Engine


@dataclass(frozen=True, slots=True)
class Known:
    """Up to when what is known of models, factor rows and meter events counts; None: all of it."""

    models_ns: int | None = None
    factors_ns: int | None = None
    events_ns: int | None = None

    @classmethod
    def at(cls, time_ns: int) -> Known:
        return cls(time_ns, time_ns, time_ns)


NOW = Known()


class History:
    """The models of one plant; `current` is the one this process runs with."""

    def __init__(self, current: Engine, store: Store) -> None:
        self.current = current
        self._store = store
        self._validities: Sequence[Validity] = ()
        self._past: OrderedDict[str, PastPlant | None] = OrderedDict()
        self._engines: OrderedDict[tuple[object, ...], Engine] = OrderedDict()
        self._libraries: dict[str, FactorLibrary] = {}

    def adopt(self, current: Engine) -> None:
        """Run with another model from here on."""
        self.current = current
        self._engines.clear()
        self._libraries.clear()

    @property
    def said(self) -> Sequence[Validity]:
        """All that was said about which model holds when."""
        return self._validities

    def hours_of_change(self, start_ns: int, end_ns: int) -> list[int]:
        """Hour edges around each change of model inside (start, end): an hour two models share is computed by itself."""
        edges = {
            at for v in self._validities for at in (v.start_ns, v.end_ns) if at and start_ns < at < end_ns
        }
        around = {hour for at in edges for hour in (at // HOUR_NS * HOUR_NS, -(-at // HOUR_NS) * HOUR_NS)}
        return sorted(hour for hour in around if start_ns < hour < end_ns)

    async def refresh(self) -> None:
        """Hear what has been said about models since, in this process or another."""
        self._validities = await self._store.validities()

    async def segments(self, start_ns: int, end_ns: int, known: Known = NOW) -> list[Segment]:
        """[start, end) cut where the model changes, oldest first; never empty."""
        said = [v for v in self._validities if known.models_ns is None or v.at_ns <= known.models_ns]
        cuts = {start_ns, end_ns}
        for validity in said:
            cuts.update(at for at in (validity.start_ns, validity.end_ns) if at and start_ns < at < end_ns)
        segments: list[Segment] = []
        for first, last in pairwise(sorted(cuts)):
            engine = await self._engine(_holding(said, first), known)
            if segments and segments[-1].engine is engine:
                segments[-1] = Segment(segments[-1].start_ns, last, engine)
            else:
                segments.append(Segment(first, last, engine))
        return segments

    async def engine_at(self, time_ns: int, known: Known = NOW) -> Engine:
        """The engine of the model that holds then."""
        return (await self.segments(time_ns, time_ns + 1, known))[0].engine

    async def plant_at(self, time_ns: int) -> Plant:
        return (await self.engine_at(time_ns)).plant

    async def _engine(self, fingerprint: str | None, known: Known) -> Engine:
        current, empty = self.current, tuple[FactorRow, ...]()
        library = current.library if known.factors_ns is None else await self._library(known.factors_ns)
        events = tuple(event for event in current.events if event[1].known_at(known.events_ns))
        if fingerprint is None or fingerprint == current.fingerprint:
            if library is current.library and events == current.events_now:
                return current
            plant, own = current.plant, empty
        else:
            past = await self._past_plant(fingerprint)
            if past is None:
                return current
            plant, own = past.plant, past.factors
        key = (plant.fingerprint, id(library), events)
        if key not in self._engines:
            self._engines[key] = Engine(plant, with_missing(library, own), current.events, known.events_ns)
            if len(self._engines) > _PLANTS_KEPT:
                self._engines.popitem(last=False)
        self._engines.move_to_end(key)
        return self._engines[key]

    async def _past_plant(self, fingerprint: str) -> PastPlant | None:
        """The kept plant; None where its documents were never kept or say nothing to this version."""
        if fingerprint not in self._past:
            documents = await self._store.documents(fingerprint)
            try:
                past = await asyncio.to_thread(read_documents, documents, fingerprint) if documents else None
            except EcmcError as why:
                log.warning(
                    "a past plant model cannot be read", extra={"model": fingerprint, "why": str(why)}
                )
                past = None
            self._past[fingerprint] = past
            if len(self._past) > 4 * _PLANTS_KEPT:
                self._past.popitem(last=False)
        return self._past[fingerprint]

    async def _library(self, as_of_ns: int) -> FactorLibrary:
        """The factor rows at hand then: the shipped tables, and the plant's own as the folder had them."""
        said = [v for v in self._validities if v.at_ns <= as_of_ns and v.end_ns is None]
        newest = max(said, key=lambda v: v.id).fingerprint if said else self.current.fingerprint
        if newest == self.current.fingerprint:
            return self.current.library
        past = await self._past_plant(newest)
        if past is None:
            return self.current.library
        if newest not in self._libraries:
            now = await self._past_plant(self.current.fingerprint)
            folders_now = {row.id for row in now.factors} if now is not None else set()
            # What people entered through the interface is known by its own time, whatever the folder says.
            entered = [row for row in self.current.library.rows if row.id not in folders_now]
            then = FactorLibrary.shipped().with_rows(past.factors)
            self._libraries[newest] = with_missing(then, entered)
        return self._libraries[newest]


def with_missing(library: FactorLibrary, rows: Sequence[FactorRow]) -> FactorLibrary:
    """The library and those of the rows that it does not have: what an older model needs and a newer folder dropped."""
    missing = [row for row in rows if row.id not in library.row_by_id and row.series not in library.series]
    return library.with_rows(missing) if missing else library


def _holding(said: Sequence[Validity], time_ns: int) -> str | None:
    """Fingerprint of the model that holds at a time: of the newest word that covers it."""
    for validity in reversed(said):
        from_ns, to_ns = validity.start_ns, validity.end_ns
        if (from_ns is None or from_ns <= time_ns) and (to_ns is None or time_ns < to_ns):
            return validity.fingerprint
    return None
