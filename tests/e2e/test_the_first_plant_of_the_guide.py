"""docs/start.md played to the letter: its two files, its commands, a device at the end of the wire."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from struct import pack, unpack
from typing import Any, ClassVar
from urllib.error import HTTPError

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "start.md"


class Gateway(BaseRequestHandler):
    """Registers of both meters of the guide as their manuals lay them out; what nobody named reads as zero."""

    energy_kwh: ClassVar[float] = 1000.0

    def handle(self) -> None:
        while len(head := self.request.recv(12)) == 12:
            transaction, _, _, unit, function, start, count = unpack(">HHHBBHH", head)
            words = {1: self.grid, 2: self.press}[unit]()
            body = b"".join(words.get(at, b"\0\0") for at in range(start, start + count))
            frame = pack(">BBB", unit, function, len(body)) + body
            self.request.sendall(pack(">HHH", transaction, 0, len(frame)) + frame)

    def grid(self) -> dict[int, bytes]:
        return _words(3203, pack(">q", int(self.energy_kwh * 1000))) | _words(3059, pack(">f", 90.0))

    def press(self) -> dict[int, bytes]:
        power = pack(">i", 30_000)  # W, the low word first
        energy = pack(">I", int(self.energy_kwh * 100 / 3))
        return _words(12, power[2:] + power[:2]) | _words(20, energy[2:] + energy[:2])


def _words(start: int, data: bytes) -> dict[int, bytes]:
    return {start + i: data[2 * i : 2 * i + 2] for i in range(len(data) // 2)}


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingTCPServer(("127.0.0.1", 0), Gateway) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_two_files_become_live_carbon(ecmc: Any, port: int) -> None:
    text = GUIDE.read_text("utf-8")
    plant_yaml, points_csv = re.findall(r"```yaml\n(.*?)```\n.*?```csv\n(.*?)```", text, re.DOTALL)[0]
    here = plant_yaml.replace("host: 10.0.0.7, port: 502", f"host: 127.0.0.1, port: {port}")
    assert here != plant_yaml
    ecmc.write(plant_yaml=here, points_csv=points_csv)

    assert "2 devices" in ecmc.cli("check", ecmc.plant)
    ecmc.start()

    def live() -> dict[str, Any] | None:
        try:
            nodes = {row["node"]: row for row in ecmc.get("/v1/live")["nodes"]}
        except HTTPError:  # nothing measured yet
            return None
        return nodes if nodes["rest"]["power_kw"] is not None else None

    nodes = ecmc.wait_for(live)
    assert nodes["press"]["power_kw"] == pytest.approx(30.0)
    assert nodes["rest"]["power_kw"] == pytest.approx(60.0)
    # Chongqing 2023, the newest published (core/carbon/tables/grid_cn.csv)
    assert nodes["press"]["emissions_kgco2e_per_h"] == pytest.approx(30.0 * 0.5581)
    assert nodes["rest"]["emissions_kgco2e_per_h"] == pytest.approx(60.0 * 0.5581)
