"""The one definition of a roll-up: what base intervals add up to in a quarter of an hour and in an hour.

Energy adds what is known, and coverage says how much that is. Carbon and the
columns of a node must not do that: an interval in which energy passed but its
carbon is unknown makes the sum unknown (NaN), never smaller. Intervals in which
a node has nothing at all are left out of it.

One exception: at the two ends of all that is stored, the hour still filling and
the first one ever, meters do not all have their first or last reading in the
same interval. What is unknown after the last known interval of the newest hour,
or before the first of the oldest, is not in yet, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.results import HOUR_NS, WindowResult
from core.samples import NS_PER_S, Flags, Floats

QUARTER_NS = 900 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Ends:
    """Whether the first and the last hour of a window are the oldest and newest of all."""

    oldest: bool = False
    newest: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What each base interval adds to any bucket, last axis time; `counts` where it adds anything.

    `columns` by name; all of one shape, 0 where `counts` is false, NaN where unknown.
    """

    counts: Flags
    columns: dict[str, Floats]

    def summed(self, per_bucket: int) -> Parts:
        """Sums over runs of `per_bucket` intervals."""
        shape = (*self.counts.shape[:-1], -1, per_bucket)
        return Parts(
            np.asarray(self.counts.reshape(shape).any(axis=-1)),
            {name: column.reshape(shape).sum(axis=-1) for name, column in self.columns.items()},
        )


def energy_parts(energy_kwh: Floats, estimated_kwh: Floats, covered: Floats, base_s: float) -> Parts:
    """Of edges: columns energy_kwh, estimated_kwh, covered_s; shapes (..., T)."""
    known = np.isfinite(energy_kwh)
    return Parts(
        known,
        {
            "energy_kwh": np.where(known, energy_kwh, 0.0),
            "estimated_kwh": np.where(known, np.nan_to_num(estimated_kwh), 0.0),
            "covered_s": np.where(known, covered * base_s, 0.0),
        },
    )


def node_parts(
    columns: dict[str, Floats], covered: Floats, base_s: float, per_hour: int, ends: Ends
) -> Parts:
    """Of nodes: columns in_kwh, out_kwh, residual_kwh, through_kwh, covered_s; shapes (..., T)."""
    present = node_present(columns)
    whole = np.logical_and.reduce([np.isfinite(column) for column in columns.values()])
    counts = _counted(present, whole, per_hour, ends)
    parts = {**columns, "covered_s": covered * base_s}
    if not counts.all():
        parts = {name: np.where(counts, column, 0.0) for name, column in parts.items()}
    return Parts(counts, parts)


def node_present(columns: dict[str, Floats]) -> Flags:
    """Where a node has anything: energy passing on some side, or known to be none on all."""
    entering, leaving, through = columns["in_kwh"], columns["out_kwh"], columns["through_kwh"]
    whole = np.isfinite(entering) & np.isfinite(leaving) & np.isfinite(through)
    return whole if whole.all() else np.asarray(whole | _passes(entering, leaving, through))


def emission_parts(
    carbon: dict[str, Floats], node_columns: dict[str, Floats], per_hour: int, ends: Ends
) -> Parts:
    """Of nodes and flows: the columns given, emissions_kg among them, (N, F, T), beside the nodes' (N, T) columns."""
    emissions_kg = carbon["emissions_kg"]
    present = node_present(node_columns)[:, None, :]
    present = np.broadcast_to(present, emissions_kg.shape)
    if present.all() and all(_is_finite(column) for column in carbon.values()):
        return Parts(present, carbon)
    idle = ~_passes(node_columns["in_kwh"], node_columns["out_kwh"], node_columns["through_kwh"])[:, None, :]
    # No energy carries no carbon, whatever its intensity would have been.
    carbon = {name: np.where(idle & np.isnan(column), 0.0, column) for name, column in carbon.items()}
    counts = _counted(present, np.isfinite(carbon["emissions_kg"]), per_hour, ends)
    return Parts(counts, {name: np.where(counts, column, 0.0) for name, column in carbon.items()})


def columns_of_nodes(result: WindowResult) -> dict[str, Floats]:
    """What the parts of a window's nodes and emissions are told by, shape (N, T)."""
    return {
        "in_kwh": result.in_kwh,
        "out_kwh": result.out_kwh,
        "residual_kwh": result.residual_kwh,
        "through_kwh": result.through_kwh,
    }


def window_parts(result: WindowResult, ends: Ends) -> tuple[Parts, Parts, Parts]:
    """Parts of a window's edges (E, T), nodes (N, T) and emissions (N, F, T)."""
    base_s = result.base_ns / NS_PER_S
    per_hour = HOUR_NS // result.base_ns
    columns = columns_of_nodes(result)
    carbon = {"emissions_kg": result.emissions_kg, "through_kg": result.through_kg}
    return (
        energy_parts(result.energy.energy_kwh, result.energy.estimated_kwh, result.energy.covered, base_s),
        node_parts(columns, result.coverage, base_s, per_hour, ends),
        emission_parts(carbon, columns, per_hour, ends),
    )


def _passes(entering: Floats, leaving: Floats, through: Floats) -> Flags:
    passing = np.zeros(entering.shape, dtype=np.bool_)
    for column in (entering, leaving, through):
        passing |= (column != 0) & (column == column)
    return passing


def _is_finite(column: Floats) -> bool:
    """Whether all of it is known; a sum of numbers too large for a double is taken for no."""
    return bool(np.isfinite(column.sum()))


def _counted(present: Flags, known: Flags, per_hour: int, ends: Ends) -> Flags:
    """`present` less what is not in yet at the two ends."""
    counted = present.copy()
    known = present & known
    if ends.newest:
        tail = np.flip(known[..., -per_hour:], -1)
        counted[..., -per_hour:] &= np.flip(np.logical_or.accumulate(tail, axis=-1), -1)
    if ends.oldest:
        counted[..., :per_hour] &= np.logical_or.accumulate(known[..., :per_hour], axis=-1)
    return counted
