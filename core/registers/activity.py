"""Activity data written by hand, and what it emits by each method set.

An entry names its amount and what it was (a fuel, a gas let go, a shielding
gas, or a factor it is multiplied with), never its emissions: those follow from
the factors of the method set that asks, so a new GWP set or a supplier's new
value re-states the entry. An amount may also come as a stock balance, opening +
bought - sold - closing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from core.carbon.accounting import blend_gwp, gas_lost_kg, welding_kgco2
from core.carbon.factor_row import GJ_PER_KWH, FactorRow, published_ns, valid_ns
from core.carbon.factors import FactorLibrary
from core.carbon.method import MethodSet, biogenic_kg_per_kwh, combustion_kg_per_kwh, other_gases
from core.errors import BadRequest
from core.registers.book import Entry
from core.registers.process import process_of
from core.results import Scope
from core.units import PER_UNIT

_KG = {"t": 1000.0, "kg": 1.0, "g": 1e-3}
_POWER = ("W", "kW", "MW", "GJ/h")
_FACTOR_UNIT = re.compile(r"(?P<mass>t|kg|g) ?(?P<gas>[A-Z][A-Za-z0-9-]*)?/(?P<per>[^ ]+)(?: (?P<what>.+))?")


class ActivityKind(StrEnum):
    FUEL = "fuel"  # subject: name@set; burned
    GAS = "gas"  # subject: HFC-134a, R410A, SF6, or a blend by mass R32:0.5 R125:0.5; let go
    WELDING = "welding"  # subject: CO2:0.2 Ar:0.8, shares by volume; let go
    FACTOR = "factor"  # subject: a factor id; amount x factor
    PROCESS = "process"  # subject: one of core.registers.process, with its numbers in details


class Spread(StrEnum):
    """How an amount is laid over its period."""

    EVEN = "even"
    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True)
class StockBalance:
    """What is gone, from what was counted and delivered; all in the entry's unit."""

    opening: float
    bought: float
    closing: float
    sold: float = 0.0
    nameplate_change: float = 0.0

    @property
    def gone(self) -> float:
        """Raises BadRequest where more is there than came in."""
        return gas_lost_kg(self.opening, self.bought, self.sold, self.closing, self.nameplate_change)


@dataclass(frozen=True, slots=True)
class Activity:
    """One entry's content.

    Attributes:
        use: What used it (forklifts, canteen), so that two users of one fuel may share a period.
        scope: None: the one that follows from what it is.
        category: Of ISO 14064-1:2018, 1 to 6; None: the one that follows from the scope.
        carrier: Of energy bought by an own factor; empty: electricity where it counts in kWh, else heat.
        details: What a process's formula needs.
        uncertainty: Half of the relative 95 % interval of the amount; None: not stated.
        evidence_sha256: Of the file named; both or neither.
    """

    kind: ActivityKind
    subject: str
    amount: float
    unit: str
    use: str = ""
    scope: int | None = None
    category: int | None = None
    carrier: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    spread: Spread = Spread.EVEN
    uncertainty: float | None = None
    balance: StockBalance | None = None
    evidence_file: str = ""
    evidence_sha256: str = ""
    note: str = ""

    @property
    def line(self) -> str:
        """What may stand only once at a time in the book."""
        return f"{self.kind} {self.subject}" + (f" of {self.use}" if self.use else "")

    def body(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Activity:
        """The activity of an entry's body."""
        balance = body.get("balance")
        typed = {
            "kind": ActivityKind(body["kind"]),
            "spread": Spread(body["spread"]),
            "balance": None if balance is None else StockBalance(**balance),
        }
        return cls(**{**body, **typed})


@dataclass(frozen=True, slots=True)
class ActivityCarbon:
    """What an activity emits by one method set.

    Attributes:
        biogenic_kg: Outside the scopes; kg does not hold it.
        removed_kg: CO2 kept from the air on record; it stands apart and is never subtracted.
        rows: The factor rows used, the one that says how uncertain it is first; none where the composition says it all.
        carrier, energy_kwh: Bought energy (a fuel by NCV); empty and 0 where it is none.
    """

    scope: int
    kg: float
    biogenic_kg: float = 0.0
    removed_kg: float = 0.0
    rows: tuple[FactorRow, ...] = ()
    carrier: str = ""
    energy_kwh: float = 0.0


def activity_carbon(
    activity: Activity,
    start_ns: int,
    known_at_ns: int,
    method: MethodSet,
    zone: ZoneInfo,
    library: FactorLibrary,
) -> ActivityCarbon:
    """Emissions of an activity.

    Args:
        start_ns: Start of its period: a dated factor is taken as of then.
        known_at_ns: Factors published later do not count.

    Raises:
        BadRequest: No such fuel, gas or factor, or a unit that does not fit it.

    Source: GB/T 32150-2015, activity data x emission factor; the formulas of `core.carbon.accounting`.
    """
    if activity.kind is ActivityKind.FUEL:
        fuel = library.fuel(activity.subject)
        kwh = activity.amount * fuel.kwh_per(activity.unit)
        return ActivityCarbon(
            activity.scope or Scope.DIRECT,
            kwh * combustion_kg_per_kwh(fuel, method, library),
            kwh * biogenic_kg_per_kwh(fuel, method),
            rows=(fuel.row, *(row for row, _ in other_gases(fuel, method, library))),
            carrier=activity.subject.partition("@")[0],
            energy_kwh=kwh,
        )
    if activity.kind is ActivityKind.GAS:
        return _gas_carbon(activity, method, library)
    if activity.kind is ActivityKind.WELDING:
        kg = welding_kgco2(_mass_kg(activity), _shares(activity.subject))
        return ActivityCarbon(activity.scope or Scope.DIRECT, kg)
    if activity.kind is ActivityKind.PROCESS:
        return _process_carbon(activity, method, library)
    row = _row_at(activity.subject, start_ns, known_at_ns, zone, library)
    kg = activity.amount * _kg_per_unit(row, activity.unit, method, library)
    scope = activity.scope or _scope_of(row)
    if scope != Scope.ENERGY_INDIRECT or activity.unit not in PER_UNIT:
        return ActivityCarbon(scope, kg, rows=(row,))
    told = row.quantity if row.quantity in ("electricity", "heat") else ""
    carrier = activity.carrier or told or ("electricity" if activity.unit.endswith("Wh") else "heat")
    if activity.scope is None and carrier != "electricity" and method.heat_is_direct:
        scope = Scope.DIRECT
    return ActivityCarbon(
        scope, kg, rows=(row,), carrier=carrier, energy_kwh=activity.amount * PER_UNIT[activity.unit]
    )


def _gas_carbon(activity: Activity, method: MethodSet, library: FactorLibrary) -> ActivityCarbon:
    scope = activity.scope or Scope.DIRECT
    if ":" in activity.subject:
        shares = _shares(activity.subject)
        gwp = blend_gwp(shares, method.gwp_set, library)
        rows = tuple(library.gwp_row(gas, method.gwp_set) for gas in shares)
        return ActivityCarbon(scope, _mass_kg(activity) * gwp, rows=rows)
    row = library.gwp_row(activity.subject, method.gwp_set)
    return ActivityCarbon(scope, _mass_kg(activity) * row.value, rows=(row,))


def _process_carbon(activity: Activity, method: MethodSet, library: FactorLibrary) -> ActivityCarbon:
    process = process_of(activity.subject, activity.details)
    if process.unit and activity.unit != process.unit:
        raise BadRequest(
            f"{activity.line}: unit {activity.unit!r} does not fit, the formula counts in {process.unit}"
        )
    kg = process.kg(activity.amount, activity.details, method, library)
    scope = activity.scope or process.scope
    rows = process.rows(activity.details, method, library)
    if process.apart:
        return ActivityCarbon(scope, 0.0, removed_kg=kg, rows=rows)
    if process.heat_gj is None:
        return ActivityCarbon(scope, kg, rows=rows)
    if activity.scope is None and method.heat_is_direct:
        scope = Scope.DIRECT
    heat_kwh = process.heat_gj(activity.amount, activity.details, library) / GJ_PER_KWH
    return ActivityCarbon(scope, kg, rows=rows, carrier="heat", energy_kwh=heat_kwh)


def spread_over(entry: Entry, spread: Spread, start_ns: int, end_ns: int) -> float:
    """Share of an entry that falls into [start, end), 0..1."""
    if spread is Spread.EVEN:
        return entry.part_in(start_ns, end_ns)
    at_ns = entry.start_ns if spread is Spread.START else entry.end_ns - 1
    return 1.0 if start_ns <= at_ns < end_ns else 0.0


def _mass_kg(activity: Activity) -> float:
    if activity.unit not in _KG:
        raise BadRequest(
            f"{activity.line}: unit {activity.unit!r} does not fit, wanted one of {', '.join(_KG)}"
        )
    return activity.amount * _KG[activity.unit]


def _shares(text: str) -> dict[str, float]:
    """`CO2:0.2 Ar:0.8`, by volume for welding, by mass for a blend."""
    try:
        return {gas: float(share) for gas, share in (part.split(":") for part in text.split())}
    except ValueError:
        raise BadRequest(f"{text!r}: wanted gases with their shares like CO2:0.2 Ar:0.8") from None


def _row_at(
    subject: str, start_ns: int, known_at_ns: int, zone: ZoneInfo, library: FactorLibrary
) -> FactorRow:
    """The row of that id, or of a series the newest one that had begun at the start and was known."""
    if subject in library.row_by_id:
        return library.row_by_id[subject]
    rows = library.series.get(subject, ())
    if not rows:
        raise BadRequest(f"no factor {subject!r} in the library")
    in_force = [
        row
        for row in rows
        if (row.valid_from is None or valid_ns(row.valid_from, zone) <= start_ns)
        and (row.valid_to is None or start_ns < valid_ns(row.valid_to, zone))
        and (row.published is None or published_ns(row.published, zone) <= known_at_ns)
    ]
    if not in_force:
        raise BadRequest(f"factor {subject}: no value was in force and known at the start of the period")

    def newest(row: FactorRow) -> tuple[int, int]:
        begun = 0 if row.valid_from is None else valid_ns(row.valid_from, zone)
        return begun, 0 if row.published is None else published_ns(row.published, zone)

    return max(in_force, key=newest)


def units_of_factor(row: FactorRow) -> tuple[str, ...]:
    """Units an amount can come in that is multiplied with a factor row, its own first.

    Raises:
        BadRequest: The row is no emission per amount.
    """
    _, per, what = _parts_of_unit(row)
    alike = next((units for units in (_KG, PER_UNIT) if per in units), {per: 1.0})
    own = f"{per} {what}" if what else per
    return tuple(dict.fromkeys([own, *(unit for unit in alike if unit not in _POWER)]))


def _kg_per_unit(row: FactorRow, unit: str, method: MethodSet, library: FactorLibrary) -> float:
    """kgCO2e of one `unit` by a factor row."""
    (mass, named), per, what = _parts_of_unit(row)
    gas = named or row.gas or "CO2e"
    bare = unit.removesuffix(f" {what}") if what else unit
    if bare == per:
        amount = 1.0
    elif bare in _KG and per in _KG:
        amount = _KG[bare] / _KG[per]
    elif bare in PER_UNIT and per in PER_UNIT:
        amount = PER_UNIT[bare] / PER_UNIT[per]
    else:
        raise BadRequest(f"factor {row.id} is per {per}: unit {unit!r} does not fit")
    warming = 1.0 if gas in ("CO2", "CO2e") else library.gwp(gas, method.gwp_set)
    return row.value * amount * _KG[mass] * warming


def _parts_of_unit(row: FactorRow) -> tuple[tuple[str, str | None], str, str | None]:
    """(mass, gas), per and of what: `tCO2/t limestone` is (t, CO2), t and limestone."""
    parts = _FACTOR_UNIT.fullmatch(row.unit)
    if parts is None or parts["per"] not in {*_KG, *PER_UNIT, "m3", "Nm3"}:
        raise BadRequest(f"factor {row.id} is in {row.unit}: an amount cannot be multiplied with it")
    return (parts["mass"], parts["gas"]), parts["per"], parts["what"]


def _scope_of(row: FactorRow) -> int:
    if "life cycle" in row.quantity or row.kind == "footprint_lifecycle" or row.quantity == "material":
        return Scope.VALUE_CHAIN
    energy = row.quantity in ("electricity", "heat", "supplied energy")
    return Scope.ENERGY_INDIRECT if energy else Scope.DIRECT
