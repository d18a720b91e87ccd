"""Which factor rows stand behind stored results."""

from __future__ import annotations

from typing import Any

import asyncpg

from core.clock import datetime_of
from core.store.refusal import refusals
from core.store.window import source

_USED = """
SELECT DISTINCT used.key, used.value
FROM (SELECT DISTINCT factor_ids FROM {} AS t WHERE hour >= $1 AND hour < $2) AS run,
     jsonb_each_text(run.factor_ids) AS used
ORDER BY used.key, used.value
"""


async def factors_used(
    pool: asyncpg.Pool[Any], start_ns: int, end_ns: int, method_set: str, revision: int | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Row ids by (source node, basis) that one method set used for the hours of [start, end).

    Args:
        revision: Sealed hours as that revision had them; None: as they stand.
    """
    with refusals():
        rows = await pool.fetch(
            _USED.format(source("run", None if revision is None else str(revision))),
            datetime_of(start_ns),
            datetime_of(end_ns),
        )
    used: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        node, basis, method = row["key"].rsplit(" ", 2)
        if method == method_set:
            used.setdefault((node, basis), {}).update(dict.fromkeys(row["value"].split()))
    return {key: tuple(ids) for key, ids in used.items()}
