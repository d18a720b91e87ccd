"""The alarm state machine, driven by the time the data carry.

An excursion begins when the reading was taken, not when it reached us: delays
are measured between readings, and a reading no newer than the newest one seen
of its point decides nothing, so late data raise no alarm and a repeated batch
raises none twice. Only silence is measured by our own clock.

Deadband acts on return alone: an alarm comes at the limit and goes at the limit
less the deadband.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from core.bus import ALERTS, COMMITTED, AlertNews, LocalBus
from core.clock import Clock, rfc3339
from core.errors import BadRequest, StoreTrouble
from core.metrics import ALERTS as ALERTS_BY_STATE
from core.plant.model import AlertKind, AlertRule, Label, Plant
from core.quality import is_bad
from core.samples import NS_PER_S, Flags, Floats, PointTable, SampleBatch, Times

log = logging.getLogger(__name__)

LONGEST_SHELVE_S: Final = 24 * 3600.0
UNWRITTEN_LIMIT: Final = 100_000  # transitions kept while the database is away; then the oldest go

_NEVER: Final = np.iinfo(np.int64).min
_Rows = npt.NDArray[np.intp]


class UnknownAlarm(BadRequest):
    """No rule has this id."""


class AlarmState(IntEnum):
    NORMAL = 0
    ACTIVE_UNACK = 1
    ACTIVE_ACK = 2
    RETURNED_UNACK = 3

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", "-")


_STATE_OF_WORD: Final = {state.word: state for state in AlarmState}
SHELVED: Final = "shelved"
UNSHELVED: Final = "unshelved"


class _Class(IntEnum):
    """What a reading says about its rule."""

    CLEAR = 0  # back inside, deadband and all
    BETWEEN = 1  # inside the limit, not yet past the deadband
    BEYOND = 2
    UNKNOWN = 3  # bad quality: no evidence either way, but a running delay starts anew


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """One transition, as it is kept for ever.

    Attributes:
        time_ns: When it happened by the data (for an operator's act: by the clock).
        state: An AlarmState's word, "shelved" or "unshelved".
        value: The reading at the transition, NaN where there is none.
        who, note: Of an operator's act, else empty.
        at_ns: When it was recorded.
        data: `since_ns`, `newest_ns` (the newest reading then), `shelved_until_ns`,
            `condition` (the AlarmState's word, shelved or not), `severity`, `point`.
    """

    rule: str
    time_ns: int
    state: str
    value: float
    who: str
    note: str
    at_ns: int
    data: Mapping[str, str | float | None] = field(default_factory=dict)


class AlertLog(Protocol):
    async def append(self, events: Sequence[AlertEvent]) -> None:
        """Keep the events, in this order; StoreUnavailable where that cannot be done now."""

    async def last(self) -> list[AlertEvent]:
        """Of each rule the last transition and the last shelving act, in the order they were recorded."""


class Alarms:
    """Every alarm rule of a plant and the state it is in.

    `observe` and `tick` never wait: transitions are told on the bus at once and
    written by `flush`, which `run` calls; they stay in memory until written.
    """

    def __init__(self, plant: Plant, log_: AlertLog, bus: LocalBus, clock: Clock) -> None:
        self._log = log_
        self._bus = bus
        self._clock = clock
        self._unwritten: deque[AlertEvent] = deque(maxlen=UNWRITTEN_LIMIT)
        self._writing = asyncio.Lock()
        self._waits = False  # the log could not be written last time
        self._compile(plant)

    # what people ask --------------------------------------------------------
    def active(self) -> list[dict[str, object]]:
        """Every alarm that is not normal or is shelved, the gravest first."""
        rows = np.flatnonzero((self._state != AlarmState.NORMAL) | (self._shelved_until_ns > 0))
        return [self._body(int(row)) for row in rows[np.argsort(-self._severity[rows], kind="stable")]]

    def all(self) -> list[dict[str, object]]:
        """Every rule's alarm, normal ones too, in the order of the rules."""
        return [self._body(row) for row in range(len(self._rules))]

    def one(self, alarm: str) -> dict[str, object]:
        return self._body(self._row(alarm))

    # what data do -----------------------------------------------------------
    def observe(self, batch: SampleBatch) -> None:
        """Take committed samples, in any order; those no newer than the newest seen decide nothing."""
        now_ns = self._clock.now_ns()
        rule, time_ns, value, seen = self._readings(batch)
        if rule.size == 0:
            return
        last_of_rule = np.roll(_begins(rule), -1)
        newest = rule[last_of_rule]
        self._newest_ns[newest] = time_ns[last_of_rule]
        self._heard_ns[newest] = now_ns
        known = np.isfinite(value[last_of_rule])
        self._value[newest[known]] = value[last_of_rule][known]

        # Of a run of readings that say the same, only the first and the last can change anything.
        starts_run = _begins(rule, seen)
        telling = starts_run | np.roll(starts_run, -1)
        rule, time_ns, value, seen = rule[telling], time_ns[telling], value[telling], seen[telling]

        first = np.flatnonzero(_begins(rule))
        turn = np.arange(rule.size) - np.repeat(first, np.diff(np.append(first, rule.size)))
        by_turn = np.argsort(turn, kind="stable")
        for rows in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):  # turn k: each rule's k-th reading
            self._step(rule[rows], time_ns[rows], value[rows], seen[rows], now_ns)
        self._count()

    def tick(self, now_ns: int) -> None:
        """Let time pass: silences, delays that no further reading confirms, shelvings that end."""
        quiet_ns = now_ns - self._heard_ns
        silent = self._is_missing & ~self._is_active() & (quiet_ns > self._for_ns)
        for row in np.flatnonzero(silent).tolist():
            last_ns = self._newest_ns[row] if self._newest_ns[row] != _NEVER else self._heard_ns[row]
            self._enter(row, AlarmState.ACTIVE_UNACK, int(last_ns + self._for_ns[row]), now_ns)

        # A source that reports changes only says by its silence that the last value still stands.
        running = ~self._is_missing & (self._timer_ns != _NEVER)
        delay_ns = np.where(self._is_active(), self._off_delay_ns, self._on_delay_ns)
        rows = np.flatnonzero(running & (quiet_ns >= delay_ns))
        self._confirm(rows, self._timer_ns[rows] + delay_ns[rows], now_ns)

        for row in np.flatnonzero((self._shelved_until_ns > 0) & (self._shelved_until_ns <= now_ns)).tolist():
            until_ns = int(self._shelved_until_ns[row])
            self._shelved_until_ns[row] = 0
            self._tell(row, UNSHELVED, until_ns, now_ns)
        self._count()

    # what people do ---------------------------------------------------------
    async def acknowledge(self, alarm: str, who: str, note: str = "") -> dict[str, object]:
        """Somebody has seen it. An acknowledged alarm that has returned is normal again.

        Raises:
            UnknownAlarm: No such alarm.
            BadRequest: There is nothing to acknowledge.
        """
        row, now_ns = self._row(alarm), self._clock.now_ns()
        state = AlarmState(int(self._state[row]))
        if state not in (AlarmState.ACTIVE_UNACK, AlarmState.RETURNED_UNACK):
            raise BadRequest(f"alarm {alarm} is {state.word}: there is nothing to acknowledge")
        self._acknowledged_by[row] = who
        after = AlarmState.ACTIVE_ACK if state is AlarmState.ACTIVE_UNACK else AlarmState.NORMAL
        self._state[row] = after
        self._tell(row, after.word, now_ns, now_ns, who, note)
        self._count()
        await self.flush()
        return self._body(row)

    async def shelve(self, alarm: str, who: str, for_s: float, note: str = "") -> dict[str, object]:
        """Take an alarm off the list for a while; it goes on being evaluated. `for_s` 0 brings it back.

        Raises:
            UnknownAlarm: No such alarm.
            BadRequest: Longer than a day, or negative.
        """
        row, now_ns = self._row(alarm), self._clock.now_ns()
        if not 0 <= for_s <= LONGEST_SHELVE_S:
            raise BadRequest(f"alarm {alarm}: shelve for 0 to {LONGEST_SHELVE_S:.0f} s, got {for_s:g}")
        self._shelved_until_ns[row] = now_ns + int(for_s * NS_PER_S) if for_s else 0
        self._tell(row, SHELVED if for_s else UNSHELVED, now_ns, now_ns, who, note)
        await self.flush()
        return self._body(row)

    # running ----------------------------------------------------------------
    async def restore(self) -> None:
        """Take up every alarm where the log left it; raises StoreUnavailable."""
        rows = {rule.id: row for row, rule in enumerate(self._rules)}
        for event in await self._log.last():
            row = rows.get(event.rule)
            if row is None:
                continue
            if event.state in _STATE_OF_WORD:
                self._state[row] = _STATE_OF_WORD[event.state]
                self._since_ns[row] = int(event.data.get("since_ns") or event.time_ns)
                self._value[row] = event.value
                self._acknowledged_by[row] = event.who or None
                newest = event.data.get("newest_ns")
                self._newest_ns[row] = int(newest) if newest is not None else _NEVER
            else:
                until = event.data.get("shelved_until_ns")
                self._shelved_until_ns[row] = int(until or 0) if event.state == SHELVED else 0
        self._count()

    async def run(self) -> None:
        """Follow what is committed until cancelled; one look at the clock a second."""
        with self._bus.subscribe(COMMITTED) as news:
            next_tick_ns = 0
            while True:
                try:
                    async with asyncio.timeout(1.0):
                        self.observe(await news.get())
                except TimeoutError:
                    pass
                now_ns = self._clock.now_ns()
                if now_ns >= next_tick_ns:
                    self.tick(now_ns)
                    next_tick_ns = now_ns + NS_PER_S
                    await self.flush()

    async def flush(self) -> None:
        """Write what is not written yet; a database that is away is tried again at the next call."""
        async with self._writing:
            events = list(self._unwritten)
            if not events:
                return
            try:
                await self._log.append(events)
            except StoreTrouble as why:
                if not self._waits:
                    log.warning("alarm log cannot be written: %s", why)
                self._waits = True
                return
            self._waits = False
            written = set(map(id, events))
            while self._unwritten and id(self._unwritten[0]) in written:
                self._unwritten.popleft()

    def adopt(self, plant: Plant) -> None:
        """Take over a changed plant; rules that keep their id keep their state."""
        before = self._rules
        kept = {rule.id: row for row, rule in enumerate(before)}
        old = {name: getattr(self, name) for name in _STATE_COLUMNS}
        acknowledged_by = self._acknowledged_by
        self._compile(plant)
        pairs = [(kept[rule.id], row) for row, rule in enumerate(self._rules) if rule.id in kept]
        for source, target in pairs:
            for name, column in old.items():
                getattr(self, name)[target] = column[source]
            self._acknowledged_by[target] = acknowledged_by[source]
            if before[source].point != self._rules[target].point:  # another point's times mean nothing here
                self._newest_ns[target] = _NEVER
        self._count()

    # inside -----------------------------------------------------------------
    def _compile(self, plant: Plant) -> None:
        rules = self._rules = plant.alerts
        self._units = [
            plant.point_by_id[rule.point].unit if rule.point in plant.point_by_id else "" for rule in rules
        ]
        self._low = _column(rules, lambda rule: -np.inf if rule.low is None else rule.low)
        self._high = _column(rules, lambda rule: np.inf if rule.high is None else rule.high)
        self._deadband = _column(rules, lambda rule: rule.deadband)
        self._on_delay_ns = _durations_ns(rules, lambda rule: rule.on_delay_s)
        self._off_delay_ns = _durations_ns(rules, lambda rule: rule.off_delay_s)
        self._for_ns = _durations_ns(rules, lambda rule: rule.for_s)
        self._severity = np.array([rule.severity for rule in rules], dtype=np.int64)
        self._is_missing = np.array([rule.kind is AlertKind.MISSING for rule in rules], dtype=np.bool_)
        n = len(rules)
        self._state = np.zeros(n, dtype=np.int8)
        self._timer_ns = np.full(n, _NEVER, dtype=np.int64)  # since when the reading asks for a change
        self._newest_ns = np.full(n, _NEVER, dtype=np.int64)
        self._heard_ns = np.full(n, self._clock.now_ns(), dtype=np.int64)  # grace from the start
        self._since_ns = np.zeros(n, dtype=np.int64)
        self._value = np.full(n, np.nan)
        self._shelved_until_ns = np.zeros(n, dtype=np.int64)
        self._acknowledged_by: list[str | None] = [None] * n
        self._by_table: WeakKeyDictionary[PointTable, tuple[_Rows, _Rows, _Rows]] = WeakKeyDictionary()

    def _row(self, alarm: str) -> int:
        for row, rule in enumerate(self._rules):
            if rule.id == alarm:
                return row
        raise UnknownAlarm(f"no alarm rule is called {alarm!r}")

    def _is_active(self, rule: _Rows | slice = slice(None)) -> Flags:
        state = self._state[rule]
        active: Flags = (state == AlarmState.ACTIVE_UNACK) | (state == AlarmState.ACTIVE_ACK)
        return active

    def _rules_of(self, table: PointTable) -> tuple[_Rows, _Rows, _Rows]:
        """Rules sorted by the table's point, and per point where its rules start and how many they are."""
        known = self._by_table.get(table)
        if known is None:
            point = np.array([table.index.get(rule.point, -1) for rule in self._rules], dtype=np.intp)
            rules = np.flatnonzero(point >= 0)
            rules = rules[np.argsort(point[rules], kind="stable")]
            count = np.bincount(point[rules], minlength=len(table)).astype(np.intp)
            known = self._by_table[table] = (rules, np.cumsum(count) - count, count)
        return known

    def _readings(self, batch: SampleBatch) -> tuple[_Rows, Times, Floats, npt.NDArray[np.int8]]:
        """The batch's news by rule, sorted by (rule, time): rule, time, value, what the reading says."""
        rules, start, count = self._rules_of(batch.points)
        copies = count[batch.point]
        row = np.repeat(np.arange(len(batch)), copies)
        nth = np.arange(row.size) - np.repeat(np.cumsum(copies) - copies, copies)
        rule = rules[start[batch.point[row]] + nth]
        time_ns, value = batch.time_ns[row], batch.value[row]
        unknown = is_bad(batch.status[row]) | ~np.isfinite(value)

        news = (time_ns > self._newest_ns[rule]) & ~(self._is_missing[rule] & unknown)
        rule, time_ns, value, unknown = rule[news], time_ns[news], value[news], unknown[news]
        order = np.lexsort((time_ns, rule))
        rule, time_ns, value, unknown = rule[order], time_ns[order], value[order], unknown[order]
        once = _begins(rule, time_ns)
        rule, time_ns, value, unknown = rule[once], time_ns[once], value[once], unknown[once]

        low, high, deadband = self._low[rule], self._high[rule], self._deadband[rule]
        seen = np.select(
            [
                self._is_missing[rule],
                unknown,
                (value < low) | (value > high),
                (value >= low + deadband) & (value <= high - deadband),
            ],
            [_Class.CLEAR, _Class.UNKNOWN, _Class.BEYOND, _Class.CLEAR],
            _Class.BETWEEN,
        ).astype(np.int8)
        return rule, time_ns, value, seen

    def _step(
        self, rule: _Rows, time_ns: Times, value: Floats, seen: npt.NDArray[np.int8], now_ns: int
    ) -> None:
        """One reading each of distinct rules."""
        active = self._is_active(rule)
        asks = np.where(active, seen == _Class.CLEAR, (seen == _Class.BEYOND) & ~self._is_missing[rule])
        started = np.where(self._timer_ns[rule] == _NEVER, time_ns, self._timer_ns[rule])
        self._timer_ns[rule] = np.where(asks, started, _NEVER)
        delay_ns = np.where(active, self._off_delay_ns[rule], self._on_delay_ns[rule])
        due = asks & (time_ns - started >= delay_ns)
        self._value[rule[due]] = value[due]
        self._confirm(rule[due], (started + delay_ns)[due], now_ns)

    def _confirm(self, rule: _Rows, time_ns: Times, now_ns: int) -> None:
        """The change these rules' readings ask for has held its delay."""
        for row, at_ns in zip(rule.tolist(), time_ns.tolist(), strict=True):
            after = {
                AlarmState.ACTIVE_UNACK: AlarmState.RETURNED_UNACK,
                AlarmState.ACTIVE_ACK: AlarmState.NORMAL,
            }.get(AlarmState(int(self._state[row])), AlarmState.ACTIVE_UNACK)
            self._enter(row, after, at_ns, now_ns)

    def _enter(self, row: int, state: AlarmState, time_ns: int, now_ns: int) -> None:
        self._state[row] = state
        self._timer_ns[row] = _NEVER
        if state is AlarmState.ACTIVE_UNACK:
            self._since_ns[row] = time_ns
            self._acknowledged_by[row] = None
        self._tell(row, state.word, time_ns, now_ns)

    def _tell(self, row: int, state: str, time_ns: int, now_ns: int, who: str = "", note: str = "") -> None:
        newest_ns, until_ns = int(self._newest_ns[row]), int(self._shelved_until_ns[row])
        data: dict[str, str | float | None] = {
            "since_ns": int(self._since_ns[row]),
            "newest_ns": None if newest_ns == _NEVER else newest_ns,
            "condition": AlarmState(int(self._state[row])).word,
            "severity": int(self._severity[row]),
            "point": self._rules[row].point,
        }
        if until_ns:
            data["shelved_until_ns"] = until_ns
        event = AlertEvent(
            self._rules[row].id, time_ns, state, float(self._value[row]), who, note, now_ns, data
        )
        self._unwritten.append(event)
        self._bus.publish(ALERTS, AlertNews(self._body(row)))

    def _count(self) -> None:
        for state, found in zip(AlarmState, np.bincount(self._state, minlength=len(AlarmState)), strict=True):
            ALERTS_BY_STATE.labels(state.word).set(found)

    def _body(self, row: int) -> dict[str, object]:
        """The alarm as `/v1/alerts` answers it."""
        rule, state = self._rules[row], AlarmState(int(self._state[row]))
        value, until_ns = float(self._value[row]), int(self._shelved_until_ns[row])
        limit = _limit(rule, value)
        unit = self._units[row]
        if rule.kind is AlertKind.MISSING:  # its limit is a silence; the last reading says nothing about it
            value, unit = np.nan, "s"
        return {
            "id": rule.id,
            "rule": rule.id,
            "point": rule.point,
            "kind": rule.kind.value,
            "state": SHELVED if until_ns else state.word,
            "condition": state.word,
            "severity": rule.severity,
            "since": rfc3339(int(self._since_ns[row])) if self._since_ns[row] else None,
            "value": value if np.isfinite(value) else None,
            "unit": unit,
            "limit": limit,
            "message": _message(rule, value, limit, unit),
            "acknowledged_by": self._acknowledged_by[row],
            "shelved_until": rfc3339(until_ns) if until_ns else None,
        }


_STATE_COLUMNS: Final = (
    "_state",
    "_timer_ns",
    "_newest_ns",
    "_heard_ns",
    "_since_ns",
    "_value",
    "_shelved_until_ns",
)


def _begins(*columns: npt.NDArray[Any]) -> Flags:
    """Rows that differ from the row before in any of the columns; the first row does."""
    differs = np.ones(columns[0].size, dtype=np.bool_)
    if differs.size:
        differs[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return differs


def _column(rules: Sequence[AlertRule], of: Any) -> Floats:
    return np.array([of(rule) for rule in rules], dtype=np.float64)


def _durations_ns(rules: Sequence[AlertRule], of: Any) -> Times:
    return (_column(rules, of) * NS_PER_S).astype(np.int64)


def _limit(rule: AlertRule, value: float) -> float | None:
    """The limit that matters: for silence how long it may last (s), else the one the value is at or nearest to."""
    if rule.kind is AlertKind.MISSING:
        return rule.for_s
    if rule.low is None or rule.high is None:
        return rule.high if rule.low is None else rule.low
    return rule.low if abs(value - rule.low) < abs(value - rule.high) else rule.high


def _message(rule: AlertRule, value: float, limit: float | None, unit: str) -> dict[str, str]:
    name = rule.name or Label(rule.point, rule.point)
    if rule.kind is AlertKind.MISSING:
        return {
            "zh": f"{name.zh}：超过 {rule.for_s:g} s 没有数据",
            "en": f"{name.en}: no data for more than {rule.for_s:g} s",
        }
    shown = f"{value:.6g} {unit}".strip() if np.isfinite(value) else "-"
    at = f"{limit:g} {unit}".strip() if limit is not None else "-"
    low = limit is not None and limit == rule.low
    return {
        "zh": f"{name.zh}：{shown}，{'下限' if low else '上限'} {at}",
        "en": f"{name.en}: {shown}, {'low' if low else 'high'} limit {at}",
    }
