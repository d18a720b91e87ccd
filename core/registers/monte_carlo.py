"""Monte Carlo as a job: begun with a seed, kept with its terms, finished even across a restart.

A run keeps the terms it was drawn from, so that its result can be drawn again
bit for bit after the figures have been re-stated. What is under way when the
process ends is drawn at the next start: there is nothing to lose but time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import orjson

from core.carbon.uncertainty import MonteCarlo, Term, combined_uncertainty, monte_carlo
from core.clock import Clock, datetime_of, time_ns_of
from core.errors import BadRequest, StoreUnavailable
from core.registers.book import UnknownEntry
from core.store.refusal import refusals

_AGAIN_S = 2.0
_SELECT = (
    "SELECT id, asked::text, terms::text, trials, seed, who, at, result::text, done FROM ecmc.monte_carlo"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run; `result` None: it is under way."""

    id: int
    asked: Mapping[str, Any]
    terms: tuple[Term, ...]
    trials: int
    seed: int
    who: str
    at_ns: int
    result: MonteCarlo | None
    done_ns: int | None

    @property
    def propagated(self) -> float:
        """The same by error propagation, to stand beside it."""
        return combined_uncertainty(self.terms)


class MonteCarloRuns:
    """The runs of one plant's database."""

    def __init__(self, pool: asyncpg.Pool[Any], clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(
        self, terms: Sequence[Term], asked: Mapping[str, Any], trials: int, seed: int | None, who: str
    ) -> int:
        """Write a run down and draw it in the background; its number.

        Args:
            seed: None: one is drawn, and kept.

        Raises:
            BadRequest: No term to draw from.
        """
        if not terms:
            raise BadRequest("nothing to draw from: the period has no emissions of known amount")
        seed = secrets.randbelow(2**32) if seed is None else seed
        with refusals():
            number: int = await self._pool.fetchval(
                "INSERT INTO ecmc.monte_carlo (asked, terms, trials, seed, who, at)"
                " VALUES ($1::jsonb, $2::jsonb, $3, $4, $5, $6) RETURNING id",
                orjson.dumps(asked).decode(),
                orjson.dumps([asdict(term) for term in terms]).decode(),
                trials,
                seed,
                who,
                datetime_of(self._clock.now_ns()),
            )
        self._draw(number, terms, trials, seed)
        return number

    async def run(self, number: int) -> Run:
        """Raises UnknownEntry where there is none of that number."""
        with refusals():
            row = await self._pool.fetchrow(f"{_SELECT} WHERE id = $1", number)
        if row is None:
            raise UnknownEntry(f"no Monte Carlo run {number}")
        return _run(row)

    async def page(self, after: int, limit: int) -> list[Run]:
        """Runs by number, those after `after`."""
        with refusals():
            rows = await self._pool.fetch(f"{_SELECT} WHERE id > $1 ORDER BY id LIMIT $2", after, limit)
        return [_run(row) for row in rows]

    async def resume(self) -> None:
        """Draw what an earlier process left under way."""
        with refusals():
            rows = await self._pool.fetch(f"{_SELECT} WHERE result IS NULL ORDER BY id")
        for run in map(_run, rows):
            self._draw(run.id, run.terms, run.trials, run.seed)

    async def finished(self) -> None:
        """Returns when nothing of this process is under way."""
        await asyncio.gather(*self._tasks)

    def _draw(self, number: int, terms: Sequence[Term], trials: int, seed: int) -> None:
        task = asyncio.create_task(self._drawn(number, terms, trials, seed), name=f"monte-carlo:{number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drawn(self, number: int, terms: Sequence[Term], trials: int, seed: int) -> None:
        result = await asyncio.to_thread(monte_carlo, terms, trials=trials, seed=seed)
        told = orjson.dumps(asdict(result)).decode()
        while True:
            try:
                with refusals():
                    await self._pool.execute(
                        "UPDATE ecmc.monte_carlo SET result = $2::jsonb, done = $3 WHERE id = $1",
                        number,
                        told,
                        datetime_of(self._clock.now_ns()),
                    )
                return
            except StoreUnavailable:
                await asyncio.sleep(_AGAIN_S)


def _run(row: asyncpg.Record) -> Run:
    return Run(
        row["id"],
        orjson.loads(row["asked"]),
        tuple(Term(**term) for term in orjson.loads(row["terms"])),
        row["trials"],
        row["seed"],
        row["who"],
        time_ns_of(row["at"]),
        None if row["result"] is None else MonteCarlo(**orjson.loads(row["result"])),
        None if row["done"] is None else time_ns_of(row["done"]),
    )
