"""The demo plant on its feet: every simulated device on the ports its folder names.

    python -m simulators.run DIR      # writes the plant folder to DIR and serves it

`write_demo_plant` makes the folder, `simulate` serves what a loaded folder
describes. The fault file (`faults.json` beside the plant folder's files) is
watched while it runs, see faults.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from core.clock import Clock, SystemClock, datetime_of, time_ns_of
from core.plant.load import load_plant
from core.plant.model import Connection, Device, Plant, Protocol
from simulators.faults import Faults
from simulators.meter import Meters
from simulators.modbus import ModbusServer, Unit
from simulators.mqtt import MqttGateways
from simulators.opcua import OpcuaServer
from simulators.plant import DemoPlant

DEMO_FOLDER: Final = Path(__file__).parent / "plants" / "demo"
DEMO_PORTS: Final[Mapping[str, int]] = {"mb-1": 15020, "mb-2": 15021, "ua-1": 14840, "mq-1": 11883}
FAULT_FILE: Final = "faults.json"


def free_ports() -> dict[str, int]:
    """A free port for each connection of the demo plant: its usual one where that is free, else any."""
    with contextlib.ExitStack() as held:
        return {name: _free_port(usual, held) for name, usual in DEMO_PORTS.items()}


def _free_port(usual: int, held: contextlib.ExitStack) -> int:
    for port in (usual, 0):
        probe = held.enter_context(socket.socket())
        # As a server does it: the remains of closed links do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def write_demo_plant(folder: Path, ports: Mapping[str, int] | None = None) -> Path:
    """Write the demo's plant folder with these ports by connection id (its usual ones if none); returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in DEMO_FOLDER.iterdir():
        shutil.copyfile(file, folder / file.name)
    text = (DEMO_FOLDER / "plant.yaml").read_text("utf-8")
    for name, usual in DEMO_PORTS.items():
        text = text.replace(str(usual), f"<{name}>")
    for name, usual in DEMO_PORTS.items():
        text = text.replace(f"<{name}>", str((ports or {}).get(name, usual)))
    (folder / "plant.yaml").write_text(text, "utf-8")
    return folder


class Simulators:
    """Every server of the demo plant, listening inside the `async with`.

    Args:
        plant: The demo plant's folder, loaded; its connections say where to listen.
        speed: How fast the recordings are played, from local midnight of the day it starts.
        faults: Switched by the caller.
        fault_file: Watched for faults switched by hand.
    """

    def __init__(
        self,
        plant: Plant,
        speed: float = 1.0,
        clock: Clock | None = None,
        faults: Faults | None = None,
        fault_file: Path | None = None,
    ) -> None:
        self.faults = faults or Faults()
        clock = clock or SystemClock()
        today = datetime_of(clock.now_ns()).astimezone(plant.zone)
        midnight_ns = time_ns_of(today.replace(hour=0, minute=0, second=0, microsecond=0))
        self.model = DemoPlant(speed=speed, anchor_ns=midnight_ns)
        self.meters = Meters(plant, self.model, clock, self.faults)
        self._plant, self._fault_file = plant, fault_file
        self._servers = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as opened:
            for connection in self._plant.connections:
                await self._serve(connection, opened)
            self._servers = opened.pop_all()
        if self._fault_file is not None:
            self._start(self.faults.watch(self._fault_file))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._servers.aclose()

    async def run(self) -> None:
        """Until cancelled, or until a server fails."""
        await asyncio.gather(*self._tasks, asyncio.Event().wait())

    async def _serve(self, connection: Connection, opened: contextlib.AsyncExitStack) -> None:
        devices = [device for device in self._plant.devices if device.connection == connection.id]
        if connection.protocol is Protocol.MODBUS_TCP:
            units = {device.unit_id: self._unit(device) for device in devices}
            host, port = str(connection.options["host"]), int(str(connection.options["port"]))
            await opened.enter_async_context(ModbusServer(connection.id, units, self.faults, host, port))
        elif connection.protocol is Protocol.OPCUA:
            plc = OpcuaServer(str(connection.options["url"]), devices[0], self.meters)
            await opened.enter_async_context(plc)
            self._start(plc.run())
        elif connection.protocol is Protocol.MQTT:
            gateways = MqttGateways(connection, self.meters)
            await opened.enter_async_context(gateways)
            self._start(gateways.run())

    def _unit(self, device: Device) -> Unit:
        points = [self._plant.point_by_id[point] for point in device.points]
        most = int(str(device.options.get("max_registers", 125)))
        return Unit(device.id, points, lambda: self.meters.values(device.id), most)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))


async def simulate(
    plant: Plant,
    speed: float = 1.0,
    clock: Clock | None = None,
    faults: Faults | None = None,
    fault_file: Path | None = None,
) -> None:
    """Serve the demo plant until cancelled; the arguments are those of `Simulators`."""
    async with Simulators(plant, speed, clock, faults, fault_file) as simulators:
        await simulators.run()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m simulators.run FOLDER")
    written = write_demo_plant(Path(sys.argv[1]), free_ports())
    profiles = Path(__file__).parent.parent / "collector" / "profiles"
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(simulate(load_plant(written, [profiles]), fault_file=written / FAULT_FILE))
