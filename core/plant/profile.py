"""Device models as data: which points a device of a model has, and where they stand.

A profile is one YAML file a model (`ecmc.device_profile/1` for Modbus,
`ecmc.opcua_profile/1`), or one entry of a file of MQTT conventions. Its points
get the id `<device>.<quantity>`; a second copy of a quantity ends in `_2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import Fault
from core.plant.document import Entry, did_you_mean, read_yaml
from core.plant.model import (
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
from core.plant.register import FLOATS, WORDS, transformer_ratio, wraps_at

QUANTITIES_FILE = "_quantities.yaml"
CONVENTIONS_FILE = "mqtt_conventions.yaml"
MODBUS = frozenset({Protocol.MODBUS_TCP, Protocol.MODBUS_RTU, Protocol.MODBUS_RTU_TCP, Protocol.MODBUS_TLS})
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_PATH_PLACEHOLDER = re.compile(r"(=?)\{(\w+)\}")
_SIGNED = ("int16", "int32", "int64")
_UNSIGNED = ("uint16", "uint32", "uint64")


@dataclass(frozen=True, slots=True)
class ProfilePoint:
    """One point of a model, before a device's ratios; `suffix` sets a further copy of a quantity apart."""

    quantity: Quantity
    source: Source
    suffix: str = ""
    preferred: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """A device model.

    Attributes:
        secondary_side: Values stand on the secondary side of transformers: a device must state its ratios.
        placeholders: Names in braces its MQTT topics hold.
        options: What a driver should know of the model: max_registers, connect_delay_s, sunspec_candidates, and
            `texts`, where its serial number and the like stand (a ModbusSource by name).
        path_names: Names in braces its JSON paths hold; one that is not given stands for any.
    """

    id: str
    protocols: frozenset[Protocol]
    points: tuple[ProfilePoint, ...]
    unit_id: int = 1
    secondary_side: bool = False
    placeholders: frozenset[str] = frozenset()
    options: Mapping[str, object] = field(default_factory=dict)
    path_names: frozenset[str] = frozenset()


class ProfileShelf:
    """The profiles of several folders, read when first asked for; the first folder that has one wins."""

    def __init__(self, folders: Sequence[Path], faults: list[Fault]) -> None:
        self.folders = [folder for folder in folders if folder.is_dir()]
        self.files: list[Path] = []  # read so far, for the plant's fingerprint
        self._faults = faults
        self._read: dict[str, Profile | None] = {}
        self.quantities = self._quantities()
        self._conventions: dict[str, Entry] | None = None

    def ids(self) -> list[str]:
        """Every profile there is."""
        stems = {
            file.stem
            for folder in self.folders
            for file in folder.glob("*.yaml")
            if not file.name.startswith("_") and file.name != CONVENTIONS_FILE
        }
        return sorted(stems | self._mqtt_conventions().keys())

    def get(self, profile_id: str) -> Profile | None:
        """The profile, None where there is none or it is faulty (then its faults are noted).

        Raises:
            KeyError: No folder has it.
        """
        if profile_id not in self._read:
            self._read[profile_id] = self._find(profile_id)
        return self._read[profile_id]

    def _find(self, profile_id: str) -> Profile | None:
        for folder in self.folders:
            file = folder / f"{profile_id}.yaml"
            if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", profile_id) and file.is_file():
                self.files.append(file)
                entry = read_yaml(file, f"profile {profile_id}", self._faults)
                if entry is None:
                    return None
                before = len(self._faults)
                profile = _read_profile(entry, profile_id, self.quantities)
                return profile if len(self._faults) == before else None
        convention = self._mqtt_conventions().get(profile_id)
        if convention is None:
            raise KeyError(profile_id)
        self.files.append(Path(convention.file))
        before = len(self._faults)
        profile = _read_convention(convention, profile_id, self.quantities)
        return profile if len(self._faults) == before else None

    def _mqtt_conventions(self) -> dict[str, Entry]:
        if self._conventions is None:
            self._conventions = {}
            for folder in self.folders:
                file = folder / CONVENTIONS_FILE
                entry = read_yaml(file, "MQTT conventions", self._faults) if file.is_file() else None
                for convention in entry.children("conventions", "convention") if entry else []:
                    self._conventions.setdefault(str(convention.data.get("id")), convention)
        return self._conventions

    def _quantities(self) -> dict[str, Quantity]:
        quantities: dict[str, Quantity] = {}
        for folder in self.folders:
            file = folder / QUANTITIES_FILE
            if not file.is_file():
                continue
            self.files.append(file)
            entry = read_yaml(file, "quantities", self._faults)
            named = entry.child("quantities") if entry else None
            for quantity_id in named.data if named else ():
                one = named.child(quantity_id) if named else None
                if one is None:
                    continue
                kind = one.text("kind", required=True, choices=[kind.value for kind in Kind])
                unit, zh = one.text("unit", required=True), one.text("zh")
                one.finish()
                if kind and unit:
                    quantities.setdefault(str(quantity_id), Quantity(str(quantity_id), unit, Kind(kind), zh))
        return quantities


def device_point(
    device_id: str, point: ProfilePoint, ct_ratio: float, vt_ratio: float, period_s: float, connected: bool
) -> Point:
    """A profile's point on one device, its ratios folded into the scale; without a connection it is imported."""
    quantity, source = point.quantity, point.source
    ratio = transformer_ratio(quantity.id, ct_ratio, vt_ratio)
    source = replace(source, scale=source.scale * ratio, offset=source.offset * ratio)
    modulus, resolution = steps_of(source, quantity.kind)
    return Point(
        id=f"{device_id}.{quantity.id}{point.suffix}",
        quantity=quantity.id,
        unit=quantity.unit,
        kind=quantity.kind,
        device=device_id,
        source=source if connected else None,
        name=quantity.zh,
        period_s=period_s,
        counter_modulus=modulus,
        resolution=resolution,
    )


def steps_of(source: Source, kind: Kind) -> tuple[float | None, float | None]:
    """Where a register wraps and its one step, in the point's unit; None where its type does not say."""
    # A SunSpec scale register is only known on the device.
    if not isinstance(source, ModbusSource) or source.scale_address is not None or source.type in FLOATS:
        return None, None
    modulus = wraps_at(source.type, source.scale) if kind is Kind.COUNTER else None
    return modulus, abs(source.scale)


def quantity_named(entry: Entry, name: str, quantities: Mapping[str, Quantity]) -> Quantity | None:
    """The quantity, and that the entry's unit is its unit."""
    quantity = quantities.get(name)
    if quantity is None:
        if name:
            entry.fault("quantity", f"unknown quantity {name!r}{did_you_mean(name, quantities)}")
        return None
    unit = entry.text("unit", quantity.unit)
    if unit != quantity.unit:
        entry.fault(
            "unit", f"unit {unit!r} does not fit quantity {name}: wanted {quantity.unit!r} (adapt scale)"
        )
    return quantity


def _read_profile(entry: Entry, profile_id: str, quantities: Mapping[str, Quantity]) -> Profile | None:
    schema = entry.text("schema", required=True, choices=("ecmc.device_profile/1", "ecmc.opcua_profile/1"))
    if entry.text("id", required=True) not in (profile_id, ""):
        entry.fault("id", f"id is {entry.data['id']!r}, wanted the file's name {profile_id!r}")
    entry.skip("notes", "sources", "title")
    if schema == "ecmc.device_profile/1":
        return _read_modbus(entry, profile_id, quantities)
    if schema == "ecmc.opcua_profile/1":
        return _read_opcua(entry, profile_id, quantities)
    return None


def _read_modbus(entry: Entry, profile_id: str, quantities: Mapping[str, Quantity]) -> Profile:
    entry.skip("manufacturer", "model", "models", "category", "serial", "transport", "sample_frame")
    entry.text("protocol", "modbus", choices=("modbus",))
    base = entry.integer("address_base", 0, least=0, most=1)
    defaults = entry.child("defaults") or entry
    function = defaults.integer("function", 3, least=1, most=4)
    byte_order = defaults.text("byte_order", "big", choices=("big", "little"))
    word_order = defaults.text("word_order", "big", choices=("big", "little"))
    unit_id = defaults.integer("unit_id", 1, least=0, most=255)
    if defaults is not entry:
        defaults.finish()
    options: dict[str, object] = {}
    model = _read_sunspec(entry, options)
    _read_limits(entry, options)
    patterns = _invalid_patterns(entry.child("invalid"))
    secondary_side = entry.has("ratio")
    order = byte_order, word_order
    if texts := _read_texts(entry, function, order, base):
        options["texts"] = texts

    points: list[ProfilePoint] = []
    for one in entry.children("points", "point", required=True, id_key="quantity"):
        one.skip("raw_unit", "access", "confidence", "source", "note")
        quantity = quantity_named(one, one.text("quantity", required=True), quantities)
        type_ = one.text("type", required=True, choices=WORDS)
        address = one.integer("address", -1, required=True, least=0, most=65535 + base)
        words = one.integer("words", WORDS.get(type_, 1), least=1, most=4)
        source = ModbusSource(
            function=one.integer("function", function, least=1, most=4),
            address=address - base,
            type=type_,
            words=words,
            byte_order=Order(one.text("byte_order", byte_order, choices=("big", "little"))),
            word_order=Order(one.text("word_order", word_order, choices=("big", "little"))),
            scale=one.number("scale", 1.0),
            offset=one.number("offset", 0.0),
            invalid=_own_pattern(one) or patterns.get(type_, ()),
            bit=one.integer("bit", None, least=0, most=15),
            scale_address=one.integer("scale_register", None, least=0, most=65535),
            sunspec_model=model,
        )
        suffix, preferred = _copy_of(one), one.flag("preferred")
        one.finish()
        if not type_ or quantity is None:
            continue
        if words != WORDS[type_]:
            one.fault("words", f"words is {words}, a {type_} has {WORDS[type_]}")
        if source.scale == 0:
            one.fault("scale", "scale is 0, every value would be")
        if address - base + words > 65536:
            one.fault("address", f"{words} words from address {address} end beyond 65535")
        points.append(ProfilePoint(quantity, source, suffix, preferred))
    entry.finish()
    _no_twins(entry, points)
    return Profile(profile_id, MODBUS, tuple(points), unit_id, secondary_side, frozenset(), options)


def _read_texts(entry: Entry, function: int, order: tuple[str, str], base: int) -> dict[str, ModbusSource]:
    """Registers that say who the device is; numbers among them are read as texts too."""
    texts: dict[str, ModbusSource] = {}
    for one in entry.children("texts", "text", id_key="text"):
        one.skip("confidence", "source", "note")
        name = one.text("text", required=True)
        type_ = one.text("type", "string", choices=("string", *_UNSIGNED))
        address = one.integer("address", -1, required=True, least=0, most=65535 + base)
        own_words = WORDS.get(type_)
        words = one.integer("words", own_words or 1, required=own_words is None, least=1, most=125)
        texts[name] = ModbusSource(
            function=one.integer("function", function, least=3, most=4),
            address=address - base,
            type=type_,
            words=words,
            byte_order=Order(one.text("byte_order", order[0], choices=("big", "little"))),
            word_order=Order(one.text("word_order", order[1], choices=("big", "little"))),
            scale=1.0,
            offset=0.0,
        )
        one.finish()
        if words != (own_words or words):
            one.fault("words", f"words is {words}, a {type_} has {own_words}")
        if address - base + words > 65536:
            one.fault("address", f"{words} words from address {address} end beyond 65535")
    return texts


def _read_sunspec(entry: Entry, options: dict[str, object]) -> int | None:
    sunspec = entry.child("sunspec")
    if sunspec is None:
        return None
    sunspec.skip("scale_rule")
    model = sunspec.integer("model_id", None, required=True, least=1, most=65534)
    sunspec.text("offset_base", "model_start", choices=("model_start",))
    marker = sunspec.child("marker")
    if marker is not None:
        marker.skip("value", "registers")
        options["sunspec_candidates"] = tuple(marker.numbers("candidates"))
        marker.finish()
    sunspec.finish()
    return model


def _read_limits(entry: Entry, options: dict[str, object]) -> None:
    limits = entry.child("limits")
    if limits is None:
        return
    limits.skip("max_clients")
    if limits.has("max_registers_per_read"):
        options["max_registers"] = limits.integer("max_registers_per_read", 125, least=1, most=125)
    if limits.has("connect_delay_s"):
        options["connect_delay_s"] = limits.number("connect_delay_s", 0.0, least=0)
    limits.finish()


def _invalid_patterns(invalid: Entry | None) -> dict[str, tuple[int, ...]]:
    """Raw unsigned patterns that mean "not available", by type. NaN needs none: it says so itself."""
    patterns: dict[str, tuple[int, ...]] = {}
    if invalid is None:
        return patterns
    for key, value in invalid.data.items():
        invalid.skip(str(key))
        if key == "unsigned" and value == "all_ones":
            patterns.update({type_: (2 ** (16 * WORDS[type_]) - 1,) for type_ in _UNSIGNED})
        elif key == "signed" and value == "max_positive":
            patterns.update({type_: (2 ** (16 * WORDS[type_] - 1) - 1,) for type_ in _SIGNED})
        elif key in WORDS and isinstance(value, int) and 0 <= value < 2 ** (16 * WORDS[str(key)]):
            patterns[str(key)] = (int(value),)
        elif not (key in ("float", *FLOATS) and value == "nan"):
            invalid.fault(str(key), f"{key}: {value!r} is no pattern of a register type")
    return patterns


def _own_pattern(point: Entry) -> tuple[int, ...]:
    pattern = point.integer("invalid", None, least=0, most=2**64 - 1)
    return () if pattern is None else (pattern,)


def _copy_of(entry: Entry) -> str:
    index = entry.integer("index", 1, least=1, most=99)
    return "" if index == 1 else f"_{index}"


def _no_twins(entry: Entry, points: Sequence[ProfilePoint]) -> None:
    seen: set[str] = set()
    for point in points:
        name = point.quantity.id + point.suffix
        if name in seen:
            entry.fault("points", f"{point.quantity.id} stands twice; give the copy an index: 2")
        seen.add(name)


def _read_opcua(entry: Entry, profile_id: str, quantities: Mapping[str, Quantity]) -> Profile:
    # What a real server does and how a simulated one is set up stands in the same file for people.
    entry.skip(
        "endpoint",
        "subscription",
        "engineering_units",
        "quality_rules",
        "node_id_styles",
        "faults_to_simulate",
    )
    uri_by_index: dict[int, str] = {}
    for namespace in entry.children("namespaces", "namespace", id_key="index"):
        index = namespace.integer("index", 0, required=True, least=0, most=65535)
        uri_by_index[index] = namespace.text("uri", required=True)
        namespace.finish()

    points: list[ProfilePoint] = []
    for one in entry.children("nodes", "node", required=True, id_key="node"):
        one.skip("type", "raw_unit", "access", "note", "map", "confidence")
        node_id = _with_uri(one.text("node", required=True), uri_by_index)
        names = one.texts("quantity", required=True)
        scale, offset = one.number("scale", 1.0), one.number("offset", 0.0)
        suffix, preferred = _copy_of(one), one.flag("preferred")
        for element, (name, _) in enumerate(names):
            quantity = quantity_named(one, name, quantities)
            if quantity is None or quantity.unit == "text":  # an order number is no number
                continue
            at = element if len(names) > 1 else None
            source = OpcuaSource(node_id, scale, offset, at)
            points.append(ProfilePoint(quantity, source, suffix, preferred))
        one.text("unit")
        one.finish()
    entry.finish()
    _no_twins(entry, points)
    return Profile(profile_id, frozenset({Protocol.OPCUA}), tuple(points))


def _with_uri(node_id: str, uri_by_index: Mapping[int, str]) -> str:
    """`ns=2;s=x` as `nsu=<uri>;s=x`, since the index of a namespace may change when a server restarts."""
    match = re.match(r"ns=(\d+);", node_id)
    if match is None or not uri_by_index.get(int(match[1])) or match[1] == "0":
        return node_id
    return f"nsu={uri_by_index[int(match[1])]};{node_id[match.end() :]}"


def _read_convention(entry: Entry, profile_id: str, quantities: Mapping[str, Quantity]) -> Profile:
    entry.skip(
        "id", "product", "confidence", "source", "qos", "retained", "payload", "payload_energy", "traps",
        "encoding", "rules", "example_metrics",
    )  # fmt: skip
    topics = [topic for topic, _ in entry.texts("topics", required=True)]
    time_path = json_path(entry.text("time")) or None
    secondary_side = entry.has("ratio")
    points: list[ProfilePoint] = []
    mapped = entry.child("map")
    if mapped is None:
        entry.fault("id", "this convention maps no quantity, so no device can be of it")
    for name in mapped.data if mapped else ():
        one = mapped.child(str(name)) if mapped else None
        if one is None:
            continue
        one.what = f"{entry.what}, {name}"
        one.skip("raw_unit", "note")
        quantity = quantity_named(one, str(name), quantities)
        source = MqttSource(
            topic=one.text("topic", topics[0] if topics else ""),
            json_path=json_path(one.text("path")),
            scale=one.number("scale", 1.0),
            offset=one.number("offset", 0.0),
            time_path=time_path,
            reduce=one.text("reduce", choices=("sum", "mean", "first")) or None,
        )
        one.text("unit")
        one.finish()
        if quantity is not None:
            points.append(ProfilePoint(quantity, source))
    entry.finish()
    names = {name for point in points for name in placeholders(_topic_of(point))}
    path_names = {name for point in points for name in placeholders(f"{_path_of(point)} {time_path}")}
    return Profile(
        profile_id,
        frozenset({Protocol.MQTT}),
        tuple(points),
        secondary_side=secondary_side,
        placeholders=frozenset(names),
        path_names=frozenset(path_names),
    )


def _topic_of(point: ProfilePoint) -> str:
    return point.source.topic if isinstance(point.source, MqttSource) else ""


def _path_of(point: ProfilePoint) -> str:
    return point.source.json_path if isinstance(point.source, MqttSource) else ""


def placeholders(topic: str) -> list[str]:
    """The names in braces of a topic."""
    return _PLACEHOLDER.findall(topic)


def filled_topic(topic: str, names: Mapping[str, str]) -> str:
    """The topic with its names in braces replaced; one that is not given stays."""
    return _PLACEHOLDER.sub(lambda match: names.get(match[1], match[0]), topic)


def filled_path(path: str, names: Mapping[str, str]) -> str:
    """The path with its names in braces replaced, after a comparison by the value, else by the key of that name."""

    def filled(match: re.Match[str]) -> str:
        value = names.get(match[2], "*")
        return f"={value}" if match[1] else "*" if value == "*" else f"['{value}']"

    return _PATH_PLACEHOLDER.sub(filled, path)


def json_path(text: str) -> str:
    """A path from the payload's root, `$.ENERGY.Power`; empty stays empty, a bare number."""
    return text if not text or text.startswith("$") else f"$.{text}"
