"""The least correction that closes every balance, and the meter it points at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.energy.reconcile import reconcile

# grid -> main -> (press, sub), sub -> (a, b)
BALANCES = np.array([[1.0, -1, -1, 0, 0], [0, 0, 1, -1, -1]])
ERROR = np.array([0.005, 0.01, 0.01, 0.01, 0.01])


def test_a_poor_meter_moves_more_than_a_good_one() -> None:
    result = reconcile(np.array([100.0, 103.0]), np.array([0.01, 0.02]), np.array([[1.0, -1.0]]))

    variance = np.array([1.0, 2.06]) ** 2  # C24's half-widths; by hand: x - V A' (A V A')^-1 A x
    expected = np.array([100, 103]) + np.array([1, -1]) * variance * 3 / variance.sum()
    np.testing.assert_allclose(result.energy_kwh, expected, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_reconciled_energies_close_every_balance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inflow, split = rng.uniform(50, 500), rng.random(2)
    sub = inflow * split[0]
    true = np.array([inflow, inflow - sub, sub, sub * split[1], sub * (1 - split[1])])
    measured = true * (1 + ERROR * rng.normal(size=5))
    measured[rng.random(5) < 0.2] = np.nan

    result = reconcile(measured, ERROR, BALANCES)

    if np.isfinite(result.energy_kwh).all():
        np.testing.assert_allclose(BALANCES @ result.energy_kwh, 0, atol=1e-6)
    assert np.isfinite(result.energy_kwh[np.isfinite(measured)]).all()


def test_an_unmeasured_flow_is_solved_for_and_moves_nobody() -> None:
    result = reconcile(np.array([100.0, 40.0, np.nan, 35.0, 25.0]), ERROR, BALANCES)

    np.testing.assert_allclose(result.energy_kwh, [100, 40, 60, 35, 25], atol=1e-9)


def test_a_flow_no_balance_fixes_stays_unknown() -> None:
    result = reconcile(np.array([100.0, 40.0, 60.0, np.nan, np.nan]), ERROR, BALANCES)

    assert np.isnan(result.energy_kwh[3:]).all()
    np.testing.assert_allclose(result.energy_kwh[:3], [100, 40, 60], atol=1e-9)


def test_a_gross_error_names_its_meter() -> None:
    result = reconcile(np.array([100.0, 40.0, 75.0, 35.0, 25.0]), ERROR, BALANCES)  # sub reads 60 as 75

    assert result.suspects == (2,)


def test_meters_in_series_cannot_be_told_apart() -> None:
    result = reconcile(np.array([100.0, 110.0]), np.array([0.005, 0.005]), np.array([[1.0, -1.0]]))

    assert result.suspects == (0, 1)


def test_good_meters_are_not_suspected() -> None:
    result = reconcile(np.array([100.0, 40.2, 60.1, 35.1, 25.0]), ERROR, BALANCES)

    assert result.suspects == ()


def test_declared_losses_are_no_error() -> None:
    result = reconcile(
        np.array([100.0, 98.0]), np.array([0.005, 0.005]), np.array([[1.0, -1.0]]), np.array([2.0])
    )

    np.testing.assert_allclose(result.energy_kwh, [100, 98])


def test_a_meter_without_error_class_is_refused() -> None:
    with pytest.raises(ValueError, match="every measured edge needs the error of its meter"):
        reconcile(np.array([100.0, 98.0]), np.array([0.005, np.nan]), np.array([[1.0, -1.0]]))
