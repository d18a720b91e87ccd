"""Publish requests kept with an OPC UA server, and what it answers handed on in order.

The library keeps one, which a link of 100 ms turns into ten answers a second,
and lets an answer it cannot read fall under the table. Here as many are with
the server as it has subscriptions to tell of, and one more; a message that is
missing in a subscription's numbering is asked for again, and where that fails
the link counts as lost, so that the gap is marked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from asyncua import ua
from asyncua.ua.ua_binary import struct_from_binary
from asyncua.ua.uaerrors import BadTooManyPublishRequests

from collector.drivers.opcua_session import Session, said
from collector.drivers.opcua_wire import PublishAnswer, publish_answer, republished
from core.errors import DeviceUnreachable

MOST_REQUESTS: Final = 10
_SEQUENCE: Final = 2**32
_MOST_MISSING: Final = 100


@dataclass(slots=True)
class _Subscription:
    published: Callable[[PublishAnswer], None]
    expected: int | None = None  # sequence number
    in_turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # else a late one would pass for the newest


class Publisher:
    """The subscriptions of one session; `lost` is told what ended them.

    While `has_room` is not set nothing is asked for: what comes waits in the server's queues, or ends there with a
    mark of its own.
    """

    def __init__(self, session: Session, lost: Callable[[str], None], has_room: asyncio.Event) -> None:
        self._session = session
        self._has_room = has_room
        self._lost = lost
        self._subscriptions: dict[int, _Subscription] = {}
        self._acknowledge: list[ua.SubscriptionAcknowledgement] = []
        self._requests: set[asyncio.Task[None]] = set()
        self._most = MOST_REQUESTS

    async def subscribe(
        self, parameters: ua.CreateSubscriptionParameters, published: Callable[[PublishAnswer], None]
    ) -> ua.CreateSubscriptionResult:
        """A subscription, and what to call with each of its messages, right as it comes."""
        request = ua.CreateSubscriptionRequest()
        request.Parameters = parameters
        response = struct_from_binary(ua.CreateSubscriptionResponse, await self._session.send(request))
        response.ResponseHeader.ServiceResult.check()
        self._subscriptions[response.Parameters.SubscriptionId] = _Subscription(published)
        if len(self._requests) < self._most:
            wanted = min(len(self._subscriptions) + 1, self._most) - len(self._requests)
            self._requests |= {
                asyncio.create_task(self._ask(), name=f"publish:{self._session.where}") for _ in range(wanted)
            }
        return response.Parameters

    async def close(self) -> None:
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        self._requests.clear()

    async def _ask(self) -> None:
        try:
            while True:
                await self._has_room.wait()
                request = ua.PublishRequest()
                acknowledged, self._acknowledge = self._acknowledge, []
                request.Parameters.SubscriptionAcknowledgements = acknowledged
                try:
                    answer = publish_answer(await self._session.send(request, 0))
                except BadTooManyPublishRequests:
                    self._acknowledge += acknowledged
                    if self._most > 1:
                        self._most = max(1, min(self._most, len(self._requests)) - 1)
                    if len(self._requests) > self._most:
                        self._requests.discard(asyncio.current_task())
                        return
                    await asyncio.sleep(1.0)
                else:
                    subscription = self._subscriptions.get(answer.subscription)
                    if subscription is not None:
                        async with subscription.in_turn:
                            await self._take(subscription, answer)
        except (OSError, DeviceUnreachable) as why:
            self._lost(f"link lost: {said(why)}")
        except Exception as why:  # of bytes that are no such message anything can come
            self._lost(f"publish answer: {said(why)}")

    async def _take(self, subscription: _Subscription, answer: PublishAnswer) -> None:
        expected, sequence = subscription.expected, answer.sequence
        missing = (sequence - expected) % _SEQUENCE if expected is not None else 0
        if missing < _SEQUENCE // 2:  # else it is one that was asked for again
            subscription.expected = sequence if answer.is_alive_only else sequence % (_SEQUENCE - 1) + 1
        else:
            missing = 0
        if missing > _MOST_MISSING:
            self._lost(f"{missing} publish answers of subscription {answer.subscription} missing")
            return
        for number in range(sequence - missing, sequence):
            self._hand_on(subscription, await self._again(answer.subscription, number % _SEQUENCE))
        self._hand_on(subscription, answer)

    def _hand_on(self, subscription: _Subscription, answer: PublishAnswer) -> None:
        subscription.published(answer)
        if not answer.is_alive_only:
            self._acknowledge.append(
                ua.SubscriptionAcknowledgement(
                    SubscriptionId=ua.UInt32(answer.subscription), SequenceNumber=ua.UInt32(answer.sequence)
                )
            )

    async def _again(self, subscription: int, sequence: int) -> PublishAnswer:
        """A message that did not come, from what the server keeps until it is acknowledged."""
        request = ua.RepublishRequest()
        request.Parameters.SubscriptionId = ua.UInt32(subscription)
        request.Parameters.RetransmitSequenceNumber = ua.UInt32(sequence)
        return republished(await self._session.send(request), subscription)
