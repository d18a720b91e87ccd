"""The way of samples from whoever takes them in to whoever stores them, with the acknowledgement running back.

A feed is one source's samples in the order they were taken in: columnar batches,
durable when `append` returns, handed out by `read` until `ack` says that they are
committed. Rows are numbered for ever, so (source, row) names a row across
restarts and processes. Whoever reads has to bear repetition and lateness: a batch
may come again after a crash, and a source may come days after the others.

The spool on disk is the feed there is (`collector.spool`); a durable broker can
stand behind the same few words.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from core.samples import SampleBatch


class Position(Protocol):
    """A place between two rows of a feed."""

    @property
    def row(self) -> int:
        """Rows of the source before it, counted from its very first."""


P = TypeVar("P", bound=Position)


class Feed(Protocol[P]):
    """One source's samples. Written by many tasks, read by one."""

    @property
    def source(self) -> str:
        """Names the source; the same for as long as its rows are numbered on."""

    async def append(self, batch: SampleBatch) -> None:
        """Returns when the batch is durable; OSError where it cannot be kept, and nothing of it was."""

    async def read(self, max_rows: int, linger_s: float = 0.0) -> tuple[SampleBatch, P]:
        """The next rows, waiting for at least one, and the position to acknowledge them by. A batch keeps whole."""

    async def ack(self, position: P) -> None:
        """Every row before the position is committed and need not come again."""

    @property
    def depth_rows(self) -> int:
        """Rows kept and not yet acknowledged."""

    @property
    def oldest_ns(self) -> int | None:
        """Oldest sample time among the first of them; None where there are none."""

    @property
    def lost_rows(self) -> str:
        """What was lost since the start, in words; "" where nothing was."""
