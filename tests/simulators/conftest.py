"""The demo plant on free ports, at a moment of the test's choosing."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.clock import time_ns_of
from core.plant.load import load_plant
from core.plant.model import Plant
from simulators.faults import Faults
from simulators.meter import Meters
from simulators.plant import DemoPlant
from simulators.run import DEMO_PORTS, write_demo_plant

PROFILES = Path(__file__).parents[2] / "collector" / "profiles"


class HandClock:
    """A clock that stands until it is moved."""

    def __init__(self, moment: datetime) -> None:
        self.time_ns = time_ns_of(moment)

    def now_ns(self) -> int:
        return self.time_ns

    def forward(self, seconds: float) -> None:
        self.time_ns += round(seconds * 1e9)


@pytest.fixture(scope="session")
def model() -> DemoPlant:
    return DemoPlant()


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    ports = {}
    sockets = [socket.socket() for _ in DEMO_PORTS]
    for name, probe in zip(DEMO_PORTS, sockets, strict=True):
        probe.bind(("127.0.0.1", 0))
        ports[name] = probe.getsockname()[1]
    for probe in sockets:
        probe.close()
    return load_plant(write_demo_plant(tmp_path_factory.mktemp("demo"), ports), [PROFILES])


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 7, 1, 2, 20, 7, tzinfo=UTC))  # a Wednesday, 10:20 in Chongqing


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def meters(plant: Plant, model: DemoPlant, clock: HandClock, faults: Faults) -> Meters:
    return Meters(plant, model, clock, faults)
