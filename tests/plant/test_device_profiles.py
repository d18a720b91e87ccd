"""The shipped device models, each read whole, and what their facts become on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import Fault
from core.plant.model import ModbusSource, MqttSource, OpcuaSource, Order, Plant, Point
from core.plant.profile import ProfileShelf

PROFILES = Path(__file__).parents[2] / "collector" / "profiles"

# Lines of each file's table: 34 Modbus models with 616 points, the PLC without its order number, eight conventions.
POINTS = {
    "abb_b23_b24": 23, "acrel_adw300": 12, "acrel_dtsd1352": 18, "carlo_gavazzi_em24": 20,
    "carlo_gavazzi_em340": 20, "chint_dtsu666": 27, "cryomech_cpa1110": 9, "eastron_sdm120": 13,
    "eastron_sdm630": 38, "fuxin_gas_meter": 8, "generic_screw_compressor": 8, "generic_steam_totalizer": 6,
    "huawei_smartlogger": 13, "huawei_sun2000": 32, "inepro_pro380": 27, "janitza_umg604": 17,
    "janitza_umg806": 17, "janitza_umg96rme": 28, "phoenix_contact_empro": 13, "pqplus_umd96": 15,
    "schneider_iem3000": 22, "schneider_pm5000": 23, "siemens_pac1600": 24, "siemens_pac2200": 23,
    "siemens_pac3200": 25, "sma_tripower": 13, "socomec_countis_e34": 17, "sungrow_sg": 11, "sungrow_sh": 19,
    "sunspec_battery_802": 6, "sunspec_inverter_103": 21, "sunspec_meter_203": 20, "sunspec_meter_213": 18,
    "tuf2000m_ultrasonic": 10, "opcua_plc_line_example": 19,
    "tasmota_energy": 3, "tasmota_sml": 3, "shelly_gen1_em": 9, "shelly_gen2_em": 3, "acrel_gateway_flat": 2,
    "acrel_4g_array": 2, "thingsboard_gateway": 2, "plain_uns": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def faults() -> list[Fault]:
    return []


@pytest.fixture(scope="module")
def shelf(faults: list[Fault]) -> ProfileShelf:
    return ProfileShelf([PROFILES], faults)


@pytest.mark.parametrize(("profile_id", "points"), POINTS.items())
def test_a_shipped_profile_loads_with_every_point_of_its_table(
    shelf: ProfileShelf, faults: list[Fault], profile_id: str, points: int
) -> None:
    profile = shelf.get(profile_id)

    assert not faults
    assert profile is not None
    assert len(profile.points) == points


def test_no_shipped_profile_is_left_out(shelf: ProfileShelf) -> None:
    assert set(shelf.ids()) == {*POINTS, "sparkplug_b"}  # which Sparkplug connections read, not devices


Load = Callable[[Path], Plant]


@pytest.fixture
def device(tmp_path: Path, load: Load) -> Callable[..., dict[str, Point]]:
    """The points, by quantity and copy, of one device of a model."""

    def points(profile: str, more: str = "", protocol: str = "modbus-tcp, host: h") -> dict[str, Point]:
        (tmp_path / "plant.yaml").write_text(
            "plant: one\nzone: Asia/Shanghai\nregion: CN\n"
            f"connections: [{{id: c, protocol: {protocol}}}]\n"
            f"devices: [{{id: d, connection: c, profile: {profile}{more}}}]\n",
            "utf-8",
        )
        return {point.id.removeprefix("d."): point for point in load(tmp_path).points}

    return points


Device = Callable[..., dict[str, Point]]


def modbus(point: Point) -> ModbusSource:
    assert isinstance(point.source, ModbusSource)
    return point.source


def test_transformer_ratios_multiply_what_stands_behind_the_transformers(device: Device) -> None:
    points = device("acrel_dtsd1352", ", ct_ratio: 30, vt_ratio: 100")

    assert modbus(points["current_l1"]).scale == pytest.approx(0.01 * 30)
    assert modbus(points["voltage_l1"]).scale == pytest.approx(0.1 * 100)
    assert modbus(points["active_power_total"]).scale == pytest.approx(0.001 * 3000)
    assert modbus(points["active_energy_import_total"]).scale == pytest.approx(0.01 * 3000)
    assert modbus(points["frequency"]).scale == 0.01
    assert modbus(points["power_factor_total"]).scale == 0.001


def test_an_unsigned_register_wraps_where_its_width_ends(device: Device) -> None:
    points = device("acrel_dtsd1352", ", ct_ratio: 30")

    energy = points["active_energy_import_total"]
    assert energy.counter_modulus == pytest.approx(2**32 * 0.01 * 30)
    assert energy.resolution == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("profile", "quantity"),
    [
        ("eastron_sdm630", "active_energy_import_total"),  # float32
        ("schneider_iem3000", "active_energy_import_total"),  # int64
        ("sunspec_meter_203", "active_energy_import_total"),  # its scale is only known on the device
    ],
)
def test_no_modulus_is_made_up(device: Device, profile: str, quantity: str) -> None:
    assert device(profile)[quantity].counter_modulus is None


def test_twelve_bcd_digits_wrap_after_their_last(device: Device) -> None:
    total = device("fuxin_gas_meter")["volume_std_total_2"]

    assert total.counter_modulus == 100_000_000.0
    assert total.resolution == 0.0001
    assert modbus(total).words == 3


def test_a_device_s_own_sign_is_turned(device: Device) -> None:
    assert modbus(device("huawei_sun2000")["battery_power"]).scale == -0.001


def test_index_one_is_the_first_copy(device: Device) -> None:
    points = device("huawei_sun2000")

    assert [modbus(points[name]).address for name in ("dc_voltage", "dc_voltage_2", "dc_voltage_4")] == [
        32016,
        32018,
        32022,
    ]


@pytest.mark.parametrize(
    ("profile", "quantity", "pattern"),
    [
        ("huawei_sun2000", "active_power_total", 0x7FFFFFFF),
        ("sma_tripower", "active_power_total", 0x80000000),
        ("abb_b23_b24", "active_energy_import_total", 2**64 - 1),
        ("sunspec_meter_203", "active_power_total", 0x8000),
    ],
)
def test_not_available_patterns_follow_the_type(
    device: Device, profile: str, quantity: str, pattern: int
) -> None:
    assert modbus(device(profile)[quantity]).invalid == (pattern,)


def test_a_low_word_first_meter_keeps_its_order(device: Device) -> None:
    source = modbus(device("carlo_gavazzi_em24")["active_power_total"])

    assert (source.word_order, source.byte_order) == (Order.LITTLE, Order.BIG)


def test_sunspec_points_know_their_model_and_scale_register(device: Device) -> None:
    source = modbus(device("sunspec_inverter_103")["active_power_total"])

    assert (source.sunspec_model, source.address, source.scale_address) == (103, 14, 15)


def test_opc_ua_nodes_are_named_by_namespace_uri_and_arrays_feed_several_points(device: Device) -> None:
    points = device("opcua_plc_line_example", protocol='opcua, url: "opc.tcp://h:4840"')

    assert points["voltage_l3"].source == OpcuaSource("nsu=urn:plant:line1;s=Line1.Energy.Voltage", element=2)
    assert points["device_temperature"].source == OpcuaSource("nsu=urn:plant:line1;i=5001", scale=0.1)
    assert "production_order" not in points


def test_an_mqtt_device_fills_in_its_topic(device: Device) -> None:
    points = device("shelly_gen2_em", ", topic: {prefix: shop/em3}", protocol="mqtt, host: h")

    assert points["active_energy_import_total"].source == MqttSource(
        "shop/em3/status/emdata:0", "$.total_act", scale=0.001
    )


def test_a_profile_of_the_plant_folder_comes_before_a_shipped_one(tmp_path: Path, device: Device) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "eastron_sdm630.yaml").write_text(
        "schema: ecmc.device_profile/1\nid: eastron_sdm630\naddress_base: 1\n"
        "points:\n  - {quantity: frequency, address: 71, type: float32}\n",
        "utf-8",
    )

    points = device("eastron_sdm630")

    assert list(points) == ["frequency"]
    assert modbus(points["frequency"]).address == 70
