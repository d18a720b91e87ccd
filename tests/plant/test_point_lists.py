"""The point list in the forms people keep it in, and what its columns become."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from openpyxl import Workbook

from core.errors import Fault
from core.plant.model import ModbusSource, MqttSource, Plant

Load = Callable[[Path], Plant]
FaultsOf = Callable[[Path], list[Fault]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_the_list_reads_the_same_in_every_encoding(works: Path, load: Load, encoding: str) -> None:
    file = works / "points.csv"
    file.write_text(file.read_text("utf-8"), encoding)

    plant = load(works)

    assert plant.point_by_id["m-steam.heat"].name == "蒸汽热量"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_semicolons_and_tabs_part_columns_too(works: Path, load: Load, delimiter: str) -> None:
    file = works / "points.csv"
    wanted = load(works).points
    rows = list(csv.reader(file.read_text("utf-8").splitlines()))
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, delimiter=delimiter).writerows(rows)

    assert load(works).points == wanted


def test_a_workbook_reads_like_the_csv(works: Path, load: Load) -> None:
    wanted = load(works).points
    as_workbook(works)

    assert load(works).points == wanted


def test_a_fault_in_a_workbook_names_row_and_column(works: Path, faults_of: FaultsOf) -> None:
    as_workbook(works, change={(2, 5): "MWh"})

    (fault,) = faults_of(works)

    assert (Path(fault.file).name, fault.line, fault.column) == ("points.xlsx", 2, 5)


def as_workbook(folder: Path, change: dict[tuple[int, int], str] | None = None) -> None:
    """points.csv as points.xlsx, numbers as numbers."""
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    for row in csv.reader((folder / "points.csv").read_text("utf-8").splitlines()):
        sheet.append([_number(cell) for cell in row])
    for (line, column), value in (change or {}).items():
        sheet.cell(line, column, value)
    book.save(folder / "points.xlsx")
    (folder / "points.csv").unlink()


def _number(cell: str) -> str | float | None:
    try:
        return float(cell)
    except ValueError:
        return cell or None


def test_neither_utf_8_nor_gb18030_is_told_by_line(works: Path, faults_of: FaultsOf) -> None:
    file = works / "points.csv"
    file.write_bytes(file.read_bytes() + b"bad\xff\xff,,,\n")

    (fault, *_) = [fault for fault in faults_of(works) if "GB18030" in fault.reason]

    assert fault.line == 8


def test_csv_and_workbook_side_by_side_are_refused(works: Path, faults_of: FaultsOf) -> None:
    (works / "points.xlsx").write_bytes(b"")

    assert any("which one holds" in fault.reason for fault in faults_of(works))


def test_a_quoted_line_break_does_not_shift_the_places_after_it(works: Path, faults_of: FaultsOf) -> None:
    file = works / "points.csv"
    text = (
        file.read_text("utf-8").replace("蒸汽热量", '"蒸汽\n热量"').replace("flow_mass,t/h", "flow_mass,lb")
    )
    file.write_text(text, "utf-8")

    (fault,) = faults_of(works)

    assert file.read_text("utf-8").splitlines()[fault.line - 1][fault.column - 1 :].startswith("lb")


def test_counter_max_wraps_one_written_step_later(works: Path, load: Load) -> None:
    point = load(works).point_by_id["m-steam.heat"]

    assert point.counter_max == 999_999.99
    assert point.counter_modulus == 1_000_000.00
    assert point.resolution == 0.01


@pytest.mark.parametrize(
    ("written", "modulus", "step"), [("999999", 1e6, 1.0), ("99999.9", 1e5, 0.1), ("9999.90", 9999.91, 0.01)]
)
def test_the_step_is_the_last_decimal_place_written(
    works: Path, load: Load, written: str, modulus: float, step: float
) -> None:
    file = works / "points.csv"
    file.write_text(file.read_text("utf-8").replace("999999.99", written), "utf-8")

    point = load(works).point_by_id["m-steam.heat"]

    assert (point.counter_modulus, point.resolution) == (modulus, step)


def test_a_step_that_no_decimal_place_shows_can_be_stated(
    works: Path, load: Load, faults_of: FaultsOf
) -> None:
    steps = works / "points.csv"
    head, *rows = steps.read_text("utf-8").splitlines()
    lines = [
        f"{head},resolution",
        *(f"{row},0.4" if row.startswith("m-steam.heat") else f"{row}," for row in rows),
    ]

    steps.write_text("\n".join(lines) + "\n", "utf-8")
    stated = load(works).point_by_id["m-steam.heat"]
    steps.write_text("\n".join(lines).replace(",0.4", ",-1") + "\n", "utf-8")
    (fault,) = faults_of(works)

    assert (stated.resolution, stated.counter_modulus) == (0.4, 1_000_000.0)
    assert "resolution is -1, wanted more than 0" in fault.reason


def test_sentinels_are_unsigned_raw_patterns_on_modbus(works: Path, load: Load) -> None:
    plant = load(works)

    patterns = [
        source.invalid
        for name in ("m-steam.heat", "m-steam.pressure")
        if isinstance(source := plant.point_by_id[name].source, ModbusSource)
    ]
    assert patterns == [(0xFFFFFFFF,), (0xFFFF,)]


def test_sentinels_are_delivered_numbers_elsewhere(works: Path, load: Load) -> None:
    file = works / "points.csv"
    text = file.read_text("utf-8").replace("0.001,,,,,,,,works", "0.001,,,,,,,-9999,works")
    file.write_text(text, "utf-8")

    plant = load(works)

    assert plant.point_by_id["plc.oil"].invalid_values == (-999.0,)
    assert plant.point_by_id["gate.power"].invalid_values == (-9999 * 0.001,)


def test_a_bit_stands_behind_the_address(works: Path, load: Load) -> None:
    source = load(works).point_by_id["m-steam.alarm"].source

    assert isinstance(source, ModbusSource)
    assert (source.address, source.bit, source.type) == (103, 3, "bit")


def test_the_device_s_id_is_filled_into_a_topic(works: Path, load: Load) -> None:
    source = load(works).point_by_id["gate.power"].source

    assert source == MqttSource("works/gate/state", "$.power", scale=0.001)


def test_a_point_without_device_lives_from_import(works: Path, load: Load) -> None:
    point = load(works).point_by_id["lab.steam"]

    assert point.device is None
    assert point.source is None


def test_a_plant_may_be_points_alone(tmp_path: Path, load: Load) -> None:
    (tmp_path / "plant.yaml").write_text("plant: bare\nzone: UTC\nregion: DEU\n", "utf-8")
    (tmp_path / "points.csv").write_text("point,quantity\nmeter,active_energy_import_total\n", "utf-8")

    plant = load(tmp_path)

    assert [(point.id, point.unit) for point in plant.points] == [("meter", "kWh")]


def test_further_columns_may_follow(works: Path, load: Load) -> None:
    file = works / "points.csv"
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([lines[0] + ",cabinet", *(line + ",A1" for line in lines[1:])]), "utf-8")

    assert "m-steam.heat" in load(works).point_by_id
