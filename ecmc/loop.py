"""Runs a command's work on the fastest event loop there is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_work(work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, under uvloop where that exists."""
    try:
        import uvloop
    except ImportError:  # no such thing on Windows
        return asyncio.run(work)
    return uvloop.run(work)
