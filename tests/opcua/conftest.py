"""An OPC UA server of another stack (node-opcua), and a wire that can be cut or go silent."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

import pytest

from core.plant.model import Connection, Device, Kind, Label, OpcuaSource, Plant, Point, Protocol

PEERS = Path(__file__).parents[1] / "peers"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class NodeServer:
    """node-opcua in its own process; `set` changes a variable."""

    def __init__(
        self, pki: Path, port: int | None = None, extra: int = 0, per_call: int = 0, **more: object
    ) -> None:
        self.port = port or free_port()
        self.pki = pki
        self._process = subprocess.Popen(
            [
                "node",
                str(PEERS / "opcua_server.js"),
                *(str(self.port), str(pki), str(extra), str(per_call), json.dumps(more)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError("node-opcua did not start")

    def set(self, name: str, value: float) -> None:
        self._say(f"set {name} {value}")

    def add(self, name: str, value: float) -> None:
        """A variable that was not there before."""
        self._say(f"add {name} {value}")

    def bad(self, name: str) -> None:
        self._say(f"bad {name}")

    def count(self, period_ms: int) -> None:
        """Have every extra node count down from -1, by one each period."""
        self._say(f"count {period_ms}")

    def halt(self) -> int:
        """End the counting; how many changes there were."""
        self._say("halt")
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).strip().isdigit():
            if not line:
                raise RuntimeError("node-opcua ended")
        return int(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("node") or not (PEERS / "node_modules" / "node-opcua").exists():
        pytest.skip("node-opcua is not installed (tests/peers/install.sh)")
    return tmp_path_factory.mktemp("pki")


@pytest.fixture(scope="session")
def server(pki: Path) -> Iterator[NodeServer]:
    """Of its variables, Stored alone has a history."""
    started = NodeServer(pki, history=["Stored"])
    yield started
    started.kill()


@pytest.fixture(scope="session")
def large_server(pki: Path) -> Iterator[NodeServer]:
    """5,001 variables more, of which one call may name 5,000."""
    started = NodeServer(pki, extra=5001, per_call=5000)
    yield started
    started.kill()


@pytest.fixture
def start_server(pki: Path) -> Iterator[Callable[..., NodeServer]]:
    started: list[NodeServer] = []

    def start(**how: Any) -> NodeServer:
        started.append(NodeServer(pki, **how))
        return started[-1]

    yield start
    for one in started:
        one.kill()


class Wire:
    """A TCP proxy: `cut` closes what is open and refuses, `silence` swallows bytes, `heal` undoes both."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.sent: list[bytearray] = []  # what came in, by connection
        self._writers: list[asyncio.StreamWriter] = []
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        self._refusing = True
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def silence(self) -> None:
        self._flowing.clear()

    def heal(self) -> None:
        self._refusing = False
        self._flowing.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._writers += [writer, far_writer]
        self.sent.append(bytearray())
        await asyncio.gather(self._pump(reader, far_writer, self.sent[-1]), self._pump(far_reader, writer))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None = None
    ) -> None:
        try:
            while data := await reader.read(65536):
                if kept is not None:
                    kept += data
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
def wire() -> type[Wire]:
    return Wire


def opcua_plant(
    port: int, points: dict[str, OpcuaSource], period_s: float = 0.2, folder: str = "", **options: object
) -> Plant:
    """A plant with one OPC UA connection, one device and the given points."""
    url = f"opc.tcp://127.0.0.1:{port}/ecmc/line1"
    return Plant(
        id="t",
        name=Label("测", "t"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN",
        base_interval_s=60,
        method_sets=("ghg-protocol",),
        areas=(),
        connections=(Connection("ua1", Protocol.OPCUA, {"url": url, "security": "none", **options}),),
        devices=(Device("line", "ua1", None, tuple(points)),),
        points=tuple(
            Point(name, "active_power_total", "kW", Kind.GAUGE, "line", source, period_s=period_s)
            for name, source in points.items()
        ),
        nodes=(),
        edges=(),
        alerts=(),
        folder=folder,
        fingerprint="",
    )


@pytest.fixture
def plant_of() -> Callable[..., Plant]:
    return opcua_plant
