"""Browsing a broker: what it carries becomes rows of a point list."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.tools.browse import browse, write_point_list
from core.errors import BadRequest, DeviceRefused, DeviceUnreachable
from core.plant.model import MqttSource, Plant
from core.plant.pointlist import COLUMNS

USED = {"gw.p": MqttSource("plant/meter-1", "$.ENERGY.Power")}


async def test_every_number_on_a_broker_is_offered_with_its_path(
    broker: Any, gateway: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    plant = plant_of(broker.port, USED)
    gateway.publish("plant/scale", "12.5", retain=True)
    listening = asyncio.create_task(browse(plant, "mq1", 0.8))
    await asyncio.sleep(0.3)
    body = {"ENERGY": {"Power": 3, "a.b": [1, 2]}, "name": "press", "text": "4.5"}
    for _ in range(2):
        await asyncio.to_thread(gateway.publish, "plant/meter-1", json.dumps(body))
    offers = await listening

    found = {(one.cells["topic"], one.cells["json_path"]): one for one in offers}

    assert {path: one.shows for (topic, path), one in found.items() if topic == "plant/meter-1"} == {
        "$.ENERGY.Power": "3",
        "$.ENERGY['a.b'][0]": "1",
        "$.ENERGY['a.b'][1]": "2",
        "$.text": "4.5",
    }
    assert found["plant/meter-1", "$.ENERGY.Power"].used
    assert not found["plant/meter-1", "$.text"].used
    assert found["plant/meter-1", "$.text"].note == "2 messages"
    assert found["plant/scale", ""].shows == "12.5"
    assert found["plant/scale", ""].note == "1 message, retained"
    file = tmp_path / "offered.csv"
    write_point_list(offers, file)
    with file.open(encoding="utf-8-sig") as read:
        rows = list(csv.DictReader(read))
    assert tuple(rows[0]) == COLUMNS
    assert {(row["topic"], row["json_path"]) for row in rows} == set(found)
    with pytest.raises(BadRequest, match="exists"):
        write_point_list(offers, file)


async def test_a_wrong_password_nobody_there_and_an_unknown_name_are_said(
    broker: Any, plant_of: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "wrong")
    login = {"username": "reader", "password_env": "BROKER_PASSWORD"}

    with pytest.raises(DeviceRefused, match="mq1"):
        await browse(plant_of(broker.port, USED, **login), "mq1", 0.1)
    with pytest.raises(DeviceUnreachable, match="mq1"):
        await browse(plant_of(1, USED), "mq1", 0.1)
    with pytest.raises(BadRequest, match="but mq1"):
        await browse(plant_of(1, USED), "mq2", 0.1)
