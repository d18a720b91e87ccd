"""Whatever a gateway sends, the MQTT driver goes on, and a good value is one the payload held, at a time it may have."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.delivery import BEHIND_S
from collector.drivers.broker import Columns, Message
from collector.drivers.mqtt import MqttDriver
from collector.payload import JsonPath
from core import quality
from core.plant.model import MqttSource, Plant
from core.samples import AHEAD_NS, NS_PER_S

NOW = 1_772_439_300 * NS_PER_S
POINTS = {
    "a": MqttSource("t/1", "$.v.a"),
    "b": MqttSource("t/1", "$.v.b"),
    "own": MqttSource("t/1", "$.v.c", time_path="$.ts"),
    "first": MqttSource("t/1", "$.list", reduce="first"),
    "one": MqttSource("t/1", "$.list[id=1].v.a"),
    "any": MqttSource("t/+", "$.*.a"),
    "bare": MqttSource("t/2", ""),
    "whole": MqttSource("t/3", "$"),
}


class Fixed:
    def now_ns(self) -> int:
        return NOW


def numbers_in(value: Any) -> Iterator[float]:
    """Every number a document holds, as a number, as text or as truth."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float | str):
        try:
            yield float(value)
        except (ValueError, OverflowError):
            return


numbers = st.one_of(
    st.floats(), st.integers(), st.integers(10**300, 10**320), st.booleans(), st.none(),
    st.sampled_from(["12.5", "-3", "--", "", "NaN", "1_000", "0x10", "1e999", " 7 ", "Infinity", "12,5"]),
)  # fmt: skip
times = st.one_of(
    st.sampled_from([NOW // NS_PER_S, NOW // 10**6, 0, -1, 10**30, "20260302081500", "yesterday", None, 1e10, "99999999999999"]),
    st.floats(), st.integers(), st.datetimes().map(lambda moment: moment.isoformat()),
)  # fmt: skip
inner = st.dictionaries(st.sampled_from(["a", "b", "c", "ts", "id"]), numbers | times, max_size=5)
documents = st.one_of(
    numbers,
    st.dictionaries(
        st.sampled_from(["v", "list", "ts", "time", "x"]),
        st.one_of(inner, times, numbers, st.lists(st.one_of(numbers, inner, st.fixed_dictionaries({"id": numbers, "v": inner})), max_size=3)),
        max_size=5,
    ),
    st.recursive(numbers, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text(max_size=3), deeper, max_size=3), max_leaves=8),
)  # fmt: skip
texts = st.one_of(
    documents.map(json.dumps).map(str.encode),
    documents.map(json.dumps).map(lambda text: text.encode()[: len(text) // 2]),
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(["t/1", "t/2", "t/3"]), texts, st.booleans()), max_size=4))
def test_no_payload_makes_a_wrong_good_value_or_stops_reception(
    plant_of: Callable[..., Plant], messages: list[tuple[str, bytes, bool]]
) -> None:
    plant = plant_of(1, POINTS)
    driver = MqttDriver(plant, plant.connections[0], Fixed())
    for topic, payload, retained in messages:
        columns = Columns()
        driver._take(Message(topic, payload, 1, 1, retained, NOW), columns)
        batch = driver._delivery.batch(*columns.arrays())
        good = batch.status == quality.GOOD
        assert (batch.time_ns >= NOW - (BEHIND_S + 1) * NS_PER_S).all()
        assert (batch.time_ns <= NOW + AHEAD_NS).all()
        if good.any():
            held = set(numbers_in(payload.decode()))
            with contextlib.suppress(ValueError):
                held |= set(numbers_in(json.loads(payload)))
            assert all(math.isfinite(value) and value in held for value in batch.value[good].tolist())

    columns = Columns()
    driver._take(Message("t/1", b'{"v": {"a": 1.5, "b": 2.5}}', 1, 1, False, NOW), columns)
    assert [*zip(columns.slots[:2], columns.raws[:2], strict=True)] == [(0, 1.5), (1, 2.5)]


@given(st.text(alphabet="$.[]*='!abc01 ", max_size=15), documents)
def test_no_text_breaks_the_reader_of_paths(text: str, document: Any) -> None:
    try:
        path = JsonPath(text)
    except ValueError:
        return
    for match in path.find(document):
        assert match.trail is not None
