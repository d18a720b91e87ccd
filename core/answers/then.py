"""A period's figures as they were known at a past time: the same answers, read from what closing days kept.

Of a closed day every revision is there, so what its newest seal of then said can
be read again, bit for bit. Of a day that was still open nobody kept what it
showed, and nothing is put in its place: such a period is refused. Sums are exact
(`math.fsum`), so they do not depend on the order in which hours come back.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np

from core.clock import rfc3339
from core.errors import BadRequest
from core.registers.form import period_ns
from core.results import HOUR_NS, Flow, WindowResult
from core.samples import NS_PER_S, Flags, Floats, SampleBatch, Times
from core.seal import Seal, whole_hours
from core.store.bucket import bucket_edges
from core.store.rollup import QUARTER_NS, Ends, Parts, window_parts
from core.store.seam import Bucket, Series, Store

FactorsUsed = Callable[[int, int, str, int | None], Awaitable[Mapping[tuple[str, str], tuple[str, ...]]]]
"""Ids of the factor rows by (source node, basis) behind the results of [start, end) by a method set, of sealed
hours as a revision had them where one is given."""

_NO_ROW = (
    "number:",
    "hourly:",
    "mean-of:",
    "out-of-scope:",
)  # ids that stand for themselves; a seal names rows
_HOUR_S = HOUR_NS / NS_PER_S


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Closed days that follow each other, with the factor rows they were sealed with.

    `revision` is set where their figures are no longer those of then.
    """

    start_ns: int
    end_ns: int
    revision: int | None
    factors: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class _Hours:
    """Rows of one column set by the hour: names, flows (None for energy), starts, columns of shape (n,)."""

    key: list[tuple[str, Flow | None]]
    start_ns: Times
    columns: Sequence[Floats]


class FiguresThen:
    """Energy and carbon of one plant as they were known at `known_at_ns`."""

    def __init__(self, store: Store, zone: ZoneInfo, known_at_ns: int, factors_used: FactorsUsed) -> None:
        self._store = store
        self._zone = zone
        self._known_at_ns = known_at_ns
        self._used = factors_used

    async def energy(self, edge: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket) -> Series:
        """As `Store.energy`.

        Raises:
            BadRequest: A day of the range was not closed then.
        """
        parts = []
        for stretch in await self._stretches(start_ns, end_ns):
            if stretch.revision is None:
                series = await self._store.energy(edge, stretch.start_ns, stretch.end_ns, "1h")
                kwh = series.columns["energy_kwh"]
                columns = (
                    kwh,
                    series.columns["estimated_share"] * kwh,
                    series.columns["coverage"] * _HOUR_S,
                )
                parts.append(_Hours([(name, None) for name in series.name], series.start_ns, columns))
            else:
                parts += [
                    _energy_hours(part, found, edge)
                    for found in await self._store.stored(stretch.start_ns, stretch.end_ns, stretch.revision)
                    for part in [window_parts(found, Ends())[0]]
                ]
        key, at_ns, inside_s, sums = self._bucketed(parts, start_ns, end_ns, bucket, 3)
        kwh, estimated_kwh, covered_s = sums
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(kwh == 0, 0.0, estimated_kwh / kwh)
        coverage = np.clip(covered_s / inside_s, 0.0, 1.0)
        names = tuple(name for name, _ in key)
        return Series(names, at_ns, {"energy_kwh": kwh, "coverage": coverage, "estimated_share": share})

    async def emissions(
        self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket, basis: str, method_set: str
    ) -> Series:
        """As `Store.emissions`.

        Raises:
            BadRequest: A day of the range was not closed then.
        """
        parts = []
        for stretch in await self._stretches(start_ns, end_ns):
            if stretch.revision is None:
                series = await self._store.emissions(
                    node, stretch.start_ns, stretch.end_ns, "1h", basis, method_set
                )
                assert series.flow is not None
                key: list[tuple[str, Flow | None]] = [
                    (name, series.flows[flow])
                    for name, flow in zip(series.name, series.flow.tolist(), strict=True)
                ]
                columns = (series.columns["emissions_kgco2e"], series.columns["coverage"] * _HOUR_S)
                parts.append(_Hours(key, series.start_ns, columns))
            else:
                for found in await self._store.stored(stretch.start_ns, stretch.end_ns, stretch.revision):
                    _, of_nodes, of_flows = window_parts(found, Ends())
                    wanted = [
                        (n, f)
                        for n, name in enumerate(found.nodes)
                        if name in node
                        for f, flow in enumerate(found.flows)
                        if (flow.basis, flow.method_set) == (basis, method_set)
                    ]
                    per_quarter = QUARTER_NS // found.base_ns
                    kg = of_flows.summed(per_quarter).summed(4)
                    covered = of_nodes.summed(per_quarter).summed(4).columns["covered_s"]
                    parts.append(
                        _rows(
                            [(found.nodes[n], found.flows[f]) for n, f in wanted],
                            found.start_ns,
                            [kg.counts[n, f] for n, f in wanted],
                            [
                                [kg.columns["emissions_kg"][n, f] for n, f in wanted],
                                [covered[n] for n, _ in wanted],
                            ],
                        )
                    )
        key_, at_ns, inside_s, sums = self._bucketed(parts, start_ns, end_ns, bucket, 2)
        flows = tuple(dict.fromkeys(flow for _, flow in key_ if flow is not None))
        columns_ = {
            "emissions_kgco2e": sums[0],
            "coverage": np.clip(sums[1] / inside_s, 0.0, 1.0),
        }
        flow_of = np.array([flows.index(flow) for _, flow in key_ if flow is not None], dtype=np.int32)
        return Series(tuple(name for name, _ in key_), at_ns, columns_, flow_of, flows)

    async def readings(
        self, points: Sequence[str], start_ns: int, end_ns: int, step_spread_ns: int
    ) -> SampleBatch:
        """As `Store.readings`, without what came or changed in closed days since."""
        return await self._store.readings(points, start_ns, end_ns, step_spread_ns, self._known_at_ns)

    async def factors_used(
        self, start_ns: int, end_ns: int, method_set: str
    ) -> dict[tuple[str, str], tuple[str, ...]]:
        """Ids of the factor rows by (source node, basis) that those figures stood on."""
        used: dict[tuple[str, str], dict[str, None]] = {}
        for stretch in await self._stretches(start_ns, end_ns):
            found = await self._used(stretch.start_ns, stretch.end_ns, method_set, stretch.revision)
            for key, ids in found.items():
                # An hour without energy is the same under any factor: its run may name one of later.
                then = [id_ for id_ in ids if id_ in stretch.factors or id_.startswith(_NO_ROW)]
                used.setdefault(key, {}).update(dict.fromkeys(then))
        return {key: tuple(ids) for key, ids in used.items()}

    async def _stretches(self, start_ns: int, end_ns: int) -> list[_Stretch]:
        """The days of [start, end) that had results then, oldest first."""
        changed = {label for label, _ in await self._store.reopened_days()}
        seals: dict[str, list[Seal]] = {}
        for seal in await self._store.seals(start_ns, end_ns, "day"):
            seals.setdefault(seal.label, []).append(seal)
        closed_later = [label for label, told in seals.items() if told[0].sealed_at_ns > self._known_at_ns]
        for label in sorted([*closed_later, *await self._store.open_days(self._zone.key, end_ns)]):
            first_ns, last_ns = period_ns(label, self._zone)
            asked = first_ns < min(end_ns, self._known_at_ns) and last_ns > start_ns
            if asked and await self._has_figures(*whole_hours(first_ns, last_ns)):
                raise BadRequest(
                    f"{label} was not closed at {rfc3339(self._known_at_ns)}, and what an open day showed is not"
                    " kept: ask for a later known_at or a period that was closed (GET /v1/seals)"
                )
        stretches: list[_Stretch] = []
        for label, told in sorted(seals.items()):
            known = [seal for seal in told if seal.sealed_at_ns <= self._known_at_ns]
            if not known:
                continue
            then = known[-1]
            same = then is told[-1] and label not in changed
            first_ns, last_ns = max(then.start_ns, start_ns), min(then.end_ns, end_ns)
            factors = frozenset(then.factors)
            before = stretches[-1] if stretches else None
            if same and before is not None and before.revision is None and before.end_ns == first_ns:
                stretches[-1] = _Stretch(before.start_ns, last_ns, None, before.factors | factors)
            else:
                stretches.append(_Stretch(first_ns, last_ns, None if same else then.revision, factors))
        return stretches

    async def _has_figures(self, start_ns: int, end_ns: int) -> bool:
        """Whether anything of [start, end) adds to a report."""
        stored = await self._store.stored(start_ns, end_ns)
        return any(window_parts(part, Ends())[0].counts.any() for part in stored)

    def _bucketed(
        self, parts: Sequence[_Hours], start_ns: int, end_ns: int, bucket: Bucket, width: int
    ) -> tuple[list[tuple[str, Flow | None]], Times, Floats, list[Floats]]:
        """Keys, bucket starts, seconds of the bucket inside the range, and sums by column, one row a key and bucket."""
        edges = bucket_edges(start_ns, end_ns, bucket, self._zone)
        keys: dict[tuple[str, Flow | None], int] = {}
        row_of = [np.array([keys.setdefault(key, len(keys)) for key in part.key], np.int64) for part in parts]
        row = np.concatenate([np.empty(0, np.int64), *row_of])
        hour_ns = np.concatenate([np.empty(0, np.int64), *(part.start_ns for part in parts)])
        columns = [np.concatenate([np.empty(0), *(part.columns[i] for part in parts)]) for i in range(width)]
        place = np.searchsorted(edges, hour_ns, side="right") - 1
        order = np.lexsort((hour_ns, place, row))
        row, place = row[order], place[order]
        first = np.flatnonzero(np.concatenate(([row.size > 0], (np.diff(row) != 0) | (np.diff(place) != 0))))
        cuts = [*first.tolist(), row.size]
        sums = [
            np.array([math.fsum(column[order[a:b]].tolist()) for a, b in pairwise(cuts)])
            for column in columns
        ]
        named = list(keys)
        at = place[first]
        inside_s = (np.minimum(edges[at + 1], end_ns) - np.maximum(edges[at], start_ns)) / NS_PER_S
        return [named[i] for i in row[first].tolist()], edges[at], inside_s, sums


def _energy_hours(parts: Parts, found: WindowResult, edges: Iterable[str]) -> _Hours:
    hours = parts.summed(QUARTER_NS // found.base_ns).summed(4)
    wanted = [e for e, name in enumerate(found.edges) if name in edges]
    return _rows(
        [(found.edges[e], None) for e in wanted],
        found.start_ns,
        [hours.counts[e] for e in wanted],
        [[hours.columns[name][e] for e in wanted] for name in ("energy_kwh", "estimated_kwh", "covered_s")],
    )


def _rows(
    keys: Sequence[tuple[str, Flow | None]],
    start_ns: int,
    counts: Sequence[Flags],
    columns: Sequence[Sequence[Floats]],
) -> _Hours:
    """Hours that count, series by series."""
    key: list[tuple[str, Flow | None]] = []
    at_ns: list[Times] = []
    for name, counted in zip(keys, counts, strict=True):
        hours = np.flatnonzero(counted)
        key += [name] * hours.size
        at_ns.append(start_ns + hours * HOUR_NS)
    return _Hours(
        key,
        np.concatenate([np.empty(0, np.int64), *at_ns]),
        [
            np.concatenate(
                [np.empty(0), *(one[counted] for one, counted in zip(column, counts, strict=True))]
            )
            for column in columns
        ],
    )
