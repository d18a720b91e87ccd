"""A running plant killed again and again under load: what is stored is, to the row, what was handed over.

The load is a meter's: registers and a power, some batches late by days, some brought twice or in another order, and
every one brought again until it is called kept, as a broker would. The ledger of it is kept here, by the test.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from core.clock import parse_rfc3339
from core.samples import NS_PER_S
from core.store.embedded import EmbeddedServer

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
CHILD = Path(__file__).with_name("crash_child.py")
PLANT = """\
plant: crash
name: {zh: 断电厂, en: Crash}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
connections:
  - {id: pipe, protocol: mqtt, host: 127.0.0.1, port: 1883}
devices:
  - {id: g, connection: pipe}
  - {id: r, connection: pipe}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: hall, kind: load, carrier: electricity}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
  edges:
    - {id: e-grid, from: grid, to: hall, meter: g.energy}
    - {id: e-roof, from: roof, to: hall, meter: r.energy}
"""
POINTS = """\
point,device,name,quantity,unit,topic,json_path
g.energy,g,,active_energy_import_total,kWh,a,$.grid
r.energy,r,,active_energy_yield_total,kWh,a,$.roof
g.power,g,,active_power_total,kW,a,$.power
"""
NAMES = ("g.energy", "r.energy", "g.power")
Key = tuple[str, int]


def said(point: int, second: int) -> float:
    """What a point says at a second: registers count up, the power wobbles."""
    return float(second * (point + 1)) / 64 if point < 2 else float(second * 37 % 101)


@dataclass
class Ledger:
    """What was produced, by key; `kept` of it was called kept, all of it will have been at the end."""

    dice: random.Random
    rows: dict[Key, float] = field(default_factory=dict)
    waiting: list[tuple[int, list[Key]]] = field(default_factory=list)  # brought until called kept
    kept: list[tuple[int, list[Key]]] = field(default_factory=list)
    number: int = 0
    second: int = 0

    def next_batch(self) -> tuple[int, list[Key]]:
        """The batch to bring now: one not called kept yet, one over again, a late one, or a new one."""
        if self.waiting and self.dice.random() < 0.3:
            return self.dice.choice(self.waiting)
        if self.kept and self.dice.random() < 0.2:
            return self.dice.choice(self.kept)
        late_s = -self.dice.randrange(1, 9 * 86_400) if self.dice.random() < 0.15 else 0
        span = self.dice.randrange(1, 30)
        first = self.second + late_s
        if late_s == 0:
            self.second += span
        seconds = list(range(first, first + span))
        self.dice.shuffle(seconds)
        keys = [(name, START_NS + s * NS_PER_S) for s in seconds for name in NAMES]
        self.rows.update(
            {(name, at): said(NAMES.index(name), (at - START_NS) // NS_PER_S) for name, at in keys}
        )
        self.number += 1
        self.waiting.append((self.number, keys))
        return self.waiting[-1]

    def is_kept(self, number: int) -> None:
        for batch in [b for b in self.waiting if b[0] == number]:
            self.waiting.remove(batch)
            self.kept.append(batch)


class Victim:
    """The running plant, and the killing of it."""

    def __init__(self, plant: Path, data: Path, ledger: Ledger) -> None:
        self._plant, self._data, self._ledger = plant, data, ledger
        self.dsn: str | None = None  # None: its own database
        self._process: asyncio.subprocess.Process | None = None
        self.log = data.with_name("child.log")

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(CHILD),
                str(self._plant),
                str(self._data),
                *([self.dsn] if self.dsn else []),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    async def bring(self, batch: tuple[int, list[Key]]) -> bool:
        """Hand a batch over; whether it was called kept before the process was gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        number, keys = batch
        points, times = zip(*keys, strict=True)
        line = json.dumps([number, points, times, [self._ledger.rows[key] for key in keys]]) + "\n"
        try:
            self._process.stdin.write(line.encode())
            await self._process.stdin.drain()
            answer = await self._process.stdout.readline()
        except OSError:
            return False
        if not answer:
            return False
        self._ledger.is_kept(int(answer))
        return True

    async def kill(self) -> None:
        assert self._process is not None
        assert self._process.returncode is None, f"it ended by itself:\n{self.log.read_text()[-4000:]}"
        self._process.kill()
        await self._process.wait()

    async def kill_the_database(self) -> None:
        for process in psutil.process_iter(["name", "cmdline"]):
            if process.info["name"] == "postgres" and str(self._data) in " ".join(
                process.info["cmdline"] or []
            ):
                process.kill()

    async def stop(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self._process.wait(), 30)


@dataclass
class Rig:
    victim: Victim
    ledger: Ledger
    data: Path

    async def load(self, seconds: float) -> None:
        """Bring batches for a while; the process may go down meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and await self.victim.bring(self.ledger.next_batch()):
            pass

    async def settle(self) -> asyncpg.Connection[Any]:
        """Everything is called kept, stored and computed; a connection to look."""
        while self.ledger.waiting:
            assert await self.victim.bring(self.ledger.waiting[0]), self.victim.log.read_text()[-3000:]
        until = time.monotonic() + 60
        connection = await self._connected(until)
        while time.monotonic() < until:
            if await connection.fetchval("SELECT count(*) FROM ecmc.sample") >= len(
                self.ledger.rows
            ) and not await connection.fetchval("SELECT EXISTS (SELECT FROM ecmc.dirty_range)"):
                break
            await asyncio.sleep(0.05)
        return connection

    async def _connected(self, until: float) -> asyncpg.Connection[Any]:
        """The database may have been killed a moment ago."""
        while True:
            try:
                dsn = self.victim.dsn or json.loads((self.data / "server.json").read_text())["dsn"]
                return await asyncpg.connect(dsn)
            except (OSError, KeyError, asyncpg.PostgresError):
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)

    async def compare(self) -> None:
        """Rows, newest values and totals are those of the ledger."""
        connection = await self.settle()
        try:
            stored = await connection.fetch(
                "SELECT p.name, extract(epoch FROM s.time)::bigint AS second, s.value, s.status"
                " FROM ecmc.sample AS s JOIN ecmc.point AS p ON p.id = s.point_id"
            )
            newest = await connection.fetch(
                "SELECT p.name, extract(epoch FROM l.time)::bigint AS second FROM ecmc.latest AS l"
                " JOIN ecmc.point AS p ON p.id = l.point_id"
            )
            energy = await connection.fetch(
                "SELECT e.name, sum(r.energy_kwh) AS kwh FROM ecmc.energy_1h AS r JOIN ecmc.edge AS e ON e.id = r.edge_id"
                " GROUP BY e.name"
            )
        finally:
            await connection.close()
        found = {(row["name"], row["second"] * NS_PER_S): row["value"] for row in stored}
        assert len(stored) == len(found)
        assert {row["status"] for row in stored} == {0}
        assert found == self.ledger.rows
        times = [at for _, at in self.ledger.rows]
        assert {row["name"]: row["second"] * NS_PER_S for row in newest} == dict.fromkeys(NAMES, max(times))
        span_s = (max(times) - min(times)) / NS_PER_S
        assert {row["name"]: row["kwh"] for row in energy} == pytest.approx(
            {"e-grid": span_s / 64, "e-roof": 2 * span_s / 64}, rel=1e-9
        )


@pytest.fixture
async def rig(reachable: Callable[[str], Path], request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    folder = reachable("ecmc-crash-")
    plant, data = folder / "plant", folder / "data"
    plant.mkdir()
    (plant / "plant.yaml").write_text(PLANT, "utf-8")
    (plant / "points.csv").write_text(POINTS, "utf-8")
    ledger = Ledger(random.Random(request.node.name))
    yield Rig(Victim(plant, data, ledger), ledger, data)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(reachable: Callable[[str], Path]) -> Iterator[EmbeddedServer]:
    """A database of its own, not the plant's."""
    folder = reachable("ecmc-away-")
    made = EmbeddedServer(folder / "data")
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(20, marks=pytest.mark.timeout(300)),
        pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
async def test_killed_again_and_again_every_row_handed_over_is_stored_once(rig: Rig, kills: int) -> None:
    dice = rig.ledger.dice
    await rig.victim.start()
    for _ in range(kills):
        await rig.victim.bring(rig.ledger.next_batch())
        await rig.load(dice.uniform(0.0, 0.3))
        if dice.random() < 0.5:
            await rig.victim.kill_the_database()
        else:
            await rig.victim.kill()
            await rig.victim.start()

    await rig.load(0.1)

    assert len(rig.ledger.kept) > kills
    await rig.compare()
    await rig.victim.stop()


@pytest.mark.parametrize(
    "away_s",
    [2.0, pytest.param(600.0, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])],
)
async def test_a_database_away_for_a_while_costs_no_row(
    rig: Rig, server: EmbeddedServer, away_s: float
) -> None:
    rig.victim.dsn = await asyncio.to_thread(server.start)
    await rig.victim.start()
    await rig.load(0.3)

    await asyncio.to_thread(server.stop)
    kept_before = len(rig.ledger.kept)
    await rig.load(away_s)
    kept_meanwhile = len(rig.ledger.kept) - kept_before
    await asyncio.to_thread(server.start)
    await rig.load(0.1)

    assert kept_meanwhile > away_s  # nobody waits for the database
    await rig.compare()
    await rig.victim.stop()


async def test_a_database_that_lets_nobody_in_for_a_while_stops_nothing(
    rig: Rig, server: EmbeddedServer
) -> None:
    """Somebody changes the password under a running plant, and changes it back."""
    rig.victim.dsn = await asyncio.to_thread(server.start)
    password = rig.victim.dsn.split(":")[2].split("@")[0]
    await rig.victim.start()
    await rig.load(0.2)
    admin = await asyncpg.connect(rig.victim.dsn)

    await admin.execute("ALTER ROLE ecmc PASSWORD 'another'")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ecmc' AND pid <> pg_backend_pid()"
    )
    kept_before = len(rig.ledger.kept)
    await rig.load(1.5)
    kept_meanwhile = len(rig.ledger.kept) - kept_before
    await admin.execute(f"ALTER ROLE ecmc PASSWORD '{password}'")
    await admin.close()

    assert kept_meanwhile > 5
    await rig.compare()
    await rig.victim.stop()
