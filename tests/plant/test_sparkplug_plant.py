"""A plant folder with a Sparkplug connection: what it takes, and what `ecmc check` says about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from collector.drivers.sparkplug import SparkplugDriver
from collector.run import make_driver
from core.errors import Fault
from core.plant.model import MqttSource, Plant

PLANT = """plant: hall
zone: Asia/Shanghai
region: CN
connections:
  - {id: sp1, protocol: sparkplug, host: 127.0.0.1, group: Works, host_id: ecmc-hall}
devices:
  - {id: m12, connection: sp1}
"""
POINTS = """point,device,quantity,topic,json_path,scale
m12.power,m12,active_power_total,Line4/{device},Energy/Active Power,0.001
m12.air,m12,temperature,Line4,Temperature,
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(PLANT, "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    return tmp_path


def test_points_name_their_edge_node_device_and_metric(folder: Path, load: Callable[[Path], Plant]) -> None:
    plant = load(folder)

    assert [point.source for point in plant.points] == [
        MqttSource("Line4/m12", "Energy/Active Power", scale=0.001),
        MqttSource("Line4", "Temperature"),
    ]
    assert plant.connections[0].options["group"] == "Works"
    driver = make_driver(plant, plant.connections[0])
    assert isinstance(driver, SparkplugDriver)
    assert set(driver._listens()) == {"spBv1.0/Works/+/Line4/#", "spBv1.0/STATE/ecmc-hall"}


@pytest.mark.parametrize(
    ("file", "there", "instead", "reason"),
    [
        ("plant.yaml", ", group: Works", "", "group is missing"),
        ("plant.yaml", "group: Works", "group: Works/A", "have a meaning in topics"),
        ("plant.yaml", "host_id: ecmc-hall", 'host_id: "a+b"', "have a meaning in topics"),
        ("points.csv", "Line4/{device}", "", "names its edge node"),
        (
            "points.csv",
            "Line4/{device}",
            "spBv1.0/Works/DDATA/Line4/M12",
            "wanted an edge node, or node/device",
        ),
        ("points.csv", "Line4/{device}", "Line4/+", "wanted an edge node, or node/device"),
        ("points.csv", "Line4/{device}", "Line4/{machine}", "{machine} is unknown here"),
        ("points.csv", "Energy/Active Power", "", "names its metric"),
        ("points.csv", "json_path,scale\n", "json_path,reduce\n", "reduce is for MQTT"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    folder: Path, faults_of: Callable[[Path], list[Fault]], file: str, there: str, instead: str, reason: str
) -> None:
    text = (folder / file).read_text("utf-8")
    assert there in text
    (folder / file).write_text(
        text.replace(there, instead, 1).replace(",0.001" if "reduce" in instead else "\0", ",sum"), "utf-8"
    )

    assert any(reason in fault.reason for fault in faults_of(folder))
