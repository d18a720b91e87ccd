"""Energy over base intervals, out of registers that only ever count up, or out of power where there is none.

A register is read as a piecewise-linear function of time: an interval's energy
is the difference of its values at the interval's edges, so any run of intervals
telescopes to last minus first. Every number depends on the readings around its
interval and on nothing else, which is why a span gives the same bits however it
is cut into windows. Three things bend the line: a coarse register stands still
between steps, so a step is spread over the plateau before it; a register that
falls has rolled over or was reset; a dated event says what happened to the meter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from core.quality import UNCERTAIN_FROM
from core.results import IntervalEnergy, Mark, Marks
from core.samples import NS_PER_S, Flags, Floats, Statuses, Times

STEP_SPREAD_NS = 3600 * NS_PER_S
RATED_TOLERANCE = 1.5  # meters and lines bear short overloads; beyond this a step is no energy that flowed
LONGEST_SHAPED_NS = 28 * 24 * 3600 * NS_PER_S  # four weeks before it tell nothing of a longer gap
ABSURD_KW = 1e7  # ten gigawatts: no meter of a factory passes that, whatever is known of its rating
_BEYOND_KWH = 1e30  # sums and squares of less stay numbers
NS_PER_HOUR = 3600.0 * NS_PER_S
_UNSURE = np.int16(1 << 14)  # beside the Mark bits: an uncertain reading at one end
_NOT_SEEN = np.int16(Mark.GAP | Mark.RESET | Mark.JUMP | _UNSURE)
_ESTIMATED = np.int16(Mark.GAP | Mark.JUMP)

Rows = npt.NDArray[np.int64]
Shape = Callable[
    [int, Times], Floats
]  # a register and K + 1 times: weights of the K pieces between them, NaN unknown
_Number = TypeVar("_Number", np.float64, np.int64)


class EventKind(StrEnum):
    REPLACEMENT = "replacement"  # another meter from here on
    RATIO = "ratio"  # same register, another transformer ratio from here on
    RESET = "reset"  # the register was set to another value


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """What happened to a meter at an instant; energy is split there.

    Attributes:
        final_reading: What the old register showed last, in the point's unit; None: not known, and then no
            energy is made up between the last reading and the event.
        first_reading: What the new one showed first; None likewise.
        ratio: What a unit of the register is worth from here on, against what it is configured as.
        known_ns: When somebody wrote it down; withdrawn_ns: when it was taken back.
    """

    time_ns: int
    kind: EventKind
    final_reading: float | None = None
    first_reading: float | None = None
    ratio: float | None = None
    known_ns: int = 0
    withdrawn_ns: int | None = None

    def known_at(self, at_ns: int | None) -> bool:
        """Whether it counted as things were known then; None: as they are now."""
        if at_ns is None:
            return self.withdrawn_ns is None
        return self.known_ns <= at_ns and (self.withdrawn_ns is None or at_ns < self.withdrawn_ns)


@dataclass(frozen=True, slots=True)
class Register:
    """How one register counts.

    Attributes:
        gap_after_ns: A silence longer than this is a gap.
        modulus: Where it wraps to zero, in the point's unit; None if unknown: no fall is a rollover then.
        resolution: One step of it in the point's unit; None: the decimal place its readings show.
        rated_kw: What the meter can pass; None if unknown.
        kwh_per_unit: Of the point's unit.
        step_spread_ns: A step is spread over at most this long a plateau; a longer one was idle time.
        daily: It starts again from zero each day, so a fall counts from zero.
        events: In any order.
    """

    gap_after_ns: int
    modulus: float | None = None
    resolution: float | None = None
    rated_kw: float | None = None
    kwh_per_unit: float = 1.0
    step_spread_ns: int = STEP_SPREAD_NS
    daily: bool = False
    events: tuple[MeterEvent, ...] = ()


def register_energy(
    time_ns: Times,
    value: Floats,
    status: Statuses,
    edges_ns: Times,
    *,
    gap_after_ns: int,
    modulus: float | None = None,
    resolution: float | None = None,
    rated_kw: float | None = None,
    kwh_per_unit: float = 1.0,
    step_spread_ns: int = STEP_SPREAD_NS,
    daily: bool = False,
    events: Sequence[MeterEvent] = (),
) -> IntervalEnergy:
    """Energy of one register over the intervals between `edges_ns`, columns of shape (T,).

    Args:
        time_ns, value, status: Shape (n,), readings in time order, with their context before and after the
            window: the plateau a reading stands on within `step_spread_ns`, and one reading beyond it.
        edges_ns: Shape (T + 1,), rising.

    Returns:
        NaN outside the first and last reading. `estimated_kwh` is what was spread over gaps or jumped, beyond
        the rating or beyond ABSURD_KW where none is known.
        Bad readings count as missing; uncertain ones shape the curve but cover nothing.

    Raises:
        ValueError: Times fall, the columns differ in length, or there are fewer than two edges.
    """
    register = Register(
        gap_after_ns, modulus, resolution, rated_kw, kwh_per_unit, step_spread_ns, daily, tuple(events)
    )
    starts = np.array([0, time_ns.size], dtype=np.int64)
    energy = Registers([register]).energy(time_ns, value, status, starts, edges_ns)
    return IntervalEnergy(energy.energy_kwh[0], energy.covered[0], energy.estimated_kwh[0], energy.mark[0])


class Registers:
    """Many registers, computed in one pass over their sorted columns."""

    def __init__(self, registers: Sequence[Register]) -> None:
        self._registers = tuple(registers)
        self._gap_ns = np.array([r.gap_after_ns for r in registers], dtype=np.int64)
        self._spread_ns = np.array([r.step_spread_ns for r in registers], dtype=np.int64)
        self._modulus = _or_nan([r.modulus for r in registers])
        self._resolution = _or_nan([r.resolution for r in registers])
        self._rated_kw = _or_nan([r.rated_kw for r in registers])
        self._kwh_per_unit = np.array([r.kwh_per_unit for r in registers], dtype=np.float64)
        self._daily = np.array([r.daily for r in registers], dtype=np.bool_)
        self._events = [_one_after_another(r.events) for r in registers]
        self._with_events = [i for i, events in enumerate(self._events) if events]

    def __len__(self) -> int:
        return len(self._registers)

    def energy(
        self,
        time_ns: Times,
        value: Floats,
        status: Statuses,
        starts: Rows,
        edges_ns: Times,
        shape: Shape | None = None,
    ) -> IntervalEnergy:
        """Energy of every register over the same intervals, columns of shape (P, T).

        Args:
            time_ns, value, status: Shape (n,), sorted by register, then time; see `register_energy`.
            starts: Shape (P + 1,); register p's readings are rows [starts[p], starts[p + 1]).
            edges_ns: Shape (T + 1,).
            shape: How the energy of a gap lies over its base intervals; None, or where it says NaN: flat.

        Raises:
            ValueError: As `register_energy`.
        """
        _check_columns(time_ns, value, status, starts, edges_ns, len(self))
        with np.errstate(over="ignore", invalid="ignore"):  # absurd readings are told by their energy
            return _without_absurd(self._energy(time_ns, value, status, starts, edges_ns, shape), edges_ns)

    def _energy(
        self,
        time_ns: Times,
        value: Floats,
        status: Statuses,
        starts: Rows,
        edges_ns: Times,
        shape: Shape | None,
    ) -> IntervalEnergy:
        usable = (status >= 0) & np.isfinite(value)
        if not usable.all():
            time_ns, value, status = time_ns[usable], value[usable], status[usable]
            starts = np.concatenate(([0], np.cumsum(usable)))[starts]
        if time_ns.size == 0:
            return _nothing((len(self), edges_ns.size - 1))
        rows = _Curve(time_ns, value, status >= UNCERTAIN_FROM, starts, np.empty(0, dtype=np.int64))
        if self._with_events:
            rows = self._split_at_events(rows)
        rows, glitch_ns, glitch_of = self._without_glitches(rows)
        self._unwrap(rows)
        self._mark_silences(rows)
        if shape is not None:
            rows = self._shape_gaps(rows, edges_ns, shape)
        knots = self._spread_steps(rows)
        self._mark_jumps(rows, knots)
        return self._over_intervals(rows, knots, edges_ns, glitch_ns, glitch_of)

    # -- bending the line -----------------------------------------------------------------------------------

    def _split_at_events(self, rows: _Curve) -> _Curve:
        """Put the old register's last and the new one's first reading into the curve at each event."""
        at: list[int] = []
        new: list[tuple[int, float]] = []
        silent: list[bool] = []  # of each inserted row: the segment towards the readings carries nothing
        for p in self._with_events:
            first, end = int(rows.starts[p]), int(rows.starts[p + 1])
            if end - first < 2:
                continue
            inside: dict[int, list[MeterEvent]] = {}  # by the row after it
            for event in self._events[p]:
                if rows.time_ns[first] < event.time_ns < rows.time_ns[end - 1]:
                    after = first + int(np.searchsorted(rows.time_ns[first:end], event.time_ns))
                    inside.setdefault(after, []).append(event)
            for row, events in inside.items():
                ends = [(int(rows.time_ns[i]), float(rows.value[i])) for i in (row - 1, row)]
                for event, (final, opening, held) in zip(events, _readings_at(events, *ends), strict=True):
                    at += [row, row]
                    new += [(event.time_ns, final), (event.time_ns, opening)]
                    silent += held
        if not at:
            return rows
        where = np.array(at, dtype=np.int64)
        landed = where + np.arange(where.size)
        split = _Curve(
            np.insert(rows.time_ns, where, [time for time, _ in new]),
            np.insert(rows.value, where, [reading for _, reading in new]),
            np.insert(rows.unsure, where, False),
            rows.starts + np.searchsorted(where, rows.starts, side="left"),
            landed[1::2],
        )
        blind = np.array(silent, dtype=np.bool_)
        split.bits[landed[0::2][blind[0::2]] - 1] |= Mark.RESET
        split.bits[landed[1::2][blind[1::2]]] |= Mark.RESET
        return split

    def _without_glitches(self, rows: _Curve) -> tuple[_Curve, Times, Rows]:
        """Set aside single readings that their successor proves wrong: a dip, or a spike."""
        nothing = np.empty(0, dtype=np.int64)
        falls = rows.falls()
        falls = falls[~self._daily[rows.owner(falls)]]
        if falls.size == 0:
            return rows, nothing, nothing
        t, v = rows.time_ns, rows.value
        p = rows.owner(falls)
        before, after = np.maximum(falls - 1, 0), np.minimum(falls + 2, t.size - 1)
        allowed = self._rated_kw[p] * RATED_TOLERANCE / self._kwh_per_unit[p] / NS_PER_HOUR  # units per ns
        dip = rows.joins(falls + 1) & (v[after] >= v[falls])
        dip &= ~(v[after] - v[falls] > allowed * (t[after] - t[falls]))  # NaN: no rating, no objection
        spike = rows.joins(falls - 1) & (v[falls + 1] >= v[before]) & ~dip
        spike &= ~(v[falls] - v[before] <= allowed * (t[falls] - t[before]))
        aside = np.unique(np.concatenate((falls[dip] + 1, falls[spike])))
        if aside.size == 0:
            return rows, nothing, nothing
        return rows.without(aside), t[aside], rows.owner(aside)

    def _unwrap(self, rows: _Curve) -> None:
        """Decide of every remaining fall whether it is a rollover, and join the curve across it."""
        v = rows.value
        if rows.joints.size:
            rows.shift_at(rows.joints, v[rows.joints - 1] - v[rows.joints])
        falls = rows.falls()
        if falls.size == 0:
            return
        p = rows.owner(falls)
        modulus = self._modulus[p]
        hours = (rows.time_ns[falls + 1] - rows.time_ns[falls]) / NS_PER_HOUR
        power_kw = (v[falls + 1] - v[falls] + modulus) * self._kwh_per_unit[p] / hours
        rollover = (v[falls] >= 0.9 * modulus) & (v[falls + 1] <= 0.1 * modulus)  # NaN: unknown modulus
        rollover &= ~(power_kw > RATED_TOLERANCE * self._rated_kw[p])
        restart = self._daily[p] & ~rollover
        reset = ~rollover & ~restart
        rows.shift_at(falls[rollover] + 1, modulus[rollover])
        rows.shift_at(falls[restart] + 1, v[falls[restart]])
        rows.shift_at(falls[reset] + 1, v[falls[reset]] - v[falls[reset] + 1])
        rows.bits[falls[rollover]] |= Mark.ROLLOVER
        rows.bits[falls[reset]] |= Mark.RESET

    def _mark_silences(self, rows: _Curve) -> None:
        apart_ns = np.diff(rows.time_ns)
        gaps = np.flatnonzero(apart_ns > rows.per_segment(self._gap_ns))
        gaps = gaps[rows.joins(gaps)]
        rows.bits[gaps] |= Mark.GAP
        if rows.unsure.any():
            rows.bits[:-1][rows.unsure[:-1] | rows.unsure[1:]] |= _UNSURE

    def _shape_gaps(self, rows: _Curve, edges_ns: Times, shape: Shape) -> _Curve:
        """Bend the line over each gap that reaches into the window as `shape` says; its ends stay where they are."""
        t = rows.time_ns
        gaps = np.flatnonzero(rows.bits & Mark.GAP)
        gaps = gaps[(t[gaps] < edges_ns[-1]) & (t[gaps + 1] > edges_ns[0])]
        rows.bits[gaps] |= Mark.SILENT
        base_ns = int(edges_ns[1] - edges_ns[0])
        where, new_ns, new = [], [], []
        for gap in gaps.tolist():
            begin_ns, end_ns = int(t[gap]), int(t[gap + 1])
            shift = 0.0 if rows.shift is None else float(rows.shift[gap + 1])
            step = float(rows.value[gap + 1] - rows.value[gap]) + shift
            inside_ns = np.arange((begin_ns // base_ns + 1) * base_ns, end_ns, base_ns, dtype=np.int64)
            if step <= 0 or inside_ns.size == 0 or end_ns - begin_ns > LONGEST_SHAPED_NS:
                continue
            cuts_ns = np.concatenate(([begin_ns], inside_ns, [end_ns]))
            risen = np.cumsum(shape(int(rows.owner(np.array([gap]))[0]), cuts_ns))
            if not risen[-1] > 0:  # NaN: not known throughout
                continue
            where.append(np.full(inside_ns.size, gap + 1))
            new_ns.append(inside_ns)
            new.append(rows.value[gap] + step * (risen[:-1] / risen[-1]))
        if not where:
            return rows
        return rows.with_rows(np.concatenate(where), np.concatenate(new_ns), np.concatenate(new))

    def _spread_steps(self, rows: _Curve) -> _Curve:
        """The curve without the plateau readings that only wait for a coarse register's next step."""
        v, t = rows.value, rows.time_ns
        fresh = np.empty(v.size, dtype=np.bool_)  # the first reading of each run of equal ones
        fresh[:1] = True
        np.not_equal(v[1:], v[:-1], out=fresh[1:])
        if fresh.all():
            return rows
        fresh[rows.starts[:-1][rows.starts[:-1] < v.size]] = True
        fresh[rows.joints] = True
        if rows.joints.size:  # a reading held up to or from an event is no plateau
            fresh[1:] |= (rows.bits[:-1] & Mark.RESET) != 0
        run = np.flatnonzero(fresh)
        last = np.append(run[1:], v.size) - 1
        long = np.flatnonzero(last > run)
        run, last = run[long], last[long]
        ends = rows.joins(last)
        run, last = run[ends], last[ends]
        p = rows.owner(run)
        step = v[last + 1] - v[last]
        one = (step > 0) & (t[last + 1] - t[run] <= self._spread_ns[p])
        one &= np.abs(step - _quantum(v[last], v[last + 1], self._resolution[p])) <= 1e-3 * step
        run, last = run[one], last[one]
        if run.size == 0:
            return rows
        drop = np.zeros(v.size + 1, dtype=np.int8)
        drop[run + 1] += 1
        drop[last + 1] -= 1
        np.cumsum(drop, out=drop)
        kept = drop[:-1] == 0
        rows.knot_of_row = np.cumsum(kept) - 1
        knots = _Curve(t[kept], v[kept], rows.unsure[kept], rows.knot_of_row[np.maximum(rows.starts - 1, 0)] + 1,
                       rows.knot_of_row[rows.joints])  # fmt: skip
        knots.starts[rows.starts == 0] = 0
        if rows.shift is not None:
            knots.shift = rows.shift[kept]  # a row with a shift ends no plateau and so is kept
        return knots

    def _mark_jumps(self, rows: _Curve, knots: _Curve) -> None:
        """Mark steps beyond the rating; one quantum is always allowed, however close its readings stand."""
        if not np.isfinite(self._rated_kw).any():
            return
        allowed = self._rated_kw * RATED_TOLERANCE / self._kwh_per_unit / NS_PER_HOUR
        step = np.diff(knots.value)
        jumps = np.flatnonzero(step > knots.per_segment(allowed) * np.diff(knots.time_ns))
        jumps = jumps[knots.joins(jumps)]
        if jumps.size == 0:
            return
        p = knots.owner(jumps)
        quantum = _quantum(knots.value[jumps], knots.value[jumps + 1], self._resolution[p])
        over = step[jumps] - np.nan_to_num(quantum)
        ratio = self._ratio_at(p, knots.time_ns[jumps])
        apart_ns = knots.time_ns[jumps + 1] - knots.time_ns[jumps]
        jumps = jumps[over * ratio > allowed[p] * apart_ns * (1 + 1e-9)]
        if rows.knot_of_row is None:
            rows.bits[jumps] |= Mark.JUMP
        else:
            rows.bits[np.isin(rows.knot_of_row, jumps)] |= Mark.JUMP

    # -- reading the line at the edges ----------------------------------------------------------------------

    def _over_intervals(
        self, rows: _Curve, knots: _Curve, edges_ns: Times, glitch_ns: Times, glitch_of: Rows
    ) -> IntervalEnergy:
        points, intervals = len(self), edges_ns.size - 1
        shape = (points, intervals)
        some = rows.starts[1:] > rows.starts[:-1]
        first_ns = rows.time_ns[np.where(some, rows.starts[:-1], 0)]
        last_ns = np.where(some, rows.time_ns[np.where(some, rows.starts[1:] - 1, 0)], first_ns)
        clipped_ns = np.clip(edges_ns, first_ns[:, None], last_ns[:, None])
        seen_ns = np.diff(clipped_ns, axis=1)
        knot = _last_at_or_before(knots.time_ns, knots.starts, clipped_ns)
        reading = self._reading_at(knots, knot, clipped_ns)
        energy = np.diff(reading, axis=1)
        self._add_shifts(energy, knots, knot)
        np.maximum(energy, 0.0, out=energy)  # rounding may leave the last bit below zero
        energy *= self._kwh_per_unit[:, None]
        energy[(seen_ns == 0) | ~some[:, None]] = np.nan

        covered_ns: Rows = seen_ns
        estimated = np.zeros(shape)
        mark = np.zeros(shape, dtype=np.int16)
        flagged = np.flatnonzero(rows.bits[:-1])
        flagged = flagged[rows.joins(flagged)]
        if flagged.size:
            segment, cell, low_ns, high_ns = _overlaps(
                rows.time_ns[flagged], rows.time_ns[flagged + 1], rows.owner(flagged), edges_ns, points
            )
            segment = flagged[segment]
            bits = rows.bits[segment]
            np.bitwise_or.at(mark.reshape(-1), cell, bits & ~_UNSURE)
            overlap_ns = high_ns - low_ns
            lost = (bits & _NOT_SEEN) != 0
            uncovered = _summed(cell[lost], overlap_ns[lost], energy.size)
            covered_ns = seen_ns - uncovered.astype(np.int64).reshape(shape)
            placed = (bits & _ESTIMATED) != 0
            part = self._part_of_segment(rows, knots, segment[placed], overlap_ns[placed])
            estimated = _summed(cell[placed], part, energy.size).reshape(shape)
            guessed_ns = _summed(cell[placed], overlap_ns[placed], energy.size)
            whole = guessed_ns.reshape(shape) >= seen_ns
            estimated = np.where(whole, np.nan_to_num(energy), np.fmin(estimated, energy))
        for time_ns, owner, bit in (
            (glitch_ns, glitch_of, Mark.GLITCH),
            (knots.time_ns[knots.joints], knots.owner(knots.joints), Mark.EVENT),
        ):
            interval = np.searchsorted(edges_ns, time_ns, side="right") - 1
            inside = (interval >= 0) & (interval < intervals)
            np.bitwise_or.at(mark, (owner[inside], interval[inside]), np.int16(bit))
        return IntervalEnergy(energy, covered_ns / np.diff(edges_ns), estimated, mark)

    def _reading_at(self, knots: _Curve, knot: Rows, time_ns: Times) -> Floats:
        """The curve at times (P, K), in the register's own count since the last knot before each."""
        following = np.minimum(knot + 1, knots.time_ns.size - 1)
        at_last = following == np.maximum(knots.starts[1:], 1)[:, None]
        at_last |= following == knot
        following = np.where(at_last, knot, following)
        step = self._step(knots, knot, following)
        apart_ns = np.maximum(knots.time_ns[following] - knots.time_ns[knot], 1)
        reading = knots.value[knot] + step * ((time_ns - knots.time_ns[knot]) / apart_ns)
        scaled: Floats = reading * self._ratio_at(np.arange(len(self))[:, None], knots.time_ns[knot])
        return scaled

    def _add_shifts(self, energy: Floats, knots: _Curve, knot: Rows) -> None:
        """Add to each interval the falls and events its curve passes."""
        if knots.shift is None:
            return
        shifted = np.union1d(np.flatnonzero(knots.shift), knots.joints)
        owner = knots.owner(shifted)
        scale = self._ratio_at(owner, knots.time_ns[shifted])
        joint = np.isin(shifted, knots.joints)
        before = self._ratio_at(owner, knots.time_ns[shifted] - 1)
        amount = np.where(
            joint,
            knots.value[shifted - 1] * before - knots.value[shifted] * scale,
            knots.shift[shifted] * scale,
        )
        for p in np.unique(owner).tolist():
            mine = owner == p
            interval = np.searchsorted(knot[p], shifted[mine], side="left") - 1
            inside = (interval >= 0) & (interval < energy.shape[1])
            np.add.at(energy[p], interval[inside], amount[mine][inside])

    def _part_of_segment(self, rows: _Curve, knots: _Curve, segment: Rows, overlap_ns: Rows) -> Floats:
        """kWh that the curve places into `overlap_ns` of each segment of rows."""
        knot = segment if rows.knot_of_row is None else rows.knot_of_row[segment]
        owner = knots.owner(knot)
        step = self._step(knots, knot, knot + 1) * self._ratio_at(owner, knots.time_ns[knot])
        apart_ns = knots.time_ns[knot + 1] - knots.time_ns[knot]
        part: Floats = step * (overlap_ns / apart_ns) * self._kwh_per_unit[owner]
        return part

    @staticmethod
    def _step(knots: _Curve, knot: Rows, following: Rows) -> Floats:
        step = knots.value[following] - knots.value[knot]
        if knots.shift is not None:
            step = step + np.where(following > knot, knots.shift[following], 0.0)
        return step

    def _ratio_at(self, owner: Rows, time_ns: Times) -> Floats:
        """What a unit of each register is worth at each time: the last ratio event's word, 1 before any."""
        owner = np.broadcast_to(owner, time_ns.shape)
        ratio = np.ones(time_ns.shape)
        for p in self._with_events:
            for event in self._events[p]:
                if event.ratio is not None:
                    ratio[(owner == p) & (time_ns >= event.time_ns)] = event.ratio
        return ratio


class _Curve:
    """Readings of many registers, and what is known of the segments between them.

    Segment i lies between rows i and i + 1; `joins` says whether both belong to one register and no event lies
    between. `shift[i]` is what the count lost before row i by a fall or an event.
    """

    __slots__ = ("_joined", "bits", "joints", "knot_of_row", "shift", "starts", "time_ns", "unsure", "value")

    def __init__(self, time_ns: Times, value: Floats, unsure: Flags, starts: Rows, joints: Rows) -> None:
        self.time_ns = time_ns
        self.value = value
        self.unsure = unsure
        self.starts = starts
        self.joints = joints  # rows that begin anew after an event
        self.bits: Marks = np.zeros(time_ns.size, dtype=np.int16)
        self.shift: Floats | None = None
        self.knot_of_row: Rows | None = None
        self._joined: Flags | None = None

    def owner(self, rows: Rows) -> Rows:
        """The register each row belongs to."""
        found: Rows = np.searchsorted(self.starts, rows, side="right") - 1
        return found

    def joins(self, segments: Rows) -> Flags:
        if self._joined is None:
            self._joined = np.ones(self.time_ns.size, dtype=np.bool_)
            self._joined[self.starts[1:] - 1] = False  # row -1 is the last one, which begins no segment
            self._joined[self.joints - 1] = False
            self._joined[-1:] = False
        return self._joined[segments]

    def falls(self) -> Rows:
        falls = np.flatnonzero(self.value[1:] < self.value[:-1])
        return falls[self.joins(falls)]

    def per_segment(self, of_register: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """A register's property by segment; one number where all agree."""
        if (of_register == of_register[0]).all():
            return of_register[:1]
        return np.repeat(of_register, np.diff(self.starts))[:-1]

    def shift_at(self, rows: Rows, shift: Floats) -> None:
        if rows.size:
            if self.shift is None:
                self.shift = np.zeros(self.time_ns.size)
            self.shift[rows] = shift

    def with_rows(self, before: Rows, time_ns: Times, value: Floats) -> _Curve:
        """The curve with more rows, each before the row named and inside its segment."""
        more = _Curve(
            np.insert(self.time_ns, before, time_ns),
            np.insert(self.value, before, value),
            np.insert(self.unsure, before, False),
            self.starts + np.searchsorted(before, self.starts, side="left"),
            self.joints + np.searchsorted(before, self.joints, side="right"),
        )
        more.bits = np.insert(self.bits, before, self.bits[before - 1])
        if self.shift is not None:
            more.shift = np.insert(self.shift, before, 0.0)
        return more

    def without(self, rows: Rows) -> _Curve:
        rest = _Curve(
            np.delete(self.time_ns, rows),
            np.delete(self.value, rows),
            np.delete(self.unsure, rows),
            self.starts - np.searchsorted(rows, self.starts, side="left"),
            self.joints - np.searchsorted(rows, self.joints, side="left"),
        )
        rest.bits = np.delete(self.bits, rows)
        return rest


def _readings_at(
    events: Sequence[MeterEvent], before: tuple[int, float], after: tuple[int, float]
) -> list[tuple[float, float, tuple[bool, bool]]]:
    """What the register showed last before and first after each of the events between two readings.

    A piece of the curve one end of which nobody read carries nothing; so does one without any. A change of ratio
    alone leaves the register as it is.

    Returns:
        Last reading, first reading, and whether the pieces before and after it carry nothing.
    """
    cuts = [event for event in events if not _keeps_the_count(event)]
    starts = [before[1], *(event.first_reading for event in cuts)]
    ends = [*(event.final_reading for event in cuts), after[1]]
    held = [start is None or end is None for start, end in zip(starts, ends, strict=True)]
    pieces = [
        (end if start is None else start, start if end is None else end)
        for start, end in zip(starts, ends, strict=True)
    ]
    times = [before[0], *(event.time_ns for event in cuts), after[0]]
    found: list[tuple[float, float, tuple[bool, bool]]] = []
    piece = 0
    for event in events:
        if not _keeps_the_count(event):
            following = pieces[piece + 1][0]
            found.append((pieces[piece][1] or 0.0, following or 0.0, (held[piece], held[piece + 1])))
            piece += 1
            continue
        start, end = (value or 0.0 for value in pieces[piece])
        span_ns = times[piece + 1] - times[piece]
        share = (event.time_ns - times[piece]) / span_ns if span_ns else 0.0
        reading = start + (end - start) * share
        found.append((reading, reading, (held[piece], held[piece])))
    return found


def _one_after_another(events: Sequence[MeterEvent]) -> tuple[MeterEvent, ...]:
    """Events in time order; what is dated to one instant, a new meter and its ratio say, follows by a nanosecond."""
    ordered: list[MeterEvent] = []
    for event in sorted(events, key=lambda event: event.time_ns):
        if ordered and event.time_ns <= ordered[-1].time_ns:
            event = replace(event, time_ns=ordered[-1].time_ns + 1)
        ordered.append(event)
    return tuple(ordered)


def _keeps_the_count(event: MeterEvent) -> bool:
    return event.kind is EventKind.RATIO and event.final_reading is None and event.first_reading is None


def power_energy(
    time_ns: Times,
    power_kw: Floats,
    status: Statuses,
    edges_ns: Times,
    *,
    gap_after_ns: int,
    direction: str = "import",
) -> IntervalEnergy:
    """Energy of one power point by the trapezoid rule, never across a gap; columns of shape (T,).

    Args:
        time_ns, power_kw, status: Shape (n,), in time order, one reading of context on either side.
        edges_ns: Shape (T + 1,), rising.
        direction: "import" takes the positive part, "export" the negative one, exact at zero crossings.

    Returns:
        Energy of the part that was seen, coverage its share of the interval; NaN where nothing was seen.

    Raises:
        ValueError: As `register_energy`, or the direction is neither.
    """
    if direction not in ("import", "export"):
        raise ValueError(f"direction is import or export, got {direction!r}")
    signed_kw = power_kw if direction == "import" else -power_kw
    starts, gaps_ns = np.array([0, time_ns.size]), np.array([gap_after_ns])
    energy = power_energies(time_ns, signed_kw, status, starts, edges_ns, gaps_ns)
    return IntervalEnergy(energy.energy_kwh[0], energy.covered[0], energy.estimated_kwh[0], energy.mark[0])


def power_energies(
    time_ns: Times, power_kw: Floats, status: Statuses, starts: Rows, edges_ns: Times, gap_after_ns: Times
) -> IntervalEnergy:
    """The positive part of many power points, columns of shape (P, T); see `power_energy`.

    Args:
        time_ns, power_kw, status: Shape (n,), sorted by point, then time.
        starts: Shape (P + 1,); point p's readings are rows [starts[p], starts[p + 1]).
        gap_after_ns: Shape (P,).
    """
    _check_columns(time_ns, power_kw, status, starts, edges_ns, gap_after_ns.size)
    with np.errstate(over="ignore", invalid="ignore"):
        energy = _power_energies(time_ns, power_kw, status, starts, edges_ns, gap_after_ns)
        return _without_absurd(energy, edges_ns)


def _power_energies(
    time_ns: Times, power_kw: Floats, status: Statuses, starts: Rows, edges_ns: Times, gap_after_ns: Times
) -> IntervalEnergy:
    usable = (status >= 0) & np.isfinite(power_kw)
    time_ns, power_kw, unsure = time_ns[usable], power_kw[usable], status[usable] >= UNCERTAIN_FROM
    starts = np.concatenate(([0], np.cumsum(usable)))[starts]
    points, intervals = gap_after_ns.size, edges_ns.size - 1
    shape, cells = (points, intervals), points * intervals
    owner = np.repeat(np.arange(points), np.diff(starts))
    segment = np.flatnonzero((np.diff(time_ns) <= gap_after_ns[owner[:-1]]) & (owner[1:] == owner[:-1]))
    begin_ns, end_ns = time_ns[segment], time_ns[segment + 1]
    piece, cell, low_ns, high_ns = _overlaps(begin_ns, end_ns, owner[segment], edges_ns, points)
    segment = segment[piece]
    start_ns, start_kw = time_ns[segment], power_kw[segment]
    slope = (power_kw[segment + 1] - start_kw) / (time_ns[segment + 1] - start_ns)
    at_low = start_kw + slope * (low_ns - start_ns)
    at_high = start_kw + slope * (high_ns - start_ns)
    mean_kw = 0.5 * (np.maximum(at_low, 0.0) + np.maximum(at_high, 0.0))
    crossing = (at_low < 0) != (at_high < 0)
    if crossing.any():
        low, high = at_low[crossing], at_high[crossing]
        mean_kw[crossing] = 0.5 * np.maximum(low, high) ** 2 / np.abs(high - low)
    seen_ns = (high_ns - low_ns).astype(np.float64)
    energy = _summed(cell, mean_kw * (seen_ns / NS_PER_HOUR), cells)
    energy[np.bincount(cell, minlength=cells) == 0] = np.nan
    sure = ~(unsure[segment] | unsure[segment + 1])
    covered_ns = _summed(cell[sure], seen_ns[sure], cells).reshape(shape)
    mark = np.where(np.isnan(energy), Mark.NONE, Mark.POWER).astype(np.int16).reshape(shape)
    return IntervalEnergy(energy.reshape(shape), covered_ns / np.diff(edges_ns), np.zeros(shape), mark)


def since_standing(register_kwh: Floats, power_kwh: Floats, back: int) -> tuple[Floats, Floats]:
    """What flowed by power since a register stands still, at most `back` intervals; shapes (T,).

    Args:
        register_kwh, power_kwh: Shape (T,), of the same meter; NaN in the register is no standing still.

    Returns:
        The energy by power over the intervals up to each one in which the register did not move; the most it moved
        in one of the last `back` intervals.
    """
    still = register_kwh == 0
    moved_kwh = np.concatenate([np.zeros(back - 1), np.nan_to_num(register_kwh)])
    since, largest, standing = np.zeros(still.size), np.zeros(still.size), np.ones(still.size, dtype=np.bool_)
    padded_still = np.concatenate([np.zeros(back - 1, dtype=np.bool_), still])
    padded_kwh = np.concatenate([np.zeros(back - 1), power_kwh])
    for ago in range(back):  # one order of adding, so that a window's cut changes no bit
        then = slice(back - 1 - ago, back - 1 - ago + still.size)
        standing &= padded_still[then]
        since += np.where(standing, padded_kwh[then], 0.0)
        np.maximum(largest, moved_kwh[then], out=largest)
    return since, largest


def power_against_register(register: IntervalEnergy, power: IntervalEnergy) -> tuple[float, float]:
    """A period's reconciliation of one meter: kWh by power less kWh by register, and its share of the latter.

    Only intervals that both saw whole are compared; NaN where there are none. The register is the billing truth,
    so the difference is a quality figure and corrects nothing.
    """
    both = (register.covered >= 1) & (power.covered >= 1)
    if not both.any():
        return float("nan"), float("nan")
    counted = float(register.energy_kwh[both].sum())
    difference = float(power.energy_kwh[both].sum()) - counted
    return difference, difference / counted if counted else float("nan")


def _without_absurd(energy: IntervalEnergy, edges_ns: Times) -> IntervalEnergy:
    """What no meter can have passed is marked as a jump and stands on no good reading; what cannot be meant is unknown."""
    kwh = energy.energy_kwh
    absurd = kwh > ABSURD_KW * (np.diff(edges_ns) / NS_PER_HOUR)
    if not absurd.any():
        return energy
    kwh = np.where(kwh > _BEYOND_KWH, np.nan, kwh)
    return IntervalEnergy(
        kwh,
        np.where(absurd, 0.0, energy.covered),
        np.where(absurd, np.nan_to_num(kwh), energy.estimated_kwh),
        np.where(absurd, energy.mark | np.int16(Mark.JUMP), energy.mark),
    )


def _nothing(shape: tuple[int, int]) -> IntervalEnergy:
    zero = np.zeros(shape)
    return IntervalEnergy(np.full(shape, np.nan), zero, zero.copy(), np.zeros(shape, dtype=np.int16))


def _summed(cell: Rows, amount: Floats | Rows, cells: int) -> Floats:
    """Sum of the amounts by cell, each added in its order."""
    return np.asarray(np.bincount(cell, weights=amount, minlength=cells), dtype=np.float64)


def _or_nan(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _check_columns(
    time_ns: Times, value: Floats, status: Statuses, starts: Rows, edges_ns: Times, registers: int
) -> None:
    if not time_ns.size == value.size == status.size == int(starts[-1]) or starts.size != registers + 1:
        raise ValueError(
            f"{registers} registers with {int(starts[-1])} readings wanted, got {starts.size - 1} with"
            f" {time_ns.size} times, {value.size} values, {status.size} statuses"
        )
    if edges_ns.size < 2 or (edges_ns[1:] <= edges_ns[:-1]).any():
        raise ValueError("interval edges must rise and be at least two")
    back = np.flatnonzero(time_ns[1:] < time_ns[:-1])
    if back.size and not np.isin(back + 1, starts).all():
        raise ValueError("readings must come in time order")


def decimal_step(reading: Floats, resolution: float | None) -> Floats:
    """One step of a register by the decimal place a reading shows, or as declared; a thousandth where it is finer."""
    nothing = np.full(reading.shape, np.nan if resolution is None else resolution)
    step = _quantum(reading, reading, nothing)
    return np.where(np.isnan(step), 1e-3, step)


def _quantum(before: Floats, after: Floats, resolution: Floats) -> Floats:
    """One step of a register: as declared, else the coarsest decimal place that shows both readings; NaN: none."""
    quantum = np.full(before.shape, np.nan)
    for place in (1000.0, 100.0, 10.0, 1.0):
        exact = np.ones(before.shape, dtype=np.bool_)
        for reading in (before * place, after * place):
            exact &= np.abs(reading - np.rint(reading)) <= 1e-6 + 4e-16 * np.abs(reading)
        quantum[exact] = 1.0 / place
    return np.where(np.isnan(resolution), quantum, resolution)


def _last_at_or_before(time_ns: Times, starts: Rows, wanted_ns: Times) -> Rows:
    """Row of each register's last time not after each wanted time (P, K); each lies within its register's times."""
    points = starts.size - 1
    row: Rows
    if time_ns.size == 0:
        return np.zeros_like(wanted_ns)
    if points == 1:
        row = np.searchsorted(time_ns, wanted_ns[0], side="right")[None, :] - 1
        return row
    low = min(int(time_ns.min()), int(wanted_ns.min()))
    span = max(int(time_ns.max()), int(wanted_ns.max())) - low + 1
    if points * span >= 2**63:  # register and time do not fit one key: halve
        halves = []
        for part in (slice(0, points // 2), slice(points // 2, points)):
            begin, end = int(starts[part.start]), int(starts[part.stop])
            own_starts = starts[part.start : part.stop + 1] - begin
            halves.append(_last_at_or_before(time_ns[begin:end], own_starts, wanted_ns[part]) + begin)
        return np.concatenate(halves)
    key = (time_ns - low) + np.repeat(np.arange(points, dtype=np.int64) * span, np.diff(starts))
    wanted = (wanted_ns - low) + np.arange(points, dtype=np.int64)[:, None] * span
    row = np.searchsorted(key, wanted, side="right") - 1
    return np.maximum(row, 0)


def _overlaps(
    begin_ns: Times, end_ns: Times, owner: Rows, edges_ns: Times, points: int
) -> tuple[Rows, Rows, Times, Times]:
    """Every meeting of a segment with an interval: segment, cell (register x interval), and from when to when.

    Meetings come in the order of the segments, then time.
    """
    intervals = edges_ns.size - 1
    first = np.maximum(np.searchsorted(edges_ns, begin_ns, side="right") - 1, 0)
    last = np.minimum(np.searchsorted(edges_ns, end_ns, side="left") - 1, intervals - 1)
    count = np.maximum(last - first + 1, 0)
    count[end_ns <= begin_ns] = 0
    segment = np.repeat(np.arange(begin_ns.size), count)
    ordinal = np.arange(segment.size) - np.repeat(np.cumsum(count) - count, count)
    interval = first[segment] + ordinal
    low_ns = np.maximum(begin_ns[segment], edges_ns[interval])
    high_ns = np.minimum(end_ns[segment], edges_ns[interval + 1])
    return segment, owner[segment] * intervals + interval, low_ns, high_ns
