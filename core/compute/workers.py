"""Where windows are computed: on a thread of this process, or on any `concurrent.futures.Executor`.

A process pool here, a cluster's executor elsewhere: all it has to run is one
function of plain arguments. An engine travels packed, and a worker unpacks each
only once.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TypeVar
from weakref import WeakKeyDictionary

from core.compute.engine import Engine
from core.results import WindowResult
from core.samples import SampleBatch
from core.store.seam import Stocks

R = TypeVar("R")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def begin_worker() -> None:
    """For a pool's `initializer`: a worker keeps its memory, and ends when the process that made it is gone."""
    with suppress(OSError, AttributeError):  # where the C library knows how; as anywhere else otherwise
        # What one window frees the next one takes: pages given back and taken anew cost a fifth of the time.
        tune = ctypes.CDLL(None).mallopt
        tune(_TRIM_THRESHOLD, 1 << 30)
        tune(_MMAP_THRESHOLD, 1 << 25)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent,), name="end with parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


class Workers:
    """Computes windows.

    Args:
        executor: None: a thread of this process, which shares its engines.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._packed: WeakKeyDictionary[Engine, tuple[str, bytes]] = WeakKeyDictionary()

    async def compute(
        self,
        engine: Engine,
        readings: SampleBatch,
        start_ns: int,
        end_ns: int,
        stocks: Stocks | None,
        known_at_ns: int,
        earlier: Mapping[int, SampleBatch] | None = None,
    ) -> WindowResult:
        """`Engine.compute`, somewhere else; the same bits."""
        return await self.run(_compute, [engine], readings, start_ns, end_ns, stocks, known_at_ns, earlier)

    async def run(self, function: Callable[..., R], engines: Sequence[Engine], *asked: object) -> R:
        """A function of a module, of engines and of what can be packed, somewhere else."""
        if self._executor is None:
            return await asyncio.to_thread(function, list(engines), *asked)
        packed = [await self._pack(engine) for engine in engines]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _unpacking, function, packed, *asked)

    async def _pack(self, engine: Engine) -> _Packed:
        packed = self._packed.get(engine)
        if packed is None:
            content = await asyncio.to_thread(pickle.dumps, engine)
            packed = self._packed[engine] = hashlib.sha256(content).hexdigest(), content
        return _Packed(*packed)


HERE = Workers()


class _Packed:
    """A packed engine that is told apart by its digest alone."""

    __slots__ = ("content", "digest")

    def __init__(self, digest: str, content: bytes) -> None:
        self.digest, self.content = digest, content

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Packed) and other.digest == self.digest


@lru_cache(maxsize=4)
def _unpacked(packed: _Packed) -> Engine:
    engine = pickle.loads(packed.content)  # our own engine, packed by our own process
    assert isinstance(engine, Engine)
    return engine


def _unpacking(function: Callable[..., R], packed: Sequence[_Packed], *asked: object) -> R:
    return function([_unpacked(one) for one in packed], *asked)


def _compute(
    engines: list[Engine],
    readings: SampleBatch,
    start_ns: int,
    end_ns: int,
    stocks: Stocks | None,
    known_at_ns: int,
    earlier: Mapping[int, SampleBatch] | None,
) -> WindowResult:
    return engines[0].compute(readings, start_ns, end_ns, stocks, known_at_ns, earlier)
