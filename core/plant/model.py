"""A plant as its folder describes it, checked and with every reference resolved.

These are plain records: `core.plant.load` builds them and is the only place
that knows YAML, CSV or profiles. Nothing here can be half right: a Plant that
exists has passed every check of `ecmc check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from core.plant.formula import Formula
from core.samples import PointTable

if TYPE_CHECKING:
    from core.carbon.method import MethodSet  # which itself is told what a plant is


@dataclass(frozen=True, slots=True)
class Label:
    """A name for people, in both languages of the product."""

    zh: str
    en: str


class Protocol(StrEnum):
    MODBUS_TCP = "modbus-tcp"
    MODBUS_RTU = "modbus-rtu"  # serial line
    MODBUS_RTU_TCP = "modbus-rtu-tcp"  # RTU frames over TCP
    MODBUS_TLS = "modbus-tls"
    OPCUA = "opcua"
    MQTT = "mqtt"
    SPARKPLUG = "sparkplug"


@dataclass(frozen=True, slots=True)
class Connection:
    """One physical link. `options` holds the protocol's own keys, already checked and typed by the loader."""

    id: str
    protocol: Protocol
    options: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Area:
    id: str
    name: Label
    parent: str | None = None


class Kind(StrEnum):
    """What a quantity is, from profiles/_quantities.yaml."""

    GAUGE = "gauge"
    COUNTER = "counter"
    COUNTER_DAILY = "counter_daily"
    STATE = "state"
    PARAMETER = "parameter"


@dataclass(frozen=True, slots=True)
class Quantity:
    id: str
    unit: str
    kind: Kind
    zh: str


class Order(StrEnum):
    BIG = "big"
    LITTLE = "little"


@dataclass(frozen=True, slots=True)
class ModbusSource:
    """Where a point's value stands on the wire and how its words become a number.

    value = raw * scale + offset; `scale` already holds transformer ratios.
    `scale_address` names a SunSpec scale register: value is also times 10 ** that int16.
    With `sunspec_model`, addresses count from where that model's id register is found on the device.
    """

    function: int
    address: int
    type: str  # int16 uint16 … float64 bcd16 bcd32 bcd12 bit acc32 enum16 bitfield16 sunssf string
    words: int
    byte_order: Order
    word_order: Order
    scale: float
    offset: float
    invalid: tuple[int, ...] = ()  # raw unsigned patterns that mean "not available"
    bit: int | None = None
    scale_address: int | None = None
    sunspec_model: int | None = None


@dataclass(frozen=True, slots=True)
class OpcuaSource:
    """`element` picks one value of an array node. A namespace URI in the node id ('nsu=…') is resolved at connect."""

    node_id: str
    scale: float = 1.0
    offset: float = 0.0
    element: int | None = None


@dataclass(frozen=True, slots=True)
class MqttSource:
    """`topic` is a subscription filter or exact topic; `json_path` '$.ENERGY.Power', empty for a bare number.

    `time_path` finds the payload's own time (RFC 3339, or epoch s/ms, or local time of the plant's zone);
    `reduce` is how a list becomes one number.
    """

    topic: str
    json_path: str
    scale: float = 1.0
    offset: float = 0.0
    time_path: str | None = None
    reduce: str | None = None  # sum | mean | first


Source = ModbusSource | OpcuaSource | MqttSource


@dataclass(frozen=True, slots=True)
class Point:
    """A measuring point (测点): one quantity of one device, in the unit it is delivered in.

    Attributes:
        source: None for a point that lives from import and POST /v1/samples alone.
        counter_max: Largest value a register shows, in `unit`; None: no known modulus.
        counter_modulus: Where it wraps to zero: counter_max plus one step; None if unknown.
        resolution: One step of the register in `unit`, where known from its type and scale or counter_max.
        invalid_values: Delivered numbers that mean "not available" (the CSV's `sentinel`).
    """

    id: str
    quantity: str
    unit: str
    kind: Kind
    device: str | None = None
    source: Source | None = None
    name: str = ""
    period_s: float = 1.0
    low: float | None = None
    high: float | None = None
    deadband: float | None = None
    counter_max: float | None = None
    counter_modulus: float | None = None
    resolution: float | None = None
    invalid_values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """`options` holds protocol details of the device (unit_id, topic prefix, limits) as the loader typed them."""

    id: str
    connection: str | None
    profile: str | None
    points: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    unit_id: int = 1
    ct_ratio: float = 1.0
    vt_ratio: float = 1.0
    period_s: float = 1.0
    accuracy_class: float | None = None
    rated_kw: float | None = None
    area: str | None = None
    name: Label | None = None


class NodeKind(StrEnum):
    SOURCE = "source"
    BUS = "bus"
    CONVERTER = "converter"
    STORAGE = "storage"
    LOAD = "load"
    EXPORT = "export"  # a load outside the fence


class Origin(StrEnum):
    PURCHASED = "purchased"
    OWN = "own"
    DIRECT_LINE = "direct-line"


class AllocationRule(StrEnum):
    """How a converter's carbon is split among its outputs."""

    ENERGY = "energy"  # each kWh the same
    EFFICIENCY = "efficiency"  # by what each would have taken, made by itself
    EXERGY = "exergy"  # by the work each could do


@dataclass(frozen=True, slots=True)
class Allocation:
    """`weights`: what a kWh of each output carrier bears."""

    rule: AllocationRule
    weights: Mapping[str, float]


class GapSpread(StrEnum):
    """How a register's energy lies over a silence."""

    FLAT = "flat"
    WEEKDAY = "weekday"  # as at the same time of the weeks before


@dataclass(frozen=True, slots=True)
class TariffPeriod:
    """A price from minute `begin` of the day to minute `end`, over midnight where that is smaller; weekdays from 0."""

    begin: int
    end: int
    price: float
    months: tuple[int, ...]
    days: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a kWh of a source costs: by the first period that holds, else `price`."""

    currency: str
    price: float
    periods: tuple[TariffPeriod, ...] = ()


@dataclass(frozen=True, slots=True)
class Medium:
    """What a metered unit holds: a stated number, or the state of steam or water.

    Attributes:
        pressure: MPa, or the point that measures it, in units of `mpa_per_unit` MPa; temperature, supply, back:
            degC or points. None: not given.
        gauge: The pressure is above the atmosphere's.
    """

    kwh_per_unit: float | None = None
    pressure: float | str | None = None
    temperature: float | str | None = None
    supply: float | str | None = None
    back: float | str | None = None
    mpa_per_unit: float = 1.0
    gauge: bool = False

    @property
    def points(self) -> tuple[str, ...]:
        states = (self.pressure, self.temperature, self.supply, self.back)
        return tuple(state for state in states if isinstance(state, str))


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the energy network, see docs/engine.md.

    Attributes:
        factor: `"grid"`, a factor id, or a number in kg per kWh; None for fuels and non-sources.
        fuel: `name@set` of fuels.csv, for sources of a fuel.
        burns: Carrier whose inflow is combusted here (converter or load).
        soc: Point id of the state of charge in %, or None.
        carrier: Of a source, bus or storage; None where inflows differ (converter).
        allocation: Of a converter with several outputs.
        tariff, non_fossil_share: Of a source: what a kWh costs, and how much of it is non-fossil as stated.
        efficiency, no_load_kw: What a converter (a transformer too) is declared to give out of what it takes, and
            to lose whatever it takes; its balance is judged by them.
    """

    id: str
    kind: NodeKind
    carrier: str | None = None
    origin: Origin | None = None
    factor: str | float | None = None
    fuel: str | None = None
    burns: str | None = None
    area: str | None = None
    name: Label | None = None
    capacity_kwh: float | None = None
    charge_efficiency: float = 1.0
    discharge_efficiency: float = 1.0
    standing_loss_kw: float = 0.0
    soc: str | None = None
    allocation: Allocation | None = None
    efficiency: float | None = None
    no_load_kw: float = 0.0
    tariff: Tariff | None = None
    non_fossil_share: float | None = None


class Role(StrEnum):
    REGISTER = "register"
    POWER = "power"


@dataclass(frozen=True, slots=True)
class PointMeter:
    """An edge metered by one point; `direction` export takes negative power (or was resolved to the export register).

    `power_point` is the same meter's power where it has one: live figures and fall-back.
    """

    point: str
    role: Role
    direction: str = "import"  # import | export
    power_point: str | None = None


@dataclass(frozen=True, slots=True)
class RemainderMeter:
    """What the other edges of that node leave; at most one a node.

    `node` is the node whose balance gives it: the edge's from-node where that one has no other remainder.
    """

    node: str


@dataclass(frozen=True, slots=True)
class FormulaMeter:
    formula: Formula  # over edge ids


Meter = PointMeter | RemainderMeter | FormulaMeter


@dataclass(frozen=True, slots=True)
class Edge:
    """Energy of one carrier from node to node; `carrier` is resolved from its ends.

    `weight` is the allocation weight of a converter's or bus's output; `medium` says what a metered tonne or cubic
    metre holds.
    """

    id: str
    source: str
    target: str
    meter: Meter
    carrier: str
    weight: float = 1.0
    medium: Medium | None = None


class AlertKind(StrEnum):
    LIMIT = "limit"  # a point outside low/high
    MISSING = "missing"  # no good reading of a point for `for_s`


@dataclass(frozen=True, slots=True)
class AlertRule:
    """`alerts.yaml` of the plant folder, and the rules every plant has by itself (missing data of metering points)."""

    id: str
    kind: AlertKind
    point: str
    low: float | None = None
    high: float | None = None
    deadband: float = 0.0  # acts on return only
    on_delay_s: float = 0.0
    off_delay_s: float = 0.0
    for_s: float = 0.0  # missing: silence longer than this
    severity: int = 500  # 1..1000, OPC UA Part 9
    name: Label | None = None


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A source of emissions left out of the inventory on purpose (ISO 14064-1:2018, 5.2.3: with its reason)."""

    what: Label
    scope: int
    reason: Label


@dataclass(frozen=True, slots=True)
class Statement:
    """What people declare about the plant's inventory; `inventory` in plant.yaml.

    Attributes:
        base_year: The year later ones are compared with; `base_year_kgco2e` where it lies before ecmc.
        recalculation_threshold: Share of the base year's emissions from which a change of boundary or method
            re-states it.
        uncertainty: Half of the relative 95 % interval of a factor that does not state its own, by node id,
            factor or fuel id, or `grid`.
    """

    base_year: int | None = None
    base_year_kgco2e: float | None = None
    recalculation_threshold: float = 0.05
    exclusions: tuple[Exclusion, ...] = ()
    uncertainty: Mapping[str, float] = field(default_factory=dict)


SEAL_AFTER_DAYS = 10


@dataclass(frozen=True, slots=True)
class Product:
    """What the plant makes, and how carbon is laid on it; `products` in plant.yaml.

    Attributes:
        nodes: Where it is made: their carbon is its own.
        shared: Nodes whose carbon it bears a part of, with the other products that name them.
        allocation: The declared rule (core.carbon.product.Allocation) by which nodes used by several are split.
        counter: A PLC's or scale's counter of good output, in `unit`; None: output is written down.
        life_cycle_factor: Factor id of its electricity over the life cycle, shown apart; None: not asked for.
        cbam_sector, cn_code: Where it is a good of (EU) 2023/956.
    """

    id: str
    name: Label
    unit: str
    nodes: tuple[str, ...]
    shared: tuple[str, ...] = ()
    allocation: str = "mass"
    counter: str | None = None
    life_cycle_factor: str | None = None
    cbam_sector: str | None = None
    cn_code: str | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """A part of the working day in the plant's zone; it lasts until the next one begins."""

    id: str
    begin_min: int  # after midnight by the clock
    name: Label | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long raw samples stay; results stay for ever.

    Attributes:
        feeding_days: What meters an edge, which results are proven with, and what people brought in.
        other_days: All other points.
        disk_gb: What samples may take (10^9 bytes); above it other points' oldest weeks go sooner. None: half of the
            disk where the database is ours, else no limit.
        compress_after_days: Where the database can; late data is rare by then.
    """

    feeding_days: int = 3660
    other_days: int = 30
    disk_gb: float | None = None
    compress_after_days: int = 14


@dataclass(frozen=True, slots=True)
class Plant:
    """A whole checked plant folder. Tuples keep the folder's order; the maps are for look-up.

    Attributes:
        own_method_sets: Of the folder's `method_sets.csv`, by id.
        documents: The folder's files and the profiles used, packed; `core.plant.archive` reads them again.
        valid_from_ns: Where the folder says from when on this model holds; None: from its adoption.
        seal_after_days: A day's figures close this long after its end.
    """

    id: str
    name: Label
    zone: ZoneInfo
    region: str
    base_interval_s: int
    method_sets: tuple[str, ...]
    areas: tuple[Area, ...]
    connections: tuple[Connection, ...]
    devices: tuple[Device, ...]
    points: tuple[Point, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    alerts: tuple[AlertRule, ...]
    folder: str
    fingerprint: str  # SHA-256 over the folder's files and the profiles used
    gap_after_s: float | None = None  # plant-wide; None: larger of 3 periods and 3 base intervals
    gap_spread: GapSpread = GapSpread.FLAT
    statement: Statement = field(default_factory=Statement)
    products: tuple[Product, ...] = ()
    documents: bytes = field(default=b"", repr=False)
    own_method_sets: Mapping[str, MethodSet] = field(default_factory=dict)
    valid_from_ns: int | None = None
    seal_after_days: int = SEAL_AFTER_DAYS
    retention: Retention = field(default_factory=Retention)
    shifts: tuple[Shift, ...] = ()  # by their beginning; none or at least two
    point_table: PointTable = field(init=False)
    point_by_id: Mapping[str, Point] = field(init=False)
    device_by_id: Mapping[str, Device] = field(init=False)
    connection_by_id: Mapping[str, Connection] = field(init=False)
    node_by_id: Mapping[str, Node] = field(init=False)
    edge_by_id: Mapping[str, Edge] = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "point_table", PointTable(tuple(point.id for point in self.points)))
        put(self, "point_by_id", {point.id: point for point in self.points})
        put(self, "device_by_id", {device.id: device for device in self.devices})
        put(self, "connection_by_id", {connection.id: connection for connection in self.connections})
        put(self, "node_by_id", {node.id: node for node in self.nodes})
        put(self, "edge_by_id", {edge.id: edge for edge in self.edges})
