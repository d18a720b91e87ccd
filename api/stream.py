"""What happens now, as Server-Sent Events: a snapshot first, then what changed.

Every event carries whole values, so a reader that missed some is right again
with the next. A reader too slow for its queue loses what waits in it and gets
a fresh snapshot; nobody upstream ever waits. The id is `<boot>-<seq>`: a reader
that comes back within the ring's reach goes on where it was, one that comes
back after a restart starts anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

from api.answer import qualities, times
from core.bus import ALERTS, COMMITTED, LIVE, LiveUpdate
from core.clock import rfc3339
from core.errors import StoreTrouble
from core.metrics import STREAM_CLIENTS, STREAM_RESTARTS
from core.samples import SampleBatch, concatenate

if TYPE_CHECKING:
    from api.deps import Services

PERIOD_S: Final = 0.25  # at most four events a second and topic
PING_S: Final = 15.0
QUEUE_EVENTS: Final = 64
RING_BYTES: Final = 8 * 1024 * 1024


class StreamTopic(StrEnum):
    LATEST = "latest"
    LIVE = "live"
    ALERTS = "alerts"


@dataclass(frozen=True, slots=True)
class _Event:
    seq: int
    topic: StreamTopic
    text: bytes


@dataclass(slots=True, eq=False)
class _Reader:
    topics: frozenset[StreamTopic]
    waiting: deque[_Event] = field(default_factory=deque)
    lost: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Hub:
    """Turns the bus's news into events, once for all readers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._seq = 0
        self._ring: deque[_Event] = deque()
        self._ring_bytes = 0
        self._readers: set[_Reader] = set()
        self._newest_ns: dict[str, int] = {}
        self._closed = False

    async def run(self) -> None:
        """Publish until cancelled."""
        bus = self._services.bus
        with (
            bus.subscribe(COMMITTED) as committed,
            bus.subscribe(LIVE) as live,
            bus.subscribe(ALERTS) as alerts,
        ):
            while True:
                await asyncio.sleep(PERIOD_S)
                batches: list[SampleBatch] = []
                while (batch := committed.get_nowait()) is not None:
                    batches.append(batch)
                if batches and (rows := self._newest_rows(concatenate(batches))):
                    self._publish(StreamTopic.LATEST, rows)
                newest = None
                while (update := live.get_nowait()) is not None:
                    newest = update
                if newest is not None:
                    self._publish(StreamTopic.LIVE, live_body(newest))
                while (alert := alerts.get_nowait()) is not None:
                    self._publish(StreamTopic.ALERTS, alert.alert)

    def close(self) -> None:
        """End every stream; those who ask from now on get an empty one."""
        self._closed = True
        for reader in self._readers:
            reader.news.set()

    async def events(
        self, topics: Collection[StreamTopic], last_event_id: str | None
    ) -> AsyncIterator[bytes]:
        """The stream of one reader, until it goes or the hub closes."""
        with self._reading(frozenset(topics)) as reader:
            yield b"retry: 2000\n\n"
            missed = self._missed(reader.topics, last_event_id)
            if missed is None:
                yield await self._snapshot(reader)
            else:
                for event in missed:
                    yield event.text
            while not self._closed:
                try:
                    async with asyncio.timeout(PING_S):
                        await reader.news.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                reader.news.clear()
                if reader.lost:
                    reader.lost = False
                    STREAM_RESTARTS.inc()
                    yield await self._snapshot(reader)
                while reader.waiting and not self._closed:
                    yield reader.waiting.popleft().text

    @contextmanager
    def _reading(self, topics: frozenset[StreamTopic]) -> Iterator[_Reader]:
        reader = _Reader(topics)
        self._readers.add(reader)
        STREAM_CLIENTS.inc()
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            STREAM_CLIENTS.dec()

    def _publish(self, topic: StreamTopic, body: object) -> None:
        self._seq += 1
        event = _Event(self._seq, topic, self._text(self._seq, topic.value, body))
        self._ring.append(event)
        self._ring_bytes += len(event.text)
        while self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft().text)
        for reader in self._readers:
            if topic not in reader.topics:
                continue
            if len(reader.waiting) >= QUEUE_EVENTS:
                reader.waiting.clear()
                reader.lost = True
            reader.waiting.append(event)
            reader.news.set()

    def _text(self, seq: int, name: str, body: object) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (
            self._services.boot.encode(),
            seq,
            name.encode(),
            orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
        )

    def _missed(self, topics: frozenset[StreamTopic], last_event_id: str | None) -> list[_Event] | None:
        """What came after that event; None where only a snapshot can say."""
        boot, _, number = (last_event_id or "").rpartition("-")
        if boot != self._services.boot or not number.isdecimal():
            return None
        last = int(number)
        oldest = self._ring[0].seq if self._ring else self._seq + 1
        if not oldest - 1 <= last <= self._seq:
            return None
        return [event for event in self._ring if event.seq > last and event.topic in topics]

    async def _snapshot(self, reader: _Reader) -> bytes:
        """The state of the reader's topics; what waits for it by then is in it and dropped."""
        services = self._services
        body: dict[str, object] = {}
        if StreamTopic.LATEST in reader.topics:
            body["latest"] = await self._latest()
        reader.waiting.clear()
        if StreamTopic.LIVE in reader.topics:
            picture = services.live()
            body["live"] = None if picture is None else live_body(picture)
        if StreamTopic.ALERTS in reader.topics:
            body["alerts"] = services.alarms.active()
        return self._text(self._seq, "snapshot", body)

    async def _latest(self) -> list[dict[str, object]] | None:
        """The newest sample of every point; None while the database is away."""
        plant = self._services.plant()
        try:
            newest = await self._services.store.latest(list(plant.point_by_id))
        except StoreTrouble:
            return None
        columns = (newest.time_ns, newest.value, newest.status)
        return self._rows(list(newest.points), *columns)

    def _newest_rows(self, batch: SampleBatch) -> list[dict[str, object]]:
        """The newest sample of each point of the batch that is newer than what was told before."""
        order = np.lexsort((batch.time_ns, batch.point))
        point = batch.point[order]
        last = order[np.append(point[1:] != point[:-1], True)] if order.size else order
        newest = batch.take(last)
        names = newest.names()
        news = [
            time_ns > self._newest_ns.get(name, -1)
            for name, time_ns in zip(names, newest.time_ns.tolist(), strict=True)
        ]
        newest = newest.take(np.array(news, dtype=np.bool_))
        names = newest.names()
        self._newest_ns.update(zip(names, newest.time_ns.tolist(), strict=True))
        return self._rows(names, newest.time_ns, newest.value, newest.status)

    def _rows(
        self, names: list[str], time_ns: np.ndarray, value: np.ndarray, status: np.ndarray
    ) -> list[dict[str, object]]:
        point_by_id = self._services.plant().point_by_id
        rows = zip(names, times(time_ns), value.tolist(), qualities(status.tolist()), strict=True)
        return [
            {
                "point": name,
                "time": time,
                "value": number,
                "unit": point_by_id[name].unit,
                "quality": word,
                "status": code,
            }
            for name, time, number, (word, code) in rows
            if name in point_by_id
        ]


def live_body(picture: LiveUpdate) -> dict[str, object]:
    """A live picture as people get it, said to be an estimate."""
    return {
        "time": rfc3339(picture.time_ns),
        "estimate": True,
        "nodes": picture.nodes,
        "edges_kw": picture.edges_kw,
    }
