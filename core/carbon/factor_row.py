"""One emission factor or coefficient as it was published: what it says, of when, known since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from core.clock import parse_rfc3339, time_ns_of
from core.errors import BadRequest

UNKNOWN = "memory"  # confidence of a row nobody has compared with a document yet
C_TO_CO2 = 44 / 12
GJ_PER_KWH = 0.0036
NORMAL_PER_20C = 273.15 / 293.15  # Nm3 (0 degC) in one m3 at 20 degC, both at 101.325 kPa

# What one unit of a factor is in kg per kWh; a unit that stands here can be a source's factor.
KG_PER_KWH = {
    "kgCO2/kWh": 1.0,
    "kgCO2e/kWh": 1.0,
    "gCO2/kWh": 1e-3,
    "gCO2e/kWh": 1e-3,
    "tCO2/MWh": 1.0,
    "tCO2e/MWh": 1.0,
    "kgCO2/MWh": 1e-3,
    "kgCO2e/MWh": 1e-3,
    "tCO2/GJ": 1000 * GJ_PER_KWH,
    "tCO2e/GJ": 1000 * GJ_PER_KWH,
    "kgCO2/GJ": GJ_PER_KWH,
    "kgCO2e/GJ": GJ_PER_KWH,
}


@dataclass(frozen=True, slots=True)
class FactorRow:
    """One row of a table, as published.

    Attributes:
        id: Stable, `table:key`, e.g. `grid_cn:CN-CQ:2023:average`.
        series: What the row is one dated value of, e.g. `grid_cn:CN-CQ:average`.
        quantity: What it applies to: electricity, heat, fuel, gwp, tce, process, material …
        level: national, regional, provincial, own; empty where it has no region.
        kind: average, excluding_traded_renewables, fossil … ; empty where there is one kind.
        gas: CO2 or CO2e, or the gas a process releases.
        valid_from: Year, date or RFC 3339 time, as written; None: always.
        valid_to: Date or time at which it ends; None: until a newer row begins.
        published: Date or month, as written; None: unknown.
        uncertainty: Half of the relative 95 % interval, 0.05 for 5 %; None: not stated.
    """

    id: str
    series: str
    quantity: str
    value: float
    unit: str
    source: str
    confidence: str
    region: str = ""
    level: str = ""
    kind: str = ""
    gas: str = ""
    gwp_set: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    published: str | None = None
    document: str = ""
    uncertainty: float | None = None
    note: str = ""

    @property
    def unverified(self) -> bool:
        """Nobody has compared it with a document, or when it became known is unknown."""
        return self.confidence == UNKNOWN or (self.published is None and self.valid_from is not None)

    @property
    def kg_per_kwh(self) -> float:
        """The value in kg per kWh.

        Raises:
            BadRequest: Its unit is no emission per energy.
        """
        if self.unit not in KG_PER_KWH:
            raise BadRequest(f"factor {self.id}: unit {self.unit!r} is no emission per energy")
        return self.value * KG_PER_KWH[self.unit]


@dataclass(frozen=True, slots=True)
class Fuel:
    """A fuel with its defaults from one set; sets are never mixed inside a report.

    Attributes:
        id: `name@set`.
        amount_unit: The unit its NCV counts in: `t` or `Nm3`.
        ncv_gj: Net calorific value, GJ per `amount_unit`.
        carbon_t_per_gj: Carbon content, tC per GJ of NCV.
        oxidation: Share of the carbon that burns, 0..1.
        biogenic: Its CO2 is shown apart, outside scope 1.
    """

    id: str
    name_zh: str
    name_en: str
    amount_unit: str
    ncv_gj: float
    carbon_t_per_gj: float
    oxidation: float
    biogenic: bool
    row: FactorRow

    @property
    def kwh_per_amount(self) -> float:
        """kWh (NCV) in one `amount_unit`."""
        return self.ncv_gj / GJ_PER_KWH

    def kwh_per(self, unit: str) -> float:
        """kWh (NCV) in one `unit`: t, kg, Nm3, 10^4 Nm3, or m3@20C (trade metering at 20 degC).

        Raises:
            BadRequest: The unit is of another kind than the fuel's, or a plain
                m3, which says nothing without pressure and temperature.
        """
        amounts = {
            "t": {"t": 1.0, "kg": 1e-3, "g": 1e-6},
            "Nm3": {"Nm3": 1.0, "10^4 Nm3": 1e4, "m3@20C": NORMAL_PER_20C},
        }[self.amount_unit]
        if unit not in amounts:
            raise BadRequest(
                f"fuel {self.id}: unit {unit!r} does not fit, wanted one of {', '.join(amounts)}"
            )
        return amounts[unit] * self.kwh_per_amount

    def kgco2_per_kwh(self, *, oxidised: bool) -> float:
        """CO2 of burning 1 kWh (NCV), biogenic or not; `oxidised` applies the oxidation factor.

        Source: GB/T 32150-2015 and GB/T 32151 combustion formula, AD x NCV x CC x OF x 44/12.
        """
        kg_per_gj = 1000 * self.carbon_t_per_gj * C_TO_CO2 * (self.oxidation if oxidised else 1.0)
        return kg_per_gj * GJ_PER_KWH


def level_of(region: str) -> str:
    """The level a region's code names: CN and ISO 3166-1 codes national, CN-GRID-* regional, CN-XX provincial."""
    if region.startswith("CN-GRID-"):
        return "regional"
    return "provincial" if region.startswith("CN-") else "national"


def valid_ns(valid: str, zone: ZoneInfo) -> int:
    """The first instant of a year, a date (both cut in the zone) or an RFC 3339 time."""
    if "T" in valid:
        return parse_rfc3339(valid)
    if len(valid) == 4:
        return _midnight_ns(date(int(valid), 1, 1), zone)
    return _midnight_ns(date.fromisoformat(valid), zone)


def published_ns(published: str, zone: ZoneInfo) -> int:
    """When a publication is known: a date from its first instant in the zone, a bare month from its end."""
    if "T" in published:
        return parse_rfc3339(published)
    if len(published) == 7:
        first = date.fromisoformat(f"{published}-01")
        return _midnight_ns((first + timedelta(days=31)).replace(day=1), zone)
    return _midnight_ns(date.fromisoformat(published), zone)


def _midnight_ns(day: date, zone: ZoneInfo) -> int:
    return time_ns_of(datetime(day.year, day.month, day.day, tzinfo=zone))
