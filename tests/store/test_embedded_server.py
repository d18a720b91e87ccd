"""The server ecmc brings along: started, refused, taken over, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from core.errors import DataFolderError
from core.store.embedded import EmbeddedServer, running_api, running_dsn


@pytest.fixture
def folder(reachable: Any) -> Iterator[Path]:
    made = reachable("ecmc-server-")
    yield made / "data"
    shutil.rmtree(made, ignore_errors=True)


def ask(dsn: str, query: str) -> Any:
    async def answer() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(answer())


def test_it_keeps_its_data_and_its_address_from_start_to_start(folder: Path) -> None:
    server = EmbeddedServer(folder)
    first = server.start()
    ask(first, "CREATE TABLE kept AS SELECT 42 AS n")
    server.announce("http://127.0.0.1:8000")
    told = running_dsn(folder), running_api(folder)
    server.stop()

    again = server.start()
    kept = ask(again, "SELECT n FROM kept")
    server.stop()

    assert (kept, again) == (42, first)
    assert told == (first, "http://127.0.0.1:8000")
    assert (running_dsn(folder), running_api(folder)) == (None, None)


def test_the_password_is_for_its_owner_alone_and_nobody_gets_in_without_it(folder: Path) -> None:
    server = EmbeddedServer(folder)
    dsn = server.start()
    try:
        mode = stat.S_IMODE((folder / "server.json").stat().st_mode)
        wrong = dsn.replace(json.loads((folder / "server.json").read_text())["password"], "guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            ask(wrong, "SELECT 1")
    finally:
        server.stop()

    assert mode == 0o600


def test_a_second_owner_of_one_folder_is_refused_and_the_first_goes_on(folder: Path) -> None:
    server = EmbeddedServer(folder)
    dsn = server.start()
    try:
        with pytest.raises(DataFolderError, match=f"in use by process {os.getpid()}"):
            EmbeddedServer(folder).start()

        assert ask(dsn, "SELECT 1") == 1
    finally:
        server.stop()


def test_a_server_whose_owner_was_killed_is_taken_over(folder: Path) -> None:
    script = (
        "import os, pathlib, sys; from core.store.embedded import EmbeddedServer;"
        "print(EmbeddedServer(pathlib.Path(sys.argv[1])).start(), flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=False
    )
    orphan = int((folder / "pg" / "postmaster.pid").read_text().splitlines()[0])
    nobody = running_dsn(folder)

    server = EmbeddedServer(folder)
    dsn = server.start()
    same = int((folder / "pg" / "postmaster.pid").read_text().splitlines()[0])
    server.stop()

    assert nobody is None
    assert (dsn, same) == (killed.stdout.strip(), orphan)
    assert not psutil.pid_exists(orphan)


def test_it_starts_again_while_a_killed_servers_orphans_are_leaving(folder: Path) -> None:
    server = EmbeddedServer(folder)
    dsn = server.start()
    ask(dsn, "CREATE TABLE kept AS SELECT 42 AS n")
    psutil.Process(int((folder / "pg" / "postmaster.pid").read_text().splitlines()[0])).kill()
    server.stop()

    dsn = server.start()
    kept = ask(dsn, "SELECT n FROM kept")
    server.stop()

    assert kept == 42


def test_a_stranger_with_a_dead_servers_process_id_keeps_nobody_from_starting(folder: Path) -> None:
    """As after a power cut, when ids are given out anew. PostgreSQL asks for the user's own processes alone."""
    server = EmbeddedServer(folder)
    server.start()
    server.stop()
    owner = (folder / "pg").stat().st_uid
    note = folder / "pg" / "postmaster.pid"

    with subprocess.Popen(["sleep", "60"], user=owner) as stranger:
        note.write_text(f"{stranger.pid}\n{folder / 'pg'}\n1\n5432\n\n\n\nready\n")
        os.chown(note, owner, -1)
        answer = ask(server.start(), "SELECT 1")
        server.stop()
        still_there = stranger.poll() is None
        stranger.kill()

    assert answer == 1
    assert still_there


def test_a_running_server_is_known_under_another_name_of_its_folder(folder: Path) -> None:
    server = EmbeddedServer(folder)
    server.start()
    other_name = folder.with_name("link")
    other_name.symlink_to(folder)
    try:
        with pytest.raises(DataFolderError, match="in use by process"):
            EmbeddedServer(other_name).start()

        assert running_dsn(other_name) == running_dsn(folder) is not None
    finally:
        server.stop()


def test_a_cluster_of_another_major_version_is_refused_with_the_way_out(folder: Path) -> None:
    server = EmbeddedServer(folder)
    server.start()
    server.stop()
    (folder / "pg" / "PG_VERSION").write_text("15\n")

    wanted = r"made by PostgreSQL 15, this ecmc brings 18\. .*ecmc backup --raw .*; then .*ecmc restore "
    with pytest.raises(DataFolderError, match=wanted):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")
def test_a_folder_the_databases_user_cannot_reach_is_said_plainly(folder: Path) -> None:
    folder.parent.chmod(0o700)

    with pytest.raises(DataFolderError, match=r"cannot be reached by user \w+"):
        EmbeddedServer(folder).start()


def test_a_port_taken_meanwhile_is_given_up(folder: Path) -> None:
    server = EmbeddedServer(folder)
    server.start()
    server.stop()
    notes = json.loads((folder / "server.json").read_text())

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", notes["port"]))
        taken.listen()
        dsn = server.start()
        answer = ask(dsn, "SELECT 1")
        server.stop()

    assert answer == 1
    assert f":{notes['port']}/" not in dsn
