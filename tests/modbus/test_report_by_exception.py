"""Which readings leave the Modbus driver where a deadband holds most of them back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from modbus_field import plant_of, point, source

from collector.drivers.modbus.report import Report
from core import quality
from core.plant.model import Kind
from core.samples import NS_PER_S

QUARTER = 1_780_000_200  # s, a quarter of an hour begins


def sent(report: Report, readings: list[tuple[float, float, int]]) -> list[float]:
    """Seconds of those (second, value, status) of point 0 that are sent."""
    seconds = []
    for second, value, status in readings:
        point, *_ = report.due(
            np.array([0], np.int32),
            np.array([round(second * NS_PER_S)]),
            np.array([value]),
            np.array([status], np.int16),
        )
        seconds += [second] * point.size
    return seconds


def deadband_of(width: float, counts: bool = False, heartbeat_s: float = 60.0) -> Report:
    return Report(np.array([width]), np.array([counts]), heartbeat_s)


def test_what_did_not_move_is_sent_once_a_minute() -> None:
    readings = [(QUARTER + 1.0 + second, 5.0, quality.GOOD) for second in range(130)]

    assert sent(deadband_of(2.0), readings) == [QUARTER + 1.0, QUARTER + 61.0, QUARTER + 121.0]


def test_a_change_of_quality_is_always_sent() -> None:
    readings = [(1.0, 5.0, quality.GOOD), (2.0, 5.0, quality.BAD_OUT_OF_RANGE), (3.0, 5.0, quality.GOOD)]

    assert sent(deadband_of(2.0), readings) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("counts", "expected"), [(True, [QUARTER - 5.0, QUARTER]), (False, [QUARTER - 5.0])])
def test_a_counter_is_sent_as_a_quarter_of_an_hour_begins(counts: bool, expected: list[float]) -> None:
    readings = [(QUARTER + second, 5.0, quality.GOOD) for second in (-5.0, -1.0, 0.0, 1.0)]

    assert sent(deadband_of(2.0, counts), readings) == expected


def test_a_clock_set_back_does_not_silence_what_stands_still() -> None:
    readings = [(10_000.0, 5.0, quality.GOOD), (6_400.0, 5.0, quality.GOOD), (6_401.0, 5.0, quality.GOOD)]

    assert sent(deadband_of(2.0), readings) == [10_000.0, 6_400.0]


def test_the_heartbeat_stays_ahead_of_what_the_plant_takes_for_a_gap() -> None:
    steady = point("a", source(0), deadband=2.0)
    counter = replace(point("b", source(1), deadband=2.0), kind=Kind.COUNTER)
    plant = replace(plant_of({"m": [steady, counter]}, 1), gap_after_s=30.0)
    readings = [(QUARTER + second, 5.0, quality.GOOD) for second in (1.0, 9.0, 11.0, 20.0, 21.0)]

    assert sent(Report.of(plant), readings) == [QUARTER + 1.0, QUARTER + 11.0, QUARTER + 21.0]
