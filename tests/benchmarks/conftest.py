"""Benchmarks borrow the peers and plants of the tests beside them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def _fixtures_of(area: str) -> ModuleType:
    file = Path(__file__).parents[1] / area / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{area}_fixtures", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="session")
def fixtures_of() -> Callable[[str], ModuleType]:
    """The fixtures' module of another folder of tests."""
    return _fixtures_of
