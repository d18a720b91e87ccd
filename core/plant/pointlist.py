"""The point list (点表) as SCADA engineers keep it: points.csv or points.xlsx, one row a point no profile gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from core.errors import Fault
from core.plant.document import Place, did_you_mean
from core.plant.model import (
    Connection,
    Device,
    Kind,
    ModbusSource,
    MqttSource,
    OpcuaSource,
    Order,
    Point,
    Protocol,
    Quantity,
    Source,
)
from core.plant.profile import MODBUS, filled_topic, json_path, placeholders, steps_of
from core.plant.register import WORDS, raw_pattern, shown_maximum, transformer_ratio

T = TypeVar("T")

COLUMNS: Final = (
    "point", "device", "name", "quantity", "unit", "address", "function", "type", "byte_order", "word_order",
    "scale", "offset", "low", "high", "deadband", "period_s", "counter_max", "sentinel", "topic", "json_path",
    "node_id",
)  # fmt: skip
MORE_COLUMNS: Final = ("bit", "element", "time_path", "reduce", "resolution")  # read where they stand
TYPES: Final = frozenset(WORDS) - {"acc32", "sunssf"}  # those two mean something only beside a SunSpec model
POINT_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.\-]*")
_NODE_ID: Final = re.compile(r"(ns=\d+;|nsu=[^;]+;)?([isgb])=(.+)")
_MODBUS_COLUMNS: Final = ("address", "function", "type", "byte_order", "word_order", "bit")


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row by column name; hands out typed values and notes what cannot be meant."""

    faults: list[Fault]
    file: str
    line: int
    cells: Mapping[str, Cell]

    def place(self, column: str | None = None) -> Place:
        cell = self.cells.get(column or "point")
        return Place(self.file, cell.line if cell else self.line, cell.column if cell else 1)

    def fault(self, column: str | None, reason: str) -> None:
        self.faults.append(self.place(column).fault(f"point {self.text('point') or '?'}: {reason}"))

    def text(self, column: str) -> str:
        cell = self.cells.get(column)
        return cell.text if cell else ""

    def number(self, column: str, default: T) -> float | T:
        text = self.text(column)
        if not text:
            return default
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if number - number != 0:
            self.fault(column, f"{column} is {text!r}, wanted a number")
            return default
        return number

    def whole(self, column: str, default: T, least: int, most: int) -> int | T:
        text = self.text(column)
        if not text:
            return default
        try:
            number = int(text, 0)
        except ValueError:
            self.fault(column, f"{column} is {text!r}, wanted a whole number")
            return default
        if not least <= number <= most:
            self.fault(column, f"{column} is {number}, wanted {least} to {most}")
            return default
        return number

    def choice(self, column: str, default: str, choices: frozenset[str]) -> str:
        text = self.text(column) or default
        if text not in choices:
            hint = did_you_mean(text, choices)
            self.fault(column, f"{column} is {text!r}, wanted one of {', '.join(sorted(choices))}{hint}")
            return default
        return text


@dataclass(frozen=True, slots=True)
class ListedPoint:
    """A row of the list: its point where it could be read, what it says it is, where it stands."""

    point: Point | None
    id: str
    device: str
    place: Place


def point_list_file(folder: Path, faults: list[Fault]) -> Path | None:
    """points.csv or points.xlsx, whichever there is; both is a fault."""
    found = [folder / name for name in ("points.csv", "points.xlsx") if (folder / name).is_file()]
    if len(found) > 1:
        faults.append(Fault(str(found[1]), 0, 0, "beside points.csv: which one holds? Keep one of the two"))
    return found[0] if found else None


def read_point_list(
    file: Path,
    quantities: Mapping[str, Quantity],
    devices: Mapping[str, Device],
    connections: Mapping[str, Connection],
    faults: list[Fault],
) -> list[ListedPoint]:
    """Every row of the list; one that could not be read has no point, and its faults noted."""
    return [
        ListedPoint(
            _point(row, quantities, devices, connections),
            row.text("point"),
            row.text("device"),
            row.place("point"),
        )
        for row in _rows(file, faults)
    ]


def _point(
    row: Row,
    quantities: Mapping[str, Quantity],
    devices: Mapping[str, Device],
    connections: Mapping[str, Connection],
) -> Point | None:
    before = len(row.faults)
    point_id = row.text("point")
    if not point_id:
        row.fault("point", "point is empty, wanted an id")
    elif not POINT_ID.fullmatch(point_id):
        row.fault("point", f"id {point_id!r}: wanted small letters, digits, '-', '_' and '.'")
    quantity = quantities.get(row.text("quantity"))
    if quantity is None:
        name = row.text("quantity")
        reason = f"unknown quantity {name!r}{did_you_mean(name, quantities)}" if name else "quantity is empty"
        row.fault("quantity", reason)
    else:
        unit = row.text("unit")
        if unit and unit != quantity.unit:
            row.fault(
                "unit",
                f"unit {unit!r} does not fit quantity {quantity.id}: wanted {quantity.unit!r} (adapt scale)",
            )
        if quantity.unit == "text":
            row.fault("quantity", f"quantity {quantity.id} is text; a point holds numbers")
    device_id = row.text("device")
    device = devices.get(device_id)
    if device_id and device is None:
        row.fault("device", f"unknown device {device_id!r}{did_you_mean(device_id, devices)}")
    period_s = row.number("period_s", device.period_s if device else 1.0)
    if period_s <= 0:
        row.fault("period_s", f"period_s is {period_s:g}, wanted more than 0")
    low, high = row.number("low", None), row.number("high", None)
    if low is not None and high is not None and low >= high:
        row.fault("low", f"low {low:g} is not below high {high:g}")
    deadband = row.number("deadband", None)
    if deadband is not None and deadband < 0:
        row.fault("deadband", f"deadband is {deadband:g}, wanted at least 0")
    source = _source(row, device, connections) if device else None
    if not device_id:
        for column in (*_MODBUS_COLUMNS, "topic", "node_id"):
            if row.text(column):
                row.fault(column, f"{column} without a device: nobody would read it")
                break
    if source is not None and device is not None and quantity is not None:
        ratio = transformer_ratio(quantity.id, device.ct_ratio, device.vt_ratio)
        source = replace(source, scale=source.scale * ratio, offset=source.offset * ratio)
    modulus, resolution = steps_of(source, quantity.kind) if source and quantity else (None, None)
    counter_max = None
    if row.text("counter_max"):
        try:
            counter_max, modulus, resolution = shown_maximum(row.text("counter_max"))
        except ValueError as why:
            row.fault("counter_max", str(why))
        if quantity is not None and quantity.kind is not Kind.COUNTER:
            row.fault("counter_max", f"counter_max on {quantity.id}, which is no counter")
    resolution = row.number("resolution", resolution)
    if resolution is not None and resolution <= 0:
        row.fault("resolution", f"resolution is {resolution:g}, wanted more than 0: one step of the register")
    if row.text("resolution") and quantity is not None and quantity.kind is Kind.GAUGE:
        row.fault("resolution", f"resolution on {quantity.id}, which is no counter")
    invalid_values = () if isinstance(source, ModbusSource) else _invalid_values(row, source)
    if point_id in devices:
        row.fault("point", f"id {point_id!r} is a device's; an edge could not tell them apart")
    if len(row.faults) > before or quantity is None:
        return None
    return Point(
        id=point_id,
        quantity=quantity.id,
        unit=quantity.unit,
        kind=quantity.kind,
        device=device_id or None,
        source=source,
        name=row.text("name") or quantity.zh,
        period_s=period_s,
        low=low,
        high=high,
        deadband=deadband,
        counter_max=counter_max,
        counter_modulus=modulus,
        resolution=resolution,
        invalid_values=invalid_values,
    )


def _source(row: Row, device: Device, connections: Mapping[str, Connection]) -> Source | None:
    connection = connections.get(device.connection or "")
    if connection is None:
        return None
    scale, offset = row.number("scale", 1.0), row.number("offset", 0.0)
    if scale == 0:
        row.fault("scale", "scale is 0, every value would be")
    if connection.protocol in MODBUS:
        _unused(row, "topic", "json_path", "node_id", protocol=connection.protocol)
        return _modbus_source(row, scale, offset)
    if connection.protocol is Protocol.OPCUA:
        _unused(row, *_MODBUS_COLUMNS, "topic", "json_path", protocol=connection.protocol)
        node_id = row.text("node_id")
        match = _NODE_ID.fullmatch(node_id)
        if not node_id:
            row.fault("node_id", "node_id is empty, an OPC UA point needs one")
        elif match is None or (match[2] == "i" and not match[3].isdecimal()):
            row.fault("node_id", f"node_id is {node_id!r}, wanted a form such as ns=2;s=Line1.Power")
        return OpcuaSource(node_id, scale, offset, row.whole("element", None, 0, 65535))
    _unused(row, *_MODBUS_COLUMNS, "node_id", protocol=connection.protocol)
    topic = row.text("topic")
    if connection.protocol is Protocol.MQTT:
        _check_topic(row, topic)
    path = row.text("json_path")
    if connection.protocol is Protocol.SPARKPLUG:
        if not path:
            row.fault("json_path", "json_path is empty, a Sparkplug point names its metric there")
        for column in ("time_path", "reduce"):
            if row.text(column):
                row.fault(column, f"{column} is for MQTT, a Sparkplug metric has its own time and one value")
        _check_edge_node(row, topic)
        return MqttSource(filled_topic(topic, {"device": device.id}), path, scale, offset)
    if path and not path.startswith("$"):
        row.fault("json_path", f"json_path is {path!r}, wanted a path from the root such as $.{path}")
    return MqttSource(
        filled_topic(topic, {"device": device.id}),
        path,
        scale,
        offset,
        json_path(row.text("time_path")) or None,
        row.choice("reduce", "", frozenset({"", "sum", "mean", "first"})) or None,
    )


def _unused(row: Row, *columns: str, protocol: Protocol) -> None:
    for column in columns:
        if row.text(column):
            row.fault(column, f"{column} is not for a device on {protocol.value}")


def _check_topic(row: Row, topic: str) -> None:
    if not topic:
        row.fault("topic", "topic is empty, an MQTT point needs one")
    for reason in topic_faults(topic):
        row.fault("topic", reason)
    _check_placeholders(row, topic)


def _check_placeholders(row: Row, topic: str) -> None:
    for name in placeholders(topic):
        if name != "device":
            row.fault("topic", f"topic {topic!r}: {{{name}}} is unknown here, only {{device}} is filled in")


def _check_edge_node(row: Row, topic: str) -> None:
    """A Sparkplug point's `topic`: its edge node, or edge node and device, within the connection's group."""
    levels = topic.split("/")
    if not topic:
        row.fault("topic", "topic is empty, a Sparkplug point names its edge node there, or node/device")
    elif len(levels) > 2 or not all(levels) or any(sign in topic for sign in "+#"):
        row.fault("topic", f"topic is {topic!r}, wanted an edge node, or node/device, such as Line4/M12")
    _check_placeholders(row, topic)


def topic_faults(topic: str) -> list[str]:
    """What is wrong with an MQTT topic filter (MQTT 5, 4.7)."""
    levels = topic.split("/")
    reasons = []
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        reasons.append(f"topic {topic!r}: '#' stands only alone in the last level")
    if any("+" in level and level != "+" for level in levels):
        reasons.append(f"topic {topic!r}: '+' stands for a whole level")
    return reasons


def _modbus_source(row: Row, scale: float, offset: float) -> ModbusSource:
    function = row.whole("function", 3, 1, 4)
    if function in (1, 2) and row.text("type") not in ("", "bit"):
        row.fault("type", f"type is {row.text('type')!r}, function {function} reads bits")
    default = "bit" if function in (1, 2) else "uint16"
    if not row.text("type") and function in (3, 4):
        row.fault("type", f"type is empty, wanted one of {', '.join(sorted(TYPES))}")
    type_ = row.choice("type", default, TYPES)
    bit = row.whole("bit", None, 0, 15)
    address_text, dot, bit_text = row.text("address").partition(".")
    address = 0
    if not address_text:
        row.fault("address", "address is empty, a Modbus point needs one (zero-based, as on the wire)")
    else:
        try:
            address = int(address_text, 0)
            bit = int(bit_text) if dot else bit
        except ValueError:
            row.fault("address", f"address is {row.text('address')!r}, wanted a number such as 100, or 100.3")
    words = WORDS[type_]
    if not 0 <= address <= 65535:
        row.fault("address", f"address is {address}, wanted 0 to 65535")
    elif address + words > 65536:
        row.fault("address", f"{words} words from address {address} end beyond 65535")
    if type_ == "bit" and function in (3, 4) and bit is None:
        row.fault("address", "a bit of a register needs its number, 0 to 15: address 100.3")
    elif type_ == "bit" and bit is not None and not 0 <= bit <= 15:
        row.fault("address", f"bit is {bit}, wanted 0 to 15")
    elif bit is not None and (type_ != "bit" or function in (1, 2)):
        row.fault("address", f"a bit number on a {type_} read by function {function}")
    orders = frozenset({"big", "little"})
    return ModbusSource(
        function=function,
        address=address,
        type=type_,
        words=words,
        byte_order=Order(row.choice("byte_order", "big", orders)),
        word_order=Order(row.choice("word_order", "big", orders)),
        scale=scale,
        offset=offset,
        invalid=_invalid_patterns(row, type_),
        bit=bit,
    )


def _invalid_patterns(row: Row, type_: str) -> tuple[int, ...]:
    patterns = []
    for text in row.text("sentinel").split():
        try:
            patterns.append(raw_pattern(text, type_))
        except ValueError:
            row.fault("sentinel", f"sentinel is {text!r}, wanted a {type_} as it comes, such as -1 or 0x7FFF")
    return tuple(patterns)


def _invalid_values(row: Row, source: Source | None) -> tuple[float, ...]:
    """What the sentinels, written as they come, are once they are scaled like any value."""
    scale, offset = (source.scale, source.offset) if source else (1.0, 0.0)
    values = []
    for text in row.text("sentinel").split():
        try:
            number = float(int(text, 16)) if text.lower().startswith("0x") else float(text)
        except ValueError:
            row.fault("sentinel", f"sentinel is {text!r}, wanted a number such as -9999")
            continue
        values.append(number * scale + offset)
    return tuple(values)


def _rows(file: Path, faults: list[Fault]) -> list[Row]:
    table = _sheet(file, faults) if file.suffix == ".xlsx" else _table(file, faults)
    if not table:
        return []
    header, *body = table
    names: dict[int, str] = {}
    for i, cell in enumerate(header):
        name = cell.text.lower()
        if name in names.values() and name:
            faults.append(Fault(str(file), cell.line, cell.column, f"column {name!r} stands twice"))
        names[i] = name
    known = (*COLUMNS, *MORE_COLUMNS)
    absent = [column for column in known if column not in names.values()]
    for cell in header:
        hint = did_you_mean(cell.text.lower(), absent, nearness=0.8)  # others' own columns are welcome
        if cell.text.lower() not in known and hint:
            faults.append(Fault(str(file), cell.line, cell.column, f"unknown column {cell.text!r}{hint}"))
    for column in ("point", "quantity"):
        if column not in names.values():
            faults.append(Fault(str(file), header[0].line, 1, f"column {column!r} is missing"))
            return []
    rows = []
    for cells in body:
        if not any(cell.text for cell in cells):
            continue
        if len(cells) > len(header):
            cell = cells[len(header)]
            if any(one.text for one in cells[len(header) :]):
                reason = f"{len(cells)} fields, the header has {len(header)}"
                faults.append(Fault(str(file), cell.line, cell.column, reason))
        by_name = {names[i]: cell for i, cell in enumerate(cells[: len(header)])}
        rows.append(Row(faults, str(file), cells[0].line, by_name))
    return rows


def _table(file: Path, faults: list[Fault]) -> list[list[Cell]]:
    raw = file.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError as why:
            line = raw[: why.start].count(b"\n") + 1
    else:
        faults.append(Fault(str(file), line, 1, "neither UTF-8 nor GB18030"))
        return []
    header = text.split("\n", 1)[0]
    return _cells(text, max(",;\t", key=header.count))


def _cells(text: str, delimiter: str) -> list[list[Cell]]:
    """RFC 4180 with places; the csv module would not say where a field begins."""
    rows: list[list[Cell]] = []
    row: list[Cell] = []
    field: list[str] = []
    line = column = start_line = start_column = 1
    quoted = False
    i = 0
    while i <= len(text):
        char = text[i] if i < len(text) else "\n"
        if quoted and i < len(text):
            if char == '"' and text[i + 1 : i + 2] == '"':
                field.append(char)
                i, column = i + 1, column + 1
            elif char == '"':
                quoted = False
            else:
                field.append(char)
        elif char == '"' and not "".join(field).strip():
            quoted = True
        elif char == delimiter or char == "\n":
            row.append(Cell("".join(field).strip(), start_line, start_column))
            field = []
            if char == "\n":
                rows.append(row)
                row = []
        else:
            field.append(char)
        i, column = i + 1, column + 1
        if char == "\n":
            line, column = line + 1, 1
        if not quoted and char in (delimiter, "\n"):
            start_line, start_column = line, column
    return rows


def _sheet(file: Path, faults: list[Fault]) -> list[list[Cell]]:
    try:
        from openpyxl import load_workbook  # here: most plants keep a CSV, and every start would wait for it

        book = load_workbook(file, read_only=True, data_only=True)
    except Exception as why:  # openpyxl lets zip, XML and key errors through as they come
        faults.append(Fault(str(file), 0, 0, f"no XLSX workbook: {why}"))
        return []
    try:
        sheet = book["points"] if "points" in book.sheetnames else book.worksheets[0]
        return [
            [Cell(_as_text(value), line, column) for column, value in enumerate(values, 1)]
            for line, values in enumerate(sheet.iter_rows(values_only=True), 1)
        ]
    finally:
        book.close()


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
