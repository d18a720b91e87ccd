"""What must hold of interval energy on any stream of readings."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.energy.register import (
    EventKind,
    MeterEvent,
    Register,
    Registers,
    power_against_register,
    power_energies,
    power_energy,
    since_standing,
)
from core.quality import BAD, GOOD, UNCERTAIN
from core.results import IntervalEnergy, Mark
from core.samples import NS_PER_S

BASE = 60 * NS_PER_S
START = 1_790_812_800 * NS_PER_S
SPREAD = 600 * NS_PER_S
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=60, deadline=None)
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def stream(seed: int, trouble: bool) -> Columns:
    """Two hours of readings of a coarse register, with glitches, resets, rollovers, silences where trouble is."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 600))
    seconds = np.sort(rng.choice(7200, count, replace=False))
    kw = rng.uniform(0, 400) * (rng.random(count) < rng.uniform(0.3, 1))
    value = np.cumsum(np.diff(seconds, prepend=0) / 3600 * kw) + rng.uniform(0, 5000)
    value = np.floor(value * 10) / 10
    status = np.full(count, GOOD, dtype=np.int16)
    if trouble:
        value[rng.random(count) < 0.01] = 0.0
        value[rng.random(count) < 0.01] *= 3
        if rng.random() < 0.5:
            value[count // 2 :] -= value[count // 2] - rng.uniform(0, 3)
        value %= 1000.0
        status = rng.choice(np.array([GOOD] * 18 + [UNCERTAIN, BAD], dtype=np.int16), count)
        keep = ~((seconds > 2000) & (seconds < 2000 + rng.uniform(0, 2000)))
        seconds, value, status = seconds[keep], value[keep], status[keep]
    return START + seconds.astype(np.int64) * NS_PER_S, value, status


def meter(seed: int) -> Register:
    rng = np.random.default_rng(seed + 1)
    event = MeterEvent(START + int(rng.integers(7200)) * NS_PER_S, EventKind.RATIO, ratio=2.0)
    return Register(
        gap_after_ns=int(rng.integers(30, 300)) * NS_PER_S,
        modulus=rng.choice([1000.0, None]),
        resolution=rng.choice([0.1, None]),
        rated_kw=rng.choice([450.0, None]),
        step_spread_ns=SPREAD,
        events=(event,) if rng.random() < 0.3 else (),
    )


def energy(register: Register, columns: Columns, edges_ns: np.ndarray) -> IntervalEnergy:
    return Registers([register]).energy(*columns, np.array([0, columns[0].size]), edges_ns)


def with_context(columns: Columns, start_ns: int, end_ns: int) -> Columns:
    """The readings a window needs: its own, and on either side a spread's time and three good ones beyond it."""
    good = np.flatnonzero(columns[2] >= 0)
    before = good[columns[0][good] <= start_ns - SPREAD]
    after = good[columns[0][good] >= end_ns + SPREAD]
    first = before[-4] if before.size >= 4 else 0
    last = after[3] if after.size >= 4 else columns[0].size - 1
    return tuple(column[first : last + 1] for column in columns)  # type: ignore[return-value]


@FEW
@given(SEEDS)
def test_energies_telescope_to_last_less_first(seed: int) -> None:
    columns = stream(seed, trouble=False)
    edges = np.arange(START, START + 7200 * NS_PER_S + 1, BASE)

    result = energy(Register(120 * NS_PER_S, step_spread_ns=SPREAD), columns, edges)

    np.testing.assert_allclose(
        np.nansum(result.energy_kwh), columns[1][-1] - columns[1][0], rtol=1e-9, atol=1e-9
    )


@FEW
@given(SEEDS)
def test_sixty_minutes_make_the_hour(seed: int) -> None:
    columns, register = stream(seed, trouble=True), meter(seed)
    minutes = energy(register, columns, np.arange(START, START + 3600 * NS_PER_S + 1, BASE))
    hour = energy(register, columns, np.array([START, START + 3600 * NS_PER_S]))

    if np.isfinite(hour.energy_kwh).all():
        np.testing.assert_allclose(np.nansum(minutes.energy_kwh), hour.energy_kwh.sum(), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(minutes.covered.mean(), hour.covered.mean(), atol=1e-12)


@FEW
@given(SEEDS, st.integers(1, 119))
def test_a_span_cut_anywhere_gives_the_same_bits(seed: int, cut: int) -> None:
    columns, register = stream(seed, trouble=True), meter(seed)
    edges = np.arange(START, START + 7200 * NS_PER_S + 1, BASE)
    whole = energy(register, columns, edges)

    parts = [
        energy(register, with_context(columns, part[0], part[-1]), part)
        for part in (edges[: cut + 1], edges[cut:])
    ]

    for name in ("energy_kwh", "covered", "estimated_kwh", "mark"):
        joined = np.concatenate([getattr(part, name) for part in parts], axis=1)
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)


@FEW
@given(SEEDS)
def test_energy_and_its_parts_keep_their_bounds(seed: int) -> None:
    columns, register = stream(seed, trouble=True), meter(seed)

    result = energy(register, columns, np.arange(START, START + 7200 * NS_PER_S + 1, BASE))

    known = np.isfinite(result.energy_kwh)
    assert (result.energy_kwh[known] >= 0).all()
    assert (result.estimated_kwh >= 0).all()
    assert (result.estimated_kwh[known] <= result.energy_kwh[known]).all()
    assert ((result.covered >= 0) & (result.covered <= 1)).all()
    assert (result.covered[~known] == 0).all()


@FEW
@given(SEEDS, st.floats(0.01, 1000))
def test_a_larger_unit_scales_every_energy(seed: int, factor: float) -> None:
    columns = stream(seed, trouble=True)
    edges = np.arange(START, START + 7200 * NS_PER_S + 1, BASE)
    one, many = (Register(120 * NS_PER_S, modulus=1000.0, kwh_per_unit=k) for k in (1.0, factor))

    np.testing.assert_allclose(
        energy(many, columns, edges).energy_kwh, energy(one, columns, edges).energy_kwh * factor, rtol=1e-12
    )


@FEW
@given(SEEDS, st.integers(1, 119))
def test_power_cut_anywhere_gives_the_same_bits(seed: int, cut: int) -> None:
    time_ns, value, status = stream(seed, trouble=True)
    power = value - 400.0
    edges = np.arange(START, START + 7200 * NS_PER_S + 1, BASE)

    def integrate(part: np.ndarray) -> IntervalEnergy:
        columns = with_context((time_ns, power, status), part[0], part[-1])
        return power_energy(*columns, part, gap_after_ns=120 * NS_PER_S, direction="export")

    whole, parts = integrate(edges), [integrate(edges[: cut + 1]), integrate(edges[cut:])]

    for name in ("energy_kwh", "covered", "mark"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)


@FEW
@given(SEEDS)
def test_import_less_export_is_the_net_integral(seed: int) -> None:
    time_ns, value, status = stream(seed, trouble=False)
    power = value - np.median(value)
    edges = np.array([time_ns[0], time_ns[-1]])

    taken, given_back = (
        power_energy(time_ns, power, status, edges, gap_after_ns=10**15, direction=way).energy_kwh[0]
        for way in ("import", "export")
    )

    net = np.trapezoid(power, time_ns / (3600 * NS_PER_S) - time_ns[0] / (3600 * NS_PER_S))
    np.testing.assert_allclose(taken - given_back, net, rtol=1e-6, atol=1e-6)


@FEW
@given(SEEDS)
def test_many_powers_at_once_give_the_bits_of_each_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    streams = [stream(seed + i, trouble=bool(i % 2)) for i in range(3)]
    streams.insert(int(rng.integers(4)), tuple(column[:0] for column in streams[0]))  # one that never spoke
    powers = [value - rng.uniform(0, 5000) for _, value, _ in streams]
    gaps_ns = rng.integers(5, 300, 4) * NS_PER_S
    edges_ns = START + np.arange(121) * BASE
    starts = np.concatenate(([0], np.cumsum([one[0].size for one in streams])))
    times, statuses = (np.concatenate([one[i] for one in streams]) for i in (0, 2))

    together = power_energies(times, np.concatenate(powers), statuses, starts, edges_ns, gaps_ns)

    for row, (one, power) in enumerate(zip(streams, powers, strict=True)):
        alone = power_energy(one[0], power, one[2], edges_ns, gap_after_ns=int(gaps_ns[row]))
        for name in ("energy_kwh", "covered", "mark"):
            np.testing.assert_array_equal(getattr(together, name)[row], getattr(alone, name))


def test_power_is_never_integrated_across_a_gap() -> None:
    minutes = np.r_[0:61, 120:181]
    time_ns = START + minutes * BASE
    edges = START + np.arange(4) * 60 * BASE

    result = power_energy(time_ns, np.full(122, 50.0), np.zeros(122, np.int16), edges, gap_after_ns=3 * BASE)

    np.testing.assert_allclose(result.energy_kwh, [50, np.nan, 50])
    np.testing.assert_allclose(result.covered, [1, 0, 1])


def test_power_through_zero_is_split_exactly_between_import_and_export() -> None:
    time_ns, power = START + np.array([0, 3600]) * NS_PER_S, np.array([30.0, -10.0])
    how = {"status": np.zeros(2, np.int16), "edges_ns": time_ns, "gap_after_ns": 3600 * NS_PER_S}

    taken = power_energy(time_ns, power, direction="import", **how).energy_kwh
    given_back = power_energy(time_ns, power, direction="export", **how).energy_kwh

    np.testing.assert_allclose([taken[0], given_back[0]], [30 * 0.75 / 2, 10 * 0.25 / 2])


def test_what_flowed_is_counted_from_where_a_register_stands_still() -> None:
    counted = np.array([np.nan, 3, 2, 0, 0, 0, 0, 1.0])
    flowed = np.array([1, 1, 1, 1, 2, 3, 4, 1.0])

    since, largest = since_standing(counted, flowed, 3)

    assert since.tolist() == [0, 0, 0, 1, 3, 6, 9, 0]
    assert largest.tolist() == [0, 3, 3, 3, 2, 0, 0, 1]


@FEW
@given(SEEDS, st.floats(0, 1))
def test_a_gap_shaped_by_weights_keeps_its_ends_and_its_sum(seed: int, idle: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 5, 120) * (rng.random(120) > idle)
    first_s, last_s = np.sort(rng.choice(np.arange(200, 6500), 2, replace=False)).tolist()
    seconds = np.concatenate((np.arange(0, first_s, 20), np.arange(last_s + 400, 7500, 20)))
    value = 5000 + np.cumsum(rng.uniform(0, 1, seconds.size))
    columns = START + seconds * NS_PER_S, value, np.zeros(seconds.size, np.int16)
    edges_ns = START + np.arange(121) * BASE

    def shape(row: int, cuts_ns: np.ndarray) -> np.ndarray:
        assert row == 0
        return weights[(cuts_ns[:-1] - START) // BASE] * np.diff(cuts_ns) / BASE

    register, starts = Register(gap_after_ns=180 * NS_PER_S), np.array([0, seconds.size])
    flat = Registers([register]).energy(*columns, starts, edges_ns)
    shaped = Registers([register]).energy(*columns, starts, edges_ns, shape)
    cut = Registers([register]).energy(*columns, starts, edges_ns[40:81], shape)

    np.testing.assert_allclose(shaped.energy_kwh.sum(), flat.energy_kwh.sum(), rtol=1e-12)
    touched = (flat.mark[0] & Mark.GAP) != 0
    assert ((shaped.mark[0] & Mark.SILENT) != 0).tolist() == touched.tolist()
    np.testing.assert_array_equal(shaped.energy_kwh[0][~touched], flat.energy_kwh[0][~touched])
    inside = np.flatnonzero(touched)[1:-1]
    in_gap = weights[inside].sum()
    if in_gap > 0:
        np.testing.assert_allclose(
            shaped.energy_kwh[0][inside],
            weights[inside] / in_gap * shaped.energy_kwh[0][inside].sum(),
            rtol=1e-6,
            atol=1e-9,
        )
    np.testing.assert_array_equal(cut.energy_kwh[0], shaped.energy_kwh[0][40:80])
    np.testing.assert_array_equal(cut.estimated_kwh[0], shaped.estimated_kwh[0][40:80])


def test_power_and_register_are_compared_where_both_saw_whole() -> None:
    def seen(kwh: list[float], covered: list[float]) -> IntervalEnergy:
        return IntervalEnergy(np.array(kwh), np.array(covered), np.zeros(3), np.zeros(3, np.int16))

    difference_kwh, share = power_against_register(
        seen([100, 100, 7], [1, 1, 0.5]), seen([101, 103, 100], [1, 1, 1])
    )

    assert (difference_kwh, share) == (4, 0.02)
