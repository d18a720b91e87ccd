"""How far a sum of activity x factor may be off: half of the relative 95 % interval, 0.05 for 5 %.

What surprises: more meters do not make a shared factor better. Terms that use
the same factor, or the same meter at other times, move together, so a 1 % meter
stays 1 % over a month and ten meters with one 5 % factor give 5 %.

Source: 2006 IPCC Guidelines, volume 1, chapter 3, approach 1 (error propagation)
and approach 2 (Monte Carlo); shared terms fully correlated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import BadRequest
from core.samples import Floats

_SIGMAS = 1.959963984540054  # a normal 95 % interval, half


@dataclass(frozen=True, slots=True)
class Term:
    """One product of a sum.

    Attributes:
        value: Its emissions, any unit that the terms share.
        activity: Who measured; terms of one meter are fully correlated.
        activity_uncertainty: Half of the relative 95 % interval of the activity data.
        factor: The factor row; terms of one factor are fully correlated.
        factor_uncertainty: The factor's.
    """

    value: float
    activity: str
    activity_uncertainty: float
    factor: str
    factor_uncertainty: float

    def __post_init__(self) -> None:
        for share in (self.activity_uncertainty, self.factor_uncertainty):
            if not (math.isfinite(share) and share >= 0):
                raise BadRequest(
                    f"uncertainty of {self.activity} x {self.factor} is {share}, wanted 0 or more"
                )


def combined_uncertainty(terms: Sequence[Term]) -> float:
    """Relative half-width of the sum, by error propagation; NaN where a value is unknown or the sum is 0."""
    total = sum(term.value for term in terms)
    if not math.isfinite(total) or total == 0:
        return math.nan
    spread: dict[tuple[str, str], float] = {}
    for term in terms:
        for name, share in _shares_of(term).items():
            spread[name] = spread.get(name, 0.0) + term.value * share
    return math.sqrt(sum(part * part for part in spread.values())) / abs(total)


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """A Monte Carlo result with what is needed to repeat it: low and high bound the middle 95 %."""

    mean: float
    low: float
    high: float
    trials: int
    seed: int

    @property
    def uncertainty(self) -> float:
        """NaN where the mean is 0 or unknown."""
        return (self.high - self.low) / 2 / abs(self.mean) if self.mean else math.nan


def monte_carlo(terms: Sequence[Term], *, trials: int, seed: int) -> MonteCarlo:
    """The sum's distribution from normal draws, one draw of each meter and each factor per trial; NaN without terms.

    A name's draws are held up to its last term, so memory is that of the names shared, not of every meter.

    Raises:
        BadRequest: Fewer than 10 000 trials, or a value that is unknown.
    """
    if trials < 10_000:
        raise BadRequest(f"Monte Carlo with {trials} trials, wanted 10000 or more")
    if not all(math.isfinite(term.value) for term in terms):
        raise BadRequest("Monte Carlo needs every term's value; one is unknown")
    if not terms:
        return MonteCarlo(math.nan, math.nan, math.nan, trials, seed)
    random = np.random.default_rng(seed)
    last = {name: number for number, term in enumerate(terms) for name in _shares_of(term)}
    draws: dict[tuple[str, str], Floats] = {}
    total = np.zeros(trials)
    for number, term in enumerate(terms):
        product = np.full(trials, float(term.value))
        for name, share in _shares_of(term).items():
            if name not in draws:
                draws[name] = random.standard_normal(trials)
            product *= 1 + share / _SIGMAS * draws[name]
            if last[name] == number:
                del draws[name]
        total += product
    low, high = np.quantile(total, [0.025, 0.975])
    return MonteCarlo(float(total.mean()), float(low), float(high), trials, seed)


def _shares_of(term: Term) -> dict[tuple[str, str], float]:
    """What may be off in a term, each by its share."""
    return {
        ("activity", term.activity): term.activity_uncertainty,
        ("factor", term.factor): term.factor_uncertainty,
    }
