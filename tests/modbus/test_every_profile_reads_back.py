"""All shipped Modbus device models: known values served by a simulated device come back under their names.

The registers are laid out from the profile files themselves, not through the
plant model, so a slip in either shows.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from modbus_field import FieldDevice, Sample, driver_of, read_until

from core import quality
from core.plant.load import load_plant

PROFILES = Path(__file__).parents[2] / "collector" / "profiles"
MODBUS_PROFILES = sorted(
    path.stem
    for path in PROFILES.glob("*.yaml")
    if yaml.safe_load(path.read_text()).get("protocol") == "modbus"
)
FORMATS = {
    "int16": "h", "uint16": "H", "enum16": "H", "bitfield16": "H", "sunssf": "h", "int32": "i", "uint32": "I",
    "acc32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
SUNSPEC_START = 50_000
POWER = -2  # in every SunSpec scale register


def encoded(type_: str, raw: float, word_order: str) -> list[int]:
    wire = bytes.fromhex(f"{raw:012d}") if type_ == "bcd12" else struct.pack(">" + FORMATS[type_], raw)
    words = [int.from_bytes(wire[i : i + 2], "big") for i in range(0, len(wire), 2)]
    return words[::-1] if word_order == "little" else words


def served(profile: dict[str, Any]) -> tuple[dict[int, int], dict[str, float]]:
    """Registers of a device that shows a number of its own on each point, and what each point must read."""
    words: dict[int, int] = {}
    expected: dict[str, float] = {}
    start = 0
    if "sunspec" in profile:
        words |= {SUNSPEC_START: 0x5375, SUNSPEC_START + 1: 0x6E53}
        words |= {SUNSPEC_START + 2: 1, SUNSPEC_START + 3: 66}  # the common model comes first
        start = SUNSPEC_START + 4 + 66
        length = max(p["address"] + p["words"] for p in profile["points"]) + 60
        words |= {start: profile["sunspec"]["model_id"], start + 1: length, start + 2 + length: 0xFFFF}
    for number, point in enumerate(profile["points"], 1):
        is_float = point["type"].startswith("float")
        raw = 1000.25 + number if is_float else 1000 + number
        if point["type"].startswith("int") and number % 3 == 0:
            raw = -raw
        order = point.get("word_order", profile["defaults"]["word_order"])
        for i, word in enumerate(encoded(point["type"], raw, order)):
            assert words.setdefault(start + point["address"] + i, word) == word, "two points share a register"
        value = raw * point["scale"]
        if "scale_register" in point:
            words[start + point["scale_register"]] = POWER % 65536
            value *= 10.0**POWER
        index = point.get("index", 1)
        expected[point["quantity"] + (f"_{index}" if index > 1 else "")] = value
    return words, expected


def test_all_thirty_four_models_are_shipped() -> None:
    assert len(MODBUS_PROFILES) == 34


async def read_model(name: str, device: FieldDevice, folder: Path, enough: int) -> list[Sample]:
    """The first samples of a device of a model, through a plant folder."""
    (folder / "plant.yaml").write_text(
        f"""
plant: models
name: {{zh: 型号, en: Models}}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [zero-carbon-factory]
connections:
  - {{id: mb, protocol: modbus-tcp, host: 127.0.0.1, port: {device.port}, timeout_s: 1.0}}
devices:
  - {{id: d, connection: mb, unit_id: 3, profile: {name}, ct_ratio: 1, vt_ratio: 1, period_s: 60}}
network: {{nodes: [], edges: []}}
"""
    )
    plant = load_plant(folder, [PROFILES])
    async with driver_of(plant) as driver:
        return await read_until(driver, lambda seen: len(seen) >= enough)


@pytest.mark.parametrize("name", MODBUS_PROFILES)
async def test_a_model_reads_back_what_its_device_shows(
    name: str, device: FieldDevice, tmp_path: Path
) -> None:
    device.words, expected = served(yaml.safe_load((PROFILES / f"{name}.yaml").read_text()))

    samples = await read_model(name, device, tmp_path, len(expected))

    assert {point: value for point, _, value, _ in samples} == {
        f"d.{quantity}": pytest.approx(value, rel=1e-6) for quantity, value in expected.items()
    }
    assert {status for *_, status in samples} == {quality.GOOD}


async def test_the_gas_meters_documented_frame_reads_as_its_maker_says(
    device: FieldDevice, tmp_path: Path
) -> None:
    frame = yaml.safe_load((PROFILES / "fuxin_gas_meter.yaml").read_text())["sample_frame"]
    wire = bytes.fromhex(frame["payload_hex"])
    start = frame["request"]["address"]
    device.words = {start + i // 2: int.from_bytes(wire[i : i + 2], "big") for i in range(0, len(wire), 2)}

    samples = await read_model("fuxin_gas_meter", device, tmp_path, 8)

    expect = frame["expect"]
    shown = {point.removeprefix("d."): value for point, _, value, _ in samples}
    assert shown["volume_total"] == expect["volume_total_float"]
    assert shown["volume_total_2"] == expect["volume_total_bcd"]
    assert shown["volume_std_total"] == pytest.approx(expect["volume_std_total_float"], rel=1e-6)
    assert shown["volume_std_total_2"] == expect["volume_std_total_bcd"]
    for quantity in ("flow_volume_std", "flow_volume", "temperature", "pressure"):
        assert shown[quantity] == pytest.approx(expect[quantity], rel=1e-4)
