"""Known truths about one register: what its intervals must say, worked by hand."""

import numpy as np
import pytest

from core.energy.register import EventKind, MeterEvent, Register, Registers, register_energy
from core.quality import BAD, GOOD, UNCERTAIN
from core.results import IntervalEnergy, Mark
from core.samples import NS_PER_S

MINUTE = 60 * NS_PER_S
HOUR = 3600 * NS_PER_S
START = 1_790_812_800 * NS_PER_S  # 2026-10-01T00:00:00Z


def times(seconds: object) -> np.ndarray:
    return START + (np.asarray(seconds, dtype=np.float64) * NS_PER_S).astype(np.int64)


def energy(
    seconds: object, value: object, edges: object, status: object = GOOD, **how: object
) -> IntervalEnergy:
    readings = np.asarray(value, dtype=np.float64)
    statuses = np.ascontiguousarray(np.broadcast_to(np.asarray(status, dtype=np.int16), readings.shape))
    how.setdefault("gap_after_ns", 3 * MINUTE)
    return register_energy(times(seconds), readings, statuses, times(edges), **how)


def test_a_steady_load_with_hours_of_silence_reads_the_same_every_hour() -> None:
    minutes = np.r_[0:241, 390:481] * 60  # silent from 04:00 to 06:30
    result = energy(minutes, 1000 + minutes / 3600 * 100, np.arange(9) * 3600)

    np.testing.assert_allclose(result.energy_kwh, [100] * 8, rtol=1e-12)
    np.testing.assert_allclose(result.covered, [1, 1, 1, 1, 0, 0, 0.5, 1])
    np.testing.assert_allclose(result.estimated_kwh, [0, 0, 0, 0, 100, 100, 50, 0], rtol=1e-12, atol=1e-12)
    assert (result.mark == [0, 0, 0, 0, Mark.GAP, Mark.GAP, Mark.GAP, 0]).all()


def test_the_silence_heals_when_its_readings_arrive_late() -> None:
    minutes = np.arange(481) * 60

    result = energy(minutes, 1000 + minutes / 3600 * 100, np.arange(9) * 3600)

    np.testing.assert_allclose(result.energy_kwh, [100] * 8, rtol=1e-12)
    assert (result.covered == 1).all()
    assert (result.mark == 0).all()


def test_a_coarse_step_is_spread_over_the_plateau_before_it() -> None:
    seconds = np.arange(0, 4 * 3600)
    register = np.floor(500 + seconds / 3600 * 5)  # 5 kW on a 1 kWh step, polled each second

    result = energy(seconds, register, np.arange(30, 210) * 60)

    np.testing.assert_allclose(result.energy_kwh, 5 / 60, rtol=0.002)
    assert (result.covered == 1).all()


def test_a_declared_resolution_beats_the_decimal_place() -> None:
    seconds = np.arange(0, 7200)
    register = np.floor((seconds / 3600 * 50) / 2.5) * 2.5  # 50 kW on a 2.5 kWh step

    result = energy(seconds, register, np.arange(10, 110) * 60, resolution=2.5)

    np.testing.assert_allclose(result.energy_kwh, 50 / 60, rtol=0.01)


def test_a_plateau_longer_than_the_spread_was_idle_time() -> None:
    seconds = np.arange(0, 3 * 3600, 60)
    register = np.where(seconds < 2.5 * 3600, 10.0, 11.0)

    result = energy(seconds, register, [0, 3600, 7200, 9900])

    np.testing.assert_allclose(result.energy_kwh, [0, 0, 1])


def test_idle_time_reads_zero_and_is_fully_seen() -> None:
    seconds = np.arange(0, 7201, 60)

    result = energy(seconds, np.full(seconds.size, 42.0), [0, 3600, 7200])

    assert (result.energy_kwh == 0).all()
    assert (result.covered == 1).all()


def test_a_rolled_over_register_keeps_counting() -> None:  # T9
    result = energy([0, 60], [999987.65, 3.21], [0, 60], modulus=1_000_000.0)

    np.testing.assert_allclose(result.energy_kwh, [15.56], rtol=1e-9)
    assert result.mark[0] == Mark.ROLLOVER


def test_a_rollover_is_split_at_the_interval_edges_inside_it() -> None:
    result = energy([0, 100], [995.0, 5.0], [0, 50, 75, 100], modulus=1000.0)

    np.testing.assert_allclose(result.energy_kwh, [5, 2.5, 2.5], rtol=1e-9)


@pytest.mark.parametrize(
    ("readings", "how"),
    [
        ([500.0, 3.0, 4.0], {"modulus": 1000.0}),  # not near the top
        ([999.0, 3.0, 4.0], {}),  # no known modulus
        ([920.0, 80.0, 81.0], {"modulus": 1000.0, "rated_kw": 10.0}),  # 160 kWh in a minute at 10 kW
    ],
)
def test_a_fall_that_is_no_rollover_is_a_reset_and_invents_nothing(
    readings: list[float], how: dict[str, float]
) -> None:
    result = energy([0, 60, 120], readings, [0, 60, 120], **how)

    assert result.energy_kwh[0] == 0
    assert result.energy_kwh[1] == pytest.approx(1)
    assert result.mark.tolist() == [Mark.RESET, 0]
    assert result.covered.tolist() == [0, 1]


def test_a_single_low_reading_is_set_aside() -> None:
    result = energy([0, 60, 120, 180], [100, 0, 102, 103], [0, 60, 120, 180])

    np.testing.assert_allclose(result.energy_kwh, [1, 1, 1])
    assert result.mark.tolist() == [0, Mark.GLITCH, 0]


def test_a_single_high_reading_is_set_aside() -> None:
    result = energy([0, 60, 120, 180], [100, 90_000, 102, 103], [0, 60, 120, 180], rated_kw=200.0)

    np.testing.assert_allclose(result.energy_kwh, [1, 1, 1])
    assert result.mark.tolist() == [0, Mark.GLITCH, 0]


def test_a_jump_beyond_the_rating_is_kept_and_marked_estimated() -> None:
    result = energy([0, 60, 120, 180], [0.0, 1.5, 500, 501.5], [0, 60, 120, 180], rated_kw=100.0)

    np.testing.assert_allclose(result.energy_kwh, [1.5, 498.5, 1.5])
    assert result.mark.tolist() == [0, Mark.JUMP, 0]
    np.testing.assert_allclose(result.estimated_kwh, [0, 498.5, 0])
    assert result.covered.tolist() == [1, 0, 1]


def test_what_no_meter_can_pass_is_marked_without_a_rating_and_never_infinite() -> None:
    result = energy([0, 60, 120, 180, 240], [0.0, 1.5, 2e6, 2e6 + 1.5, 2e6 + 3], np.arange(5) * 60)
    beyond = energy([0, 60, 120, 180], [-1.7e308, 1.7e308, 1.7e308, 1.7e308], np.arange(4) * 60)

    np.testing.assert_allclose(result.energy_kwh, [1.5, 2e6 - 1.5, 1.5, 1.5])
    assert result.mark.tolist() == [0, Mark.JUMP, 0, 0]
    assert result.covered.tolist() == [1, 0, 1, 1]
    np.testing.assert_array_equal(beyond.energy_kwh, [np.nan, 0, 0])


def test_one_quantum_in_a_second_is_no_jump() -> None:
    idle = np.arange(0, 7200)
    register = np.where(idle < 7000, 10.0, 11.0)

    result = energy(idle, register, [0, 3600, 7199], rated_kw=50.0)

    assert (result.mark == 0).all()


def test_bad_readings_are_missing_and_uncertain_ones_cover_nothing() -> None:
    status = [GOOD, BAD, GOOD, UNCERTAIN, GOOD]

    result = energy([0, 60, 120, 180, 240], [10, 777, 12, 13, 14], [0, 120, 180, 240], status)

    np.testing.assert_allclose(result.energy_kwh, [2, 1, 1])
    np.testing.assert_allclose(result.covered, [1, 0, 0])
    assert (result.estimated_kwh == 0).all()


def test_nothing_is_known_outside_the_readings() -> None:
    result = energy([90, 150], [10, 20], [0, 60, 120, 180, 240], gap_after_ns=HOUR)

    np.testing.assert_allclose(result.energy_kwh, [np.nan, 5, 5, np.nan])
    np.testing.assert_allclose(result.covered, [0, 0.5, 0.5, 0])


def test_no_readings_give_no_energy() -> None:
    result = energy([], [], [0, 60, 120])

    assert np.isnan(result.energy_kwh).all()
    assert (result.covered == 0).all()


def test_a_replaced_meter_makes_neither_spike_nor_negative_bar() -> None:
    change = MeterEvent(int(times(90)), EventKind.REPLACEMENT, final_reading=1001.5, first_reading=0.0)

    result = energy([0, 60, 120, 180], [1000, 1001, 0.5, 1.5], [0, 60, 120, 180], events=[change])

    np.testing.assert_allclose(result.energy_kwh, [1, 1, 1])
    assert result.mark.tolist() == [0, Mark.EVENT, 0]
    assert result.covered.tolist() == [1, 1, 1]


def test_a_replacement_by_a_higher_register_without_known_readings_invents_nothing() -> None:
    change = MeterEvent(int(times(90)), EventKind.REPLACEMENT)

    result = energy([0, 60, 120, 180], [10, 11, 5000, 5001], [0, 60, 120, 180], events=[change])

    np.testing.assert_allclose(result.energy_kwh, [1, 0, 1])
    assert result.mark.tolist() == [0, Mark.EVENT | Mark.RESET, 0]
    assert result.covered.tolist() == [1, 0, 1]


def test_a_ratio_change_counts_from_its_instant() -> None:
    change = MeterEvent(int(times(90)), EventKind.RATIO, ratio=2.0)

    result = energy([0, 60, 120, 180], [10, 11, 12, 13], [0, 60, 120, 180], events=[change])

    np.testing.assert_allclose(result.energy_kwh, [1, 1.5, 2])


@pytest.mark.parametrize("ratio_first", [True, False])
def test_a_new_meter_with_a_new_ratio_at_one_instant_counts_both(ratio_first: bool) -> None:
    new_meter = MeterEvent(int(times(90)), EventKind.REPLACEMENT, final_reading=5010.0, first_reading=7.0)
    new_ratio = MeterEvent(int(times(90)), EventKind.RATIO, ratio=2.0)
    events = [new_ratio, new_meter] if ratio_first else [new_meter, new_ratio]

    result = energy([0, 60, 120, 180], [4990, 5000, 12, 22], [0, 60, 120, 180], events=events)

    np.testing.assert_allclose(result.energy_kwh, [10, 10 + 5 * 2, 20])
    assert result.mark.tolist() == [0, Mark.EVENT, 0]


@pytest.mark.parametrize(
    ("finals", "firsts", "kwh"),
    [
        ((5010.0, 820.0), (800.0, 3.0), 10 + 20 + 2),  # a meter lent for a while, all four readings known
        ((5010.0, None), (800.0, 3.0), 10 + 0 + 2),
        ((5010.0, 820.0), (None, 3.0), 10 + 0 + 2),
        ((None, 820.0), (800.0, None), 0 + 20 + 0),
        ((None, None), (None, None), 0.0),
    ],
)
def test_two_replacements_between_two_readings_invent_nothing(
    finals: tuple[float | None, float | None], firsts: tuple[float | None, float | None], kwh: float
) -> None:
    events = [
        MeterEvent(int(times(at)), EventKind.REPLACEMENT, final, first)
        for at, final, first in zip((80, 100), finals, firsts, strict=True)
    ]

    result = energy([0, 60, 120, 180], [4990, 5000, 5, 15], [0, 60, 120, 180], events=events)

    np.testing.assert_allclose(result.energy_kwh, [10, kwh, 10])
    assert result.covered[1] == pytest.approx(1 - (np.array([20, 20, 20]) @ _blind(finals, firsts)) / 60)


def _blind(finals: tuple[float | None, ...], firsts: tuple[float | None, ...]) -> list[bool]:
    return [finals[0] is None, firsts[0] is None or finals[1] is None, firsts[1] is None]


def test_a_ratio_change_within_the_piece_of_a_new_meter_is_counted_on_its_own_line() -> None:
    events = [
        MeterEvent(int(times(75)), EventKind.REPLACEMENT, 5001.0, 0.0),
        MeterEvent(int(times(90)), EventKind.RATIO, ratio=2.0),
    ]

    result = energy([0, 60, 120, 180], [4990, 5000, 3, 13], [0, 60, 120, 180], events=events)

    np.testing.assert_allclose(result.energy_kwh, [10, 1 + 1 + 2 * 2, 20])  # 3 in 45 s: 1 at the old ratio


def test_a_daily_register_counts_on_from_zero() -> None:
    result = energy([0, 60, 120, 180], [98, 99, 0.5, 1.5], [0, 60, 120, 180], daily=True)

    np.testing.assert_allclose(result.energy_kwh, [1, 0.5, 1])
    assert (result.mark == 0).all()


def test_large_integer_registers_stay_exact() -> None:
    result = energy([0, 60, 120], [2.0**52, 2.0**52 + 1, 2.0**52 + 3], [0, 60, 120])

    assert result.energy_kwh.tolist() == [1, 2]


def test_units_are_converted_once() -> None:
    result = energy([0, 60], [1.0, 1.25], [0, 60], kwh_per_unit=1000.0)

    assert result.energy_kwh.tolist() == [250]


def test_many_registers_at_once_give_the_bits_of_each_alone() -> None:
    rng = np.random.default_rng(4)
    edges = times(np.arange(10, 50) * 60)
    meters, columns = [], []
    for n in range(40):
        count = int(rng.integers(0, 400)) if n % 7 else 0
        seconds = np.sort(rng.choice(3600, count, replace=False))
        value = np.floor(np.cumsum(rng.exponential(0.4, count)) * 10) / 10 + 900
        if n % 3 == 0:
            value %= 1000.0
        status = rng.choice(np.array([GOOD, GOOD, GOOD, UNCERTAIN, BAD], dtype=np.int16), count)
        events = (MeterEvent(int(times(1800)), EventKind.RATIO, ratio=3.0),) if n % 5 == 0 else ()
        meters.append(
            Register(
                int(rng.integers(20, 200)) * NS_PER_S,
                modulus=1000.0 if n % 3 == 0 else None,
                resolution=0.1 if n % 2 else None,
                rated_kw=[None, 500.0, 2000.0][n % 3],
                events=events,
            )
        )
        columns.append((times(seconds), value, status))
    starts = np.cumsum([0] + [column[0].size for column in columns])

    together = Registers(meters).energy(
        *(np.concatenate([column[i] for column in columns]) for i in range(3)), starts, edges
    )

    for n, (meter, column) in enumerate(zip(meters, columns, strict=True)):
        alone = Registers([meter]).energy(*column, np.array([0, column[0].size]), edges)
        for name in ("energy_kwh", "covered", "estimated_kwh", "mark"):
            np.testing.assert_array_equal(
                getattr(together, name)[n], getattr(alone, name)[0], err_msg=f"{n} {name}"
            )


def test_readings_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="time order"):
        energy([60, 0], [1, 2], [0, 60])


def test_many_registers_over_many_years_are_told_apart() -> None:
    years = START + np.arange(5) * 10 * 365 * 86_400 * NS_PER_S
    readings = np.tile(np.arange(5.0), 60) * np.repeat(np.arange(60), 5)
    meters = Registers([Register(HOUR)] * 60)  # 60 meters x 40 years do not fit one 63-bit key

    result = meters.energy(np.tile(years, 60), readings, np.zeros(300, np.int16), np.arange(61) * 5, years)

    np.testing.assert_allclose(result.energy_kwh, np.repeat(np.arange(60.0), 4).reshape(60, 4))
