"""The bus inside one process: topics, bounded queues, nobody waits for a slow listener.

It carries news ("this was committed"), never the record: that is the spool's
and the database's business. A listener that falls behind loses the oldest news
and can tell by `dropped`; the publisher never blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Topic(Generic[T]):
    """A typed name for a stream of messages."""

    def __init__(self, name: str) -> None:
        self.name = name


class Subscription(Generic[T]):
    def __init__(self, depth: int) -> None:
        self._queue: asyncio.Queue[T] = asyncio.Queue(maxsize=depth)
        self.dropped = 0

    def offer(self, message: T) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(message)

    async def get(self) -> T:
        return await self._queue.get()

    def get_nowait(self) -> T | None:
        return None if self._queue.empty() else self._queue.get_nowait()

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            yield await self._queue.get()


class LocalBus:
    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription[Any]]] = {}

    def publish(self, topic: Topic[T], message: T) -> None:
        for subscription in self._subscriptions.get(topic.name, ()):
            subscription.offer(message)

    @contextmanager
    def subscribe(self, topic: Topic[T], depth: int = 1024) -> Any:
        """`with bus.subscribe(TOPIC) as news: async for message in news: …`"""
        subscription: Subscription[T] = Subscription(depth)
        self._subscriptions.setdefault(topic.name, set()).add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[topic.name].discard(subscription)
