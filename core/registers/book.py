"""The book of dated entries that people write: activity data, production, green power, own factors.

An entry is never changed. A second person approves it where its register asks
for four eyes, and whoever finds it wrong withdraws it with a reason and writes
another. What surprises: two standing entries of one subject cannot overlap in
time, because that is how the same litre of diesel gets counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

import asyncpg
import orjson

from core.clock import datetime_of, rfc3339, time_ns_of
from core.errors import BadRequest
from core.store.refusal import refusals

_LOCK = 0x65636D62  # one writer at a time, so that nothing overlaps behind another's back


class Register(StrEnum):
    ACTIVITY = "activity"
    PRODUCTION = "production"
    GREEN_POWER = "green-power"
    FACTOR = "factor"

    @property
    def needs_approval(self) -> bool:
        """Whether an entry counts only once a second person has approved it."""
        return self in (Register.ACTIVITY, Register.FACTOR)

    @property
    def may_overlap(self) -> bool:
        """A factor published anew stands beside the one before; everything else would count twice."""
        return self is Register.FACTOR


class State(StrEnum):
    WAITING = "waiting"  # for its second pair of eyes
    COUNTED = "counted"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class RowFault:
    """What is wrong with one row of what was sent; rows count from 1."""

    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, {self.field}: {self.reason}"


class FaultyRows(BadRequest):
    """Rows that cannot be taken, with the whole list; nothing of them was."""

    def __init__(self, faults: Sequence[RowFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(str(fault) for fault in self.faults[:20]))


class UnknownEntry(BadRequest):
    """No entry of that number in the register."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """[start_ns, end_ns) of a subject; `body` holds what the register keeps of it."""

    subject: str
    start_ns: int
    end_ns: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the book holds it."""

    id: int
    register: Register
    subject: str
    start_ns: int
    end_ns: int
    body: Mapping[str, Any]
    who: str
    at_ns: int
    approved_by: str | None
    approved_at_ns: int | None
    withdrawn_by: str | None
    withdrawn_at_ns: int | None
    why: str | None

    @property
    def state(self) -> State:
        if self.withdrawn_at_ns is not None:
            return State.WITHDRAWN
        if self.register.needs_approval and self.approved_at_ns is None:
            return State.WAITING
        return State.COUNTED

    def part_in(self, start_ns: int, end_ns: int) -> float:
        """Share of the entry's time that lies in [start, end), 0..1."""
        inside = min(end_ns, self.end_ns) - max(start_ns, self.start_ns)
        return max(0, inside) / (self.end_ns - self.start_ns)


class Book:
    """The entries of one plant, in its database.

    Args:
        known_at_ns: `counted` answers as it would have at that time; None: now.
    """

    def __init__(self, pool: asyncpg.Pool[Any], known_at_ns: int | None = None) -> None:
        self._pool = pool
        self._known_at_ns = known_at_ns

    async def add(self, register: Register, entries: Sequence[NewEntry], who: str, at_ns: int) -> list[int]:
        """Write entries down, all or none; their numbers.

        Raises:
            FaultyRows: Entries that overlap each other or what stands.
        """
        if not register.may_overlap:
            _refuse_overlaps(entries)
        with refusals():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                if not register.may_overlap:
                    await _refuse_standing(connection, register, entries)
                return [
                    await connection.fetchval(
                        "INSERT INTO ecmc.entry (register, subject, start_time, end_time, body, who, at)"
                        " VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7) RETURNING id",
                        register.value,
                        entry.subject,
                        datetime_of(entry.start_ns),
                        datetime_of(entry.end_ns),
                        orjson.dumps(dict(entry.body)).decode(),
                        who,
                        datetime_of(at_ns),
                    )
                    for entry in entries
                ]

    async def approve(self, register: Register, number: int, who: str, at_ns: int) -> Entry:
        """The second pair of eyes.

        Raises:
            UnknownEntry: There is none of that number.
            BadRequest: It does not wait for approval, or the same person wrote it.
        """
        return (await self.approve_all(register, [number], who, at_ns))[0]

    async def approve_all(
        self, register: Register, numbers: Sequence[int], who: str, at_ns: int
    ) -> list[Entry]:
        """Approve entries, all or none.

        Raises:
            As `approve`.
        """
        wanted = sorted(set(numbers))
        with refusals():
            async with self._pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(
                    f"{_SELECT} WHERE id = ANY($1) AND register = $2 ORDER BY id FOR UPDATE",
                    wanted,
                    register.value,
                )
                entries = {row["id"]: _entry(row) for row in rows}
                for number in wanted:
                    if number not in entries:
                        raise UnknownEntry(f"no {register} {number}")
                    entry = entries[number]
                    if entry.state is not State.WAITING:
                        raise BadRequest(
                            f"{register} {number} is {entry.state}: it does not wait for approval"
                        )
                    if entry.who == who:
                        raise BadRequest(
                            f"{register} {number} was entered by {who}: somebody else has to approve it"
                        )
                await connection.execute(
                    "UPDATE ecmc.entry SET approved_by = $2, approved_at = $3 WHERE id = ANY($1)",
                    wanted,
                    who,
                    datetime_of(at_ns),
                )
        return [
            replace(entry, approved_by=who, approved_at_ns=at_ns // 1000 * 1000) for entry in entries.values()
        ]

    async def withdraw(self, register: Register, number: int, who: str, why: str, at_ns: int) -> Entry:
        """Take an entry out of every sum; it stays readable.

        Raises:
            UnknownEntry: There is none of that number.
            BadRequest: It is withdrawn already, or no reason is given.
        """
        entry = await self.entry(register, number)
        if entry.state is State.WITHDRAWN:
            raise BadRequest(f"{register} {number} is withdrawn already")
        if not why.strip():
            raise BadRequest(f"{register} {number}: a withdrawal gives its reason in why")
        await self._change(
            "UPDATE ecmc.entry SET withdrawn_by = $2, withdrawn_at = $3, why = $4"
            " WHERE id = $1 AND withdrawn_at IS NULL",
            number,
            who,
            datetime_of(at_ns),
            why,
        )
        return await self.entry(register, number)

    async def entry(self, register: Register, number: int) -> Entry:
        with refusals():
            row = await self._pool.fetchrow(
                f"{_SELECT} WHERE id = $1 AND register = $2", number, register.value
            )
        if row is None:
            raise UnknownEntry(f"no {register} {number}")
        return _entry(row)

    async def entries(
        self,
        register: Register,
        start_ns: int | None = None,
        end_ns: int | None = None,
        after: int = 0,
        limit: int | None = None,
        state: State | None = None,
    ) -> list[Entry]:
        """Entries that touch [start, end), by number, those after `after`; in any state where none is asked for."""
        with refusals():
            rows = await self._pool.fetch(
                f"{_SELECT} WHERE register = $1 AND id > $2"
                f" AND ($6::text IS NULL OR {_STATE.format(register.needs_approval)} = $6)"
                " AND ($3::timestamptz IS NULL OR end_time > $3) AND ($4::timestamptz IS NULL OR start_time < $4)"
                " ORDER BY id LIMIT $5",
                register.value,
                after,
                None if start_ns is None else datetime_of(start_ns),
                None if end_ns is None else datetime_of(end_ns),
                limit,
                None if state is None else state.value,
            )
        return [_entry(row) for row in rows]

    async def counted(self, register: Register, start_ns: int, end_ns: int) -> list[Entry]:
        """Entries that touch [start, end) and count, or counted at the book's known time."""
        if self._known_at_ns is None:
            return await self.entries(register, start_ns, end_ns, state=State.COUNTED)
        since = "approved_at" if register.needs_approval else "at"
        with refusals():
            rows = await self._pool.fetch(
                f"{_SELECT} WHERE register = $1 AND end_time > $2 AND start_time < $3 AND {since} <= $4"
                " AND (withdrawn_at IS NULL OR withdrawn_at > $4) ORDER BY id",
                register.value,
                datetime_of(start_ns),
                datetime_of(end_ns),
                datetime_of(self._known_at_ns),
            )
        return [_entry(row) for row in rows]

    async def _change(self, statement: str, *values: object) -> None:
        with refusals():
            done = await self._pool.execute(statement, *values)
        if done.endswith(" 0"):
            raise BadRequest(f"entry {values[0]} has changed meanwhile; look again")


_STATE = (
    "CASE WHEN withdrawn_at IS NOT NULL THEN 'withdrawn'"
    " WHEN {} AND approved_at IS NULL THEN 'waiting' ELSE 'counted' END"
)
_SELECT = """
SELECT id, register, subject, start_time, end_time, body::text AS body, who, at,
       approved_by, approved_at, withdrawn_by, withdrawn_at, why
FROM ecmc.entry
"""


def _entry(row: asyncpg.Record) -> Entry:
    def ns(column: str) -> int | None:
        return None if row[column] is None else time_ns_of(row[column])

    return Entry(
        row["id"],
        Register(row["register"]),
        row["subject"],
        time_ns_of(row["start_time"]),
        time_ns_of(row["end_time"]),
        orjson.loads(row["body"]),
        row["who"],
        time_ns_of(row["at"]),
        row["approved_by"],
        ns("approved_at"),
        row["withdrawn_by"],
        ns("withdrawn_at"),
        row["why"],
    )


def _refuse_overlaps(entries: Sequence[NewEntry]) -> None:
    in_time = sorted(enumerate(entries, 1), key=lambda numbered: (numbered[1].subject, numbered[1].start_ns))
    faults = [
        RowFault(row, "period", f"overlaps row {before_row}, of the same {entry.subject}")
        for (before_row, before), (row, entry) in pairwise(in_time)
        if entry.subject == before.subject and entry.start_ns < before.end_ns
    ]
    if faults:
        raise FaultyRows(faults)


async def _refuse_standing(connection: Any, register: Register, entries: Sequence[NewEntry]) -> None:
    found = await connection.fetch(
        "SELECT DISTINCT ON (n.row) n.row, e.id, e.start_time, e.end_time, e.subject"
        " FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[])"
        "   WITH ORDINALITY AS n (subject, start_time, end_time, row)"
        " JOIN ecmc.entry AS e ON e.register = $1 AND e.withdrawn_at IS NULL AND e.subject = n.subject"
        "   AND e.start_time < n.end_time AND n.start_time < e.end_time"
        " ORDER BY n.row, e.id",
        register.value,
        [entry.subject for entry in entries],
        [datetime_of(entry.start_ns) for entry in entries],
        [datetime_of(entry.end_ns) for entry in entries],
    )
    if found:
        raise FaultyRows(
            [
                RowFault(
                    row["row"],
                    "period",
                    f"overlaps {register} {row['id']} of {row['subject']},"
                    f" {rfc3339(time_ns_of(row['start_time']))} to {rfc3339(time_ns_of(row['end_time']))}",
                )
                for row in found
            ]
        )
