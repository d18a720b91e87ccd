"""The alarm log in the database: one row a transition, never changed, never deleted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import asyncpg
import orjson

from core.alerts.machine import SHELVED, UNSHELVED, AlertEvent
from core.clock import datetime_of, time_ns_of
from core.store.refusal import refusals

_APPEND = """
INSERT INTO ecmc.alert_event (rule, time, state, value, who, note, at, data)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb)
"""

# Of each rule the last transition and the last shelving act.
_LAST = """
SELECT rule, time, state, value, who, note, at, data::text AS data
FROM (
  SELECT DISTINCT ON (rule, state = ANY($1)) *
  FROM ecmc.alert_event
  ORDER BY rule, state = ANY($1), id DESC
) AS newest
ORDER BY id
"""


class PostgresAlertLog:
    """`AlertLog` over ecmc.alert_event."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def append(self, events: Sequence[AlertEvent]) -> None:
        rows = [
            (
                event.rule,
                datetime_of(event.time_ns),
                event.state,
                None if math.isnan(event.value) else event.value,
                event.who or None,
                event.note or None,
                datetime_of(event.at_ns),
                orjson.dumps(event.data).decode(),
            )
            for event in events
        ]
        with refusals():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.executemany(_APPEND, rows)

    async def last(self) -> list[AlertEvent]:
        with refusals():
            rows = await self._pool.fetch(_LAST, [SHELVED, UNSHELVED])
        return [
            AlertEvent(
                row["rule"],
                time_ns_of(row["time"]),
                row["state"],
                math.nan if row["value"] is None else row["value"],
                row["who"] or "",
                row["note"] or "",
                time_ns_of(row["at"]),
                orjson.loads(row["data"]) if row["data"] else {},
            )
            for row in rows
        ]
