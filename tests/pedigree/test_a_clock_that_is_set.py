"""The clock set by an hour, forward or back: figures go on, and end as the readings say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.bus import LocalBus
from core.clock import parse_rfc3339
from core.compute.pipeline import Pipeline
from core.health import Health
from core.results import HOUR_NS
from core.samples import NS_PER_S, SampleBatch
from core.seal import hour_digests
from core.store.postgres import PostgresStore

START_NS = parse_rfc3339("2026-03-01T16:00:00Z")
EVERY_S = 600


@pytest.mark.parametrize("step_ns", [-HOUR_NS, HOUR_NS])
async def test_a_clock_set_by_an_hour_neither_stops_the_figures_nor_bends_them(
    works: Any, databases: Any, readings: Callable[..., SampleBatch], engine_of: Any, step_ns: int
) -> None:
    until_ns = START_NS + 4 * HOUR_NS
    whole = readings(START_NS, until_ns, every_s=EVERY_S)
    computed_at = []
    for at_ns in range(START_NS, until_ns + 1, EVERY_S * NS_PER_S):
        set_by_ns = step_ns if at_ns >= START_NS + 2 * HOUR_NS else 0
        works.clock.time_ns = at_ns + set_by_ns + NS_PER_S
        await works.store.write(whole.take(whole.time_ns == at_ns))
        if await works.pipeline.step():
            computed_at.append(at_ns)
    await works.drain()

    fresh = await PostgresStore.open(await asyncio.to_thread(databases.new), works.plant)
    await fresh.write(whole)
    await Pipeline(engine_of(works.plant), fresh, LocalBus(), Health(), works.clock).drain()
    mine, theirs = [
        hour_digests(part) for s in (works.store, fresh) for part in await s.stored(START_NS, until_ns)
    ]
    await fresh.close()
    assert mine == theirs
    assert np.diff(computed_at).max() == EVERY_S * NS_PER_S
