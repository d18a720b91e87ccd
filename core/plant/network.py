"""The energy network of a plant folder: nodes, edges, what meters them, and what cannot be meant."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from core.carbon.factors import FactorLibrary
from core.errors import BadRequest
from core.plant.document import Entry, did_you_mean
from core.plant.formula import Formula, divides_by_zero, parse_formula
from core.plant.medium import read_allocation, read_medium, weight_of
from core.plant.model import (
    Area,
    Device,
    Edge,
    FormulaMeter,
    Kind,
    Meter,
    Node,
    NodeKind,
    Origin,
    Point,
    PointMeter,
    RemainderMeter,
    Role,
)
from core.plant.tariff import read_tariff
from core.results import SITE
from core.units import PER_UNIT

ID: Final = re.compile(r"[a-z0-9][a-z0-9_\-]*")

_HEAT: Final = ("heat", "steam", "hot_water", "chilled_water", "cooling", "waste_heat")
_GASES: Final = ("compressed_air", "hydrogen", "oxygen", "nitrogen", "argon", "co2", "ammonia", "methanol")
_MORE_FUELS: Final = ("gas", "coal", "raw_coal", "biomass", "biogas", "wood", "waste")

# What may meter a carrier, best first: (units of registers, units of rates).
_UNITS: Final = {
    "electricity": (("kWh",), ("kW",)),
    "heat": (("GJ", "kWh", "t"), ("kW", "t/h")),
    "amount": (("Nm3", "t", "kWh", "GJ"), ("Nm3/h", "t/h", "kW")),
}


# The power that belongs to a register, best first.
_POWERS: Final[Mapping[str, tuple[str, ...]]] = {
    # A hybrid inverter's import and export are the grid's, and so is its grid_power; its own power is another.
    "active_energy_import_total": ("grid_power", "active_power_total"),
    "active_energy_export_total": ("grid_power", "active_power_total"),
    "active_energy_total": ("active_power_total",),
    "active_energy_yield_total": ("active_power_total", "dc_power_total"),
    "battery_charge_energy_total": ("battery_power",),
    "battery_discharge_energy_total": ("battery_power",),
    "heat_energy_total": ("heat_power",),
    "mass_total": ("flow_mass",),
    "volume_std_total": ("flow_volume_std",),
} | {
    f"active_energy_{way}_{phase}": (f"active_power_{phase}",)
    for way in ("import", "export")
    for phase in ("l1", "l2", "l3")
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The measuring side as the network sees it.

    Attributes:
        preferred: Points that are the better copies of their quantities.
        unread: Devices and points that are there but faulty: what needs them is not a fault of its own.
    """

    devices: Mapping[str, Device]
    points: Mapping[str, Point]
    preferred: frozenset[str]
    unread: frozenset[str]

    def is_unread(self, name: str) -> bool:
        """The name is, or as a point belongs to, something faulty."""
        return name in self.unread or (name not in self.points and name.partition(".")[0] in self.unread)


@dataclass(slots=True)
class _Draft:
    """An edge as far as it could be read; an end that does not exist is empty."""

    entry: Entry
    id: str
    source: Node | None
    target: Node | None
    carrier: str = ""
    meter: Meter | None = None


def region_codes(factors: FactorLibrary) -> set[str]:
    """Every region a grid factor can be asked for: of China its levels, of the world its countries."""
    grid = {row.region for row in factors.rows if row.series.partition(":")[0] in ("grid_cn", "grid_world")}
    return {"CN", *grid, *factors.grid_region_of, *factors.grid_region_of.values()} - {""}


def read_nodes(
    network: Entry, areas: Mapping[str, Area], measured: Measured, factors: FactorLibrary
) -> list[Node]:
    """The nodes that could be read; duplicates and what a kind cannot have are faults."""
    nodes: dict[str, Node] = {}
    for entry in network.children("nodes", "node"):
        node = _node(entry, areas, measured, factors)
        if node.id in nodes:
            entry.fault("id", f"id {node.id!r} stands twice")
        elif node.id:
            nodes[node.id] = node
    return list(nodes.values())


def _node(entry: Entry, areas: Mapping[str, Area], measured: Measured, factors: FactorLibrary) -> Node:
    points = measured.points
    node_id = checked_id(entry)
    if node_id == SITE:
        entry.fault("id", f"id {SITE!r} stands for the whole plant, choose another")
    kind_text = entry.text("kind", required=True, choices=[kind.value for kind in NodeKind])
    kind = NodeKind(kind_text or NodeKind.BUS)  # a faulty kind raises no second fault as a bus
    origin = entry.text("origin", choices=[origin.value for origin in Origin])
    area = entry.text("area")
    if area and area not in areas:
        entry.fault("area", f"unknown area {area!r}{did_you_mean(area, areas)}")
    soc = entry.text("soc")
    if soc and measured.is_unread(soc):
        pass
    elif soc and soc not in points:
        entry.fault("soc", f"unknown point {soc!r}{did_you_mean(soc, points)}")
    elif soc and points[soc].unit != "%":
        entry.fault("soc", f"point {soc} is in {points[soc].unit}, a state of charge is in %")
    node = Node(
        id=node_id,
        kind=kind,
        carrier=_carrier(entry, "carrier", factors),
        origin=Origin(origin) if origin else None,
        factor=_factor(entry),
        fuel=_fuel(entry, factors),
        burns=_carrier(entry, "burns", factors),
        area=area or None,
        name=entry.label("name"),
        capacity_kwh=entry.number("capacity_kwh", None, above=0),
        charge_efficiency=entry.number("charge_efficiency", 1.0, above=0, most=1),
        discharge_efficiency=entry.number("discharge_efficiency", 1.0, above=0, most=1),
        standing_loss_kw=entry.number("standing_loss_kw", 0.0, least=0),
        soc=soc or None,
        allocation=read_allocation(entry),
        efficiency=entry.number("efficiency", None, above=0, most=10),
        no_load_kw=entry.number("no_load_kw", 0.0, least=0),
        tariff=read_tariff(entry),
        non_fossil_share=entry.number("non_fossil_share", None, least=0, most=1),
    )
    entry.finish()
    if kind_text:
        _check_kind(entry, node, factors)
    return node


_ONLY: Final[Mapping[str, tuple[NodeKind, ...]]] = {
    "origin": (NodeKind.SOURCE,),
    "factor": (NodeKind.SOURCE,),
    "fuel": (NodeKind.SOURCE,),
    "burns": (NodeKind.CONVERTER, NodeKind.LOAD),
    "capacity_kwh": (NodeKind.STORAGE,),
    "charge_efficiency": (NodeKind.STORAGE,),
    "discharge_efficiency": (NodeKind.STORAGE,),
    "standing_loss_kw": (NodeKind.STORAGE,),
    "soc": (NodeKind.STORAGE,),
    "allocation": (NodeKind.CONVERTER,),
    "efficiency": (NodeKind.CONVERTER,),
    "no_load_kw": (NodeKind.CONVERTER,),
    "tariff": (NodeKind.SOURCE,),
    "non_fossil_share": (NodeKind.SOURCE,),
}


def _check_kind(entry: Entry, node: Node, factors: FactorLibrary) -> None:
    for key, kinds in _ONLY.items():
        if entry.has(key) and node.kind not in kinds:
            wanted = " or ".join(kind.value for kind in kinds)
            entry.fault(key, f"{key} belongs to a {wanted}, this is a {node.kind.value}")
    if node.kind in (NodeKind.SOURCE, NodeKind.BUS, NodeKind.STORAGE) and not entry.has("carrier"):
        entry.fault(None, f"a {node.kind.value} names its carrier")
    if node.kind is NodeKind.SOURCE:
        if not entry.has("origin"):
            entry.fault(None, "a source names its origin: purchased, own or direct-line")
        if not entry.has("factor") and not entry.has("fuel"):
            entry.fault(None, "a source needs a factor (grid, a factor id, or kg per kWh) or a fuel")
        if entry.has("factor") and entry.has("fuel"):
            entry.fault("factor", "a source has a factor or a fuel, not both: its carbon would count twice")
        against = None if node.factor is None else factors.reason_against(node.factor, node.carrier or "")
        if against and entry.has("carrier"):
            entry.fault("factor", against)
    if node.kind is NodeKind.STORAGE and not entry.has("capacity_kwh"):
        entry.fault(None, "a storage states its capacity_kwh")


def _carrier(entry: Entry, key: str, factors: FactorLibrary) -> str | None:
    carrier = entry.text(key)
    known = {
        "electricity",
        *_HEAT,
        *_GASES,
        *_MORE_FUELS,
        *(fuel.partition("@")[0] for fuel in factors.fuels),
    }
    if carrier and carrier not in known:
        hint = did_you_mean(carrier, known) or f", wanted one of {', '.join(sorted(known))}"
        entry.fault(key, f"unknown carrier {carrier!r}{hint}")
    return carrier or None


def _factor(entry: Entry) -> str | float | None:
    value = entry.value("factor")
    if isinstance(value, str):
        return value
    return entry.number("factor", None, least=0)


def _fuel(entry: Entry, factors: FactorLibrary) -> str | None:
    fuel = entry.text("fuel")
    if fuel:
        try:
            factors.fuel(fuel)
        except BadRequest as why:
            entry.fault("fuel", f"{why}{did_you_mean(fuel, factors.fuels)}")
    return fuel or None


def checked_id(entry: Entry) -> str:
    """The mapping's id, which names it everywhere: small letters, digits, `-` and `_`."""
    value = entry.text("id", required=True)
    if value and not ID.fullmatch(value):
        entry.fault("id", f"id {value!r}: wanted small letters, digits, '-' and '_', a letter or digit first")
    return value


def read_edges(
    network: Entry, nodes: Mapping[str, Node], measured: Measured, factors: FactorLibrary
) -> list[Edge]:
    """The edges, their meters resolved; the faults of the network as a whole are noted."""
    drafts: dict[str, _Draft] = {}
    for entry in network.children("edges", "edge"):
        draft = _draft(entry, nodes, factors)
        if draft.id in drafts:
            entry.fault("id", f"id {draft.id!r} stands twice")
        elif draft.id:
            drafts[draft.id] = draft
    for draft in drafts.values():
        _resolve_meter(draft, drafts, measured)
    _place_remainders(drafts)
    network.finish()
    edges = [
        Edge(
            draft.id,
            draft.source.id if draft.source else "",
            draft.target.id if draft.target else "",
            draft.meter,
            draft.carrier,
            draft.entry.number("weight", weight_of(draft.source, draft.carrier, draft.entry), above=0),
            read_medium(draft.entry, draft.carrier, _meter_unit(draft, measured), measured.points),
        )
        for draft in drafts.values()
        if draft.meter is not None
    ]
    for draft in drafts.values():
        draft.entry.skip("weight", "medium")
        draft.entry.finish()
    whole = [draft for draft in drafts.values() if draft.source and draft.target]
    _check_amounts(drafts.values(), nodes, measured, factors)
    _check_cycles(drafts)
    _check_twice(drafts, nodes)
    if len(whole) == len(drafts):
        _check_shape(network, nodes, whole)
    return edges


def _draft(entry: Entry, nodes: Mapping[str, Node], factors: FactorLibrary) -> _Draft:
    ends: list[Node | None] = []
    for key in ("from", "to"):
        name = entry.text(key, required=True)
        if name and name not in nodes:
            entry.fault(key, f"edge to a missing node {name!r}{did_you_mean(name, nodes)}")
        ends.append(nodes.get(name))
    source, target = ends
    if source and target:
        if source is target:
            entry.fault("to", f"runs from {source.id} to itself")
        if source.kind in (NodeKind.LOAD, NodeKind.EXPORT):
            entry.fault("from", f"{source.id} is a {source.kind.value}, nothing leaves it")
        if target.kind is NodeKind.SOURCE:
            entry.fault("to", f"{target.id} is a source, nothing enters it (feed-in goes to an export node)")
    draft = _Draft(entry, checked_id(entry), source, target)
    draft.carrier = _edge_carrier(draft, _carrier(entry, "carrier", factors))
    return draft


def _edge_carrier(draft: _Draft, own: str | None) -> str:
    """The one carrier both ends agree on; a converter says nothing unless nobody else does."""
    entry, source, target = draft.entry, draft.source, draft.target
    given = {own: "the edge"} if own else {}
    for node in (source, target):
        if node and node.carrier and node.kind is not NodeKind.CONVERTER:
            given.setdefault(node.carrier, node.id)
    if len(given) > 1:
        said = ", ".join(f"{who} says {carrier}" for carrier, who in given.items())
        entry.fault(None, f"its ends differ in carrier: {said}")
    if given:
        return next(iter(given))
    for node in (source, target):
        if node and node.carrier:
            return node.carrier
    if source and target:
        entry.fault(None, f"no end says what it carries: add carrier to {target.id} or to the edge")
    return ""


def _resolve_meter(draft: _Draft, drafts: Mapping[str, _Draft], measured: Measured) -> None:
    entry = draft.entry
    direction = entry.text("direction", "", choices=("import", "export"))
    value = entry.value("meter")
    if value is None:
        entry.fault(None, "meter is missing: a device, a point, remainder, or a formula that begins with =")
        return
    if not isinstance(value, str):
        entry.fault("meter", f"meter is {value!r}, wanted text (a formula begins with =)")
        return
    text = str(value).strip()
    if text == "remainder" or text.startswith("="):
        if direction:
            entry.fault("direction", "direction is for an edge metered by a device or a point")
        draft.meter = _formula(draft, text, drafts) if text != "remainder" else None
    elif measured.is_unread(text):
        return
    elif text in measured.devices:
        draft.meter = _device_meter(draft, measured.devices[text], direction, measured)
    elif text in measured.points:
        draft.meter = _point_meter(draft, measured.points[text], direction, measured)
    else:
        known = {*measured.devices, *measured.points, "remainder"}
        hint = did_you_mean(text, known)
        entry.fault("meter", f"unknown device or point {text!r}{hint}")


def _place_remainders(drafts: Mapping[str, _Draft]) -> None:
    """Give every remainder the node that tells it: a bus at one of its ends, or a converter; each node tells one.

    An edge with one choice goes before those with two.
    """
    choices: dict[str, list[str]] = {}
    for draft in drafts.values():
        if draft.source and draft.target and draft.entry.data.get("meter") == "remainder":
            ends = (draft.source, draft.target)
            # A converter's balance holds its losses, so a bus tells better.
            tell = [
                node.id for kind in (NodeKind.BUS, NodeKind.CONVERTER) for node in ends if node.kind is kind
            ]
            choices[draft.id] = tell
            if not tell:
                names = f"{draft.source.id} and {draft.target.id} are none"
                draft.entry.fault("meter", f"a remainder needs a bus or converter at an end; {names}")
    taken: dict[str, str] = {}
    for edge, tell in sorted(choices.items(), key=lambda item: len(item[1])):
        node = next((node for node in tell if node not in taken), None)
        if node is not None:
            taken[node] = edge
            drafts[edge].meter = RemainderMeter(node)
        elif tell:
            others = ", ".join(f"node {node} leaves {taken[node]} already" for node in tell)
            drafts[edge].entry.fault("meter", f"at most one remainder a node: {others}")


def _formula(draft: _Draft, text: str, drafts: Mapping[str, _Draft]) -> FormulaMeter | None:
    try:
        formula = parse_formula(text)
    except ValueError as why:
        draft.entry.fault("meter", str(why))
        return None
    if not formula.edges:
        draft.entry.fault("meter", f"formula {text!r} reads no edge: it would be the same in every interval")
    elif divides_by_zero(formula):
        draft.entry.fault("meter", f"formula {text!r} divides by zero")
    for edge in formula.edges:
        if edge not in drafts:
            draft.entry.fault("meter", f"formula reads unknown edge {edge!r}{did_you_mean(edge, drafts)}")
    return FormulaMeter(formula)


def _device_meter(draft: _Draft, device: Device, direction: str, measured: Measured) -> PointMeter | None:
    by_quantity: dict[str, Point] = {}
    for point_id in device.points:
        point = measured.points[point_id]
        if point.quantity not in by_quantity or point_id in measured.preferred:
            by_quantity[point.quantity] = point
    ways = _ways(draft, direction)
    for register, way in ways:
        if register in by_quantity:
            power = next((by_quantity[name].id for name in _POWERS[register] if name in by_quantity), None)
            return PointMeter(by_quantity[register].id, Role.REGISTER, way, power)
    for register, way in ways:
        for name in _POWERS[register]:
            if name in by_quantity:
                return PointMeter(by_quantity[name].id, Role.POWER, way, by_quantity[name].id)
    wanted = dict.fromkeys([*(register for register, _ in ways), *(_POWERS[ways[0][0]])])
    has = ", ".join(by_quantity) or "no point"
    draft.entry.fault(
        "meter",
        f"device {device.id} measures no {draft.carrier or 'energy'}"
        f"{' exported' if direction == 'export' else ''}: wanted {' or '.join(wanted)}, it has {has}",
    )
    return None


def _ways(draft: _Draft, direction: str) -> list[tuple[str, str]]:
    """Registers that can meter the edge, best first, each with its direction in terms of the meter's power."""
    family = _family(draft.carrier)
    if family == "heat":
        return [(name, direction or "import") for name in ("heat_energy_total", "mass_total")]
    if family == "amount":
        names = ("volume_std_total", "mass_total", "heat_energy_total")
        return [(name, direction or "import") for name in names]
    ways = []
    # A battery's power is positive while it discharges, so what charges it is that power's export.
    if draft.target and draft.target.kind is NodeKind.STORAGE:
        ways.append(("battery_charge_energy_total", "export"))
    if draft.source and draft.source.kind is NodeKind.STORAGE:
        ways.append(("battery_discharge_energy_total", "import"))
    if direction == "export":
        return [*ways, ("active_energy_export_total", "export")]
    registers = ["active_energy_import_total", "active_energy_yield_total", "active_energy_total"]
    if draft.source and draft.source.kind is NodeKind.SOURCE and draft.source.origin is Origin.OWN:
        # A hybrid inverter's import register is the grid's, not the roof's.
        registers.sort(key=lambda name: name != "active_energy_yield_total")
    return [*ways, *((name, "import") for name in registers)]


def _family(carrier: str) -> str:
    if carrier == "electricity":
        return carrier
    return "heat" if carrier in _HEAT else "amount"


def _point_meter(draft: _Draft, point: Point, direction: str, measured: Measured) -> PointMeter | None:
    entry = draft.entry
    natural = _natural_direction(point.quantity)
    if direction and natural and direction != natural and point.quantity.startswith("active_energy"):
        entry.fault("direction", f"direction is {direction}, but {point.id} counts {natural}")
    registers, rates = _UNITS[_family(draft.carrier)]
    if point.kind is Kind.COUNTER_DAILY:
        entry.fault("meter", f"point {point.id} starts again every day; take the meter's total register")
        return None
    if point.kind not in (Kind.COUNTER, Kind.GAUGE):
        entry.fault("meter", f"point {point.id} is a {point.kind.value}, no energy")
        return None
    role = Role.REGISTER if point.kind is Kind.COUNTER else Role.POWER
    units = registers if role is Role.REGISTER else rates
    # A medium says what its unit holds.
    if draft.carrier and point.unit not in units and not entry.has("medium"):
        hint = " (working conditions; convert to Nm3 by scale)" if point.unit in ("m3", "m3/h") else ""
        entry.fault(
            "meter",
            f"point {point.id} is in {point.unit}{hint}, which does not meter {draft.carrier}: "
            f"wanted {', '.join((*registers, *rates))}",
        )
        return None
    if role is Role.POWER:
        return PointMeter(point.id, role, direction or "import", point.id)
    direction = natural or direction or "import"
    return PointMeter(point.id, role, direction, _power_beside(point, measured))


def _natural_direction(quantity: str) -> str:
    """The direction, in terms of the meter's power, a register counts by its very name; empty where it has none."""
    if quantity.startswith("active_energy_export") or quantity == "battery_charge_energy_total":
        return "export"
    if quantity.startswith("active_energy_import") or quantity == "battery_discharge_energy_total":
        return "import"
    return ""


def _power_beside(register: Point, measured: Measured) -> str | None:
    device = measured.devices.get(register.device or "")
    names = _POWERS.get(register.quantity, ())
    beside = {measured.points[point_id].quantity: point_id for point_id in (device.points if device else ())}
    return next((beside[name] for name in names if name in beside), None)


def _meter_unit(draft: _Draft, measured: Measured) -> str:
    meter = draft.meter
    return measured.points[meter.point].unit.removesuffix("/h") if isinstance(meter, PointMeter) else ""


def _check_amounts(
    drafts: Iterable[_Draft], nodes: Mapping[str, Node], measured: Measured, factors: FactorLibrary
) -> None:
    """Tonnes and cubic metres meter energy only where a fuel's calorific value or steam's enthalpy is known."""
    fuel_of: dict[str | None, str] = {}
    for node in nodes.values():
        if node.kind is NodeKind.SOURCE and node.fuel and node.fuel in factors.fuels:
            fuel_of.setdefault(node.carrier, node.fuel)
    for draft in drafts:
        if isinstance(draft.meter, PointMeter):
            fuel = fuel_of.get(draft.carrier)
            meter, point = draft.meter, measured.points[draft.meter.point]
            if draft.entry.has("medium"):
                continue
            against = _reason_against(point.unit, draft.carrier, fuel, factors)
            if against:
                draft.entry.fault("meter", f"point {point.id} is in {point.unit}: {against}")
            elif meter.power_point and _reason_against(
                measured.points[meter.power_point].unit, draft.carrier, fuel, factors
            ):
                draft.meter = replace(meter, power_point=None)


def _reason_against(unit: str, carrier: str, fuel: str | None, factors: FactorLibrary) -> str | None:
    """Why a unit says nothing of the carrier's kWh; None where it does."""
    amount = unit.removesuffix("/h")
    if unit in PER_UNIT or (amount == "t" and carrier == "steam" and not fuel):
        return None
    if not fuel:
        return f"nothing of kWh while no source of {carrier} names a fuel; meter energy or power"
    try:
        factors.fuel(fuel).kwh_per(amount)
    except BadRequest as why:
        return str(why)
    return None


def _check_cycles(drafts: Mapping[str, _Draft]) -> None:
    """No edge is computed from itself, by formulas or by the remainders they pass through."""
    reads: dict[str, list[str]] = {}
    at_node: dict[str, list[str]] = defaultdict(list)
    for draft in drafts.values():
        for node in (draft.source, draft.target):
            if node:
                at_node[node.id].append(draft.id)
    for draft in drafts.values():
        if isinstance(draft.meter, FormulaMeter):
            reads[draft.id] = [edge for edge in draft.meter.formula.edges if edge in drafts]
        elif isinstance(draft.meter, RemainderMeter):
            reads[draft.id] = [edge for edge in at_node[draft.meter.node] if edge != draft.id]

    done: set[str] = set()
    for start in reads:
        path: list[str] = []
        todo: list[tuple[str, int]] = [(start, 0)]
        while todo:  # depth first, without recursion: a folder may be as deep as it likes
            edge, depth = todo.pop()
            del path[depth:]
            if edge in path:
                cycle = path[path.index(edge) :]
                drafts[cycle[0]].entry.fault(
                    "meter", f"is computed from itself: {' reads '.join((*cycle, cycle[0]))}"
                )
                done.update(cycle)
                break
            if edge in done:
                continue
            path.append(edge)
            todo.extend((read, depth + 1) for read in reads.get(edge, ()))
        done.update(path)


def _check_twice(drafts: Mapping[str, _Draft], nodes: Mapping[str, Node]) -> None:
    """No meter is counted twice: not on two edges, not main and sub together in one formula."""
    first: dict[tuple[str, str], _Draft] = {}
    for draft in drafts.values():
        if not isinstance(draft.meter, PointMeter):
            continue
        meter = draft.meter
        marks = {(meter.point, meter.direction if meter.role is Role.POWER else "")}
        if meter.power_point:
            marks.add((meter.power_point, meter.direction))
        other = next((first[mark] for mark in marks if mark in first), None)
        if other is not None and isinstance(other.meter, PointMeter):
            line = other.entry.place("meter").line
            draft.entry.fault(
                "meter",
                f"{meter.point} meters edge {other.id} (line {line}) already: one meter on one summation path; "
                f"where the same energy is meant, write '= {other.id}'",
            )
        for mark in marks:
            first.setdefault(mark, draft)
    reach = _Reach(nodes, [draft for draft in drafts.values() if draft.source and draft.target])
    for draft in drafts.values():
        if isinstance(draft.meter, FormulaMeter):
            _check_sum(draft, draft.meter.formula, drafts, reach)


def _check_sum(draft: _Draft, formula: Formula, drafts: Mapping[str, _Draft], reach: _Reach) -> None:
    shares = _shares(formula)
    if shares is None:
        return
    twice = [edge for edge, n in Counter(formula.postfix).items() if n > 1 and edge in formula.edges]
    for edge in twice:
        draft.entry.fault("meter", f"formula reads {edge} twice")
    added = [edge for edge in formula.edges if shares.get(edge, 0.0) > 0 and edge in drafts]
    for main in added:
        for sub in added:
            if main != sub and shares[main] == shares[sub] and reach.is_below(drafts[main], drafts[sub]):
                draft.entry.fault(
                    "meter", f"formula adds {main} and {sub}, which flows out of it: main and sub count twice"
                )


def _shares(formula: Formula) -> dict[str, float] | None:
    """What each edge is multiplied by where the formula is a weighted sum; None where it is not."""
    stack: list[tuple[float, dict[str, float]]] = []
    for item in formula.postfix:
        if isinstance(item, float):
            stack.append((item, {}))
        elif item == "neg":
            constant, shares = stack.pop()
            stack.append((-constant, {edge: -share for edge, share in shares.items()}))
        elif item not in ("+", "-", "*", "/"):
            stack.append((0.0, {item: 1.0}))
        else:
            (right, right_shares), (left, left_shares) = stack.pop(), stack.pop()
            if item in ("+", "-"):
                sign = 1.0 if item == "+" else -1.0
                both = dict(left_shares)
                for edge, share in right_shares.items():
                    both[edge] = both.get(edge, 0.0) + sign * share
                stack.append((left + sign * right, both))
            elif (right_shares and (left_shares or item == "/")) or (item == "/" and right == 0):
                return None
            else:
                by = right if not right_shares else left
                by = 1 / by if item == "/" else by
                shares = left_shares or right_shares
                stack.append((left * right, {edge: share * by for edge, share in shares.items()}))
    return stack.pop()[1]


class _Reach:
    """Which nodes energy can flow on to; a storage ends a path, or everything would lie below everything."""

    def __init__(self, nodes: Mapping[str, Node], drafts: Iterable[_Draft]) -> None:
        self._next: dict[str, set[str]] = defaultdict(set)
        for draft in drafts:
            if draft.source and draft.target and draft.source.kind is not NodeKind.STORAGE:
                self._next[draft.source.id].add(draft.target.id)
        self._nodes = nodes

    def below(self, node: str) -> set[str]:
        """The node and everything energy flows on to from it."""
        seen, todo = {node}, [node]
        while todo:
            for further in self._next[todo.pop()] - seen:
                seen.add(further)
                todo.append(further)
        return seen

    def is_below(self, main: _Draft, sub: _Draft) -> bool:
        """`sub` is fed by what `main` brings, and not the other way round as well."""
        if not (main.source and main.target and sub.source and sub.target):
            return False
        down = sub.source.id in self.below(main.target.id)
        return down and main.source.id not in self.below(sub.target.id)


def _check_shape(network: Entry, nodes: Mapping[str, Node], drafts: list[_Draft]) -> None:
    entries = {str(entry.data.get("id")): entry for entry in network.children("nodes", "node")}
    into: dict[str, list[_Draft]] = defaultdict(list)
    out_of: dict[str, list[_Draft]] = defaultdict(list)
    for draft in drafts:
        if draft.source and draft.target:
            out_of[draft.source.id].append(draft)
            into[draft.target.id].append(draft)
    fed = _fed(nodes, out_of)
    burned = {node.carrier for node in nodes.values() if node.kind is NodeKind.SOURCE and node.fuel}
    for node in nodes.values():
        entry = entries[node.id]
        if not into[node.id] and not out_of[node.id]:
            entry.fault(None, "no edge touches it")
            continue
        if node.kind in (NodeKind.LOAD, NodeKind.EXPORT) and node.id not in fed:
            entry.fault(None, f"this {node.kind.value} cannot be reached from any source")
        elif node.kind is not NodeKind.SOURCE and not into[node.id]:
            entry.fault(None, f"nothing flows into this {node.kind.value}")
        if node.kind is NodeKind.STORAGE:
            for draft in (*into[node.id], *out_of[node.id]):
                own = {edge.id for edge in (*into[node.id], *out_of[node.id])}
                if isinstance(draft.meter, RemainderMeter):
                    draft.entry.fault(
                        "meter", f"storage {node.id} needs an energy meter here, not a remainder"
                    )
                elif isinstance(draft.meter, FormulaMeter) and own.issuperset(draft.meter.formula.edges):
                    draft.entry.fault(
                        "meter", f"storage {node.id} needs an energy meter here, not a share of its own flow"
                    )
        if node.burns and node.burns not in {draft.carrier for draft in into[node.id]}:
            entry.fault("burns", f"burns {node.burns}, but no edge brings it any")
        elif node.burns and node.burns not in burned:
            entry.fault("burns", f"burns {node.burns}, but no source of {node.burns} names a fuel")


def _fed(nodes: Mapping[str, Node], out_of: Mapping[str, list[_Draft]]) -> set[str]:
    todo = [node.id for node in nodes.values() if node.kind is NodeKind.SOURCE]
    seen = set(todo)
    while todo:
        for draft in out_of.get(todo.pop(), ()):
            if draft.target and draft.target.id not in seen:
                seen.add(draft.target.id)
                todo.append(draft.target.id)
    return seen
