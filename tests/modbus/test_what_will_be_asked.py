"""`ecmc check` tells the requests before anything connects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from modbus_field import plant_of, point, source
from typer.testing import CliRunner

from collector.tools.forecast import busy, lines_said, requests, requests_per_s
from core.plant.model import Protocol
from ecmc.cli import app

DEMO = Path(__file__).parents[2] / "simulators" / "plants" / "demo"


def test_neighbouring_registers_are_one_request() -> None:
    points = [point(f"p{address}", source(address), period_s=2.0) for address in (0, 1, 2, 10, 500)]
    plant = plant_of({"d": points}, 502)

    asked = requests(plant)

    assert [(one.address, one.count, one.points) for one in asked] == [
        (0, 11, ("p0", "p1", "p2", "p10")),
        (500, 1, ("p500",)),
    ]
    assert requests_per_s(asked) == {"mb": 1.0}
    assert busy(asked) == {}


def test_a_sunspec_device_is_asked_from_where_its_models_begin() -> None:
    points = [
        point("a", replace(source(2), sunspec_model=103)),
        point("b", replace(source(4), sunspec_model=103)),
        point("c", replace(source(9), sunspec_model=802)),
    ]

    asked = requests(plant_of({"pv": points}, 502))

    assert [(one.model, one.address, one.count) for one in asked] == [(103, 2, 3), (802, 9, 1)]


def test_a_serial_line_asked_for_more_than_it_can_carry_is_noted() -> None:
    """A register at 9600 baud: 13 bytes and 2 x 3.5 pauses of 11 bits and 5 ms, and 2 bytes more each: 30.2 ms."""
    devices = {f"m{n}": [point(f"p{n}", source(0), period_s=1.0)] for n in range(40)}
    plant = plant_of(devices, 502, protocol=Protocol.MODBUS_RTU_TCP)

    share = busy(requests(plant))

    assert share["mb"] == pytest.approx(40 * ((13 + 7 + 2) * 11 / 9600 + 0.005))
    (said,) = lines_said(plant, share)
    assert said.startswith("note: mb at 9600 baud: 121% of the line's time is asked for, more than there is")


def test_the_line_behind_a_gateway_has_its_own_speed(tmp_path: Path) -> None:
    (tmp_path / "plant.yaml").write_text(
        "plant: one\nzone: UTC\nregion: CN\n"
        "connections: [{id: c, protocol: modbus-rtu-tcp, host: h, baud: 115200}]\n"
        "devices: [{id: d, connection: c}]\n"
    )
    (tmp_path / "points.csv").write_text("point,device,quantity,address,type\nd.f,d,frequency,0,uint16\n")

    done = CliRunner().invoke(app, ["check", str(tmp_path)])

    assert "c at 115200 baud: 1% of the line's time is asked for" in done.stdout


def test_check_shows_every_request() -> None:
    done = CliRunner().invoke(app, ["check", "--requests", str(DEMO)])

    assert done.exit_code == 0
    assert "mb-1\tm-grid\t1\t3\t" in done.stdout
    assert "model 103 + " in done.stdout
