"""The smallest correction of the meters that closes every balance: a view, it never overwrites a reading.

Weighted by meter uncertainty, so that a good meter moves less than a poor one.
What no meter gives is solved for, not corrected. A correction much larger than
its meter's error names the meter most likely wrong, or the set of meters that
no balance can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.samples import Floats

FLOOR_KWH = 1e-3  # the least standard deviation of a meter: an idle one is not perfect


@dataclass(frozen=True, slots=True, eq=False)
class Reconciled:
    """One interval's reconciliation over E edges.

    Attributes:
        energy_kwh: Shape (E,), what closes every balance; NaN for an unmeasured edge that no balance fixes.
        test: Shape (E,), each meter's correction over its standard deviation; NaN where it cannot be tested. Beyond
            about 3 a gross error is likely.
        suspects: Edges with the largest test, if it is beyond `threshold`; several where they cannot be told apart.
    """

    energy_kwh: Floats
    test: Floats
    suspects: tuple[int, ...]


def reconcile(
    measured_kwh: Floats,
    relative_error: Floats,
    balances: Floats,
    losses_kwh: Floats | None = None,
    threshold: float = 3.0,
) -> Reconciled:
    """Correct one interval's energies so that `balances @ energy = losses`.

    Args:
        measured_kwh: Shape (E,), NaN where there is no meter.
        relative_error: Shape (E,), 95 % half-width of each meter as a share (its class / 100).
        balances: Shape (B, E), +1 for an inflow and -1 for an outflow of each lossless node; a converter enters
            with its inflows scaled by its declared efficiency.
        losses_kwh: Shape (B,), declared losses; None: none.

    Raises:
        ValueError: Shapes do not fit, or a measured edge has no error.

    Source: x - V A'(A V A')+ (A x - c), unmeasured flows projected out first (Crowe, Campos and Hrymak 1983);
    measurement test of Mah and Tamhane 1982.
    """
    edges = measured_kwh.size
    if balances.ndim != 2 or balances.shape[1] != edges or relative_error.size != edges:
        raise ValueError(
            f"balances and errors of {edges} edges wanted, got {balances.shape} and {relative_error.size}"
        )
    constants = np.zeros(balances.shape[0]) if losses_kwh is None else losses_kwh
    known = np.isfinite(measured_kwh)
    if not np.isfinite(relative_error[known]).all():
        raise ValueError("every measured edge needs the error of its meter")
    with_meters, without = balances[:, known], balances[:, ~known]
    # Combinations of balances in which no unmeasured flow appears.
    free = _null_space(without.T) if without.size else np.eye(balances.shape[0])
    rows = free.T @ with_meters
    reading = measured_kwh[known]
    variance = np.maximum(relative_error[known] * np.abs(reading) / 1.96, FLOOR_KWH) ** 2
    imbalance = rows @ reading - free.T @ constants
    weight = np.linalg.pinv((rows * variance) @ rows.T, rcond=1e-10, hermitian=True)
    correction = -variance * (rows.T @ (weight @ imbalance))
    spread = variance * np.sqrt(np.maximum(np.einsum("be,bc,ce->e", rows, weight, rows), 0.0))
    testable = spread > 1e-9 * np.sqrt(variance)
    test = np.full(edges, np.nan)
    test[known] = np.where(testable, np.abs(correction) / np.where(testable, spread, 1.0), np.nan)

    energy = np.full(edges, np.nan)
    energy[known] = reading + correction
    if without.size:
        solved, *_ = np.linalg.lstsq(without, constants - with_meters @ energy[known], rcond=None)
        fixed = np.abs(_null_space(without)).max(axis=1, initial=0.0) < 1e-9
        energy[~known] = np.where(fixed, solved, np.nan)
    return Reconciled(energy, test, _suspects(test, threshold))


def _suspects(test: Floats, threshold: float) -> tuple[int, ...]:
    if np.isnan(test).all() or np.nanmax(test) <= threshold:
        return ()
    largest: Sequence[int] = np.flatnonzero(test >= np.nanmax(test) * (1 - 1e-6)).tolist()
    return tuple(largest)


def _null_space(matrix: Floats) -> Floats:
    """Columns that span what the matrix maps to zero."""
    _, size, right = np.linalg.svd(matrix)
    rank = int((size > 1e-10 * max(size.max(initial=0.0), 1e-300)).sum())
    space: Floats = right[rank:].T
    return space
