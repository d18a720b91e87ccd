"""Sparkplug B host application (Eclipse Sparkplug 3.0): what a number is called is known only from a birth.

An edge node announces its metrics once, by name, alias and datatype, and then
speaks in aliases. A message that was missed may have been a new birth, so from
a gap in the sequence on no alias is believed: what follows waits a moment for
the missing one, and then the node is asked for a rebirth. A value that carries
its own name and type needs none of that and is kept. What the protocol itself
cannot tell is a birth lost on the way that nobody asked for and no death came
before, with exactly as many messages lost behind it as the sequence stood at.

The only things published are that request, no more often than each ten seconds
a node and ever more rarely where it is not answered, and the host's STATE,
which edge nodes with a store of their own wait for.

Edge nodes report by exception, so an unchanged value would look like a missing
one. It is repeated while its node lives, dated ninety seconds back: had the node
gone by then, the broker would have said so within its keep-alive. A node that
gathers its changes before it sends them is given twice the longest it took, and
one that has sent nothing since its birth is not vouched for at all.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from collector.delivery import plausible
from collector.driver import DeviceState
from collector.drivers.broker import BrokerDriver, Columns, Message
from collector.sparkplug import REBIRTH, is_number, number_of, payload_of, rebirth_request, says_its_own_type
from core import quality
from core.clock import NS_PER_S, Clock
from core.plant.model import Connection, MqttSource, Plant

log = logging.getLogger(__name__)

_SEQUENCE: Final = 256
REORDER_S: Final = 2.0  # what comes in the wrong order comes this soon
HELD_MESSAGES: Final = _SEQUENCE // 2  # of more, nobody knows whose turn it is
REBIRTH_S: Final = 10.0
REBIRTH_AT_MOST_S: Final = 300.0
REPEAT_S: Final = 10.0
REPEAT_LAG_S: Final = 90.0  # one and a half times a keep-alive of a minute
OLDEST_NS: Final = 10**18  # 2001; a history before that is a clock that was never set

_KINDS: Final = frozenset({"NBIRTH", "NDATA", "NDEATH", "NCMD", "DBIRTH", "DDATA", "DDEATH"})
_NODE = ""  # the place of an edge node's own metrics, beside its devices


@dataclass(slots=True)
class _Place:
    """One device of an edge node, or the node itself, as its last birth described it."""

    slots: dict[str, list[int]]  # of ours, by metric name
    born: bool = False
    types: dict[str, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # by alias
    missing: list[str] = field(default_factory=list)
    last_ns: int = 0
    bad: str = ""
    gone_said: bool = True  # its points are marked as not connected, or were never heard of

    def all_slots(self) -> list[int]:
        return [slot for slots in self.slots.values() for slot in slots]

    def forget(self) -> None:
        self.born = False
        self.types.clear()
        self.names.clear()


@dataclass(slots=True)
class _Node:
    """An edge node and where it stands in its sequence."""

    name: str
    places: dict[str, _Place]
    born: bool = False
    bd_seq: int | None = None
    expected: int = 0
    held: dict[int, tuple[Message, Any]] = field(default_factory=dict)
    held_until_ns: int | None = None
    ask_at_ns: int | None = None
    asked_ns: int = 0
    asked: int = 0  # in a row, with little time between
    unanswered: int = 0
    births_until_ns: int | None = None  # its devices' births follow its own
    lost_said: bool = False  # its points are marked as without communication
    marked_ns: int = 0
    newest_ns: int = 0
    gathers_ns: int | None = None  # the longest from a value's time to its arrival
    counters: dict[str, int] = field(
        default_factory=lambda: {
            "messages": 0,
            "bad_payloads": 0,
            "sequence_gaps": 0,
            "unknown_metrics": 0,
            "rebirths_asked": 0,
            "retained_refused": 0,
            "stale_deaths": 0,
            "times_refused": 0,
        }
    )

    def distrust(self) -> None:
        """Nothing said before holds any more."""
        self.born = False
        self.held.clear()
        self.held_until_ns = self.births_until_ns = None
        for place in self.places.values():
            place.forget()

    def slots(self) -> list[int]:
        return [slot for place in self.places.values() for slot in place.all_slots()]


class SparkplugDriver(BrokerDriver):
    """The edge nodes of one group that the plant has points of.

    A point's `topic` names its edge node, or `node/device`; its `json_path` is the metric's name.

    Options of the connection: those of `BrokerDriver`, `group`, and `host_id` (`ecmc-<plant>` unless given).
    """

    keeps_session = False  # 5.4.1: an old message says nothing without the births around it

    def __init__(self, plant: Plant, connection: Connection, clock: Clock | None = None) -> None:
        super().__init__(plant, connection, clock)
        self._group = str(connection.options["group"])
        self._state = f"spBv1.0/STATE/{connection.options.get('host_id') or f'ecmc-{plant.id}'}"
        self._online_ms = 0
        self._nodes: dict[str, _Node] = {}
        self._lives_from: dict[str, set[tuple[str, str]]] = {device.id: set() for device in self._devices}
        for slot, point in enumerate(self._points):
            if isinstance(point.source, MqttSource):
                node, _, device = point.source.topic.partition("/")
                places = self._nodes.setdefault(node, _Node(node, {_NODE: _Place({})})).places
                slots = places.setdefault(device, _Place({})).slots
                slots.setdefault(point.source.json_path, []).append(slot)
                self._lives_from[str(point.device)].add((node, device))
        self._repeat_ns = [int(max(REPEAT_S, point.period_s) * NS_PER_S) for point in self._points]
        self._last_ns = [0] * len(self._points)
        self._last_raw = [math.nan] * len(self._points)
        self._repeats_at_ns = 0

    def devices(self) -> Mapping[str, DeviceState]:
        states = {}
        for device, lives_from in self._lives_from.items():
            nodes = [self._nodes[name] for name in sorted({node for node, _ in lives_from})]
            places = [(node, name, self._nodes[node].places[name]) for node, name in sorted(lives_from)]
            unborn = ["/".join(filter(None, (node, name))) for node, name, place in places if not place.born]
            missing = [metric for _, _, place in places for metric in place.missing]
            bad = next((place.bad for _, _, place in places if place.bad), "")
            up = self._lost is None and self._up and not unborn
            if self._lost is not None or not self._up:
                detail = self._lost or "connecting"
            elif unborn:
                detail = f"no birth of {', '.join(unborn)}"
            elif missing:
                detail = f"not in the birth as numbers: {', '.join(missing[:5])}"
            else:
                detail = f"payload not readable: {bad}" if bad else "born"
            counters = {"messages_dropped": self._dropped}
            for node in nodes:
                for name, count in node.counters.items():
                    counters[name] = counters.get(name, 0) + count
            last_ns = max((place.last_ns for _, _, place in places), default=0)
            states[device] = DeviceState(up, last_ns or self._since_ns, detail, counters)
        return states

    # ---- the session

    def _listens(self) -> Mapping[str, int]:
        return {**{self._filter(node): 1 for node in self._nodes}, self._state: 1}

    def _filter(self, node: str) -> str:
        return f"spBv1.0/{self._group}/+/{node}/#"

    def _slots_of(self, topic: str) -> Sequence[int]:
        return next((node.slots() for node in self._nodes.values() if self._filter(node.name) == topic), [])

    def _will(self) -> tuple[str, bytes] | None:
        self._online_ms = self._clock.now_ns() // 1_000_000
        return self._state, self._state_payload(False)

    def _opened(self) -> None:
        now_ns = self._clock.now_ns()
        self._last_raw = [math.nan] * len(self._points)
        for node in self._nodes.values():
            node.distrust()
            node.unanswered, node.lost_said = 0, True  # the gap was marked where the session ended
            node.marked_ns = max(node.marked_ns, now_ns)
            node.ask_at_ns = None
            self._want_rebirth(node, now_ns, REORDER_S)  # some are born again by seeing the STATE
        self._say_online()

    def _last_word(self) -> tuple[str, bytes] | None:
        self._online_ms = self._clock.now_ns() // 1_000_000
        return self._state, self._state_payload(False)

    def _state_payload(self, online: bool) -> bytes:
        return json.dumps({"online": online, "timestamp": self._online_ms}).encode()

    def _say_online(self) -> None:
        if self._client is not None:
            self._client.publish(self._state, self._state_payload(True), qos=1, retain=True)

    def _tend(self, columns: Columns) -> None:
        now_ns = self._clock.now_ns()
        for node in self._nodes.values():
            if node.held_until_ns is not None and now_ns >= node.held_until_ns:
                self._give_up_order(node, now_ns, columns)
            if node.births_until_ns is not None and now_ns >= node.births_until_ns:
                node.births_until_ns = None
                for place in node.places.values():
                    if not place.born and not place.gone_said:
                        place.gone_said = True
                        self._mark(node, place.all_slots(), now_ns, quality.BAD_NOT_CONNECTED, columns)
            if node.ask_at_ns is not None and now_ns >= node.ask_at_ns:
                self._ask_for_rebirth(node, now_ns, columns)
        if now_ns >= self._repeats_at_ns or self._repeats_at_ns > now_ns + 2 * NS_PER_S:
            self._repeats_at_ns = now_ns + NS_PER_S
            self._repeat(now_ns, columns)

    def _give_up_order(self, node: _Node, now_ns: int, columns: Columns) -> None:
        """What is missing has not come; of what waited for it, only what names itself is certain."""
        held = list(node.held.values())
        node.distrust()
        for message, payload in held:
            self._values(node, message, payload, columns)
        self._want_rebirth(node, now_ns)

    def _want_rebirth(self, node: _Node, now_ns: int, after_s: float = 0.0) -> None:
        """Ask after `after_s`, and not before the last request is long enough ago."""
        if now_ns - node.asked_ns > REBIRTH_AT_MOST_S * NS_PER_S:
            node.asked = 0
        wait_s = min(REBIRTH_S * 2.0 ** min(node.asked - 1, 10), REBIRTH_AT_MOST_S) if node.asked else 0.0
        at_ns = max(now_ns + int(after_s * NS_PER_S), node.asked_ns + int(wait_s * NS_PER_S))
        node.ask_at_ns = at_ns if node.ask_at_ns is None else min(at_ns, node.ask_at_ns)

    def _ask_for_rebirth(self, node: _Node, now_ns: int, columns: Columns) -> None:
        if node.unanswered and not node.lost_said:
            node.lost_said = True
            self._mark(node, node.slots(), now_ns, quality.BAD_NO_COMMUNICATION, columns)
        node.asked_ns, node.ask_at_ns = now_ns, None
        node.asked += 1
        node.unanswered += 1
        node.counters["rebirths_asked"] += 1
        self._want_rebirth(node, now_ns)  # withdrawn by a birth
        if self._client is not None:
            topic = f"spBv1.0/{self._group}/NCMD/{node.name}"
            self._client.publish(topic, rebirth_request(now_ns // 1_000_000), qos=0, retain=False)

    def _repeat(self, now_ns: int, columns: Columns) -> None:
        for node in self._nodes.values():
            if not node.born or node.held or node.gathers_ns is None:
                continue
            at_ns = now_ns - max(int(REPEAT_LAG_S * NS_PER_S), 2 * node.gathers_ns)
            for place in node.places.values():
                for slot in place.all_slots() if place.born else ():
                    raw = self._last_raw[slot]
                    if at_ns - self._last_ns[slot] >= self._repeat_ns[slot] and not math.isnan(raw):
                        columns.add_one(slot, at_ns, raw, quality.GOOD)
                        self._last_ns[slot] = at_ns

    # ---- messages

    def _take(self, message: Message, columns: Columns) -> None:
        if message.topic == self._state:
            self._see_state(message)
            return
        levels = message.topic.split("/")
        node = self._nodes.get(levels[3]) if len(levels) in (4, 5) else None
        if node is None or levels[2] not in _KINDS:
            return
        if message.retained:  # no Sparkplug message but the STATE is: the past is not now
            node.counters["retained_refused"] += 1
            return
        node.counters["messages"] += levels[2] != "NCMD"
        try:
            payload = payload_of(message.payload)
            if levels[2] == "NCMD":
                if any(metric.name == REBIRTH for metric in payload.metrics):
                    node.distrust()  # somebody asked: should that birth get lost, nothing else would tell
            elif levels[2] == "NDEATH":
                self._node_death(node, message, payload, columns)
            elif not payload.HasField("seq") or payload.seq >= _SEQUENCE:
                raise ValueError(f"{levels[2]} without a sequence number of 0 to 255")
            elif levels[2] == "NBIRTH":
                self._node_birth(node, message, payload, columns)
            else:
                self._in_sequence(node, message, payload, columns)
        except Exception as why:  # whatever the payload was, the next one is read
            node.counters["bad_payloads"] += 1
            place = node.places.get(_device_of(message.topic))
            if place is not None:
                place.bad = f"{message.topic}: {str(why)[:100]}"
            self._want_rebirth(node, message.arrival_ns, REORDER_S)

    def _see_state(self, message: Message) -> None:
        """Somebody, or an older session's will, says this host is offline: it is not (5.14)."""
        try:
            document = json.loads(message.payload)
            says_offline = not isinstance(document, dict) or document.get("online") is not True
        except ValueError:
            says_offline = True
        if says_offline and self._up:
            self._say_online()

    def _in_sequence(self, node: _Node, message: Message, payload: Any, columns: Columns) -> None:
        if not node.born:
            self._values(node, message, payload, columns)
            self._want_rebirth(node, message.arrival_ns, REORDER_S)
        elif payload.seq != node.expected:
            if not node.held:
                node.counters["sequence_gaps"] += 1
                node.held_until_ns = message.arrival_ns + int(REORDER_S * NS_PER_S)
            node.held[payload.seq] = (message, payload)
            if len(node.held) > HELD_MESSAGES:
                self._give_up_order(node, message.arrival_ns, columns)
        else:
            self._accept(node, message, payload, columns)
            while (later := node.held.pop(node.expected, None)) is not None:
                self._accept(node, *later, columns)
            if not node.held:
                node.held_until_ns = None

    def _accept(self, node: _Node, message: Message, payload: Any, columns: Columns) -> None:
        """A message whose turn it is."""
        node.expected = (payload.seq + 1) % _SEQUENCE
        kind, device = message.topic.split("/")[2], _device_of(message.topic)
        if kind == "DBIRTH":
            self._birth(node, device, message, payload, columns)
        elif kind == "DDEATH":
            place = node.places.get(device)
            if place is not None:
                place.forget()
                place.gone_said = True
                at_ns = self._time_of(node, payload, message)
                self._mark(node, place.all_slots(), at_ns, quality.BAD_NOT_CONNECTED, columns)
        else:
            self._values(node, message, payload, columns)

    def _node_birth(self, node: _Node, message: Message, payload: Any, columns: Columns) -> None:
        held = list(node.held.values())
        node.distrust()
        for earlier in held:
            self._values(node, *earlier, columns)
        node.born, node.expected = True, (payload.seq + 1) % _SEQUENCE
        node.bd_seq = _bd_seq(payload)
        node.ask_at_ns, node.unanswered, node.lost_said = None, 0, False
        node.births_until_ns = message.arrival_ns + int(REBIRTH_S * NS_PER_S)
        self._birth(node, _NODE, message, payload, columns)

    def _birth(self, node: _Node, device: str, message: Message, payload: Any, columns: Columns) -> None:
        place = node.places.get(device)
        if place is None:
            return
        place.forget()
        place.born, place.gone_said = True, False
        twice: set[int] = set()
        for metric in payload.metrics:
            place.types[metric.name] = metric.datatype
            if not metric.HasField("alias"):
                continue
            if place.names.setdefault(metric.alias, metric.name) != metric.name:
                twice.add(metric.alias)
        for alias in twice:  # it names two: it names none
            del place.names[alias]
        at_ns = self._time_of(node, payload, message)
        self._values(node, message, payload, columns, birth_ns=at_ns)
        place.missing = [name for name in place.slots if not is_number(place.types.get(name, 0))]
        slots = [slot for name in place.missing for slot in place.slots[name]]
        self._mark(node, slots, at_ns, quality.BAD_CONFIGURATION_ERROR, columns)

    def _node_death(self, node: _Node, message: Message, payload: Any, columns: Columns) -> None:
        bd_seq = _bd_seq(payload)
        if node.born and bd_seq is not None and node.bd_seq is not None and bd_seq != node.bd_seq:
            node.counters["stale_deaths"] += 1  # the will of an earlier session
            return
        was_known = node.born or not node.lost_said
        node.distrust()
        node.ask_at_ns = None  # nobody is there to ask; it comes back with a birth
        if was_known:
            node.lost_said = True
            for place in node.places.values():
                place.gone_said = True
            # The payload's time is that of the connection's beginning.
            self._mark(node, node.slots(), message.arrival_ns, quality.BAD_NOT_CONNECTED, columns)

    def _mark(self, node: _Node, slots: Sequence[int], at_ns: int, status: int, columns: Columns) -> None:
        if slots:
            at_ns = max(at_ns, node.newest_ns + 1_000)  # the edge node's clock may be ahead of ours
            node.marked_ns = max(node.marked_ns, at_ns)
            for slot in slots:
                self._last_raw[slot] = math.nan
                columns.add_one(slot, at_ns, math.nan, status)

    def _values(
        self, node: _Node, message: Message, payload: Any, columns: Columns, birth_ns: int | None = None
    ) -> None:
        """Add the values of one message whose names are certain.

        Args:
            birth_ns: Of a birth: when it was said, since it says what holds then, however old the change is.
        """
        device = _device_of(message.topic)
        place = node.places.get(device)
        if place is None:
            return
        unknown = 0
        last_ns, last_raw = self._last_ns, self._last_raw
        times: dict[int, tuple[int, int]] = {}  # most values of a message have one
        for metric in payload.metrics:
            name, datatype = _named(metric, place)
            if name is None:
                unknown += 1
                continue
            slots = place.slots.get(name)
            if slots is None:
                continue
            raw, status = number_of(metric, datatype)
            historical = metric.is_historical
            if historical:
                dated = self._historical(node, metric, message)
                if dated is None:
                    continue
            elif birth_ns is not None:
                dated = birth_ns, quality.GOOD
            else:
                time_ms = metric.timestamp or payload.timestamp
                dated = times.get(time_ms)
                if dated is None:
                    dated = times[time_ms] = self._dated(node, time_ms, message)
            at_ns = dated[0]
            if status == quality.GOOD:
                status = dated[1]
            for slot in slots:
                columns.add_one(slot, at_ns, raw, status)
                if not historical and at_ns >= last_ns[slot]:
                    last_ns[slot], last_raw[slot] = at_ns, raw if status == quality.GOOD else math.nan
            if not historical and at_ns > node.newest_ns:
                node.newest_ns = at_ns
        place.last_ns, place.bad = message.arrival_ns, ""
        node.counters["unknown_metrics"] += unknown
        if unknown or (place.slots and not place.born):
            self._want_rebirth(node, message.arrival_ns, REORDER_S)

    # ---- times

    def _time_of(self, node: _Node, payload: Any, message: Message) -> int:
        """When a birth or a device's death was said; after the last mark, whatever the edge node's clock says."""
        at_ns = payload.timestamp * 1_000_000
        if plausible(at_ns, message.arrival_ns) and at_ns > node.marked_ns:
            return int(at_ns)
        return max(message.arrival_ns, node.marked_ns + 1_000)

    def _dated(self, node: _Node, time_ms: int, message: Message) -> tuple[int, int]:
        """The metric's own time or the message's, where there is one that can be believed, else the arrival's."""
        if not time_ms:
            return message.arrival_ns, quality.GOOD
        at_ns = time_ms * 1_000_000
        if plausible(at_ns, message.arrival_ns):
            node.gathers_ns = max(node.gathers_ns or 0, message.arrival_ns - at_ns)
            return at_ns, quality.GOOD
        node.counters["times_refused"] += 1
        return message.arrival_ns, quality.UNCERTAIN

    def _historical(self, node: _Node, metric: Any, message: Message) -> tuple[int, int] | None:
        """Stored by the edge node while nobody listened, so it may be old; without a time it is nobody's."""
        at_ns = metric.timestamp * 1_000_000
        if OLDEST_NS <= at_ns <= message.arrival_ns or plausible(at_ns, message.arrival_ns):
            return at_ns, quality.GOOD
        node.counters["times_refused"] += 1
        return None


def _device_of(topic: str) -> str:
    return topic.split("/", 4)[4] if topic.count("/") >= 4 else _NODE


def _bd_seq(payload: Any) -> int | None:
    for metric in payload.metrics:
        if metric.name == "bdSeq" and metric.WhichOneof("value") in ("long_value", "int_value"):
            return int(metric.long_value or metric.int_value)
    return None


def _named(metric: Any, place: _Place) -> tuple[str | None, int]:
    """The name and datatype of a metric; no name where neither it nor a birth gives one for certain."""
    name = metric.name or (place.names.get(metric.alias) if metric.HasField("alias") else None)
    if name is None:
        return None, 0
    datatype = place.types.get(name)
    if datatype is None:
        return (name, metric.datatype) if says_its_own_type(metric) else (None, 0)
    if metric.datatype not in (0, datatype):
        return None, 0
    return name, datatype
