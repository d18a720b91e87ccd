"""Which plant model holds when: every revision a database has seen, and what people said about its time.

A changed folder is a new model from the moment it is adopted, rounded up to the
base interval (to the hour where intervals or method sets change, for an hour's
figures have one shape). The first one holds since ever. A folder may date its
model (`valid_from`), and a re-statement may put a model in place of another for
a stretch of time; of several rows for one time the newest counts.
"""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import Any

import asyncpg

from core.clock import datetime_of, rfc3339, time_ns_of
from core.plant.model import Plant
from core.results import HOUR_NS
from core.samples import NS_PER_S
from core.store.seam import Validity


async def adopt(connection: asyncpg.Connection[Any], plant: Plant, at_ns: int | None) -> None:
    """Keep the plant's revision and, where it is not the one adopted last, from when on it holds."""
    before = await connection.fetchrow(
        "SELECT v.fingerprint, v.stated, r.base_interval_s, r.method_sets"
        " FROM ecmc.plant_validity AS v JOIN ecmc.plant_revision AS r USING (fingerprint)"
        " WHERE v.valid_to IS NULL ORDER BY v.id DESC LIMIT 1"
    )
    await connection.execute(
        "INSERT INTO ecmc.plant_revision"
        " (fingerprint, plant, name_zh, name_en, zone, base_interval_s, method_set, documents, method_sets)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " ON CONFLICT (fingerprint) DO UPDATE SET adopted = clock_timestamp(), documents = excluded.documents,"
        " method_sets = excluded.method_sets",
        plant.fingerprint,
        plant.id,
        plant.name.zh,
        plant.name.en,
        plant.zone.key,
        plant.base_interval_s,
        plant.method_sets[0] if plant.method_sets else "",
        plant.documents or None,
        list(plant.method_sets),
    )
    if before is not None and before["fingerprint"] == plant.fingerprint:
        return
    now_ns = at_ns or time_ns_of(await connection.fetchval("SELECT clock_timestamp()"))
    stated = None if plant.valid_from_ns is None else datetime_of(plant.valid_from_ns)
    if before is None:
        await _insert(connection, plant.fingerprint, None, None, stated, "the first model", now_ns)
        return
    edge_ns = plant.base_interval_s * NS_PER_S
    if (before["base_interval_s"], before["method_sets"]) != (plant.base_interval_s, list(plant.method_sets)):
        edge_ns = HOUR_NS
    # A date stays in the folder after it has been followed: only a new one says something.
    dated = plant.valid_from_ns is not None and stated != before["stated"]
    from_ns = plant.valid_from_ns if dated and plant.valid_from_ns is not None else now_ns
    from_ns = -(-from_ns // edge_ns) * edge_ns
    why = f"dated {rfc3339(from_ns)} by the plant folder" if dated else "the plant folder changed"
    await _insert(connection, plant.fingerprint, from_ns, None, stated, why, now_ns)
    if from_ns < now_ns:
        await _mark(connection, from_ns, now_ns)


async def restate(
    connection: asyncpg.Connection[Any], fingerprint: str, start_ns: int, end_ns: int, who: str, why: str
) -> None:
    """From now on this model holds over [start, end), and what it held there is to be computed again."""
    await _insert(connection, fingerprint, start_ns, end_ns, None, why, None, who)
    await _mark(connection, start_ns, end_ns - 1000)


async def _insert(
    connection: asyncpg.Connection[Any],
    fingerprint: str,
    from_ns: int | None,
    to_ns: int | None,
    stated: datetime | None,
    why: str,
    at_ns: int | None,
    who: str | None = None,
) -> None:
    await connection.execute(
        "INSERT INTO ecmc.plant_validity (fingerprint, valid_from, valid_to, stated, who, why, at)"
        " VALUES ($1, $2, $3, $4, $5, $6, coalesce($7, clock_timestamp()))",
        fingerprint,
        None if from_ns is None else datetime_of(from_ns),
        None if to_ns is None else datetime_of(to_ns),
        stated,
        who or getpass.getuser(),
        why,
        None if at_ns is None else datetime_of(at_ns),
    )


async def _mark(connection: asyncpg.Connection[Any], start_ns: int, end_ns: int) -> None:
    await connection.execute(
        "INSERT INTO ecmc.dirty_range (start_time, end_time, reason) VALUES ($1, $2, 'plant')",
        datetime_of(start_ns),
        datetime_of(end_ns),
    )


async def validities(connection: asyncpg.Connection[Any]) -> list[Validity]:
    """Every row, oldest first."""
    rows = await connection.fetch("SELECT * FROM ecmc.plant_validity ORDER BY id")
    return [
        Validity(
            row["id"],
            row["fingerprint"],
            None if row["valid_from"] is None else time_ns_of(row["valid_from"]),
            None if row["valid_to"] is None else time_ns_of(row["valid_to"]),
            row["who"],
            row["why"],
            time_ns_of(row["at"]),
        )
        for row in rows
    ]


async def documents(connection: asyncpg.Connection[Any], fingerprint: str) -> bytes | None:
    kept: bytes | None = await connection.fetchval(
        "SELECT documents FROM ecmc.plant_revision WHERE fingerprint = $1", fingerprint
    )
    return kept
