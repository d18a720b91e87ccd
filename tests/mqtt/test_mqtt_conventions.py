"""The payloads of every shipped MQTT convention, as products send them, become the numbers they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector.drivers.broker import Columns, Message
from collector.drivers.mqtt import MqttDriver
from core import quality
from core.clock import NS_PER_S, parse_rfc3339
from core.errors import FaultyInput
from core.plant.load import load_plant
from core.plant.model import Plant

PROFILES = Path(__file__).parents[2] / "collector" / "profiles"
CONVENTIONS = {
    one["id"]: one
    for one in yaml.safe_load((PROFILES / "mqtt_conventions.yaml").read_text("utf-8"))["conventions"]
}
NOW = parse_rfc3339("2026-03-02T16:20:00+08:00")  # within a week of every example's own time
DATED = parse_rfc3339("2026-03-02T08:15:00+08:00")
MS = 1772439300_000 * 1_000_000  # the examples' 1772439300 s

Rows = dict[str, list[tuple[int, float, int]]]


class Fixed:
    def now_ns(self) -> int:
        return NOW


def plant_of(folder: Path, *devices: str) -> Plant:
    (folder / "plant.yaml").write_text(
        "plant: one\nzone: Asia/Shanghai\nregion: CN\nconnections: [{id: c, protocol: mqtt, host: h}]\n"
        "devices:\n" + "".join(f"  - {{connection: c, {device}}}\n" for device in devices),
        "utf-8",
    )
    return load_plant(folder, [PROFILES])


def heard(plant: Plant, *messages: tuple[str, Any], retained: bool = False) -> Rows:
    """What the driver makes of messages, by point."""
    driver = MqttDriver(plant, plant.connections[0], Fixed())
    columns = Columns()
    for topic, payload in messages:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        driver._take(Message(topic, text.encode(), 1, 1, retained, NOW), columns)
    batch = driver._delivery.batch(*columns.arrays())
    rows: Rows = {}
    for row in zip(
        batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist(), strict=True
    ):
        rows.setdefault(row[0], []).append(row[1:])
    return rows


def test_there_are_nine_and_all_but_sparkplug_are_profiles_of_mqtt_devices() -> None:
    assert set(CONVENTIONS) == {
        "tasmota_energy", "tasmota_sml", "shelly_gen1_em", "shelly_gen2_em", "sparkplug_b", "acrel_gateway_flat",
        "acrel_4g_array", "thingsboard_gateway", "plain_uns",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("device", "topic", "payload", "at_ns", "values"),
    [
        ("profile: tasmota_energy", "tele/d/SENSOR", "payload", DATED, {
            "active_power_total": 2.407, "active_energy_import_total": 1290.396, "voltage_l1": 231.0}),
        ("profile: tasmota_sml", "tele/d/SENSOR", "payload", DATED + 10 * NS_PER_S, {
            "active_power_total": -0.894, "active_energy_import_total": 34507.4761,
            "active_energy_export_total": 14737.1422}),
        ("profile: shelly_gen1_em", "shellies/d/emeter/1/power", "payload", NOW, {"active_power_l2": 0.81245}),
        ("profile: shelly_gen2_em, topic: {prefix: shop}", "shop/status/em:0", "payload", NOW, {
            "active_power_total": 2.4075}),
        ("profile: shelly_gen2_em, topic: {prefix: shop}", "shop/status/emdata:0", "payload_energy", NOW, {
            "active_energy_import_total": 1264.15028, "active_energy_export_total": 144.79228}),
        ("profile: acrel_gateway_flat, topic: {site: s, device_type: e}, ct_ratio: 20, vt_ratio: 1",
         "s/device/e/state", "payload", MS + 123_000_000, {
            "active_power_total": 246.14, "active_energy_import_total": 51446.8}),
        ("profile: acrel_4g_array, topic: {product_key: k, gateway_sn: GW2301}", "/k/GW2301/up", "payload", DATED, {
            "active_power_total": 12.307, "active_energy_import_total": 25723.4}),
        ("profile: thingsboard_gateway", "v1/gateway/telemetry", "payload", MS, {
            "active_power_total": 12.307, "active_energy_import_total": 25723.4}),
        ("profile: plain_uns, topic: {enterprise: e, site: s, area: a, line: l}", "e/s/a/l/energy/active_power",
         "payload", MS + 123_000_000, {"active_power_total": 12.307}),
    ],
)  # fmt: skip
def test_the_example_of_each_convention_is_read(
    tmp_path: Path, device: str, topic: str, payload: str, at_ns: int, values: dict[str, float]
) -> None:
    profile = device.split(",")[0].removeprefix("profile: ")
    plant = plant_of(tmp_path, f"id: d, {device}")

    rows = heard(plant, (topic, CONVENTIONS[profile][payload]))

    assert {name.removeprefix("d."): row[0][1] for name, row in rows.items()} == pytest.approx(values)
    assert {(row[0][0], row[0][2]) for row in rows.values()} == {(at_ns, quality.GOOD)}


def four_g(*meters: dict[str, Any], ts: str = "20260302081500") -> tuple[str, Any]:
    return "/k/g/up", {"gateway": "g", "ts": ts, "meters": list(meters)}


def meter(addr: str, power: str, energy: str, **more: Any) -> dict[str, Any]:
    return {"addr": addr, "online": 1, "v": {"P": power, "EPI": energy}, **more}


FOUR_G = "profile: acrel_4g_array, topic: {{product_key: k, gateway_sn: g, addr: '{}'}}"


def test_each_meter_behind_a_4g_gateway_is_its_own_device(tmp_path: Path) -> None:
    plant = plant_of(tmp_path, f"id: d1, {FOUR_G.format('0012')}", f"id: d2, {FOUR_G.format('0013')}")

    rows = heard(
        plant, four_g(meter("0013", "2.5", "20.00"), meter("0012", "--", "10.00"), meter("0014", "9", "9"))
    )

    assert [(row[1], row[2]) for row in rows["d2.active_power_total"]] == [(2.5, quality.GOOD)]
    assert [row[2] for row in rows["d1.active_power_total"]] == [quality.BAD_SENSOR_FAILURE]
    assert [row[1] for row in rows["d1.active_energy_import_total"]] == [10.0]
    assert [row[1] for row in rows["d2.active_energy_import_total"]] == [20.0]


def test_several_meters_without_an_address_are_nobody_s_value(tmp_path: Path) -> None:
    plant = plant_of(tmp_path, "id: d, profile: acrel_4g_array, topic: {product_key: k, gateway_sn: g}")

    rows = heard(plant, four_g(meter("0012", "1", "10"), meter("0013", "2", "20")))

    assert {row[0][2] for row in rows.values()} == {quality.BAD_CONFIGURATION_ERROR}


def test_the_last_values_of_an_offline_meter_are_not_taken_for_new(tmp_path: Path) -> None:
    plant = plant_of(tmp_path, f"id: d1, {FOUR_G.format('0012')}")
    silent = {"addr": "0012", "v": {"P": "3.0", "EPI": "30"}}  # firmware that does not say

    rows = heard(
        plant, four_g(meter("0012", "1", "10", online=0)), four_g(meter("0012", "2", "20", online="0"))
    )
    assert rows == {}
    assert heard(plant, four_g(silent))["d1.active_power_total"][0][1:] == (3.0, quality.GOOD)


def test_two_devices_of_one_address_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(FaultyInput, match="reads the very same as device d1"):
        plant_of(tmp_path, f"id: d1, {FOUR_G.format('0012')}", f"id: d2, {FOUR_G.format('0012')}")
    with pytest.raises(FaultyInput, match="without quotes and brackets"):
        plant_of(tmp_path, f"id: d1, {FOUR_G.format('00]12')}")


def test_the_devices_in_one_thingsboard_message_keep_their_names_and_times(tmp_path: Path) -> None:
    plant = plant_of(
        tmp_path,
        "id: d1, profile: thingsboard_gateway, topic: {meter: Meter 1}",
        "id: d2, profile: thingsboard_gateway, topic: {meter: Hall.2}",
    )
    key = "active_power_total"
    records = {
        "Meter 1": [{"ts": 1772439300000, "values": {key: 1.0}}, {"ts": 1772439360000, "values": {key: 1.5}}],
        "Hall.2": [{"ts": 1772439330000, "values": {key: 2.0}}],
    }

    rows = heard(plant, ("v1/gateway/telemetry", records))

    assert [row[:2] for row in rows["d1.active_power_total"]] == [(MS, 1.0), (MS + 60 * NS_PER_S, 1.5)]
    assert [row[:2] for row in rows["d2.active_power_total"]] == [(MS + 30 * NS_PER_S, 2.0)]


def test_the_words_of_a_last_will_are_no_number(tmp_path: Path) -> None:
    plant = plant_of(tmp_path, "id: d, profile: shelly_gen1_em")

    rows = heard(plant, ("shellies/d/emeter/0/power", "Offline"), ("shellies/d/emeter/0/power", ""))

    assert {row[2] for row in rows["d.active_power_l1"]} == {
        quality.BAD_DECODING_ERROR,
        quality.BAD_SENSOR_FAILURE,
    }


def test_retained_values_without_a_time_are_let_go(tmp_path: Path) -> None:
    plant = plant_of(tmp_path, "id: d, profile: plain_uns, topic: {enterprise: e, site: s, area: a, line: l}")
    topic = "e/s/a/l/energy/active_power"

    undated = heard(plant, (topic, {"value": 1.0}), retained=True)
    dated = heard(plant, (topic, {"value": 1.0, "timestamp_ms": 1772439300000}), retained=True)

    assert undated == {}
    assert dated["d.active_power_total"] == [(MS, 1.0, quality.GOOD)]
