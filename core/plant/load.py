"""The plant folder, read whole: a checked `Plant`, or every fault in it at once.

Nothing is read lazily and nothing is guessed: a folder that loads will not fail
later because of what is written in it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from core.errors import Fault, FaultyInput
from core.plant.document import Entry, Place, did_you_mean, in_order, read_yaml
from core.plant.model import (
    AlertKind,
    AlertRule,
    Area,
    Connection,
    Device,
    Edge,
    Label,
    ModbusSource,
    MqttSource,
    Plant,
    Point,
    PointMeter,
    Protocol,
)
from core.plant.network import Devices, checked_id, read_edges, read_nodes, region_codes
from core.plant.pointlist import POINT_ID, point_list_file, read_point_list, topic_faults
from core.plant.profile import MODBUS, Profile, ProfileShelf, device_point

METHOD_SETS: Final = (
    "zero-carbon-factory",
    "ghg-protocol",
    "gb-t-32150",
    "national-ets",
    "cbam",
    "in-house",
)


def load_plant(folder: Path, profiles: Sequence[Path]) -> Plant:
    """Read and check a plant folder.

    Args:
        folder: Holds plant.yaml, and as it likes points.csv or points.xlsx, alerts.yaml and profiles/.
        profiles: Folders searched for device models after the plant folder's own profiles/.

    Raises:
        FaultyInput: With every fault of the whole folder, sorted by file and place.
    """
    faults: list[Fault] = []
    shelf = ProfileShelf([folder / "profiles", *profiles], faults)
    entry = read_yaml(folder / "plant.yaml", "plant", faults)
    if entry is None:
        raise FaultyInput(in_order(faults))
    reading = _Reading(folder, shelf, faults)
    plant = reading.plant(entry)
    if faults:
        raise FaultyInput(in_order(faults))
    return plant


class _Reading:
    """One pass over a folder; each part sees what the parts before it found."""

    def __init__(self, folder: Path, shelf: ProfileShelf, faults: list[Fault]) -> None:
        self.folder = folder
        self.shelf = shelf
        self.faults = faults
        self.connections: dict[str, Connection] = {}
        self.areas: dict[str, Area] = {}
        self.devices: dict[str, Device] = {}
        self.points: dict[str, Point] = {}
        self.places: dict[str, Place] = {}  # where each point comes from
        self.preferred: set[str] = set()

    def plant(self, entry: Entry) -> Plant:
        plant_id = entry.text("plant", required=True)
        if plant_id and not re.fullmatch(r"[a-z0-9][a-z0-9-]*", plant_id):
            entry.fault("plant", f"plant is {plant_id!r}: wanted small letters, digits and '-'")
        name = entry.label("name") or Label(plant_id, plant_id)
        zone = entry.text("zone", required=True)
        if zone and zone not in available_timezones():
            hint = did_you_mean(zone, available_timezones())
            entry.fault("zone", f"zone {zone!r} is no IANA name such as Asia/Shanghai{hint}")
            zone = ""
        region = entry.text("region", required=True)
        if region and region not in region_codes():
            hint = did_you_mean(region, region_codes())
            entry.fault("region", f"unknown region {region!r}, wanted CN, CN-CQ, CN-GRID-EAST, DEU …{hint}")
        base_interval_s = entry.integer("base_interval_s", 60, least=1, most=900)
        if 900 % base_interval_s:
            entry.fault("base_interval_s", f"base_interval_s is {base_interval_s}, no divisor of 900")
        method_sets = self._method_sets(entry)
        gap_after_s = entry.number("gap_after_s", None, above=0)
        self._areas(entry)
        self._connections(entry)
        self._devices(entry)
        list_file = self._point_list()
        _check_overlap(self.points, self.devices, self.places, self.faults)
        network = entry.child("network")
        nodes = read_nodes(network, self.areas, self.points) if network else []
        measured = Devices(self.devices, self.points, frozenset(self.preferred))
        edges = read_edges(network, {node.id: node for node in nodes}, measured) if network else []
        alerts, alerts_file = self._alerts(edges, base_interval_s)
        entry.finish()
        own_files = [self.folder / "plant.yaml", list_file, alerts_file]
        files = [file for file in own_files if file is not None] + self.shelf.files
        return Plant(
            id=plant_id,
            name=name,
            zone=ZoneInfo(zone or "UTC"),
            region=region,
            base_interval_s=base_interval_s,
            method_sets=method_sets,
            areas=tuple(self.areas.values()),
            connections=tuple(self.connections.values()),
            devices=tuple(self.devices.values()),
            points=tuple(self.points.values()),
            nodes=tuple(nodes),
            edges=tuple(edges),
            alerts=alerts,
            folder=str(self.folder),
            fingerprint=_fingerprint(files),
            gap_after_s=gap_after_s,
        )

    def _method_sets(self, entry: Entry) -> tuple[str, ...]:
        named = entry.texts("method_sets")
        for i, (method_set, place) in enumerate(named):
            if method_set not in METHOD_SETS:
                known = ", ".join(METHOD_SETS)
                hint = did_you_mean(method_set, METHOD_SETS)
                reason = f"plant: unknown method set {method_set!r}, wanted one of {known}{hint}"
                self.faults.append(place.fault(reason))
            elif method_set in [other for other, _ in named[:i]]:
                self.faults.append(place.fault(f"plant: method set {method_set!r} stands twice"))
        return tuple(method_set for method_set, _ in named) or METHOD_SETS[:2]

    def _areas(self, entry: Entry) -> None:
        for one in entry.children("areas", "area"):
            area_id = checked_id(one)
            if area_id in self.areas:
                one.fault("id", f"id {area_id!r} stands twice")
            self.areas[area_id] = Area(
                area_id, one.label("name") or Label(area_id, area_id), one.text("parent") or None
            )
            one.finish()
        for one in entry.children("areas", "area"):
            seen = {one.text("id")}
            parent = one.text("parent")
            while parent:
                if parent not in self.areas:
                    one.fault("parent", f"unknown area {parent!r}{did_you_mean(parent, self.areas)}")
                    break
                if parent in seen:
                    one.fault("parent", f"area {parent} lies within itself")
                    break
                seen.add(parent)
                parent = self.areas[parent].parent or ""

    def _connections(self, entry: Entry) -> None:
        for one in entry.children("connections", "connection"):
            connection_id = checked_id(one)
            protocol = one.text("protocol", required=True, choices=[protocol.value for protocol in Protocol])
            if not protocol:
                one.skip(*one.data)  # its options cannot be judged
            options = _connection_options(one, Protocol(protocol)) if protocol else {}
            one.finish()
            if connection_id in self.connections:
                one.fault("id", f"id {connection_id!r} stands twice")
            elif connection_id:
                known = Protocol(protocol) if protocol else Protocol.MODBUS_TCP
                self.connections[connection_id] = Connection(connection_id, known, options)

    def _devices(self, entry: Entry) -> None:
        at_unit: dict[tuple[str, int, str], str] = {}
        for one in entry.children("devices", "device"):
            device, profile = self._device(one)
            if not device.id:
                continue
            if device.id in self.devices:
                one.fault("id", f"id {device.id!r} stands twice")
                continue
            self.devices[device.id] = device
            if profile is None:
                continue
            connection = self.connections.get(device.connection or "")
            if connection and connection.protocol in MODBUS:
                other = at_unit.setdefault((connection.id, device.unit_id, profile.id), device.id)
                if other != device.id:
                    one.fault(
                        "unit_id", f"reads the same unit {device.unit_id} of {connection.id} as {other}"
                    )
            self._profile_points(one, device, profile)

    def _device(self, one: Entry) -> tuple[Device, Profile | None]:
        device_id = checked_id(one)
        connection_id = one.text("connection")
        connection = self.connections.get(connection_id)
        if connection_id and connection is None:
            one.fault(
                "connection",
                f"unknown connection {connection_id!r}{did_you_mean(connection_id, self.connections)}",
            )
        profile = self._profile(one, connection)
        for key in ("ct_ratio", "vt_ratio"):
            if profile and profile.secondary_side and not one.has("ct_ratio") and not one.has("vt_ratio"):
                one.fault(
                    "profile",
                    f"profile {profile.id} reads the secondary side of transformers: state ct_ratio and "
                    "vt_ratio (1 where there is none), or its energy may be many times too small",
                )
                break
            one.has(key)
        area = one.text("area")
        if area and area not in self.areas:
            one.fault("area", f"unknown area {area!r}{did_you_mean(area, self.areas)}")
        device = Device(
            id=device_id,
            connection=connection_id or None,
            profile=profile.id if profile else None,
            points=(),
            options=_device_options(one, connection, profile),
            unit_id=one.integer("unit_id", profile.unit_id if profile else 1, least=0, most=255),
            ct_ratio=one.number("ct_ratio", 1.0, above=0),
            vt_ratio=one.number("vt_ratio", 1.0, above=0),
            period_s=one.number("period_s", 1.0, above=0, most=86400),
            accuracy_class=one.number("accuracy_class", None, above=0, most=100),
            rated_kw=one.number("rated_kw", None, above=0),
            area=area or None,
            name=one.label("name"),
        )
        if profile and Protocol.MQTT in profile.protocols:
            one.skip("topic")  # read with the profile's points
        if one.has("unit_id") and connection and connection.protocol not in MODBUS:
            one.fault("unit_id", f"unit_id is for Modbus, {connection.id} is {connection.protocol.value}")
        one.finish()
        return device, profile

    def _profile(self, one: Entry, connection: Connection | None) -> Profile | None:
        profile_id = one.text("profile")
        if not profile_id:
            return None
        try:
            profile = self.shelf.get(profile_id)
        except KeyError:
            hint = did_you_mean(profile_id, self.shelf.ids())
            one.fault("profile", f"unknown profile {profile_id!r}{hint}")
            return None
        if profile and connection and connection.protocol not in profile.protocols:
            speaks = ", ".join(sorted(protocol.value for protocol in profile.protocols))
            one.fault(
                "profile", f"{profile_id} speaks {speaks}, {connection.id} is {connection.protocol.value}"
            )
        if profile and not one.has("connection"):
            one.fault("profile", "a device with a profile names its connection")
        return profile

    def _profile_points(self, one: Entry, device: Device, profile: Profile) -> None:
        topic_names = _topic_names(one, device, profile)
        ids = []
        for profile_point in profile.points:
            point = device_point(device.id, profile_point, device.ct_ratio, device.vt_ratio, device.period_s)
            if isinstance(point.source, MqttSource):
                topic = point.source.topic.format_map(topic_names)
                point = replace(point, source=replace(point.source, topic=topic))
            ids.append(point.id)
            self.points[point.id] = point
            self.places[point.id] = one.place("id")
            if profile_point.preferred:
                self.preferred.add(point.id)
        self.devices[device.id] = replace(device, points=tuple(ids))

    def _point_list(self) -> Path | None:
        file = point_list_file(self.folder, self.faults)
        if file is None:
            return None
        listed = read_point_list(file, self.shelf.quantities, self.devices, self.connections, self.faults)
        of_device: dict[str, list[str]] = defaultdict(list)
        for item in listed:
            point = item.point
            if point.id in self.points:
                first = self.places[point.id]
                reason = f"id {point.id!r} stands twice, first at {first.file}:{first.line}"
                self.faults.append(item.place.fault(f"point {point.id}: {reason}"))
                continue
            self.points[point.id] = point
            self.places[point.id] = item.place
            if point.device:
                of_device[point.device].append(point.id)
        for device_id, ids in of_device.items():
            device = self.devices[device_id]
            self.devices[device_id] = replace(device, points=(*device.points, *ids))
        return file

    def _alerts(
        self, edges: Sequence[Edge], base_interval_s: int
    ) -> tuple[tuple[AlertRule, ...], Path | None]:
        """The folder's rules, and one for each point that meters an edge and has no missing-data rule yet."""
        rules: dict[str, AlertRule] = {}
        file = self.folder / "alerts.yaml"
        entry = read_yaml(file, "alerts", self.faults) if file.is_file() else None
        for one in entry.children("rules", "rule", required=True) if entry else []:
            rule = self._rule(one)
            if rule.id in rules:
                one.fault("id", f"id {rule.id!r} stands twice")
            rules[rule.id] = rule
        if entry:
            entry.finish()
        watched = {rule.point for rule in rules.values() if rule.kind is AlertKind.MISSING}
        for edge in edges:
            if isinstance(edge.meter, PointMeter) and edge.meter.point not in watched:
                point = self.points[edge.meter.point]
                watched.add(point.id)
                rules.setdefault(
                    f"missing:{point.id}",
                    AlertRule(
                        id=f"missing:{point.id}",
                        kind=AlertKind.MISSING,
                        point=point.id,
                        for_s=max(3 * point.period_s, 3.0 * base_interval_s),
                    ),
                )
        return tuple(rules.values()), file if entry else None

    def _rule(self, one: Entry) -> AlertRule:
        rule_id = one.text("id", required=True)
        if rule_id and not POINT_ID.fullmatch(rule_id):
            one.fault("id", f"id {rule_id!r}: wanted small letters, digits, '-', '_' and '.'")
        kind = AlertKind(
            one.text("kind", required=True, choices=[kind.value for kind in AlertKind]) or AlertKind.LIMIT
        )
        point = one.text("point", required=True)
        if point and point not in self.points:
            one.fault("point", f"unknown point {point!r}{did_you_mean(point, self.points)}")
        rule = AlertRule(
            id=rule_id,
            kind=kind,
            point=point,
            low=one.number("low", None),
            high=one.number("high", None),
            deadband=one.number("deadband", 0.0, least=0),
            on_delay_s=one.number("on_delay_s", 0.0, least=0),
            off_delay_s=one.number("off_delay_s", 0.0, least=0),
            for_s=one.number("for_s", 0.0, above=0),
            severity=one.integer("severity", 500, least=1, most=1000),
            name=one.label("name"),
        )
        one.finish()
        foreign = ("for_s",) if kind is AlertKind.LIMIT else ("low", "high", "deadband")
        for key in foreign:
            if one.has(key):
                one.fault(key, f"{key} is not for a {kind.value} rule")
        if kind is AlertKind.LIMIT and rule.low is None and rule.high is None:
            one.fault(None, "a limit rule needs low or high")
        elif kind is AlertKind.MISSING and not one.has("for_s"):
            one.fault(None, "a missing rule needs for_s, the silence it allows")
        elif rule.low is not None and rule.high is not None and rule.low >= rule.high:
            one.fault("low", f"low {rule.low:g} is not below high {rule.high:g}")
        return rule


def _connection_options(one: Entry, protocol: Protocol) -> dict[str, object]:
    """The protocol's own keys, typed, with their defaults; what has no default and is not given is left out."""
    options: dict[str, object] = {}

    def given(key: str, value: object) -> None:
        if value is not None and value != "":
            options[key] = value

    options["timeout_s"] = one.number(
        "timeout_s", 4.0 if protocol is Protocol.OPCUA else 1.0, above=0, most=600
    )
    if protocol is Protocol.MODBUS_RTU:
        options["serial"] = one.text("serial", required=True)
        options["baud"] = one.integer("baud", 9600, least=300, most=4_000_000)
        options["parity"] = one.text("parity", "N", choices=("N", "E", "O"))
        options["stop"] = one.integer("stop", 1, least=1, most=2)
        options["pause_s"] = one.number("pause_s", 0.02, least=0, most=60)
    elif protocol in MODBUS:
        options["host"] = one.text("host", required=True)
        options["port"] = one.integer(
            "port", 802 if protocol is Protocol.MODBUS_TLS else 502, least=1, most=65535
        )
        options["pause_s"] = one.number(
            "pause_s", 0.02 if protocol is Protocol.MODBUS_RTU_TCP else 0.0, least=0, most=60
        )
        options["in_flight"] = one.integer("in_flight", 1, least=1, most=16)
        given("connect_delay_s", one.number("connect_delay_s", None, least=0, most=60))
        if protocol is Protocol.MODBUS_TCP:
            options["client"] = one.text("client", "own", choices=("own", "pymodbus"))
        if protocol is Protocol.MODBUS_TLS:
            for key in ("ca_file", "cert_file", "key_file", "server_name"):
                given(key, one.text(key))
    elif protocol is Protocol.OPCUA:
        url = one.text("url", required=True)
        if url and not re.fullmatch(r"opc\.tcp://[^\s/]+(/\S*)?", url):
            one.fault("url", f"url is {url!r}, wanted opc.tcp://host:port/path")
        options["url"] = url
        options["security"] = one.text(
            "security",
            "none",
            choices=("none", "Basic256Sha256_Sign", "Basic256Sha256_SignAndEncrypt"),
        )
        options["mode"] = one.text("mode", "subscribe", choices=("subscribe", "read"))
        given("publish_interval_s", one.number("publish_interval_s", None, least=0.05, most=3600))
        given("queue_size", one.integer("queue_size", None, least=1, most=100_000))
        given("session_timeout_s", one.number("session_timeout_s", None, least=10, most=86400))
        for key in ("username", "password_env", "cert_file", "key_file", "server_cert_file"):
            given(key, one.text(key))
    else:
        tls = one.flag("tls")
        options["host"] = one.text("host", required=True)
        options["port"] = one.integer("port", 8883 if tls else 1883, least=1, most=65535)
        options["tls"] = tls
        version = one.value("version")
        if version not in (None, 5, "5", "3.1.1"):
            one.fault("version", f"version is {version!r}, wanted 5 or 3.1.1")
        options["version"] = str(version or 5)
        options["qos"] = one.integer("qos", 1, least=0, most=2)
        given("keep_alive_s", one.integer("keep_alive_s", None, least=1, most=65535))
        given("session_expiry_s", one.integer("session_expiry_s", None, least=0, most=2**32 - 1))
        for key in ("username", "password_env", "client_id", "ca_file", "cert_file", "key_file"):
            given(key, one.text(key))
        if protocol is Protocol.SPARKPLUG:
            options["group"] = one.text("group", required=True)
            given("host_id", one.text("host_id"))
    one.text("name")
    return options


def _device_options(one: Entry, connection: Connection | None, profile: Profile | None) -> dict[str, object]:
    options: dict[str, object] = dict(profile.options) if profile else {}
    if connection is None or connection.protocol in MODBUS:
        if one.has("max_registers"):
            options["max_registers"] = one.integer("max_registers", 125, least=1, most=125)
        for key in ("pause_s", "timeout_s"):
            if one.has(key):
                options[key] = one.number(key, 1.0, least=0, most=600)
    return options


def _topic_names(one: Entry, device: Device, profile: Profile) -> Mapping[str, str]:
    """What stands for the names in braces of the profile's topics: the device's `topic`, its id for {device}."""
    names = {"device": device.id}
    given = one.child("topic")
    if given is not None:
        for name in given.data:
            value = given.text(str(name))
            if name not in profile.placeholders:
                known = sorted(profile.placeholders) or ["none"]
                given.fault(
                    str(name), f"the topics of {profile.id} have no {{{name}}}, but {', '.join(known)}"
                )
            names[str(name)] = value
            for reason in topic_faults(value):
                given.fault(str(name), reason)
    for name in sorted(profile.placeholders - names.keys()):
        one.fault("topic", f"profile {profile.id} needs topic: {{{name}: …}}")
        names[name] = ""
    return names


def _check_overlap(
    points: Mapping[str, Point],
    devices: Mapping[str, Device],
    places: Mapping[str, Place],
    faults: list[Fault],
) -> None:
    """No two points read one register of one unit as different things; bits may share the register they stand in."""
    read: dict[tuple[object, ...], list[tuple[ModbusSource, Point]]] = defaultdict(list)
    for point in points.values():
        device = devices.get(point.device or "")
        if isinstance(point.source, ModbusSource) and device is not None:
            source = point.source
            read[device.connection, device.unit_id, source.function, source.sunspec_model].append(
                (source, point)
            )
    for sources in read.values():
        sources.sort(key=lambda item: (item[0].address, item[0].words))
        reaching: list[tuple[ModbusSource, Point]] = []
        for source, point in sources:
            reaching = [item for item in reaching if item[0].address + item[0].words > source.address]
            for other, other_point in reaching:
                same = (other.address, other.type, other.byte_order, other.word_order) == (
                    source.address,
                    source.type,
                    source.byte_order,
                    source.word_order,
                )
                bits = "bit" in (other.type, source.type) and other.words == source.words == 1
                if not same and not bits:
                    # The point list is where people write addresses; the later of the two is named there.
                    late, early = sorted(
                        ((point, source), (other_point, other)),
                        key=lambda item: (places[item[0].id].file, places[item[0].id].line),
                        reverse=True,
                    )
                    faults.append(
                        places[late[0].id].fault(
                            f"point {late[0].id}: {late[1].type} at {late[1].address} overlaps "
                            f"{early[0].id}, {early[1].type} at {early[1].address}"
                        )
                    )
            reaching.append((source, point))


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in dict.fromkeys(files):
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
