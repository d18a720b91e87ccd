"""Green certificates in the database: the state machine of `core.carbon.certificates`, kept under a lock.

Every event is kept beside the state it led to. A batch of events is taken whole
or not at all, so a file that sells a certificate twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from core.carbon.certificates import KWH_PER_CERTIFICATE, Certificate, Event, State, register
from core.clock import datetime_of
from core.errors import BadRequest
from core.registers.book import FaultyRows, RowFault
from core.store.refusal import refusals

_LOCK = 0x65636D67
_COLUMNS = ("serial", "generated", "technology", "province", "state", "own", "changed_on", "claim")


@dataclass(frozen=True, slots=True)
class Claims:
    """What the certificates generated in a period amount to, kWh: cancelled ones, and own ones that were sold."""

    cancelled_kwh: float
    own_sold_kwh: float


_CLAIMS = """
SELECT count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
       count(*) FILTER (WHERE state = 'sold' AND own) AS own_sold
FROM {} WHERE starts_with(generated, $1)
"""
_THEN = """
(SELECT DISTINCT ON (e.serial) e.state, c.own, c.generated
 FROM ecmc.certificate_event AS e JOIN ecmc.certificate AS c USING (serial)
 WHERE e.at <= $2 ORDER BY e.serial, e.id DESC) AS stood
"""


class CertificateRegister:
    """The certificates of one plant; `claims` answers as it would have at `known_at_ns`, None: now."""

    def __init__(self, pool: asyncpg.Pool[Any], known_at_ns: int | None = None) -> None:
        self._pool = pool
        self._known_at_ns = known_at_ns

    async def take(self, events: Sequence[Event], who: str, at_ns: int) -> int:
        """Apply events in their order, all or none; how many.

        Raises:
            FaultyRows: What cannot follow, by row: a serial twice, sold or cancelled again, no vintage, no claim.
        """
        serials = list(dict.fromkeys(event.serial for event in events))
        with refusals():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                rows = await connection.fetch(
                    "SELECT * FROM ecmc.certificate WHERE serial = ANY($1)", serials
                )
                held = _after({row["serial"]: _certificate(row) for row in rows}, events)
                await connection.executemany(
                    f"INSERT INTO ecmc.certificate ({', '.join(_COLUMNS)}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
                    " ON CONFLICT (serial) DO UPDATE"
                    " SET state = excluded.state, changed_on = excluded.changed_on, claim = excluded.claim",
                    [tuple(getattr(held[serial], column) for column in _COLUMNS) for serial in serials],
                )
                await connection.executemany(
                    "INSERT INTO ecmc.certificate_event (serial, state, changed_on, claim, who, at)"
                    " VALUES ($1, $2, $3, $4, $5, $6)",
                    [(e.serial, e.state.value, e.on, e.claim, who, datetime_of(at_ns)) for e in events],
                )
        return len(events)

    async def page(
        self, after: str, limit: int | None, state: State | None = None, generated: str = ""
    ) -> list[Certificate]:
        """Certificates by serial, those after `after`; `generated` is a year or month of generation."""
        with refusals():
            rows = await self._pool.fetch(
                "SELECT * FROM ecmc.certificate WHERE serial > $1 AND ($2::text IS NULL OR state = $2)"
                " AND starts_with(generated, $3) ORDER BY serial LIMIT $4",
                after,
                None if state is None else state.value,
                generated,
                limit,
            )
        return [_certificate(row) for row in rows]

    async def claims(self, generated: str) -> Claims:
        """Of a year or month of generation: a certificate counts for when its power was made, never for later."""
        table, asked = "ecmc.certificate", tuple[object, ...]([generated])
        if self._known_at_ns is not None:
            table, asked = _THEN, (generated, datetime_of(self._known_at_ns))
        with refusals():
            row = await self._pool.fetchrow(_CLAIMS.format(table), *asked)
        assert row is not None
        return Claims(row["cancelled"] * KWH_PER_CERTIFICATE, row["own_sold"] * KWH_PER_CERTIFICATE)


def _after(held: dict[str, Certificate], events: Sequence[Event]) -> dict[str, Certificate]:
    faults = []
    for row, event in enumerate(events, 1):
        before = held.get(event.serial)
        try:
            held.update(register([event], [before] if before else []))
        except BadRequest as why:
            faults.append(RowFault(row, _field(event, before), str(why)))
    if faults:
        raise FaultyRows(faults)
    return held


def _field(event: Event, before: Certificate | None) -> str:
    """Which cell is to blame for an event that cannot follow."""
    if before is not None and event.on < before.changed_on:
        return "on"
    if before is None and event.state in (State.ISSUED, State.BOUGHT):
        return "generated"
    if before is not None and event.state is State.CANCELLED and not event.claim:
        return "claim" if before.state in (State.ISSUED, State.BOUGHT) else "state"
    return "state"


def _certificate(row: asyncpg.Record) -> Certificate:
    return Certificate(
        row["serial"],
        row["generated"],
        row["technology"],
        row["province"],
        State(row["state"]),
        row["own"],
        row["changed_on"],
        row["claim"],
    )
