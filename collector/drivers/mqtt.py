"""MQTT: a message is acknowledged when its samples are on disk, and not before.

The session stays with the broker, so what comes while ecmc is away is delivered
later: with the payload's own time it lands where it belongs. A message without
one is dated on arrival; where it cannot have one (a bare number) QoS 0 is asked
for, since an old value delivered late would be dated wrongly. For the same
reason a retained message without a time of its own is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from paho.mqtt.client import topic_matches_sub

from collector.delivery import plausible
from collector.driver import DeviceState
from collector.drivers.broker import BrokerDriver, Columns, Message
from collector.payload import JsonPath, Match, Times, document_of, number_of, reduced
from core import quality
from core.clock import NS_PER_S, Clock
from core.plant.model import Connection, MqttSource, Plant

SILENT_S: Final = 60.0
KNOWN_TOPICS: Final = 10_000


@dataclass(slots=True)
class _Tag:
    """One point of a topic filter."""

    slot: int
    device: str
    path: JsonPath | None  # None: the payload is the number
    time_path: JsonPath | None
    reduce: str | None


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Points of one device whose values are keys of one object: read together, at the speed of the library."""

    tags: tuple[_Tag, ...]
    slots: tuple[int, ...]
    parent: JsonPath
    values: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class _Topic:
    """What one topic brings."""

    siblings: tuple[_Siblings, ...]
    singles: tuple[_Tag, ...]
    devices: frozenset[str]
    is_json: bool


@dataclass(slots=True)
class _Heard:
    """What a device has said."""

    silent_s: float
    last_ns: int = 0
    bad: str = ""
    counters: dict[str, int] = field(
        default_factory=lambda: {"messages": 0, "bad_payloads": 0, "retained_undated": 0, "times_refused": 0}
    )


class MqttDriver(BrokerDriver):
    """Points that live from topics, by JSON path or as bare numbers.

    Options of the connection: those of `BrokerDriver`, and `qos`.
    """

    def __init__(
        self, plant: Plant, connection: Connection, clock: Clock | None = None, learned: Path | None = None
    ) -> None:
        super().__init__(plant, connection, clock, learned)
        self._zone = plant.zone
        self._tags: dict[str, list[_Tag]] = {}  # by topic filter
        self._heard: dict[str, _Heard] = {}
        self._by_topic: dict[str, _Topic] = {}
        self._filters: dict[str, list[str]] = {device.id: [] for device in self._devices}
        self._unheard: set[str] = set()
        paths: dict[str | None, JsonPath | None] = {None: None, "": None}
        for device in self._devices:
            longest_s = max((plant.point_by_id[name].period_s for name in device.points), default=1.0)
            self._heard[device.id] = _Heard(max(SILENT_S, 10 * longest_s))
        for slot, point in enumerate(self._points):
            source = point.source
            if not isinstance(source, MqttSource):
                continue
            for text in (source.json_path, source.time_path):
                if text not in paths:
                    paths[text] = JsonPath(str(text))
            path, time_path = paths[source.json_path], paths[source.time_path]
            tag = _Tag(slot, str(point.device), path, time_path, source.reduce)
            self._tags.setdefault(source.topic, []).append(tag)
            if source.topic not in self._filters[tag.device]:
                self._filters[tag.device].append(source.topic)
        self._unheard.update(self._tags)

    def devices(self) -> Mapping[str, DeviceState]:
        now_ns = self._clock.now_ns()
        states = {}
        for device, heard in self._heard.items():
            unheard = [topic for topic in self._filters[device] if topic in self._unheard][:5]
            silent_s = (now_ns - max(heard.last_ns, self._since_ns)) / NS_PER_S
            if self._lost is not None or not self._up:
                up, detail = False, self._lost or "connecting"
            elif silent_s > heard.silent_s:
                up, detail = False, f"no message for {silent_s:.0f} s"
            elif heard.bad:
                up, detail = True, f"payload not readable: {heard.bad}"
            elif self._refused:
                up, detail = True, f"subscription refused: {', '.join(self._refused)}"
            elif unheard and heard.last_ns:  # a broker's access list may hold messages back without a word
                up, detail = True, f"connected, nothing yet on {', '.join(unheard)}"
            else:
                up, detail = True, "connected" if heard.last_ns else "no message yet"
            counters = {**heard.counters, "messages_dropped": self._dropped}
            states[device] = DeviceState(up, heard.last_ns or self._since_ns, detail, counters)
        return states

    # ---- messages

    def _listens(self) -> Mapping[str, int]:
        qos = int(str(self._options.get("qos", 1)))
        return {
            topic: qos if any(tag.path is not None for tag in tags) else 0
            for topic, tags in self._tags.items()
        }

    def _slots_of(self, topic: str) -> Sequence[int]:
        return [tag.slot for tag in self._tags[topic]]

    def _take(self, message: Message, columns: Columns) -> None:
        topic = self._topic(message.topic)
        for device in topic.devices:
            self._heard[device].counters["messages"] += 1
        try:
            self._decode(message, topic, columns)
        except Exception as why:  # whatever the payload was, the next one is read
            for device in topic.devices:
                heard = self._heard[device]
                heard.counters["bad_payloads"] += 1
                heard.bad = f"{message.topic}: {str(why)[:100]}"

    def _topic(self, name: str) -> _Topic:
        topic = self._by_topic.get(name)
        if topic is None:
            matching = [wanted for wanted in self._tags if topic_matches_sub(wanted, name)]
            self._unheard.difference_update(matching)
            topic = _topic_of([tag for wanted in matching for tag in self._tags[wanted]])
            if len(self._by_topic) < KNOWN_TOPICS:
                self._by_topic[name] = topic
        return topic

    def _decode(self, message: Message, topic: _Topic, columns: Columns) -> None:
        """Add one message's samples; ValueError where the payload is not readable."""
        document = document_of(message.payload) if topic.is_json else None
        times: dict[JsonPath | None, Times] = {}
        for siblings in topic.siblings:
            if not self._decode_together(message, document, siblings, times, columns):
                for tag in siblings.tags:
                    self._decode_one(message, document, tag, times, columns)
        for tag in topic.singles:
            self._decode_one(message, document, tag, times, columns)
        for device in topic.devices:
            heard = self._heard[device]
            heard.last_ns, heard.bad = message.arrival_ns, ""

    def _decode_together(
        self,
        message: Message,
        document: Any,
        siblings: _Siblings,
        times: dict[JsonPath | None, Times],
        columns: Columns,
    ) -> bool:
        """Whether the object is there once, with a plain number under every key."""
        found = siblings.parent.find(document)
        if len(found) != 1 or type(found[0].value) is not dict:
            return False
        around, parent = found[0], found[0].value
        try:
            values = siblings.values(parent)
        except KeyError:
            return False
        types = set(map(type, values))
        if not types <= {float, int}:
            return False
        if int in types:
            try:
                values = list(map(float, values))
            except OverflowError:
                return False
        inside = Match(None, (*around.trail, parent), around.one_of_many)
        payload_ns = self._times(document, siblings.tags[0], times).of(inside)
        dated = self._dated(message, siblings.tags[0], payload_ns, len(values))
        if dated is not None:
            columns.add(siblings.slots, dated[0], values, dated[1])
        return True

    def _decode_one(
        self,
        message: Message,
        document: Any,
        tag: _Tag,
        times: dict[JsonPath | None, Times],
        columns: Columns,
    ) -> None:
        by_time: dict[int | None, list[tuple[float, int]]] = {}
        if tag.path is None:
            by_time[None] = [number_of(message.payload.decode())]
        else:
            of_message = self._times(document, tag, times)
            for match in tag.path.find(document):
                by_time.setdefault(of_message.of(match), []).append(number_of(match.value))
        for payload_ns, values in by_time.items():
            raw, status = reduced(values, tag.reduce)
            dated = self._dated(message, tag, payload_ns, 1)
            if dated is not None:
                columns.add_one(tag.slot, dated[0], raw, status if status != quality.GOOD else dated[1])

    def _times(self, document: Any, tag: _Tag, times: dict[JsonPath | None, Times]) -> Times:
        if tag.time_path not in times:
            times[tag.time_path] = Times(document, tag.time_path, self._zone)
        return times[tag.time_path]

    def _dated(
        self, message: Message, tag: _Tag, payload_ns: int | None, samples: int
    ) -> tuple[int, int] | None:
        """When samples of a message were so, and the status that goes with it; None: too old to tell."""
        if payload_ns is not None and plausible(payload_ns, message.arrival_ns):
            return payload_ns, quality.GOOD
        counters = self._heard[tag.device].counters
        if message.retained:
            counters["retained_undated"] += samples
            return None
        if payload_ns is None and tag.time_path is None:
            return message.arrival_ns, quality.GOOD
        counters["times_refused"] += samples  # a clock that is wrong, or gives no time today
        return message.arrival_ns, quality.UNCERTAIN


def _topic_of(tags: Sequence[_Tag]) -> _Topic:
    """The points of a topic, those that stand side by side in one object put together."""
    side_by_side: dict[tuple[str, str, JsonPath | None], list[_Tag]] = {}
    singles: list[_Tag] = []
    for tag in tags:
        place = tag.path.place if tag.path is not None else None
        if place is None:
            singles.append(tag)
        else:
            side_by_side.setdefault((tag.device, place[0], tag.time_path), []).append(tag)
    together = []
    for (_, parent, _), of_object in side_by_side.items():
        keys = [tag.path.place[1] for tag in of_object if tag.path is not None and tag.path.place is not None]
        if len(keys) == 1:
            singles += of_object
            continue
        slots = tuple(tag.slot for tag in of_object)
        together.append(_Siblings(tuple(of_object), slots, JsonPath(parent), itemgetter(*keys)))
    return _Topic(
        tuple(together),
        tuple(singles),
        frozenset(tag.device for tag in tags),
        any(tag.path is not None for tag in tags),
    )
