"""What a plant offers as Prometheus series, and their values at given times.

Where a sum over time is shown, the label `bucket` says over what: the value at a
time is the sum of the bucket that holds it, so far. A selector that does not
name a bucket gets one: the longest that fits the step, for a single moment the
day. Nothing there is no sample; there but unknown is NaN, which spreads
through sums: never a smaller figure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Protocol, cast

import numpy as np

from api.deps import Services
from api.promql import NAME, Selector
from api.window import BUCKET_S, BucketedSpan, Span, bucket_of, period_span
from core.bus import LiveNode
from core.clock import NS_PER_S, datetime_of
from core.errors import BadRequest
from core.plant.model import NodeKind, Plant
from core.results import SITE, Basis, Scope
from core.samples import Flags, Floats, Times
from core.store.seam import Bucket, Series

Labels = Mapping[str, str]

BUCKET: Final = "bucket"
LOOK_BACK_S: Final = 300  # how old the newest sample of a point may be, as in Prometheus
LIVE_FOR_S: Final = 60  # Grafana asks for times cut down to its step
MOST_CELLS: Final = 1_000_000
MOST_SAMPLES: Final = 500_000
MOST_PERIODS: Final = 62
MOST_POINTS: Final = 500
_PAGE: Final = 50_000
_LONGEST_S: Final = {**BUCKET_S, "1d": 25 * 3600, "1mo": 31 * 86_400 + 3600, "1y": 366 * 86_400}


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The times asked for, shape (T,), in order; `step_s` None for a single one."""

    time_ns: Times
    step_s: float | None = None

    @property
    def n(self) -> int:
        return int(self.time_ns.size)


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Of S series at T times: `value`, shape (S, T), NaN for unknown; `there`, whether there is a sample at all."""

    value: Floats
    there: Flags


class Metric(Protocol):
    name: str
    help: str

    async def series(self, services: Services) -> list[Labels]:
        """Labels of all its series, without the name."""

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values: ...


async def select(
    services: Services, selector: Selector, at: Moments
) -> list[tuple[dict[str, str], Floats, Flags]]:
    """The series a selector means that have a sample at one of the times: labels, values, where there is one."""
    found = []
    for metric in METRICS:
        series = await matching(services, metric, selector)
        if series and BUCKET in series[0] and not selector.asks_for(BUCKET):
            bucket = _bucket_for(services.plant(), at.step_s)
            series = [labels for labels in series if labels[BUCKET] == bucket]
        if not series:
            continue
        if len(series) * at.n > MOST_CELLS:
            raise BadRequest(
                f"{metric.name}: {len(series)} series at {at.n} times are more than {MOST_CELLS:,} values"
            )
        values = await metric.values(services, series, at)
        for labels, value, there in zip(series, values.value, values.there, strict=True):
            if there.any():
                found.append((named(metric, labels), value, there))
    return found


def named(metric: Metric, labels: Labels) -> dict[str, str]:
    """Labels as they are answered: the name first, without those that are empty."""
    return {NAME: metric.name, **{name: value for name, value in labels.items() if value}}


async def matching(services: Services, metric: Metric, selector: Selector) -> list[Labels]:
    """The metric's series a selector means, in every bucket."""
    if not all(
        matcher.matches({NAME: metric.name}) for matcher in selector.matchers if matcher.label == NAME
    ):
        return []
    series = await metric.series(services)
    return [labels for labels in series if selector.matches({NAME: metric.name, **labels})]


# sums over buckets -------------------------------------------------------------
class OfEdges:
    """A column of `Store.energy`."""

    def __init__(self, name: str, help_: str, column: str) -> None:
        self.name, self.help, self._column = name, help_, column

    async def series(self, services: Services) -> list[Labels]:
        plant = services.plant()
        return [{**edge, BUCKET: bucket} for bucket in _buckets(plant) for edge in _edges(plant)]

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        async def ask(names: list[str], start_ns: int, end_ns: int, bucket: Bucket, _: Labels) -> Series:
            return await services.store.energy(names, start_ns, end_ns, bucket)

        return await _over_buckets(services.plant(), series, at, "edge", self._column, ask)


class OfNodes:
    """A column of `Store.emissions` (by scope) or `Store.intensity` (all scopes together)."""

    def __init__(self, name: str, help_: str, column: str, by_scope: bool) -> None:
        self.name, self.help, self._column, self._by_scope = name, help_, column, by_scope

    async def series(self, services: Services) -> list[Labels]:
        plant = services.plant()
        scopes = [{"scope": str(scope.value)} for scope in Scope] if self._by_scope else [{}]
        return [
            {**node, **scope, "basis": basis.value, "method_set": method_set, BUCKET: bucket}
            for bucket in _buckets(plant)
            for method_set in plant.method_sets
            for basis in Basis
            for scope in scopes
            for node in _nodes(plant)
        ]

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        source = services.store.emissions if self._by_scope else services.store.intensity

        async def ask(names: list[str], start_ns: int, end_ns: int, bucket: Bucket, of: Labels) -> Series:
            return await source(names, start_ns, end_ns, bucket, of["basis"], of["method_set"])

        return await _over_buckets(services.plant(), series, at, "node", self._column, ask)


_Ask = Callable[[list[str], int, int, Bucket, Labels], Awaitable[Series]]


async def _over_buckets(
    plant: Plant, series: Sequence[Labels], at: Moments, key: str, column: str, ask: _Ask
) -> Values:
    values = _nothing(len(series), at.n)

    def kind(row: int) -> tuple[str, str, str]:
        return tuple(series[row].get(label, "") for label in (BUCKET, "basis", "method_set"))  # type: ignore[return-value]

    for _, group in groupby(sorted(range(len(series)), key=kind), key=kind):
        rows = list(group)
        of = series[rows[0]]
        bucket, bucket_s = bucket_of(of[BUCKET], plant.base_interval_s)
        starts, place = np.unique(_bucket_starts(plant, at.time_ns, bucket), return_inverse=True)
        end_ns = int(starts[-1]) + _LONGEST_S[bucket] * NS_PER_S
        names = list(dict.fromkeys(series[row][key] for row in rows))
        BucketedSpan(int(starts[0]), end_ns, bucket, bucket_s).guard(len(names))
        answer = await ask(names, int(starts[0]), end_ns, bucket, of)
        cells = _cells(answer, column, [(series[row][key], series[row].get("scope")) for row in rows], starts)
        values.value[rows] = cells.value[:, place]
        values.there[rows] = cells.there[:, place]
    return values


def _cells(answer: Series, column: str, keys: Sequence[tuple[str, str | None]], starts: Times) -> Values:
    """The answer's rows as a table of keys by bucket starts."""
    cells = _nothing(len(keys), starts.size)
    row_of = {key: row for row, key in enumerate(keys)}
    scopes: list[str | None] = [None] * len(answer.name)
    if answer.flow is not None:
        scopes = [str(answer.flows[flow].scope) for flow in answer.flow.tolist()]
    row = np.array([row_of.get(key, -1) for key in zip(answer.name, scopes, strict=True)], dtype=np.int64)
    at = np.minimum(np.searchsorted(starts, answer.start_ns), starts.size - 1)
    hit = (row >= 0) & (starts[at] == answer.start_ns)
    if hit.any():
        cells.value[row[hit], at[hit]] = answer.columns[column][hit]
        cells.there[row[hit], at[hit]] = True
    return cells


def _buckets(plant: Plant) -> list[str]:
    return [name for name, seconds in BUCKET_S.items() if seconds % plant.base_interval_s == 0]


def _bucket_for(plant: Plant, step_s: float | None) -> str:
    if step_s is None:
        return "1d"
    fitting = _buckets(plant)
    return [name for name in fitting if BUCKET_S[name] <= max(step_s, BUCKET_S[fitting[0]])][-1]


def _bucket_starts(plant: Plant, time_ns: Times, bucket: Bucket) -> Times:
    """Start of the bucket each time lies in; days and longer begin at the zone's midnight."""
    if bucket not in ("1d", "1mo", "1y"):
        width_ns = BUCKET_S[bucket] * NS_PER_S
        return time_ns // width_ns * width_ns
    return np.array([_period(plant, at_ns, bucket).start_ns for at_ns in time_ns.tolist()], dtype=np.int64)


def _period(plant: Plant, time_ns: int, bucket: str) -> Span:
    """The day, month or year a time lies in."""
    here = datetime_of(time_ns).astimezone(plant.zone).date().isoformat()
    return period_span(plant, here[: {"1d": 10, "1mo": 7, "1y": 4}[bucket]])


# power -------------------------------------------------------------------------
class Power:
    """Power of an edge: live now, before that the mean of the base interval that ended last."""

    name = "ecmc_power_kw"
    help = "Power of an edge: live at present, else the mean of the last whole base interval"

    async def series(self, services: Services) -> list[Labels]:
        return list(_edges(services.plant()))

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        plant = services.plant()
        bucket, bucket_s = bucket_of(None, plant.base_interval_s)
        width_ns = bucket_s * NS_PER_S
        last_ns = at.time_ns // width_ns * width_ns - width_ns  # starts of the newest whole intervals
        starts = np.arange(last_ns[0] - LOOK_BACK_S * NS_PER_S, last_ns[-1] + 1, width_ns)
        end_ns = int(starts[-1]) + width_ns
        BucketedSpan(int(starts[0]), end_ns, bucket, bucket_s).guard(len(series))
        names = [labels["edge"] for labels in series]
        answer = await services.store.energy(names, int(starts[0]), end_ns, bucket)
        cells = _cells(answer, "energy_kwh", [(name, None) for name in names], starts)
        index = np.where(cells.there, np.arange(starts.size), -1)
        newest = np.maximum.accumulate(index, axis=1)[:, (last_ns - starts[0]) // width_ns]
        fresh = (newest >= 0) & (last_ns - starts[newest] <= LOOK_BACK_S * NS_PER_S)
        kw = np.take_along_axis(cells.value, newest, axis=1) * 3600 / bucket_s
        values = Values(np.where(fresh, kw, np.nan), fresh)
        live = services.live()
        if live is not None:
            now = np.abs(at.time_ns - live.time_ns) <= LIVE_FOR_S * NS_PER_S
            for row, name in enumerate(names):
                if name in live.edges_kw:
                    values.value[row, now] = _known(live.edges_kw[name])
                    values.there[row, now] = True
        return values


class Live:
    """A figure of the live picture; of the present only."""

    def __init__(self, name: str, help_: str, figure: Callable[[LiveNode], float | None]) -> None:
        self.name, self.help, self._figure = name, help_, figure

    async def series(self, services: Services) -> list[Labels]:
        return list(_nodes(services.plant()))

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        values = _nothing(len(series), at.n)
        live = services.live()
        if live is not None:
            now = np.abs(at.time_ns - live.time_ns) <= LIVE_FOR_S * NS_PER_S
            figures = {node.node: self._figure(node) for node in live.nodes}
            for row, labels in enumerate(series):
                if labels["node"] in figures:
                    values.value[row, now] = _known(figures[labels["node"]])
                    values.there[row, now] = True
        return values


# points ------------------------------------------------------------------------
class Points:
    """Readings: the newest at each time, at most five minutes or three periods old; a bad one is NaN."""

    name = "ecmc_point"
    help = "Newest reading of a point, in its own unit; NaN where it is bad"

    async def series(self, services: Services) -> list[Labels]:
        return [
            {
                "point": point.id,
                "device": point.device or "",
                "quantity": point.quantity,
                "unit": point.unit,
            }
            for point in services.plant().points
        ]

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        values = _nothing(len(series), at.n)
        rows = {labels["point"]: row for row, labels in enumerate(series)}
        if at.n == 1:  # most often now, and then nothing older than the newest reading is wanted
            newest = await services.store.latest(list(rows))
            later = {}
            for name, time_ns, value in zip(
                newest.points, newest.time_ns.tolist(), newest.value.tolist(), strict=True
            ):
                if time_ns > at.time_ns[0]:
                    later[name] = rows[name]
                else:
                    self._fill(services, values, rows[name], name, at, np.array([time_ns]), np.array([value]))
            rows = later
        if len(rows) > MOST_POINTS:
            raise BadRequest(f"{self.name}: {len(rows)} points over time, at most {MOST_POINTS} are answered")
        left = MOST_SAMPLES
        for name, row in rows.items():
            times, found = await self._samples(services, name, at, left)
            left -= times.size
            self._fill(services, values, row, name, at, times, found)
        return values

    async def _samples(self, services: Services, name: str, at: Moments, most: int) -> tuple[Times, Floats]:
        start_ns = int(at.time_ns[0]) - self._look_back_ns(services.plant(), name)
        end_ns, after_ns = int(at.time_ns[-1]) + 1000, None
        times, values, n = [np.empty(0, dtype=np.int64)], [np.empty(0)], 0
        while True:
            page = await services.store.samples(name, start_ns, end_ns, _PAGE, after_ns)
            n += len(page)
            if n > most:
                raise BadRequest(
                    f"this would read more than {MOST_SAMPLES:,} samples: ask for a shorter range"
                )
            times.append(page.time_ns)
            values.append(page.value)
            if len(page) < _PAGE:
                return np.concatenate(times), np.concatenate(values)
            after_ns = int(page.time_ns[-1])

    def _fill(
        self, services: Services, into: Values, row: int, name: str, at: Moments, times: Times, values: Floats
    ) -> None:
        if times.size == 0:
            return
        newest = np.searchsorted(times, at.time_ns, side="right") - 1
        age_ns = at.time_ns - times[newest]
        into.there[row] = (newest >= 0) & (age_ns <= self._look_back_ns(services.plant(), name))
        into.value[row] = np.where(into.there[row], values[newest], np.nan)

    def _look_back_ns(self, plant: Plant, name: str) -> int:
        return int(max(LOOK_BACK_S, 3 * plant.point_by_id[name].period_s) * NS_PER_S)


# what people ask of a period -----------------------------------------------------
class Indicators:
    """`/v1/indicators` of the day, month and year a time lies in."""

    name = "ecmc_indicator"
    help = "An indicator of the day, month or year so far, as /v1/indicators answers it"
    _PERIODS: Final = {"day": "1d", "month": "1mo", "year": "1y"}

    async def series(self, services: Services) -> list[Labels]:
        plant = services.plant()
        now_ns = services.clock.now_ns()
        found: list[Labels] = []
        for method_set in plant.method_sets:
            today = _period(plant, now_ns, "1d")
            rows = await services.indicators(today.start_ns, today.end_ns, method_set)
            found += [{**_labels_of(row), "period": period} for period in self._PERIODS for row in rows]
        return found

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        values = _nothing(len(series), at.n)
        plant = services.plant()

        def kind(row: int) -> tuple[str, str]:
            return series[row]["period"], series[row]["method_set"]

        for (period, method_set), group in groupby(sorted(range(len(series)), key=kind), key=kind):
            bucket = cast("Bucket", self._PERIODS[period])
            rows = {tuple(sorted(series[row].items())): row for row in group}
            starts, place = np.unique(_bucket_starts(plant, at.time_ns, bucket), return_inverse=True)
            if starts.size > MOST_PERIODS:
                raise BadRequest(f"{self.name}: {starts.size} {period}s, at most {MOST_PERIODS} are answered")
            for i, start_ns in enumerate(starts.tolist()):
                within = place == i
                span = _period(plant, start_ns, bucket)
                for found in await services.indicators(span.start_ns, span.end_ns, method_set):
                    row = rows.get(tuple(sorted({**_labels_of(found), "period": period}.items())))
                    if row is not None:
                        values.value[row, within] = _known(cast("float | None", found["value"]))
                        values.there[row, within] = True
        return values


def _labels_of(row: Mapping[str, object]) -> dict[str, str]:
    return {name: str(row.get(name) or "") for name in ("indicator", "unit", "basis", "method_set")}


# alarms ------------------------------------------------------------------------
class Alerts:
    """Active alarms as Prometheus itself would show them."""

    name = "ALERTS"
    help = "1 for each alarm whose condition holds"

    async def series(self, services: Services) -> list[Labels]:
        return [
            {
                "alertname": str(alarm["rule"]),
                "alertstate": "firing",
                "state": str(alarm["state"]),
                "severity": str(alarm["severity"]),
                "point": str(alarm["point"]),
            }
            for alarm in services.alarms.active()
            if is_firing(alarm)
        ]

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        return _now(services, np.ones(len(series)), at)


class AlarmCount:
    name = "ecmc_alarms"
    help = "Number of alarms by ISA-18.2 state"
    _STATES: Final = ("normal", "active-unack", "active-ack", "returned-unack", "shelved")

    async def series(self, services: Services) -> list[Labels]:
        return [{"state": state} for state in self._STATES]

    async def values(self, services: Services, series: Sequence[Labels], at: Moments) -> Values:
        states = [alarm["state"] for alarm in services.alarms.all()]
        return _now(services, np.array([states.count(labels["state"]) for labels in series], dtype=float), at)


def is_firing(alarm: Mapping[str, object]) -> bool:
    """Whether an alarm's condition holds, shelved or not."""
    return str(alarm["condition"]).startswith("active")


def _now(services: Services, figures: Floats, at: Moments) -> Values:
    now = np.abs(at.time_ns - services.clock.now_ns()) <= LIVE_FOR_S * NS_PER_S
    there = np.broadcast_to(now, (figures.size, at.n))
    return Values(np.where(there, figures[:, None], np.nan), there)


# -------------------------------------------------------------------------------
def _edges(plant: Plant) -> list[dict[str, str]]:
    return [
        {"edge": edge.id, "source": edge.source, "target": edge.target, "carrier": edge.carrier}
        for edge in plant.edges
    ]


def _nodes(plant: Plant) -> list[dict[str, str]]:
    return [
        *(
            {
                "node": node.id,
                "kind": node.kind.value,
                "carrier": node.carrier or "",
                "origin": node.origin.value if node.kind is NodeKind.SOURCE and node.origin else "",
                "area": node.area or "",
            }
            for node in plant.nodes
        ),
        {"node": SITE, "kind": SITE, "carrier": "", "origin": "", "area": ""},
    ]


def _nothing(series: int, moments: int) -> Values:
    return Values(np.full((series, moments), np.nan), np.zeros((series, moments), dtype=np.bool_))


def _known(figure: float | None) -> float:
    return np.nan if figure is None else figure


METRICS: Final[Sequence[Any]] = (
    Power(),
    OfEdges("ecmc_energy_kwh", "Energy of an edge in a bucket, so far", "energy_kwh"),
    OfEdges(
        "ecmc_energy_coverage",
        "Share of a bucket's time an edge's energy stands on good readings",
        "coverage",
    ),
    OfEdges(
        "ecmc_energy_estimated_share",
        "Share of an edge's energy placed by spreading or substitution",
        "estimated_share",
    ),
    OfNodes(
        "ecmc_emissions_kgco2e",
        "Emissions of a node by scope in a bucket, so far; node site is the inventory",
        "emissions_kgco2e",
        by_scope=True,
    ),
    OfNodes(
        "ecmc_intensity_kgco2e_per_kwh",
        "Carbon leaving over energy leaving a node in a bucket, so far",
        "intensity_kgco2e_per_kwh",
        by_scope=False,
    ),
    Live("ecmc_live_power_kw", "Power through a node now, an estimate", lambda node: node.power_kw),
    Live(
        "ecmc_live_emissions_kgco2e_per_h",
        "Carbon rate of a node now, an estimate: location-based, the first method set",
        lambda node: node.emissions_kgco2e_per_h,
    ),
    Live(
        "ecmc_live_intensity_kgco2e_per_kwh",
        "Carbon intensity of a node now, an estimate",
        lambda node: node.intensity_kgco2e_per_kwh,
    ),
    Points(),
    Indicators(),
    AlarmCount(),
    Alerts(),
)
