"""Killed, stopped, doubled, misdirected: what an operator does to a running ecmc."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

PLANT = """\
plant: crash
name: {zh: 断电厂, en: Crash}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: hall, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: hall, meter: feeder.energy}
"""
POINTS = "point,device,name,quantity,unit\nfeeder.energy,,,active_energy_import_total,kWh\n"
ECMC = Path(sys.executable).with_name("ecmc")
START = datetime(2026, 3, 2, tzinfo=UTC)


def at(minutes: float) -> str:
    return (START + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


@pytest.fixture
def crash(ecmc: Any) -> Any:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    return ecmc


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(crash: Any) -> None:
    crash.start()
    acknowledged = 0
    for life in range(3):
        for _ in range(40):
            rows = [
                {"point": "feeder.energy", "time": at(minute), "value": float(minute)}
                for minute in range(acknowledged, acknowledged + 5)
            ]
            answer = crash.post("/v1/samples", rows)
            assert answer["accepted"] + answer["repeated"] == 5
            acknowledged += 5
        crash.kill()
        crash.start(40)
        kept = crash.get("/v1/samples", point="feeder.energy", start=at(0), end=at(10_000), limit=5000)[
            "items"
        ]
        assert [row["value"] for row in kept] == [float(minute) for minute in range(acknowledged)], (
            f"life {life}"
        )

    total = crash.wait_for(
        lambda: (
            (rows := crash.get("/v1/energy", edge="e-grid", start=at(0), end=at(600), bucket="1h"))
            and sum(row["energy_kwh"] for row in rows) == pytest.approx(acknowledged - 1)
            and rows
        )
    )

    assert [row["energy_kwh"] for row in total] == pytest.approx([60.0] * (len(total) - 1) + [59.0])


def test_stopping_takes_seconds_and_leaves_nothing_running(crash: Any) -> None:
    shutil.rmtree(crash.data)  # a first start it shall be
    first_s = crash.start()
    assert crash.process is not None
    family = psutil.Process(crash.process.pid).children(recursive=True)
    here = str(crash.data)
    servers = [p for p in psutil.process_iter(["cmdline"]) if here in " ".join(p.info["cmdline"] or [])]

    stop_s = crash.stop()
    again_s = crash.start()
    crash.stop()

    assert first_s < 10
    assert again_s < 5
    assert stop_s < 10
    assert servers, "the embedded server was not seen running"
    assert not [p for p in {*family, *servers} if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_second_run_on_one_data_folder_is_refused_plainly(crash: Any) -> None:
    crash.start()

    second = subprocess.run(
        [ECMC, "run", "--plant", crash.plant, "--data", crash.data, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert second.returncode == 2
    assert str(crash.data) in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def test_a_taken_port_is_said_once_and_nothing_is_started(crash: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        refused = subprocess.run(
            [ECMC, "run", "--plant", crash.plant, "--data", crash.data, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert refused.returncode == 2
    assert str(port) in refused.stderr
    assert not (crash.data / "spool").exists()


def test_a_data_folder_that_cannot_be_used_is_said_plainly(crash: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")

    refused = subprocess.run(
        [ECMC, "run", "--plant", crash.plant, "--data", blocked / "data", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert refused.returncode == 2
    assert "data folder" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_bad_plant_folder_ends_with_the_whole_list_and_no_start(crash: Any) -> None:
    crash.write(
        plant_yaml=PLANT.replace("kind: load", "kind: lood").replace(
            "meter: feeder.energy", "meter: nobody.energy"
        )
    )

    shutil.rmtree(crash.data)

    refused = subprocess.run(
        [ECMC, "run", "--plant", crash.plant, "--data", crash.data, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert refused.returncode == 2
    assert "lood" in refused.stdout
    assert "nobody.energy" in refused.stdout
    assert all(line.count(":") >= 3 for line in refused.stdout.strip().splitlines())
    assert not crash.data.exists()


def test_the_database_dying_is_said_in_health_and_heals_by_itself(crash: Any) -> None:
    crash.start()
    crash.post("/v1/samples", [{"point": "feeder.energy", "time": at(0), "value": 0.0}])
    here = str(crash.data)
    postmasters = [
        p
        for p in psutil.process_iter(["cmdline", "name"])
        if p.info["name"] == "postgres" and here in " ".join(p.info["cmdline"] or [])
    ]
    assert postmasters

    for server in postmasters:
        server.send_signal(signal.SIGKILL)
    crash.wait_for(lambda: crash.get("/v1/health")["status"] != "ok")
    crash.wait_for(lambda: crash.get("/v1/health")["status"] == "ok", 40)
    answer = crash.post("/v1/samples", [{"point": "feeder.energy", "time": at(1), "value": 1.0}])

    assert answer["accepted"] == 1
    assert len(crash.get("/v1/samples", point="feeder.energy", start=at(0), end=at(5))["items"]) == 2


def test_late_repeated_and_conflicting_samples_are_told_apart(crash: Any) -> None:
    crash.start()
    crash.post("/v1/samples", [{"point": "feeder.energy", "time": at(0), "value": 1.0}])

    answer = crash.post(
        "/v1/samples",
        [
            {"point": "feeder.energy", "time": at(0), "value": 1.0},
            {"point": "feeder.energy", "time": at(0), "value": 2.0},
            {"point": "feeder.energy", "time": at(1), "value": 3.0},
            {"point": "nobody", "time": at(1), "value": 3.0},
        ],
    )
    corrected = crash.post(
        "/v1/samples",
        [{"point": "feeder.energy", "time": at(0), "value": 2.0}],
        correct="true",
        why="misread",
    )

    assert answer["accepted"] == 1
    assert answer["repeated"] == 1
    assert [c["offered"] for c in answer["conflicts"]] == [2.0]
    assert len(answer["rejected"]) == 1
    assert corrected["accepted"] + corrected.get("corrected", 0) >= 1
    kept = crash.get("/v1/samples", point="feeder.energy", start=at(0), end=at(5))["items"]
    assert [row["value"] for row in kept] == [2.0, 3.0]


def test_samples_taken_back_leave_every_figure_and_stay_on_record(crash: Any) -> None:
    crash.start()
    wrong = {30.0: 9_000.0, 31.0: 9_001.0}
    rows = [
        {"point": "feeder.energy", "time": at(m), "value": wrong.get(m, float(m))}
        for m in map(float, range(61))
    ]
    crash.post("/v1/samples", rows)

    def energy_kwh() -> float:
        hours = crash.get("/v1/energy", edge="e-grid", start=at(0), end=at(60), bucket="1h")
        return sum(row["energy_kwh"] or 0.0 for row in hours)

    crash.wait_for(lambda: energy_kwh() > 0)
    answer = crash.post(
        "/v1/samples/withdraw",
        {"point": ["feeder.energy"], "start": at(30), "end": at(32), "why": "wrong feeder"},
        who="li",
    )
    again = crash.post("/v1/samples", rows)
    crash.wait_for(lambda: energy_kwh() == pytest.approx(60.0))
    said = crash.cli(
        *("withdraw", "feeder.energy", "--plant", crash.plant, "--data", crash.data),
        *("--from", at(60), "--to", at(61), "--why", "not ours"),
    )

    kept = crash.get("/v1/corrections", start=at(0), end=at(100))
    assert answer == {"withdrawn": 2}
    assert (again["accepted"], again["repeated"], again["conflict_count"]) == (0, 59, 2)
    assert said == "feeder.energy: 1 samples withdrawn\n"
    assert energy_kwh() == pytest.approx(59.0)  # what came after the last reading left is not made up
    assert [(row["old"], row["new"], row["why"]) for row in kept] == [
        (60.0, None, "not ours"),
        (9_001.0, None, "wrong feeder"),
        (9_000.0, None, "wrong feeder"),
    ]
