"""Values taken back: wrong samples leave every figure, and stay on record with who, why and when.

A withdrawn sample keeps its key and becomes a missing value, by the same path as
any correction: its old value is kept, what was computed from it is computed
again, and the same reading delivered once more does not bring it back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np

from core.quality import BAD_WITHDRAWN
from core.samples import SampleBatch, sample_batch
from core.store.seam import Correction, Store

_AT_ONCE = 10_000


async def withdraw(
    store: Store, point: str, start_ns: int, end_ns: int, correction: Correction
) -> AsyncIterator[SampleBatch]:
    """Take back the values of a point over [start, end); yields what is gone, part by part, each committed.

    Broken off, it is done again for the rest. Samples that are missing already stay as they are, and so do those
    that have left the database for files.
    """
    after_ns: int | None = None
    while True:
        page = await store.samples(point, start_ns, end_ns, _AT_ONCE, after_ns)
        there = page.take(np.isfinite(page.value))
        if len(there):
            missing = np.full(len(there), np.nan)
            gone = sample_batch(there.points, there.point, there.time_ns, missing, BAD_WITHDRAWN)
            await store.write(gone, correction)
            yield gone
        if len(page) < _AT_ONCE:
            return
        after_ns = int(page.time_ns[-1])
