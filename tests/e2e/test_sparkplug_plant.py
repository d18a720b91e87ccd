"""A plant of Sparkplug points alone, as a user has it: check, browse, run."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PEERS = Path(__file__).parents[1] / "peers"
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    if MOSQUITTO is None or not (PEERS / "node_modules" / "sparkplug-client").exists():
        pytest.skip("mosquitto or sparkplug-client is not installed (tests/peers/install.sh)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        for _ in range(200):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield port
        process.kill()


@pytest.fixture
def edge(broker: int) -> Iterator[subprocess.Popen[str]]:
    command = ["node", str(PEERS / "sparkplug_edge.js"), str(broker), "Works", "Line9", "M1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "born\n"
        yield process
        process.kill()


def test_sparkplug_points_live_and_die_with_their_edge_node(
    ecmc: Any, broker: int, edge: subprocess.Popen[str]
) -> None:
    ecmc.write(
        plant_yaml="plant: hall\nzone: Asia/Shanghai\nregion: CN\nconnections:\n"
        f"  - {{id: sp1, protocol: sparkplug, host: 127.0.0.1, port: {broker}, group: Works}}\n"
        "devices:\n  - {id: m1, connection: sp1}\n",
        points_csv="point,device,quantity,topic,json_path\n"
        "m1.power,m1,active_power_total,Line9/M1,Energy/Active Power\n"
        "m1.import,m1,active_energy_import_total,Line9/M1,Energy/Import\n",
    )
    assert "1 sparkplug" in ecmc.cli("check", ecmc.plant)
    offered = json.loads(ecmc.cli("browse", ecmc.plant, "sp1", "--seconds", "1.5", "--json"))["offers"]
    assert {offer["cells"]["json_path"] for offer in offered if not offer["used"]} == {
        "Offset", "Pulses", "Running", "Temperature",
    }  # fmt: skip

    def latest() -> dict[str, tuple[float | None, str]]:
        return {one["point"]: (one["value"], one["quality"]) for one in ecmc.get("/v1/latest")}

    def say(power: float) -> None:
        assert edge.stdin is not None
        edge.stdin.write(json.dumps({"metrics": [{"alias": 11, "type": "Float", "value": power}]}) + "\n")
        edge.stdin.flush()

    ecmc.start()
    ecmc.wait_for(lambda: latest().get("m1.import") == (25723.4, "good"))
    say(33.25)
    ecmc.wait_for(lambda: latest()["m1.power"] == (33.25, "good"))
    edge.kill()
    ecmc.wait_for(lambda: latest()["m1.power"] == (None, "bad"))
    assert ecmc.get("/v1/devices")[0]["detail"] == "no birth of Line9/M1"
    ecmc.wait_for(lambda: ecmc.get("/v1/health")["parts"]["collector:sp1"]["status"] == "degraded")
