"""Which instants changed readings can change the energy of: no less, for order must not matter, and not much more."""

from __future__ import annotations

import numpy as np
import pytest

from core.compute.engine import STANDSTILL_NS, Bearing
from core.compute.pipeline import influence
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch

BEARING = Bearing(
    frozenset({"meter.energy"}),
    frozenset({"meter.energy", "meter.power"}),
    {"meter.energy": 180, "tank.level": 90},
)


def context(point: str, *rows: tuple[int, float]) -> SampleBatch:
    """Readings of one point, (second, value), as the store gives them around a change."""
    seconds, values = np.array(rows).T
    return sample_batch(
        PointTable((point,)), np.zeros(seconds.size), seconds.astype(np.int64) * NS_PER_S, values
    )


@pytest.mark.parametrize(
    ("batch", "changed_s", "bears_on_s"),
    [
        # a register that moves on bears on its last steps only, one that leaves a plateau on all of it
        (context("meter.energy", (0, 1), (60, 2), (120, 3), (180, 4)), (180, 180), (60, 180)),
        (context("meter.energy", (0, 1), (60, 2), (3000, 2), (3060, 3)), (3060, 3060), (0, 3060)),
        # a power that was steady for an hour does not
        (context("meter.power", (0, 7), (60, 8), (3600, 8), (3660, 9)), (3660, 3660), (60, 3660)),
        # what lies between others bears on their neighbours and, of what is compared, for an hour on
        (context("tank.level", (0, 1), (60, 2), (120, 3), (180, 4)), (60, 60), (0, 180)),
        (context("meter.power", (0, 1), (60, 2), (120, 3)), (60, 60), (0, 60 + STANDSTILL_NS // NS_PER_S)),
        # nothing of it changed
        (context("tank.level", (0, 1), (60, 2)), (30, 30), (30, 30)),
    ],
)
def test_readings_bear_on_what_lies_around_them(
    batch: SampleBatch, changed_s: tuple[int, int], bears_on_s: tuple[int, int]
) -> None:
    first_ns, last_ns = influence(batch, changed_s[0] * NS_PER_S, changed_s[1] * NS_PER_S, BEARING)

    silent_after_ns = last_ns - bears_on_s[1] * NS_PER_S
    assert first_ns == bears_on_s[0] * NS_PER_S
    assert silent_after_ns in (0, 180)  # a register's newest reading counts for its gap time


def test_the_newest_reading_says_for_its_gap_time_that_its_point_is_not_silent() -> None:
    batch = context("tank.level", (0, 1.0), (600, 2.0))

    assert influence(batch, 600 * NS_PER_S, 600 * NS_PER_S, BEARING)[1] == 600 * NS_PER_S + 90


def test_a_reading_taken_away_bears_on_its_neighbours_and_on_what_it_said_after_it() -> None:
    between = influence(
        context("tank.level", (0, 1.0), (600, 2.0)), 300 * NS_PER_S, 300 * NS_PER_S, BEARING, corrected=True
    )
    newest = influence(
        context("tank.level", (0, 1.0)), 300 * NS_PER_S, 300 * NS_PER_S, BEARING, corrected=True
    )

    assert between == (0, 600 * NS_PER_S)
    assert newest == (0, 300 * NS_PER_S + 90)


def test_models_that_follow_each_other_reach_as_far_as_the_further_one() -> None:
    other = Bearing(frozenset({"new.energy"}), frozenset(), {"meter.energy": 60, "new.energy": 300})

    both = Bearing.joined([BEARING, other])

    assert both.registers == {"meter.energy", "new.energy"}
    assert both.after_ns == {"meter.energy": 180, "tank.level": 90, "new.energy": 300}
