"""Rows that come faster than they can be computed: a long round lets them gather first."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from core.compute import pipeline
from core.store.seam import DirtyRange


class Ledger:
    """Of its rows, the newest has this id and reason at each look."""

    def __init__(self, *looks: tuple[int, str]) -> None:
        self._looks = iter(looks) if looks else ((n, "samples") for n in count())
        self.looked = 0

    async def dirty(self, limit: int = 1000) -> list[DirtyRange]:
        self.looked += 1
        number, reason = next(self._looks)
        return [DirtyRange(number, 0, 1, None, reason)]


@pytest.mark.parametrize(
    ("looks", "spent_s", "looked"),
    [
        pytest.param([], 0.005, 0, id="a short round waits for nothing"),
        pytest.param([(7, "samples")] * 9, 10.0, 2, id="nothing more came"),
        pytest.param([(7, "samples"), (8, "correction")], 10.0, 2, id="a correction does not wait"),
    ],
)
async def test_a_long_round_waits_for_nothing_but_samples_that_keep_coming(
    works: Any, monkeypatch: pytest.MonkeyPatch, looks: list[tuple[int, str]], spent_s: float, looked: int
) -> None:
    monkeypatch.setattr(pipeline, "LONG_ROUND_S", 0.02)
    ledger = Ledger(*looks)
    monkeypatch.setattr(works.pipeline, "_store", ledger)

    await works.pipeline._gather(spent_s)

    assert ledger.looked == looked


async def test_while_samples_keep_coming_a_long_round_waits_twice_as_long_as_it_took(
    works: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "LONG_ROUND_S", 0.02)
    monkeypatch.setattr(works.pipeline, "_store", Ledger())
    began = asyncio.get_running_loop().time()

    await works.pipeline._gather(0.1)

    assert asyncio.get_running_loop().time() - began >= 0.2
