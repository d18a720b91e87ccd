"""A real `ecmc` in its own process, asked only through its command line and HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.store.embedded import EmbeddedServer
from migrations import migrate

ECMC = Path(sys.executable).with_name("ecmc")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ecmc:
    """One plant folder and one data folder; `start` runs it, `cli` calls it, `get` asks it."""

    def __init__(self, folder: Path) -> None:
        self.plant = folder / "plant"
        self.data = folder / "data"
        self.plant.mkdir()
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "ecmc.log"

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.plant / name.replace("_yaml", ".yaml").replace("_csv", ".csv")).write_text(text, "utf-8")

    def start(self, timeout_s: float = 30.0) -> float:
        """Start `ecmc run`; returns the seconds until health is ok."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [ECMC, "run", "--plant", self.plant, "--data", self.data, "--port", str(self.port)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() - began < timeout_s:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"ecmc ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}"
                )
            try:
                if self.get("/v1/health")["status"] == "ok":
                    return time.monotonic() - began
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> float:
        """SIGTERM; returns the seconds until the process is gone."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.process = None
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9 of the ecmc process alone; its database server is left orphaned, as in a real crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def cli(self, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [ECMC, *map(str, words)], capture_output=True, text=True, timeout=110, check=False
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def import_(self, file: Path, *more: str, code: int = 0) -> str:
        return self.cli("import", "--plant", self.plant, "--data", self.data, file, *more, code=code)

    def get(self, path: str, **query: Any) -> Any:
        text = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None}, doseq=True)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}?{text}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as why:
            body = why.read()
            told = urllib.error.HTTPError(why.url, why.code, why.msg, why.hdrs, io.BytesIO(body))
            told.add_note(body.decode())  # what the server said, where a test did not expect it
            raise told from None

    def post(self, path: str, body: Any, **query: Any) -> Any:
        text = urllib.parse.urlencode(query)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}?{text}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def wait_for(self, ask: Any, timeout_s: float = 20.0) -> Any:
        """Ask until the answer is truthy."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            answer = ask()
            if answer:
                return answer
            time.sleep(0.1)
        raise AssertionError(f"no answer within {timeout_s} s\n{self.log.read_text()[-4000:]}")


def new_ecmc() -> tuple[Ecmc, Path]:
    folder = Path(tempfile.mkdtemp(prefix="ecmc-e2e-", dir="/tmp"))
    os.chmod(folder, 0o755)  # the database's unprivileged user has to reach its folder
    return Ecmc(folder), folder


@pytest.fixture(scope="session")
def empty_data(reachable: Callable[[str], Path]) -> Iterator[Path]:
    """A data folder with its database made and migrated, stopped: copied, it saves each test a first start."""
    folder = reachable("ecmc-empty-")
    server = EmbeddedServer(folder / "data")
    try:
        asyncio.run(migrate(server.start()))
    finally:
        server.stop()
    yield folder / "data"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ecmc(empty_data: Path) -> Iterator[Ecmc]:
    made, folder = new_ecmc()
    subprocess.run(["cp", "-a", empty_data, made.data], check=True)  # -a: the cluster is its server user's
    yield made
    if made.process is not None:
        made.stop()
    shutil.rmtree(folder, ignore_errors=True)
