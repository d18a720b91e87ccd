"""Numbers and times out of the payloads that products really send."""

from __future__ import annotations

import json
import math
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.payload import JsonPath, Times, document_of, number_of, reduced, time_of
from core import quality
from core.clock import parse_rfc3339

ZONE = ZoneInfo("Asia/Shanghai")
ARRAY = {
    "gateway": "GW2301",
    "ts": "20260302081500",
    "meters": [
        {"addr": "0012", "v": {"P": "12.307", "EPE": "0.00"}},
        {"addr": "0013", "v": {"P": "--", "EPE": "1.50"}},
    ],
}


@pytest.mark.parametrize(
    ("path", "document", "values"),
    [
        ("$.ENERGY.Power", {"ENERGY": {"Power": 795}}, [795]),
        ("$.ENERGY.Power", {"ENERGY": {"Power": [810, 795, 802]}}, [810, 795, 802]),
        ("$.ENERGY.Power", {"ENERGY": {}}, []),
        ("$.ENERGY.Power", {"ENERGY": 3}, []),
        ("$.a.b[0].c", {"a": {"b": [{"c": 1}, {"c": 2}]}}, [1]),
        ("$.a.b[2].c", {"a": {"b": [{"c": 1}]}}, []),
        ("$.meters[].v.P", ARRAY, ["12.307", "--"]),
        ("$.meters.v.P", ARRAY, ["12.307", "--"]),
        ("$.meters[addr=0013].v.EPE", ARRAY, ["1.50"]),
        ("$.*.values.x", {"Meter 1": [{"values": {"x": 5}}], "M2": [{"values": {"x": 6}}]}, [5, 6]),
        ("$['Meter 1'].values.x", {"Meter 1": [{"values": {"x": 5}}]}, [5]),
        ("$.Meter 1.values.x", {"Meter 1": [{"values": {"x": 5}}]}, [5]),
        ("$", 3.5, [3.5]),
    ],
)
def test_a_path_leads_to_its_values(path: str, document: Any, values: list[Any]) -> None:
    assert [match.value for match in JsonPath(path).find(document)] == values


@pytest.mark.parametrize("text", ["$.a[", "$.a[]]", "$..", "$.a[b"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        JsonPath(text)


@pytest.mark.parametrize(
    ("value", "number", "status"),
    [
        (12, 12.0, quality.GOOD),
        ("12.307", 12.307, quality.GOOD),
        (" 1e3 ", 1000.0, quality.GOOD),
        (True, 1.0, quality.GOOD),
        (None, math.nan, quality.BAD_SENSOR_FAILURE),
        ("", math.nan, quality.BAD_SENSOR_FAILURE),
        ("--", math.nan, quality.BAD_SENSOR_FAILURE),
        ("NaN", math.nan, quality.BAD_SENSOR_FAILURE),
        (math.nan, math.nan, quality.BAD_SENSOR_FAILURE),
        ("12,3", math.nan, quality.BAD_DECODING_ERROR),
        ("1_000", math.nan, quality.BAD_DECODING_ERROR),
        ({"v": 1}, math.nan, quality.BAD_CONFIGURATION_ERROR),
    ],
)
def test_a_number_or_a_reason_why_not(value: Any, number: float, status: int) -> None:
    found = number_of(value)

    assert found[0] == pytest.approx(number, nan_ok=True) or found == (math.inf, status)
    assert found[1] == status


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-02T08:15:00+08:00",
        "2026-03-02T00:15:00Z",
        "2026-03-02T08:15:00",  # no zone: the plant's
        "20260302081500",
        1772410500,
        1772410500.0,
        "1772410500",
        1772410500_000,
        1772410500_000_000,
    ],
)
def test_one_instant_in_every_spelling(value: Any) -> None:
    assert time_of(value, ZONE) == parse_rfc3339("2026-03-02T00:15:00Z")


@pytest.mark.parametrize("value", ["yesterday", "", 12.5, True, None, [], "20261302081500", 10**25, -5])
def test_what_is_no_time_is_none(value: Any) -> None:
    assert time_of(value, ZONE) is None


def test_each_record_of_a_list_keeps_its_own_time() -> None:
    document = {
        "Meter 1": [
            {"ts": 1772439300000, "values": {"p": 1.0}},
            {"values": {"p": 2.0}},
            {"ts": 1772439302000, "values": {"p": 3.0}},
        ]
    }
    for time_path in (None, JsonPath("$.*.ts")):
        times = Times(document, time_path, ZONE)

        dated = [(m.value, times.of(m)) for m in JsonPath("$.*.values.p").find(document)]

        assert dated == [(1.0, 1772439300 * 10**9), (2.0, None), (3.0, 1772439302 * 10**9)]


def test_one_time_for_the_whole_message_is_everyones() -> None:
    times = Times(ARRAY, JsonPath("$.ts"), ZONE)

    found = {times.of(match) for match in JsonPath("$.meters[].v.P").find(ARRAY)}

    assert found == {parse_rfc3339("2026-03-02T00:15:00Z")}


def test_a_time_under_another_object_is_taken_when_it_is_the_only_one() -> None:
    document = {"header": {"at": 1772439300}, "data": {"p": 1.0}}
    times = Times(document, JsonPath("$.header.at"), ZONE)

    assert times.of(JsonPath("$.data.p").find(document)[0]) == 1772439300 * 10**9


def test_several_values_become_one_only_if_told_how() -> None:
    values = [(810.0, 0), (795.0, 0), (801.0, 0)]

    assert reduced(values, "sum") == (2406.0, quality.GOOD)
    assert reduced(values, "mean") == (802.0, quality.GOOD)
    assert reduced(values, "first") == (810.0, quality.GOOD)
    assert reduced(values, None)[1] == quality.BAD_CONFIGURATION_ERROR
    assert (
        reduced([(810.0, 0), (math.nan, quality.BAD_SENSOR_FAILURE)], "sum")[1] == quality.BAD_SENSOR_FAILURE
    )


def test_nan_as_some_gateways_write_it_is_read() -> None:
    document = document_of(b'{"P": NaN, "E": 5}')

    assert math.isnan(document["P"])
    assert document["E"] == 5


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abt"), inner, max_size=3),
    max_leaves=10,
)


@given(json_values, st.sampled_from(["$", "$.a", "$.a.b", "$.a[].b", "$.*.a", "$.a[0]", "$.a[b=1].t"]))
def test_no_document_makes_a_good_value_out_of_nothing(document: Any, text: str) -> None:
    times = Times(document, None, ZONE)
    for match in JsonPath(text).find(document):
        number, status = number_of(match.value)
        times.of(match)
        assert status < 0 or math.isfinite(number)


@given(st.binary(max_size=60))
def test_no_payload_breaks_the_reader(payload: bytes) -> None:
    try:
        document = document_of(payload)
    except ValueError:
        return
    assert json.dumps(document, default=str) is not None
