"""Each thing `ecmc check` refuses: named, with the place a person would look at."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core.carbon.factor_tables import TABLES
from core.carbon.factors import FactorLibrary
from core.carbon.method import METHOD_SETS_FILE
from core.compute.engine import Engine
from core.errors import Fault
from core.plant.archive import read_documents
from core.plant.model import Plant

FaultsOf = Callable[[Path], list[Fault]]
Change = Callable[[Path, str, str], None]

YAML = "plant.yaml"
CSV = "points.csv"
ALERTS = "alerts.yaml"
NODE = "    - {id: grid, kind: source"
EDGE = "    - {id: e-grid, from: grid"
DEVICE = "  - {id: m-grid, connection: mb1"

# file, what stands there, what is written instead, where the fault points, part of its reason
FAULTS = [
    # the plant itself
    (YAML, "plant: works", "plant: Works!", "Works!", "wanted small letters"),
    (YAML, "plant: works\n", "", "name", "plant is missing"),
    (YAML, "zone: Asia/Shanghai", "zone: Asia/Shangai", "Asia/Shangai", "did you mean 'Asia/Shanghai'?"),
    (YAML, "region: CN-CQ", "region: CN-QC", "CN-QC", "unknown region 'CN-QC'"),
    (YAML, "base_interval_s: 60", "base_interval_s: 70", "70", "no divisor of 900"),
    (YAML, "base_interval_s: 60", "base_interval_s: 1.5", "1.5", "wanted a whole number"),
    (YAML, "base_interval_s:", "base_intervall_s:", "base_intervall_s", "did you mean 'base_interval_s'?"),
    (YAML, "[zero-carbon-factory,", "[zero-carbon-factori,", "zero-carbon-factori", "unknown method set"),
    (YAML, "parent: hall-1", "parent: hall-9", "hall-9", "unknown area 'hall-9'"),
    (YAML, "{id: bay-2,", "{id: hall-1,", "hall-1, name: {zh: 二跨", "stands twice"),
    (
        YAML,
        "region: CN-CQ",
        "region: CN-CQ\nretention: {other_days: 90, feeding_days: 30}",
        "90, feeding_days",
        "more than feeding_days 30",
    ),
    (YAML, "region: CN-CQ", "region: CN-CQ\nretention: {disk_gb: 0}", "0}", "wanted more than 0"),
    (
        YAML,
        "region: CN-CQ",
        'region: CN-CQ\nshifts: [{id: a, start: "06:00"}, {id: b, start: "6:00"}]',
        '"6:00"',
        "wanted a time of day",
    ),
    (
        YAML,
        "region: CN-CQ",
        'region: CN-CQ\nshifts: [{id: a, start: "06:00"}]',
        "[{id",
        "two or more, or none",
    ),
    # connections
    (YAML, "protocol: opcua", "protocol: opc-ua", "opc-ua", "did you mean 'opcua'?"),
    (YAML, "port: 15020", "port: 150200", "150200", "wanted 1 to 65535"),
    (YAML, "timeout_s: 1.0", "timeout_s: -1", "-1", "wanted more than 0"),
    (
        YAML,
        "{id: mq1, protocol: mqtt, host: 127.0.0.1,",
        "{id: mq1, protocol: mqtt,",
        "{id: mq1",
        "host is missing",
    ),
    (YAML, "password_env: null", "password: secret", "password: secret", "did you mean 'password_env'?"),
    (YAML, "tls: false", 'tls: "no"', '"no"', "wanted true or false"),
    (YAML, "opc.tcp://127.0.0.1:14840", "http://127.0.0.1", '"http', "wanted opc.tcp://host:port/path"),
    (YAML, "security: none", "security: Basic256Sha256_Sign", "Basic256Sha256_Sign", "needs certificate"),
    (YAML, "tls: false", "tls: true, ca_file: none.pem", "none.pem", "no file"),
    # devices
    (YAML, "accuracy_class: 0.5", "accuracy_class: best", "best", "wanted per cent, such as 0.5, or one of"),
    (YAML, "accuracy_class: 0.5", "accuracy_class: 50", "50", "wanted at most 10"),
    (
        YAML,
        "{id: m-press, connection: mb1",
        "{id: m-press, connection: mb9",
        "mb9",
        "unknown connection 'mb9'",
    ),
    (
        YAML,
        "profile: acrel_dtsd1352",
        "profile: acrel_dtsd1353",
        "acrel_dtsd1353",
        "did you mean 'acrel_dtsd1352'?",
    ),
    (
        YAML,
        "{id: plc, connection: ua1",
        "{id: plc, connection: mb1",
        "opcua_plc_line",
        "speaks opcua, mb1 is modbus-tcp",
    ),
    (YAML, ", ct_ratio: 30, vt_ratio: 1", "", "acrel_dtsd1352", "secondary side of transformers"),
    (YAML, "ct_ratio: 30", "ct_ratio: 0", "0,", "wanted more than 0"),
    (YAML, "unit_id: 2", "unit_id: 256", "256", "wanted 0 to 255"),
    (YAML, "{id: m-roof, connection", "{id: M-roof, connection", "M-roof", "wanted small letters"),
    (
        YAML,
        "profile: huawei_sun2000, period_s: 5",
        "profile: huawei_sun2000, period_s: 0",
        "0, rated",
        "more than 0",
    ),
    (
        YAML,
        "area: hall-1}\n  - {id: m-press",
        "area: hall-7}\n  - {id: m-press",
        "hall-7",
        "unknown area 'hall-7'",
    ),
    (YAML, "topic: {device: tasmota_4711}", "topic: {gerät: x}", "x}", "have no {gerät}, but device"),
    (
        YAML,
        "topic: {device: tasmota_4711}",
        "topic: {device: tas+mota}",
        "tas+mota",
        "'+' stands for a whole level",
    ),
    (
        YAML,
        DEVICE,
        "  - {id: twin, connection: mb1, unit_id: 3, profile: huawei_sun2000}\n" + DEVICE,
        "3, profile: huawei",
        "reads the very same as device twin",
    ),
    # nodes
    (
        YAML,
        "{id: sold, kind: export",
        "{id: other, kind: export",
        "other, kind: export",
        "'other' stands twice",
    ),
    (YAML, "{id: light, kind: load", "{id: site, kind: load", "site, kind", "stands for the whole plant"),
    (YAML, "kind: bus, carrier: steam", "kind: buss, carrier: steam", "buss", "did you mean 'bus'?"),
    (YAML, "kind: bus, carrier: steam", "kind: bus, carrier: stem", "stem", "did you mean 'steam'?"),
    (YAML, ", factor: grid}", "}", "{id: grid", "needs a factor"),
    (YAML, "factor: grid}", "factor: girds}", "girds", "no factor 'girds'"),
    (YAML, "factor: grid}", "factor: -1}", "-1", "wanted at least 0"),
    (YAML, "origin: purchased, factor: grid", "factor: grid", "{id: grid", "names its origin"),
    (YAML, "natural_gas@ndrc_other_industry", "natural_gas@ndrc", "natural_gas@ndrc", "natural_gas@ndrc"),
    (
        YAML,
        "natural_gas@ndrc_other_industry}",
        "natural_gas@ndrc_other_industry, factor: 1}",
        "1}",
        "not both",
    ),
    (YAML, "charge_efficiency: 0.96,\n", "charge_efficiency: 1.96,\n", "1.96", "wanted at most 1"),
    (YAML, "discharge_efficiency: 0.96,", "discharge_efficiency: 0,", "0,", "wanted more than 0"),
    (YAML, "capacity_kwh: 500, ", "", "{id: bat", "states its capacity_kwh"),
    (
        YAML,
        "soc: m-bat.battery_soc",
        "soc: m-bat.battery_sock",
        "m-bat.battery_sock",
        "did you mean 'm-bat.battery_soc'?",
    ),
    (
        YAML,
        "soc: m-bat.battery_soc",
        "soc: m-bat.battery_power",
        "m-bat.battery_power",
        "a state of charge is in %",
    ),
    (
        YAML,
        "{id: dryer, kind: load}",
        "{id: dryer, kind: load, soc: m-bat.battery_soc}",
        "m-bat",
        "belongs to a storage",
    ),
    (YAML, "burns: natural_gas", "burns: diesel", "diesel", "no edge brings it any"),
    (
        YAML,
        "    - {id: dryer, kind",
        "    - {id: spare, kind: load}\n    - {id: dryer, kind",
        "{id: spare",
        "no edge",
    ),
    # edges
    (
        YAML,
        "from: grid, to: main",
        "from: grid, to: mian",
        "mian",
        "missing node 'mian'; did you mean 'main'?",
    ),
    (YAML, "{id: e-sold, from", "{id: e-grid, from", "e-grid, from: main", "'e-grid' stands twice"),
    (YAML, "from: roof, to: main", "from: main, to: roof", "roof, meter", "nothing enters it"),
    (YAML, "from: main, to: light", "from: main, to: main", "main, meter: lamp", "from main to itself"),
    (YAML, "from: header, to: dryer", "from: header, to: press", "{id: e-dryer", "differ in carrier"),
    (
        YAML,
        "meter: m-roof}",
        "meter: m-rof}",
        "m-rof",
        "unknown device or point 'm-rof'; did you mean 'm-roof'?",
    ),
    (YAML, "to: main, meter: m-grid}", "to: main}", "{id: e-grid", "meter is missing"),
    (YAML, "direction: export", "direction: out", "out}", "wanted one of export, import"),
    (YAML, "meter: lamp}", "meter: m-steam}", "m-steam}", "measures no electricity"),
    (YAML, "meter: m-steam.heat}", "meter: m-steam.pressure}", "m-steam.pressure", "does not meter steam"),
    (YAML, "meter: m-gas}", "meter: m-gas.volume_total}", "m-gas.volume_total", "convert to Nm3 by scale"),
    (
        YAML,
        "meter: m-roof}",
        "meter: m-roof.active_energy_yield_today}",
        "m-roof.active",
        "starts again every day",
    ),
    (YAML, "meter: m-press.active_energy_import_total", "meter: m-grid", "m-grid}", "meters edge e-grid"),
    (
        YAML,
        "meter: m-press.active_energy_import_total",
        "meter: m-grid.active_power_total",
        "m-grid.",
        "meters edge e-grid",
    ),
    (
        YAML,
        '"= e-press * 0.3 + e-light"',
        '"= e-press * 0.3 +"',
        '"= e-press',
        "ends where an edge or a number",
    ),
    (YAML, '"= e-press * 0.3 + e-light"', '"= e-pres * 0.3"', '"= e-pres', "did you mean 'e-press'?"),
    (YAML, '"= e-press * 0.3 + e-light"', '"= e-grid + e-press"', '"= e-grid', "main and sub count twice"),
    (YAML, '"= e-press * 0.3 + e-light"', '"= e-press + e-press"', '"= e-press', "reads e-press twice"),
    (YAML, '"= e-press * 0.3 + e-light"', '"= e-other * 0.5"', '"= e-other', "computed from itself"),
    (YAML, '"= e-press * 0.3 + e-light"', '"= e-press / ( 2 - 2 )"', '"= e-press', "divides by zero"),
    (YAML, '"= e-press * 0.3 + e-light"', '"= 3 * 2"', '"= 3', "reads no edge"),
    (
        YAML,
        "e-discharge, from: bat, to: main, meter: m-bat",
        'e-discharge, from: bat, to: main, meter: "= e-charge * 0.9"',
        '"= e-charge',
        "storage bat needs an energy meter",
    ),
    (
        YAML,
        "to: light, meter: lamp",
        "to: light, meter: remainder",
        "remainder",
        "at most one remainder a node",
    ),
    (
        YAML,
        "to: bat, meter: m-bat",
        "to: bat, meter: remainder",
        "remainder",
        "storage bat needs an energy meter",
    ),
    (YAML, "natural_gas@ndrc_other_industry", "anthracite@ipcc_2006", "m-gas}", "unit 'Nm3' does not fit"),
    (YAML, "fuel: natural_gas@ndrc_other_industry", "factor: 0.2", "m-gas}", "nothing of kWh while"),
    # the point list
    (CSV, "m-steam.heat,m-steam", "m-steam.pressure,m-steam", "m-steam.pressure,m-steam,,", "stands twice"),
    (CSV, "lab.steam,,", "lab.steam,m-lab,", "m-lab", "unknown device 'm-lab'"),
    (CSV, "flow_mass,t/h", "flow_mas,t/h", "flow_mas", "did you mean 'flow_mass'?"),
    (CSV, "flow_mass,t/h", "flow_mass,kg/h", "kg/h", "does not fit quantity flow_mass: wanted 't/h'"),
    (CSV, "GJ,100,3", "GJ,,3", ",3,uint32", "address is empty"),
    (CSV, "GJ,100,3", "GJ,65536,3", "65536", "wanted 0 to 65535"),
    (CSV, "GJ,100,3", "GJ,65535,3", "65535", "end beyond 65535"),
    (CSV, "GJ,100,3", "GJ,100,5", "5,uint32", "wanted 1 to 4"),
    (CSV, "uint32", "uint31", "uint31", "did you mean"),
    (CSV, "103.3,,bit", "103,,bit", "103", "needs its number, 0 to 15"),
    (CSV, "little", "middle", "middle", "wanted one of big, little"),
    (CSV, "999999.99", "999999.99 GJ", "999999.99 GJ", "wanted a number such as 999999.99"),
    (CSV, "0xFFFFFFFF", "0x1FFFFFFFF", "0x1FFFFFFFF", "wanted a uint32 as it comes"),
    (CSV, "-101.3,0,2000,5,60", "-101.3,0,2000,5,-60", "-60", "wanted more than 0"),
    (CSV, "-101.3,0,2000", "-101.3,3000,2000", "3000", "not below high"),
    (CSV, ",0.001,", ",0,", "0,,,,,,,,works", "scale is 0"),
    (CSV, "works/{device}/state", "", ",$.power", "topic is empty"),
    (
        CSV,
        "works/{device}/state",
        "works/#/state",
        "works/#/state",
        "'#' stands only alone in the last level",
    ),
    (CSV, "works/{device}/state", "works/{site}/state", "works/{site}", "only {device} is filled in"),
    (CSV, "$.power", "power", "power,", "wanted a path from the root such as $.power"),
    (CSV, "ns=2;s=Line1.Oil", "", "", "node_id is empty"),
    (CSV, "ns=2;s=Line1.Oil", "Line1.Oil", "Line1.Oil", "wanted a form such as ns=2;s=Line1.Power"),
    (CSV, "scale,offset", "scle,offset", "scle", "did you mean 'scale'?"),
    (CSV, "quantity,unit", "what,unit", "point", "column 'quantity' is missing"),
    (CSV, "lab.steam,,,flow_mass,t/h,,", "lab.steam,,,flow_mass,t/h,7,", "7,", "without a device"),
    (CSV, "kPa,102,4", "kPa,101,3", "m-steam.pressure", "overlaps m-steam.heat, uint32 at 100"),
    # alert rules
    (ALERTS, "point: m-grid.active_power_total", "point: m-grid.power", "m-grid.power", "unknown point"),
    (ALERTS, "high: 700, ", "", "{id: grid-high", "needs low or high"),
    (ALERTS, ", for_s: 600", "", "{id: gas-silent", "needs for_s"),
    (ALERTS, "severity: 700", "severity: 1001", "1001", "wanted 1 to 1000"),
    (ALERTS, "kind: missing", "kind: limit", "600}", "not for a limit rule"),
    (ALERTS, "on_delay_s", "on_delay", "on_delay:", "did you mean 'on_delay_s'?"),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "at", "reason"), FAULTS, ids=[f"{fault[4][:40]}" for fault in FAULTS]
)
def test_what_cannot_be_meant_is_refused_at_its_place(
    works: Path, change: Change, faults_of: FaultsOf, name: str, old: str, new: str, at: str, reason: str
) -> None:
    change(works / name, old, new)

    faults = faults_of(works)

    told = [fault for fault in faults if reason in fault.reason]
    assert told, "\n".join(str(fault) for fault in faults) or "it loads"
    lines = (works / name).read_text("utf-8").splitlines()
    assert told[0].file == str(works / name)
    assert lines[told[0].line - 1][told[0].column - 1 :].startswith(at), str(told[0])


def test_every_fault_of_the_folder_comes_in_one_run(works: Path, change: Change, faults_of: FaultsOf) -> None:
    change(works / YAML, "zone: Asia/Shanghai", "zone: Mars/Olympus")
    change(works / YAML, "profile: huawei_sun2000", "profile: sun3000")
    change(works / YAML, "to: sold, meter", "to: sould, meter")
    change(works / CSV, "flow_mass,t/h", "flow_mass,kg")
    change(works / ALERTS, "severity: 700", "severity: 7000")

    faults = faults_of(works)

    assert [Path(fault.file).name for fault in faults] == [ALERTS, YAML, YAML, YAML, CSV]
    assert all(fault.line and fault.column for fault in faults)


def test_what_needs_a_faulty_row_or_device_is_not_a_second_fault(
    works: Path, change: Change, faults_of: FaultsOf
) -> None:
    change(works / CSV, "GJ,100,3", "GJ,,3")
    change(works / YAML, "protocol: opcua", "protocol: opcuax")
    change(works / YAML, "profile: sungrow_sh", "profile: sungrow_shh")

    faults = faults_of(works)

    assert len(faults) == 3, "\n".join(str(fault) for fault in faults)


def test_a_cycle_of_formulas_names_the_way_round(works: Path, change: Change, faults_of: FaultsOf) -> None:
    change(works / YAML, "meter: lamp}", 'meter: "= e-office * 2"}')

    (fault,) = faults_of(works)

    assert "e-light reads e-office reads e-light" in fault.reason


def test_a_load_behind_nothing_is_unreachable(works: Path, change: Change, faults_of: FaultsOf) -> None:
    change(
        works / YAML,
        "    - {id: dryer, kind: load}\n",
        "    - {id: dryer, kind: load}\n    - {id: island, kind: bus, carrier: steam}\n    - {id: hut, kind: load}\n",
    )
    change(works / YAML, EDGE, "    - {id: e-hut, from: island, to: hut, meter: m-steam.heat}\n" + EDGE)

    reasons = [fault.reason for fault in faults_of(works)]

    assert "node hut: this load cannot be reached from any source" in reasons
    assert "node island: nothing flows into this bus" in reasons


def test_a_broken_yaml_file_is_told_by_line(works: Path, faults_of: FaultsOf) -> None:
    (works / YAML).write_text("plant: works\nname: {zh: 厂\nzone: [", "utf-8")

    (fault,) = faults_of(works)

    assert fault.line >= 2
    assert "not YAML" in fault.reason


def test_a_key_written_twice_does_not_hide_the_other_faults(
    works: Path, change: Change, faults_of: FaultsOf
) -> None:
    change(works / YAML, "region: CN-CQ", "region: CN-CQ\nregion: CN-BJ")
    change(works / YAML, "base_interval_s: 60", "base_interval_s: 7")

    reasons = [fault.reason for fault in faults_of(works)]

    assert len(reasons) == 2
    assert "duplicate key" in reasons[0]
    assert "no divisor of 900" in reasons[1]


def test_a_folder_without_plant_yaml_says_so(tmp_path: Path, faults_of: FaultsOf) -> None:
    (fault,) = faults_of(tmp_path)

    assert fault.file == str(tmp_path / YAML)
    assert "cannot be read" in fault.reason


def test_a_faulty_profile_is_told_in_its_own_file(works: Path, change: Change, faults_of: FaultsOf) -> None:
    (works / "profiles").mkdir()
    profile = works / "profiles" / "acme.yaml"
    profile.write_text(
        "schema: ecmc.device_profile/1\nid: acme\npoints:\n"
        "  - {quantity: frequency, address: 1, type: uint16, unit: kHz}\n"
        "  - {quantity: frequency, address: 65535, type: uint32, words: 2}\n",
        "utf-8",
    )
    change(works / YAML, "profile: schneider_iem3000", "profile: acme")

    faults = faults_of(works)

    assert {fault.file for fault in faults} == {str(profile)}
    reasons = " ".join(fault.reason for fault in faults)
    assert "wanted 'Hz'" in reasons
    assert "end beyond 65535" in reasons
    assert "stands twice" in reasons


@pytest.mark.parametrize("seed", range(12))
def test_nonsense_anywhere_is_a_fault_and_never_a_crash(works: Path, faults_of: FaultsOf, seed: int) -> None:
    draw = random.Random(seed)
    file = works / YAML
    text = file.read_text("utf-8")
    values = [match.span(1) for match in re.finditer(r": ([^,{}\[\]\n]+)", text)]
    for start, end in sorted(draw.sample(values, 5), reverse=True):
        text = (
            text[:start]
            + draw.choice(["[]", "{a: b}", "[{}]", "-1", ".nan", '"= ("', "2026-01-01"])
            + text[end:]
        )
    file.write_text(text, "utf-8")

    assert faults_of(works)


def test_a_plant_reckons_by_method_sets_of_its_own(
    works: Path, change: Change, load: Callable[[Path], Plant], faults_of: FaultsOf
) -> None:
    text = (TABLES / METHOD_SETS_FILE).read_text("utf-8")
    change(works / "plant.yaml", "method_sets: [zero-carbon-factory,", "method_sets: [group,")
    assert any("unknown method set 'group'" in fault.reason for fault in faults_of(works))

    row = next(line for line in text.splitlines() if line.startswith("in-house,"))
    (works / METHOD_SETS_FILE).write_text(
        text.splitlines()[0] + "\n" + row.replace("in-house", "group", 1), "utf-8"
    )
    plant = load(works)
    assert Engine(plant, FactorLibrary.shipped()).methods[0].id == "group"
    assert read_documents(plant.documents, plant.fingerprint).plant.own_method_sets.keys() == {"group"}

    (works / METHOD_SETS_FILE).write_text(text, "utf-8")
    assert any("give yours another id" in fault.reason for fault in faults_of(works))
