"""Uncertainty of sums of activity times factor."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from core.carbon.uncertainty import Term, combined_uncertainty, monte_carlo
from core.errors import BadRequest

T6 = [
    Term(1000, "meter-1", 0.01, "factor-1", 0.05),
    Term(500, "meter-2", 0.02, "factor-2", 0.03),
    Term(200, "meter-3", 0.05, "factor-3", 0.20),
]


def test_t6_products_and_their_sum_by_error_propagation() -> None:
    each = [100 * combined_uncertainty([term]) for term in T6]

    assert each == pytest.approx([5.0990, 3.6056, 20.6155], abs=5e-5)
    assert 100 * combined_uncertainty(T6) == pytest.approx(4.0004, abs=5e-5)


def test_t6_monte_carlo_agrees_and_repeats_with_its_seed() -> None:
    result = monte_carlo(T6, trials=200_000, seed=7)

    assert 100 * result.uncertainty == pytest.approx(3.994, abs=0.03)
    assert result.mean == pytest.approx(1700, rel=1e-3)
    assert monte_carlo(T6, trials=200_000, seed=7) == result
    assert monte_carlo(T6, trials=200_000, seed=8) != result


def test_ten_meters_with_one_factor_do_not_make_it_better() -> None:
    shared = [Term(10, f"meter-{i}", 0.0, "grid", 0.05) for i in range(10)]
    apart = [Term(10, f"meter-{i}", 0.0, f"factor-{i}", 0.05) for i in range(10)]

    assert 100 * combined_uncertainty(shared) == pytest.approx(5.0)
    assert 100 * combined_uncertainty(apart) == pytest.approx(5.0 / math.sqrt(10))
    assert 100 * monte_carlo(shared, trials=50_000, seed=1).uncertainty == pytest.approx(5.0, abs=0.1)


def test_a_meters_class_does_not_shrink_over_a_month() -> None:
    hours = [Term(1, "meter-1", 0.01, "grid", 0.0) for _ in range(720)]

    assert combined_uncertainty(hours) == pytest.approx(0.01)


def test_an_unknown_term_leaves_the_uncertainty_unknown() -> None:
    assert math.isnan(combined_uncertainty([*T6, Term(math.nan, "meter-4", 0.01, "grid", 0.05)]))


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(BadRequest, match="wanted 10000 or more"):
        monte_carlo(T6, trials=9_999, seed=1)


def test_nothing_drawn_is_unknown_and_a_sum_of_zero_has_no_relative_width() -> None:
    nothing = monte_carlo([], trials=10_000, seed=1)
    even = monte_carlo([Term(5, "m", 0.0, "f", 0.0), Term(-5, "m", 0.0, "f", 0.0)], trials=10_000, seed=1)

    assert all(
        math.isnan(figure) for figure in (nothing.mean, nothing.low, nothing.high, nothing.uncertainty)
    )
    assert even.mean == 0
    assert math.isnan(even.uncertainty)


def test_draws_of_a_thousand_meters_are_not_held_at_once() -> None:
    terms = [Term(1, f"meter-{i}", 0.01, "grid", 0.05) for i in range(1000)]
    tracemalloc.start()
    monte_carlo(terms, trials=10_000, seed=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 20 * 10_000 * 8  # columns of so many trials, not a thousand
