from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.stream import PERIOD_S, QUEUE_EVENTS, Hub, StreamTopic
from core.bus import COMMITTED, LIVE
from core.samples import batch_of_rows


@dataclass
class Event:
    id: str
    name: str
    data: Any


class Stream:
    """A reader of the event stream over a real connection."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.lines = answer.aiter_lines()

    async def next(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(5):
            async for line in self.lines:
                if line.startswith((":", "retry")):
                    continue
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    return Event(fields["id"], fields["event"], json.loads(fields["data"]))
        raise EOFError


@pytest.fixture
async def open_stream(serving):
    """`await open_stream(base_url, query, last_event_id)`; closed at the end."""
    async with httpx.AsyncClient(timeout=10) as client:
        answers = []

        async def start(base_url: str, query: str = "", last_event_id: str | None = None) -> Stream:
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            request = client.build_request("GET", f"{base_url}/v1/stream?{query}", headers=headers)
            answer = await client.send(request, stream=True)
            answers.append(answer)
            return Stream(answer)

        yield start
        for answer in answers:
            await answer.aclose()


def power(world, value: float, later_s: float = 0.0, point: str = "e-grid.power"):
    return batch_of_rows([(point, world.clock.now_ns() + round(later_s * 1e9), value, 0)])


async def test_a_snapshot_comes_first_then_what_changed(world, serving, open_stream) -> None:
    await world.store.write(power(world, 5.0))
    world.live = world.picture(80.0)
    async with serving(world) as base_url:
        stream = await open_stream(base_url)
        snapshot = await stream.next()
        world.bus.publish(COMMITTED, power(world, 6.0, later_s=1))
        latest = await stream.next()
        world.bus.publish(LIVE, world.picture(90.0))
        live = await stream.next()
        world.alarms.observe(power(world, 120.0, later_s=2))
        alert = await stream.next()

    assert stream.answer.headers["x-accel-buffering"] == "no"
    assert stream.answer.headers["content-type"].startswith("text/event-stream")
    assert (snapshot.name, snapshot.id) == ("snapshot", "b1-0")
    assert snapshot.data["latest"][0]["value"] == 5.0
    assert snapshot.data["live"]["nodes"][0]["power_kw"] == 80.0
    assert snapshot.data["alerts"] == []
    assert (latest.name, latest.id, latest.data[0]["value"]) == ("latest", "b1-1", 6.0)
    assert (live.name, live.data["nodes"][0]["power_kw"], live.data["estimate"]) == ("live", 90.0, True)
    assert (alert.name, alert.data["state"]) == ("alerts", "active-unack")


async def test_only_the_topics_asked_for_come(world, serving, open_stream) -> None:
    async with serving(world) as base_url:
        stream = await open_stream(base_url, "topic=alerts")
        snapshot = await stream.next()
        world.bus.publish(LIVE, world.picture(90.0))
        world.alarms.observe(power(world, 120.0))
        event = await stream.next()
    assert snapshot.data == {"alerts": []}
    assert event.name == "alerts"


async def test_a_burst_of_samples_is_one_event_with_the_newest_of_each_point(
    world, serving, open_stream
) -> None:
    async with serving(world) as base_url:
        stream = await open_stream(base_url, "topic=latest")
        await stream.next()
        for second in range(50):
            world.bus.publish(COMMITTED, power(world, float(second), later_s=second))
        world.bus.publish(COMMITTED, power(world, 7.0, point="e-roof.power"))
        event = await stream.next()
    assert {row["point"]: row["value"] for row in event.data} == {"e-grid.power": 49.0, "e-roof.power": 7.0}


async def test_late_samples_are_no_news(world, serving, open_stream) -> None:
    async with serving(world) as base_url:
        stream = await open_stream(base_url, "topic=latest")
        await stream.next()
        world.bus.publish(COMMITTED, power(world, 5.0))
        await stream.next()
        world.bus.publish(COMMITTED, power(world, -1.0, later_s=-60))
        world.bus.publish(COMMITTED, power(world, 7.0, point="e-roof.power"))
        event = await stream.next()
    assert [row["point"] for row in event.data] == ["e-roof.power"]


async def test_a_reader_that_comes_back_misses_nothing(world, serving, open_stream) -> None:
    async with serving(world) as base_url:
        first = await open_stream(base_url, "topic=live")
        await first.next()
        seen = []
        for power_kw in (1.0, 2.0, 3.0):
            world.bus.publish(LIVE, world.picture(power_kw))
            seen.append(await first.next())
        again = await open_stream(base_url, "topic=live", seen[0].id)
        replayed = [await again.next(), await again.next()]
    assert [(event.id, event.name) for event in replayed] == [(event.id, "live") for event in seen[1:]]


@pytest.mark.parametrize("last_event_id", ["other-1", "b1-999", "b1-x", "nonsense"])
async def test_an_id_of_another_life_leads_to_a_fresh_snapshot(
    world, serving, open_stream, last_event_id: str
) -> None:
    async with serving(world) as base_url:
        first = await open_stream(base_url, "topic=live")
        await first.next()
        for power_kw in (1.0, 2.0):
            world.bus.publish(LIVE, world.picture(power_kw))
            await first.next()
        stream = await open_stream(base_url, "topic=live", last_event_id)
        assert (await stream.next()).name == "snapshot"


async def test_a_reader_too_slow_gets_a_fresh_snapshot_and_holds_up_nobody(world) -> None:
    hub = Hub(world.services())
    running = asyncio.create_task(hub.run())
    await asyncio.sleep(0)  # let it subscribe
    slow = hub.events([StreamTopic.ALERTS], None)
    assert (await anext(slow)).startswith(b"retry")
    assert b"event: snapshot" in await anext(slow)

    for turn in range(QUEUE_EVENTS + 1):
        world.alarms.observe(power(world, 120.0 if turn % 2 == 0 else 50.0, later_s=turn))
    await asyncio.sleep(2 * PERIOD_S)
    event = await anext(slow)

    assert b"event: snapshot" in event
    assert b"active-unack" in event
    hub.close()
    with pytest.raises(StopAsyncIteration):
        await anext(slow)
    running.cancel()


async def test_streams_end_when_the_server_stops(world, serving, open_stream) -> None:
    loop = asyncio.get_running_loop()
    async with serving(world) as base_url:
        stream = await open_stream(base_url)
        await stream.next()
        began = loop.time()
    assert loop.time() - began < 2.0
    with pytest.raises(EOFError):
        await stream.next()


async def test_the_database_being_away_does_not_stop_the_stream(world, serving, open_stream) -> None:
    world.store.away = True
    world.live = world.picture(80.0)
    async with serving(world) as base_url:
        snapshot = await (await open_stream(base_url)).next()
    assert snapshot.data["latest"] is None
    assert snapshot.data["live"]["nodes"][0]["power_kw"] == 80.0


async def test_a_connection_that_came_while_we_stopped_does_not_hold_us_up(
    world, serving, monkeypatch
) -> None:
    closing, looked_at = H11Protocol.shutdown, set()

    def missed_at_first(protocol: H11Protocol) -> None:
        if protocol in looked_at:
            closing(protocol)
        looked_at.add(protocol)

    monkeypatch.setattr(H11Protocol, "shutdown", missed_at_first)
    loop = asyncio.get_running_loop()
    async with serving(world) as base_url:
        host, port = base_url.removeprefix("http://").split(":")
        _, idle = await asyncio.open_connection(host, int(port))
        await asyncio.sleep(0.05)  # accepted
        began = loop.time()
    assert loop.time() - began < 2.0
    assert looked_at
    idle.close()
