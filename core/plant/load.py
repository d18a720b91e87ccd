"""The plant folder, read whole: a checked `Plant`, or every fault in it at once.

Nothing is read lazily and nothing is guessed: a folder that loads will not fail
later because of what is written in it.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from core.carbon.factor_tables import THRESHOLDS_FILE
from core.carbon.factors import FactorLibrary
from core.carbon.method import METHOD_SET_IDS, METHOD_SETS_FILE, MethodSet, read_method_sets
from core.clock import NS_PER_S, time_ns_of
from core.errors import Fault, FaultyInput
from core.plant.document import Entry, Place, did_you_mean, in_order, read_yaml
from core.plant.model import (
    SEAL_AFTER_DAYS,
    AlertKind,
    AlertRule,
    Area,
    Connection,
    Device,
    Edge,
    GapSpread,
    Label,
    ModbusSource,
    MqttSource,
    Node,
    Plant,
    Point,
    PointMeter,
    Protocol,
    Retention,
    Statement,
)
from core.plant.network import Measured, checked_id, read_edges, read_nodes, region_codes
from core.plant.pointlist import POINT_ID, point_list_file, read_point_list, topic_faults
from core.plant.profile import MODBUS, Profile, ProfileShelf, device_point, filled_path, filled_topic
from core.plant.retention import read_retention
from core.plant.shift import read_shifts
from core.plant.statement import read_products, read_statement
from core.plant.watched import watch_rules

SHIPPED = "shipped"  # where kept documents have the profiles that are not the plant's own


def load_plant(folder: Path, profiles: Sequence[Path], kept: bool = False) -> Plant:
    """Read and check a plant folder.

    Args:
        folder: Holds plant.yaml, and as it likes points.csv or points.xlsx, alerts.yaml, factors.csv,
            method_sets.csv, profiles/.
        profiles: Folders searched for device models after the plant folder's own profiles/.
        kept: These are kept documents of a folder: the certificates it names are not among them.

    Raises:
        FaultyInput: With every fault of the whole folder, sorted by file and place.
    """
    faults: list[Fault] = []
    shelf = ProfileShelf([folder / "profiles", *profiles], faults)
    entry = read_yaml(folder / "plant.yaml", "plant", faults)
    if entry is None:
        raise FaultyInput(in_order(faults))
    reading = _Reading(folder, shelf, faults, kept)
    plant = reading.plant(entry)
    if faults:
        raise FaultyInput(in_order(faults))
    return plant


class _Reading:
    """One pass over a folder; each part sees what the parts before it found."""

    def __init__(self, folder: Path, shelf: ProfileShelf, faults: list[Fault], kept: bool) -> None:
        self.kept = kept
        self.folder = folder
        self.shelf = shelf
        self.faults = faults
        self.connections: dict[str, Connection] = {}
        self.areas: dict[str, Area] = {}
        self.devices: dict[str, Device] = {}
        self.points: dict[str, Point] = {}
        self.places: dict[str, Place] = {}  # where each point comes from
        self.preferred: set[str] = set()
        self.unread: set[str] = set()  # connections, devices and points that are there but faulty
        self.factors = self._factors()

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
        regions = region_codes(self.factors)
        if region and region not in regions:
            hint = did_you_mean(region, regions)
            entry.fault("region", f"unknown region {region!r}, wanted CN, CN-CQ, CN-GRID-EAST, DEU …{hint}")
        base_interval_s = entry.integer("base_interval_s", 60, least=1, most=900)
        if 900 % base_interval_s:
            entry.fault("base_interval_s", f"base_interval_s is {base_interval_s}, no divisor of 900")
        own_method_sets = self._own_method_sets()
        method_sets = self._method_sets(entry, own_method_sets)
        gap_after_s = entry.number("gap_after_s", None, above=0)
        gap_spread = entry.text("gap_spread", "flat", choices=[spread.value for spread in GapSpread])
        valid_from_ns = _valid_from_ns(entry, ZoneInfo(zone or "UTC"), base_interval_s)
        seal_after_days = entry.integer("seal_after_days", SEAL_AFTER_DAYS, least=1, most=3650)
        kept = entry.child("retention")
        retention = read_retention(kept) if kept else Retention()
        shifts = read_shifts(entry, base_interval_s)
        self._areas(entry)
        self._connections(entry)
        self._devices(entry)
        self._point_list()
        _check_overlap(self.points, self.devices, self.places, self.faults)
        network = entry.child("network")
        measured = Measured(self.devices, self.points, frozenset(self.preferred), frozenset(self.unread))
        nodes = read_nodes(network, self.areas, measured, self.factors) if network else []
        node_by_id = {node.id: node for node in nodes}
        edges = read_edges(network, node_by_id, measured, self.factors) if network else []
        alerts = self._alerts(nodes, edges, base_interval_s, measured)
        declared = entry.child("inventory")
        nameable = {"grid", *node_by_id, *self.factors.series, *self.factors.row_by_id, *self.factors.fuels}
        statement = read_statement(declared, nameable) if declared else Statement()
        products = read_products(
            entry, node_by_id, self.points, {*self.factors.row_by_id, *self.factors.series}
        )
        entry.finish()
        names = (
            "plant.yaml",
            "points.csv",
            "points.xlsx",
            "alerts.yaml",
            "factors.csv",
            METHOD_SETS_FILE,
            THRESHOLDS_FILE,
        )
        files = [file for name in names if (file := self.folder / name).is_file()] + self.shelf.files
        return Plant(
            id=plant_id,
            name=name,
            zone=ZoneInfo(zone or "UTC"),
            region=region,
            base_interval_s=base_interval_s,
            method_sets=method_sets,
            own_method_sets=own_method_sets,
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
            gap_spread=GapSpread(gap_spread or GapSpread.FLAT),
            statement=statement,
            products=products,
            documents=_packed(self.folder, files),
            valid_from_ns=valid_from_ns,
            seal_after_days=seal_after_days,
            retention=retention,
            shifts=shifts,
        )

    def _factors(self) -> FactorLibrary:
        try:
            return FactorLibrary.for_plant(self.folder)
        except FaultyInput as why:
            self.faults.extend(why.faults)
            return FactorLibrary.shipped()

    def _own_method_sets(self) -> Mapping[str, MethodSet]:
        file = self.folder / METHOD_SETS_FILE
        if not file.is_file():
            return {}
        try:
            own = read_method_sets(file.read_bytes(), str(file))
        except FaultyInput as why:
            self.faults.extend(why.faults)
            return {}
        for id_ in own.keys() & set(METHOD_SET_IDS):
            self.faults.append(Fault(str(file), 0, 0, f"method set {id_} is shipped: give yours another id"))
        return own

    def _method_sets(self, entry: Entry, own: Collection[str]) -> tuple[str, ...]:
        named = entry.texts("method_sets")
        ids = (*METHOD_SET_IDS, *own)
        for i, (method_set, place) in enumerate(named):
            if method_set not in ids:
                known = ", ".join(ids)
                hint = did_you_mean(method_set, ids)
                reason = f"plant: unknown method set {method_set!r}, wanted one of {known}{hint}"
                self.faults.append(place.fault(reason))
            elif method_set in [other for other, _ in named[:i]]:
                self.faults.append(place.fault(f"plant: method set {method_set!r} stands twice"))
        return tuple(method_set for method_set, _ in named) or METHOD_SET_IDS[:2]

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
            if connection_id in self.connections:
                one.fault("id", f"id {connection_id!r} stands twice")
            elif not protocol:
                self.unread.add(connection_id)  # nor can its options be judged
            else:
                options = self._connection_options(one, Protocol(protocol))
                one.finish()
                self.connections[connection_id] = Connection(connection_id, Protocol(protocol), options)

    def _connection_options(self, one: Entry, protocol: Protocol) -> dict[str, object]:
        """The protocol's own keys, typed; a key that was not given and has no general default is left out."""
        options: dict[str, object] = {}
        _put(options, "timeout_s", one.number("timeout_s", None, above=0, most=600))
        one.text("name")
        if protocol is Protocol.MODBUS_RTU:
            options["port"] = one.text("port", required=True)  # /dev/ttyUSB0
            options["baud"] = one.integer("baud", 9600, least=300, most=4_000_000)
            options["parity"] = one.text("parity", "N", choices=("N", "E", "O"))
            options["stop_bits"] = one.integer("stop_bits", 1, least=1, most=2)
        elif protocol is Protocol.OPCUA:
            self._opcua_options(one, options)
        else:
            tls = protocol in (Protocol.MQTT, Protocol.SPARKPLUG) and one.flag("tls")
            usual = {Protocol.MQTT: 1883, Protocol.SPARKPLUG: 1883, Protocol.MODBUS_TLS: 802}.get(
                protocol, 502
            )
            options["host"] = one.text("host", required=True)
            options["port"] = one.integer("port", 8883 if tls else usual, least=1, most=65535)
            if protocol in (Protocol.MQTT, Protocol.SPARKPLUG):
                options["tls"] = tls
                self._mqtt_options(one, protocol, options)
        if protocol in MODBUS:
            _put(options, "connect_timeout_s", one.number("connect_timeout_s", None, above=0, most=600))
            _put(options, "pause_s", one.number("pause_s", None, least=0, most=60))
            _put(options, "retries", one.integer("retries", None, least=0, most=10))
            _put(options, "in_flight", one.integer("in_flight", None, least=1, most=16))
        if protocol is Protocol.MODBUS_RTU_TCP:
            _put(options, "baud", one.integer("baud", None, least=300, most=4_000_000))  # behind the gateway
        if protocol is Protocol.MODBUS_TCP:
            _put(options, "client", one.text("client", choices=("mbap", "pymodbus")))
        if protocol is Protocol.MODBUS_TLS:
            _put(options, "server_name", one.text("server_name"))
            self._files(one, options, "ca_file", "cert_file", "key_file")
        return options

    def _opcua_options(self, one: Entry, options: dict[str, object]) -> None:
        url = one.text("url", required=True)
        if url and not re.fullmatch(r"opc\.tcp://[^\s/]+(/\S*)?", url):
            one.fault("url", f"url is {url!r}, wanted opc.tcp://host:port/path")
        options["url"] = url
        levels = ("none", "Basic256Sha256_Sign", "Basic256Sha256_SignAndEncrypt")
        options["security"] = one.text("security", "none", choices=levels)
        options["mode"] = one.text("mode", "subscribe", choices=("subscribe", "read"))
        for key in ("publish_interval_s", "sampling_interval_s"):
            _put(options, key, one.number(key, None, above=0, most=3600))
        _put(options, "queue_size", one.integer("queue_size", None, least=1, most=100_000))
        if one.value("history") is not None:
            options["history"] = one.flag("history")
        for key in ("username", "password_env"):
            _put(options, key, one.text(key))
        self._files(one, options, "certificate", "private_key", "server_certificate")
        self._files(one, options, "user_certificate", "user_private_key")
        if options["security"] != "none" and not ("certificate" in options and "private_key" in options):
            made = self.folder / "pki" / "own"  # where `ecmc certificate create` puts them
            if self.kept or ((made / "certificate.der").is_file() and (made / "key.pem").is_file()):
                options["certificate"] = str((made / "certificate.der").resolve())
                options["private_key"] = str((made / "key.pem").resolve())
            else:
                one.fault(
                    "security",
                    f"security {options['security']} needs certificate and private_key: name yours, or "
                    f"`ecmc certificate create --plant {self.folder}` makes them",
                )
        if ("user_certificate" in options) != ("user_private_key" in options):
            one.fault("url", "user_certificate and user_private_key go together: one of them is missing")

    def _mqtt_options(self, one: Entry, protocol: Protocol, options: dict[str, object]) -> None:
        version = one.value("version")
        if version not in (None, 5, "5", "3.1.1"):
            one.fault("version", f"version is {version!r}, wanted 5 or 3.1.1")
        options["version"] = str(version or 5)
        options["qos"] = one.integer("qos", 1, least=0, most=2)
        _put(options, "keep_alive_s", one.integer("keep_alive_s", None, least=1, most=65535))
        _put(options, "session_expiry_s", one.integer("session_expiry_s", None, least=0, most=2**32 - 1))
        for key in ("username", "password_env", "client_id"):
            _put(options, key, one.text(key))
        self._files(one, options, "ca_file", "cert_file", "key_file")
        if protocol is Protocol.SPARKPLUG:
            options["group"] = one.text("group", required=True)
            _put(options, "host_id", one.text("host_id"))
            for key in ("group", "host_id"):
                if any(sign in str(options.get(key, "")) for sign in "/+#"):
                    one.fault(key, f"{key} is {options[key]!r}: '/', '+' and '#' have a meaning in topics")

    def _files(self, one: Entry, options: dict[str, object], *keys: str) -> None:
        """Keys that name a file, from the plant folder on."""
        for key in keys:
            name = one.text(key)
            if name and not self.kept and not (self.folder / name).is_file():
                one.fault(key, f"{key}: no file {self.folder / name}")
            elif name:
                options[key] = str((self.folder / name).resolve())

    def _devices(self, entry: Entry) -> None:
        reads: dict[tuple[object, ...], str] = {}  # what a device of a profile reads -> the first that does
        for one in entry.children("devices", "device"):
            device, profile = self._device(one)
            if not device.id:
                continue
            if device.id in self.devices:
                one.fault("id", f"id {device.id!r} stands twice")
                continue
            self.devices[device.id] = device
            if profile is None:
                if one.has("profile"):
                    self.unread.add(device.id)
                continue
            topic_names = _topic_names(one, device, profile)
            self._profile_points(one, device, profile, topic_names)
            if device.connection in self.connections:
                topic = tuple(topic_names[name] for name in sorted(profile.placeholders | profile.path_names))
                what = (device.connection, profile.id, device.unit_id, topic)
                other = reads.setdefault(what, device.id)
                if other != device.id:
                    one.fault(
                        "unit_id", f"reads the very same as device {other}: same connection, unit and topic"
                    )

    def _device(self, one: Entry) -> tuple[Device, Profile | None]:
        device_id = checked_id(one)
        connection_id = one.text("connection")
        connection = self.connections.get(connection_id)
        if connection_id and connection is None and connection_id not in self.unread:
            one.fault(
                "connection",
                f"unknown connection {connection_id!r}{did_you_mean(connection_id, self.connections)}",
            )
        profile = self._profile(one, connection)
        stated = one.has("ct_ratio") or one.has("vt_ratio")
        if profile and profile.secondary_side and connection_id and not stated:
            one.fault(
                "profile",
                f"profile {profile.id} reads the secondary side of transformers: state ct_ratio and "
                "vt_ratio (1 where there is none), or its energy may be many times too small",
            )
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
            accuracy_class=_accuracy_class(one),
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
        return profile

    def _profile_points(
        self, one: Entry, device: Device, profile: Profile, topic_names: Mapping[str, str]
    ) -> None:
        ids = []
        for profile_point in profile.points:
            point = device_point(
                device.id,
                profile_point,
                device.ct_ratio,
                device.vt_ratio,
                device.period_s,
                connected=device.connection is not None,
            )
            if isinstance(point.source, MqttSource):
                topic = filled_topic(point.source.topic, topic_names)
                path = filled_path(point.source.json_path, topic_names)
                time_path = filled_path(point.source.time_path or "", topic_names) or None
                source = replace(point.source, topic=topic, json_path=path, time_path=time_path)
                point = replace(point, source=source)
            ids.append(point.id)
            self.points[point.id] = point
            self.places[point.id] = one.place("id")
            if profile_point.preferred:
                self.preferred.add(point.id)
        self.devices[device.id] = replace(device, points=tuple(ids))

    def _point_list(self) -> None:
        file = point_list_file(self.folder, self.faults)
        if file is None:
            return
        listed = read_point_list(file, self.shelf.quantities, self.devices, self.connections, self.faults)
        of_device: dict[str, list[str]] = defaultdict(list)
        for item in listed:
            point = item.point
            if point is None:
                self.unread |= {item.id, item.device} - {""}
                continue
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

    def _alerts(
        self, nodes: Sequence[Node], edges: Sequence[Edge], base_interval_s: int, measured: Measured
    ) -> tuple[AlertRule, ...]:
        """The folder's rules, and one for each point that meters an edge and has no missing-data rule yet."""
        rules: dict[str, AlertRule] = {}
        file = self.folder / "alerts.yaml"
        entry = read_yaml(file, "alerts", self.faults) if file.is_file() else None
        for one in entry.children("rules", "rule", required=True) if entry else []:
            rule = self._rule(one, measured)
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
        for rule in watch_rules(nodes, edges):
            rules.setdefault(rule.id, rule)
        return tuple(rules.values())

    def _rule(self, one: Entry, measured: Measured) -> AlertRule:
        rule_id = one.text("id", required=True)
        if rule_id and not POINT_ID.fullmatch(rule_id):
            one.fault("id", f"id {rule_id!r}: wanted small letters, digits, '-', '_' and '.'")
        kind = AlertKind(
            one.text("kind", required=True, choices=[kind.value for kind in AlertKind]) or AlertKind.LIMIT
        )
        point = one.text("point", required=True)
        if point and point not in self.points and not measured.is_unread(point):
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


def _device_options(one: Entry, connection: Connection | None, profile: Profile | None) -> dict[str, object]:
    """What the model's profile says of it, and the Modbus keys of the device itself."""
    options: dict[str, object] = dict(profile.options) if profile else {}
    if connection is None or connection.protocol in MODBUS:
        _put(options, "max_registers", one.integer("max_registers", None, least=1, most=125))
        _put(options, "connect_delay_s", one.number("connect_delay_s", None, least=0, most=60))
        _put(options, "priority", one.integer("priority", None, least=-100, most=100))
    return options


def _put(options: dict[str, object], key: str, value: object) -> None:
    if value is not None and value != "":
        options[key] = value


def _topic_names(one: Entry, device: Device, profile: Profile) -> Mapping[str, str]:
    """What stands for the names in braces of the profile's topics: the device's `topic`, its id for {device}."""
    names = {"device": device.id}
    given = one.child("topic")
    if given is not None:
        for name in given.data:
            value = given.text(str(name))
            if name not in profile.placeholders | profile.path_names:
                known = sorted(profile.placeholders | profile.path_names) or ["none"]
                given.fault(
                    str(name), f"the topics of {profile.id} have no {{{name}}}, but {', '.join(known)}"
                )
            names[str(name)] = value
            for reason in topic_faults(value) if name in profile.placeholders else ():
                given.fault(str(name), reason)
            if name in profile.path_names and any(sign in value for sign in "'[]"):
                given.fault(str(name), f"{name} is {value!r}, wanted a key without quotes and brackets")
    for name in sorted(profile.placeholders - names.keys()):
        one.fault("topic", f"profile {profile.id} needs topic: {{{name}: …}}")
        names[name] = ""
    for name in profile.path_names - names.keys():
        names[name] = "*"
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


# As meters are marked: per cent of IEC 62053 (the S classes hold down to lower currents) and letters of EN 50470.
_CLASSES: Final = {"0.1S": 0.1, "0.2S": 0.2, "0.5S": 0.5, "A": 2.0, "B": 1.0, "C": 0.5}


def _accuracy_class(entry: Entry) -> float | None:
    """A meter's class as the per cent it may be off; what no meter is marked with is a fault."""
    given = entry.value("accuracy_class")
    if isinstance(given, str):
        named = _CLASSES.get(given.strip().upper())
        if named is not None:
            return named
        wanted = f"wanted per cent, such as 0.5, or one of {', '.join(_CLASSES)}"
        entry.fault("accuracy_class", f"accuracy_class is {given!r}, {wanted}")
        return None
    per_cent: float | None = entry.number("accuracy_class", None, above=0, most=10)
    return per_cent


def _valid_from_ns(entry: Entry, zone: ZoneInfo, base_interval_s: int) -> int | None:
    """From when on the model holds, where the folder says so: a date in the plant's zone, or a time."""
    given = entry.value("valid_from")
    if given is None:
        return None
    try:
        at_ns = _time_ns(given, zone)
    except ValueError:
        entry.fault(
            "valid_from", f"valid_from is {given}, wanted a date such as 2026-10-05 or a time with its zone"
        )
        return None
    if at_ns % (base_interval_s * NS_PER_S):
        entry.fault("valid_from", f"valid_from {given} lies inside a base interval of {base_interval_s} s")
    return at_ns


def _time_ns(given: object, zone: ZoneInfo) -> int:
    """A date is its first instant in the zone; YAML knows dates and times by itself where they are not quoted."""
    if isinstance(given, str):
        given = date.fromisoformat(given) if len(given) == 10 else datetime.fromisoformat(given)
    if isinstance(given, datetime):
        return time_ns_of(given)
    if isinstance(given, date):
        return time_ns_of(datetime(given.year, given.month, given.day, tzinfo=zone))
    raise ValueError(f"no time: {given!r}")


def _packed(folder: Path, files: Sequence[Path]) -> bytes:
    """The files as one archive (core/plant/archive.py); the same files give the same bytes."""
    named: dict[str, Path] = {}
    for path in files:
        own = path.is_relative_to(folder)
        named[str(path.relative_to(folder)) if own else f"{SHIPPED}/{path.name}"] = path
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(named):
            archive.writestr(zipfile.ZipInfo(name), named[name].read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in dict.fromkeys(files):
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
