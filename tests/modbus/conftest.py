"""Fixtures of the Modbus tests; what they hand out stands in modbus_field.py beside this file."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from modbus_field import FieldDevice


@pytest.fixture
async def device() -> AsyncIterator[FieldDevice]:
    server = FieldDevice()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["mbap", "pymodbus"])
def client(request: pytest.FixtureRequest) -> str:
    """The two ways the driver can speak Modbus TCP; whatever is promised holds for both."""
    return str(request.param)
