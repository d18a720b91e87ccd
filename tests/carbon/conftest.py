"""What the carbon tests share: the shipped library, the demo zone, times by their text."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from core.carbon.factors import FactorLibrary


@pytest.fixture(scope="session")
def library() -> FactorLibrary:
    return FactorLibrary.shipped()


@pytest.fixture(scope="session")
def zone() -> ZoneInfo:
    return ZoneInfo("Asia/Shanghai")
