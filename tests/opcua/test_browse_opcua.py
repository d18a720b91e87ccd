"""`browse` on an OPC UA server: its numbers as rows of a point list that loads as it was written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.tools.browse import browse, write_point_list
from core.errors import DeviceRefused, DeviceUnreachable
from core.plant.model import OpcuaSource, Plant

LINE = "nsu=urn:plant:line1;s="
USED = {"voltage_l2": OpcuaSource(f"{LINE}Voltage", element=1)}


async def test_every_number_of_a_server_is_offered_by_namespace_uri(
    server: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    offers = await browse(plant_of(server.port, USED), "ua1", 1.0)

    of = {(one.cells["node_id"], one.cells.get("element")): one for one in offers}
    assert of[f"{LINE}Power", None].shows == "12.5"
    assert of[f"{LINE}Volume", None].shows == "-7"
    assert [of[f"{LINE}Voltage", str(i)].shows for i in range(3)] == ["230.0", "231.0", "229.0"]
    assert [one.cells for one in offers if one.used] == [of[f"{LINE}Voltage", "1"].cells]
    assert of[f"{LINE}Flow", None].note == "Line1/Flow, Double, m³/h, 0 to 80"
    assert not any("Recipe" in node_id or node_id.startswith("i=22") for node_id, _ in of)
    write_point_list(offers, tmp_path / "points.csv")
    with (tmp_path / "points.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["node_id"], row["element"] or None) for row in rows] == list(of)


async def test_a_tree_larger_than_one_answer_is_walked_to_its_end(
    large_server: Any, plant_of: Callable[..., Plant]
) -> None:
    offers = await browse(plant_of(large_server.port, {}), "ua1", 1.0)

    found = {one.cells["node_id"]: one.shows for one in offers}
    assert {f"{LINE}N{i}": str(float(i)) for i in range(5001)}.items() <= {
        node_id: str(float(shows)) for node_id, shows in found.items() if node_id.startswith(f"{LINE}N")
    }.items()


async def test_who_is_not_there_or_not_let_in_is_said(
    server: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UA_PASSWORD", "wrong")

    with pytest.raises(DeviceRefused, match="ua1"):
        await browse(plant_of(server.port, {}, username="reader", password_env="UA_PASSWORD"), "ua1", 1.0)
    with pytest.raises(DeviceUnreachable, match="ua1"):
        await browse(plant_of(1, {}), "ua1", 1.0)
