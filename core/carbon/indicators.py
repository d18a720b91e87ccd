"""From a period's sums to the indicators people sign: energy, emissions, the three national core indicators.

What surprises: the same factory has two energy totals in tce. A kWh of
electricity is 0.12 kgce by what it holds (当量值) and more than twice that by
what it took to make it (等价值), so every figure in tce carries its basis in
`basis`, and a regime's own choice is the method set's `tce_basis`.

Source of the core indicators: 工信厅节函〔2026〕334号, designed toward; its annex
with the formulas was seen second-hand only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from core.carbon.factors import FactorLibrary
from core.carbon.green_power import GreenPower, hourly_match, non_fossil
from core.carbon.method import TCE_ELECTRICITY, TceBasis
from core.errors import BadRequest
from core.results import Basis, Scope
from core.samples import Flags, Floats

ELECTRICITY = "electricity"
KGCE_KJ = 29_307.6  # what one kilogram of standard coal is defined to hold, GB/T 2589-2020
_KGCE_PER_KWH_OF_HEAT = 3600 / KGCE_KJ
LARGE_USER_KWH_PER_YEAR = 5e6  # above this the physical share is a core indicator


NATIONAL = "national-zero-carbon-factory"  # the scheme whose thresholds stand beside the indicators


@dataclass(frozen=True, slots=True)
class Threshold:
    """What a scheme asks of an indicator at one stage (entry, final, or a year); `at_most` where less is better."""

    stage: str
    value: float
    at_most: bool
    row_id: str

    def met_by(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value


def schemes(library: FactorLibrary) -> tuple[str, ...]:
    """The schemes whose thresholds are at hand, in the tables' order, a plant's own ones last."""
    rows = (row for row in library.rows if row.quantity == "threshold")
    return tuple(dict.fromkeys(row.series.split(":")[1] for row in rows))


def thresholds(scheme: str, indicator: str, library: FactorLibrary) -> tuple[Threshold, ...]:
    """A scheme's thresholds of an indicator, the easiest stage first; none where it asks nothing of it."""
    rows = library.series.get(f"indicator_thresholds:{scheme}:{indicator}", ())
    return tuple(
        Threshold(row.id.rpartition(":")[2], row.value, row.kind == "at_most", row.id) for row in rows
    )


EnergyMove: TypeAlias = dict[tuple[str, str], float]
CarbonMove: TypeAlias = dict[tuple[int, str], float]


@dataclass(frozen=True, slots=True)
class Move:
    """What the sums hold more where one meter or factor is off by its uncertainty.

    Attributes:
        energy: kWh by (field of `PeriodSums`, carrier).
        edges: The share, by edge, that every hour of it holds more.
        kg: Emissions by (scope, basis).
    """

    energy: EnergyMove = field(default_factory=dict)
    edges: dict[str, float] = field(default_factory=dict)
    kg: CarbonMove = field(default_factory=dict)

    @classmethod
    def into_unknown(cls, moves: Sequence[Move]) -> Move:
        """All energy that these move, not known at all: what then is unknown too stands on some of it."""
        energy = {key: math.nan for move in moves for key in move.energy}
        return cls(energy, {edge: math.nan for move in moves for edge in move.edges})


@dataclass(frozen=True, slots=True, eq=False)
class HourlyPower:
    """Electricity across the fence hour by hour.

    Attributes:
        edges: Ids, E of them; kwh: shape (E, H), NaN where unknown.
        clean, sold: Shape (E,): own and direct-line power that carries nothing; what leaves.
    """

    edges: tuple[str, ...]
    kwh: Floats
    clean: Flags
    sold: Flags

    def match(self, more: Mapping[str, float] | None = None) -> float:
        """Hourly match 0..1, edges with that share more; NaN where no hour is known whole."""
        weight = 1 + np.array([(more or {}).get(edge, 0.0) for edge in self.edges])
        clean_kwh = (weight * self.clean) @ self.kwh
        load_kwh = (weight * np.where(self.sold, -1.0, 1.0)) @ self.kwh
        return hourly_match(load_kwh, np.minimum(clean_kwh, load_kwh))


@dataclass(frozen=True, slots=True)
class PeriodSums:
    """A period of the whole plant by one method set; kWh of every carrier, fuels by NCV. NaN is unknown, never 0.

    Attributes:
        coverage: Share of the period's time backed by good readings.
        purchased_kwh: Brought in across the fence, by carrier.
        own_kwh: Of non-fossil sources inside the fence, by carrier; direct_line_kwh: of non-fossil direct lines.
        other_own_kwh: Of own sources and direct lines that carry carbon, by carrier.
        exported_kwh: Sold, by carrier.
        end_use_kwh: What loads took, by carrier, fuels burned for conversion apart. Empty: not known.
        emissions_kg: By (scope, basis), as `node=site` gives them.
        exported_kg: Carbon that left with sold energy, by basis, as tracing gives it.
        renewable_fuel_kwh: The part of purchased fuels and heat that is biogenic or otherwise non-fossil.
        feedstock_kwh: Energy used as raw material, left out of the non-fossil share.
        power: Trade, certificates and the province's share, as far as people registered them; its metered kWh
            are replaced by those of the period.
        nets_sold_energy: Whether the method set subtracts the carbon that left with sold energy.
        removed_kg: CO2 captured, used or stored on record; it is subtracted from nothing.
        collected_share: Share of the network's meters that delivered a good reading; None: nothing is metered.
        hourly_match: Share 0..1, None where it cannot be known; hourly: the hours it was computed from.
        output: Good output by unit, e.g. {"t": 1200.0}; value_cny: industrial added value.
        days: Length of the period; None: a year.
    """

    method_set: str
    coverage: float
    purchased_kwh: Mapping[str, float]
    own_kwh: Mapping[str, float] = field(default_factory=dict)
    direct_line_kwh: Mapping[str, float] = field(default_factory=dict)
    other_own_kwh: Mapping[str, float] = field(default_factory=dict)
    exported_kwh: Mapping[str, float] = field(default_factory=dict)
    end_use_kwh: Mapping[str, float] = field(default_factory=dict)
    emissions_kg: Mapping[tuple[int, str], float] = field(default_factory=dict)
    exported_kg: Mapping[str, float] = field(default_factory=dict)
    renewable_fuel_kwh: float = 0.0
    feedstock_kwh: float = 0.0
    power: GreenPower | None = None
    nets_sold_energy: bool = False
    removed_kg: float = 0.0
    collected_share: float | None = None
    hourly_match: float | None = None
    hourly: HourlyPower | None = None
    output: Mapping[str, float] = field(default_factory=dict)
    value_cny: float | None = None
    days: float | None = None

    def used_kwh(self) -> dict[str, float]:
        """What was used inside the fence, by carrier: purchased + own + direct line - exported."""
        carriers = dict.fromkeys(
            [*self.purchased_kwh, *self.own_kwh, *self.direct_line_kwh, *self.other_own_kwh]
        )
        return {
            carrier: self.purchased_kwh.get(carrier, 0.0)
            + self.own_kwh.get(carrier, 0.0)
            + self.direct_line_kwh.get(carrier, 0.0)
            + self.other_own_kwh.get(carrier, 0.0)
            - self.exported_kwh.get(carrier, 0.0)
            for carrier in carriers
        }

    def moved(self, move: Move) -> PeriodSums:
        """The sums with what the move holds more."""
        fields: dict[str, dict[str, float]] = {}
        for (name, carrier), kwh in move.energy.items():
            column = fields.setdefault(name, dict(getattr(self, name)))
            if carrier in column:
                column[carrier] += kwh
        emissions = {key: amount + move.kg.get(key, 0.0) for key, amount in self.emissions_kg.items()}
        changed: dict[str, Any] = {**fields, "emissions_kg": emissions}
        if self.hourly is not None and not move.edges.keys().isdisjoint(self.hourly.edges):
            match = self.hourly.match(move.edges)
            changed["hourly_match"] = None if math.isnan(match) else match
        return replace(self, **changed)

    def own_used_kwh(self) -> float:
        """Own electricity used here, exports taken to be own generation first."""
        own = self.own_kwh.get(ELECTRICITY, 0.0)
        return own - min(own, self.exported_kwh.get(ELECTRICITY, 0.0))


@dataclass(frozen=True, slots=True)
class Indicator:
    """One row of `/v1/indicators`.

    Attributes:
        value: None where it cannot be known.
        basis: `location` or `market` for carbon, `calorific` or `primary` for tce, both joined by a comma;
            None where there is no choice.
        entry, final: The scheme's thresholds of these stages; stages: those of every stage it has, by name.
        reached: The last stage that is met, `none` where none is; None where the scheme asks nothing of it.
        note: What people have to know to read it.
    """

    indicator: str
    value: float | None
    unit: str
    basis: str | None
    coverage: float
    method_set: str
    entry: float | None = None
    final: float | None = None
    reached: str | None = None
    note: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str | None]:
        """What tells a row from every other of its period."""
        return self.indicator, self.unit, self.basis


def energy_tce(used_kwh: Mapping[str, float], tce_basis: TceBasis, library: FactorLibrary) -> float:
    """Comprehensive energy in tonnes of standard coal.

    Electricity by its coefficient, everything else by the heat it holds.

    Source: GB/T 2589-2020, E = sum of amount x coefficient; 1 kgce = 29 307.6 kJ.
    """
    electricity = library.tce_per_unit(TCE_ELECTRICITY[tce_basis]).value
    kgce = sum(
        kwh * (electricity if carrier == ELECTRICITY else _KGCE_PER_KWH_OF_HEAT)
        for carrier, kwh in used_kwh.items()
    )
    return kgce / 1000


def carbon_per_energy(emissions_kg: float, energy_tce_: float) -> float:
    """tCO2 per tce; NaN without energy."""
    return emissions_kg / 1000 / energy_tce_ if energy_tce_ > 0 else math.nan


def green_power_of(sums: PeriodSums) -> GreenPower:
    """The ledger's input: what people registered, with the metered kWh of the period.

    Sold certificates of own generation are taken to be those of the exported part first; certificates beyond
    the whole generation give up the claim of all that was used.
    """
    own, direct = sums.own_used_kwh(), sums.direct_line_kwh.get(ELECTRICITY, 0.0)
    power = sums.power or GreenPower(grid_offtake_kwh=0.0)
    exported = sums.own_kwh.get(ELECTRICITY, 0.0) - own
    other = sums.other_own_kwh.get(ELECTRICITY, 0.0)
    return replace(
        power,
        # What is sold beyond the own generation came from the grid and went back to it.
        grid_offtake_kwh=max(0.0, sums.used_kwh().get(ELECTRICITY, 0.0) - own - direct - other),
        own_use_kwh=own,
        other_own_kwh=other,
        direct_line_kwh=direct,
        own_certificates_sold_kwh=min(own, max(0.0, power.own_certificates_sold_kwh - exported)),
    )


def indicators(sums: PeriodSums, library: FactorLibrary, scheme: str = NATIONAL) -> list[Indicator]:
    """Every indicator that follows from the sums, in a fixed order; what needs missing data is left out.

    Args:
        scheme: Whose thresholds stand beside them.

    Raises:
        BadRequest: No such scheme, or energies that cannot be (negative use).
    """
    if scheme not in schemes(library):
        raise BadRequest(f"no scheme {scheme!r}, wanted one of {', '.join(schemes(library))}")
    made = _Made(sums, library, scheme)
    used = sums.used_kwh()
    total_kwh = sum(used.values())
    tce = {basis: energy_tce(used, basis, library) for basis in TceBasis}
    made.add("energy", total_kwh, "kWh")
    for basis in TceBasis:
        made.add("energy_tce", tce[basis], "tce", basis)

    scope_1 = _scope(sums, Scope.DIRECT, Basis.LOCATION)
    made.add("emissions_scope_1", scope_1, "kgCO2e")
    total_kg: dict[Basis, float] = {}
    for flow in Basis:
        if (Scope.ENERGY_INDIRECT, flow) in sums.emissions_kg:
            scope_2 = sums.emissions_kg[Scope.ENERGY_INDIRECT, flow]
            total_kg[flow] = scope_1 + scope_2
            made.add("emissions_scope_2", scope_2, "kgCO2e", flow)
            made.add("emissions_total", total_kg[flow], "kgCO2e", flow)
            made.add("emissions_intensity", _ratio(total_kg[flow], total_kwh), "kgCO2e/kWh", flow)

    for flow, gross_kg in total_kg.items():
        net_kg = gross_kg - sums.exported_kg.get(flow, 0.0) if sums.nets_sold_energy else gross_kg
        for basis in TceBasis:
            made.add(
                "carbon_per_energy", carbon_per_energy(net_kg, tce[basis]), "tCO2/tce", f"{flow},{basis}"
            )

    _add_non_fossil(made, sums, tce, library)
    _add_electricity(made, sums, total_kwh)
    _add_per_output(made, sums, tce, total_kg)
    return made.rows


def _add_non_fossil(
    made: _Made, sums: PeriodSums, tce: Mapping[TceBasis, float], library: FactorLibrary
) -> None:
    used_electricity = sums.used_kwh().get(ELECTRICITY, 0.0)
    if not math.isfinite(used_electricity):
        return
    ledger = non_fossil(green_power_of(sums))
    unregistered = "" if sums.power else "no trade, certificate or province coefficient registered"
    for basis in TceBasis:
        clean = {ELECTRICITY: ledger.non_fossil_kwh, "renewable fuel": sums.renewable_fuel_kwh}
        whole = tce[basis] - energy_tce({"feedstock": sums.feedstock_kwh}, basis, library)
        made.add(
            "non_fossil_share",
            100 * _ratio(energy_tce(clean, basis, library), whole),
            "%",
            basis,
            unregistered,
        )
    yearly_kwh = used_electricity * (365 / sums.days if sums.days else 1.0)
    small = "" if yearly_kwh > LARGE_USER_KWH_PER_YEAR else "asked for above 5 GWh a year only"
    made.add("physical_non_fossil_electricity_share", 100 * ledger.physical_share, "%", note=small)
    made.add("non_fossil_electricity_share", 100 * ledger.non_fossil_share, "%", note=unregistered)


def _add_electricity(made: _Made, sums: PeriodSums, total_kwh: float) -> None:
    electricity = sums.used_kwh().get(ELECTRICITY, 0.0)
    if sums.end_use_kwh:
        share = _ratio(sums.end_use_kwh.get(ELECTRICITY, 0.0), sum(sums.end_use_kwh.values()))
        made.add("electrification", 100 * share, "%", TceBasis.CALORIFIC)
    own = sums.own_kwh.get(ELECTRICITY, 0.0)
    if own > 0:
        made.add("self_use", 100 * _ratio(sums.own_used_kwh(), own), "%")
        made.add("self_sufficiency", 100 * _ratio(sums.own_used_kwh(), electricity), "%")
    if sums.removed_kg > 0:
        gross_kg = sum(kg for (_, flow), kg in sums.emissions_kg.items() if flow == Basis.LOCATION)
        made.add("removal_rate", 100 * _ratio(sums.removed_kg, gross_kg), "%")
    if sums.collected_share is not None:
        made.add("auto_collection", 100 * sums.collected_share, "%", note="of the network's meters")
    if sums.hourly_match is not None:
        made.add("hourly_match", 100 * sums.hourly_match, "%")


def _add_per_output(
    made: _Made, sums: PeriodSums, tce: Mapping[TceBasis, float], total_kg: Mapping[Basis, float]
) -> None:
    for unit, amount in sums.output.items():
        others = ", ".join(f"{made_} {other}" for other, made_ in sums.output.items() if other != unit)
        note = f"the whole plant's, which made {others} besides" if others else ""
        for basis in TceBasis:
            made.add("energy_per_output", _ratio(1000 * tce[basis], amount), f"kgce/{unit}", basis, note)
        for flow, kg in total_kg.items():
            made.add("emissions_per_output", _ratio(kg, amount), f"kgCO2e/{unit}", flow, note)
    if sums.value_cny is not None:
        for basis in TceBasis:
            made.add("energy_per_value", _ratio(tce[basis], sums.value_cny / 1e4), "tce/10^4 CNY", basis)
        for flow, kg in total_kg.items():
            made.add("emissions_per_value", _ratio(kg / 1000, sums.value_cny / 1e4), "tCO2e/10^4 CNY", flow)


class _Made:
    """The rows so far."""

    def __init__(self, sums: PeriodSums, library: FactorLibrary, scheme: str) -> None:
        self._sums, self._library, self._scheme = sums, library, scheme
        self.rows: list[Indicator] = []

    def add(self, indicator: str, value: float, unit: str, basis: str | None = None, note: str = "") -> None:
        known = math.isfinite(value)
        found = thresholds(self._scheme, indicator, self._library)
        asked = {threshold.stage: threshold for threshold in found}
        met = [stage for stage, threshold in asked.items() if threshold.met_by(value)]
        self.rows.append(
            Indicator(
                indicator=indicator,
                value=value if known else None,
                unit=unit,
                basis=None if basis is None else str(basis),
                coverage=self._sums.coverage,
                method_set=self._sums.method_set,
                entry=asked["entry"].value if "entry" in asked else None,
                final=asked["final"].value if "final" in asked else None,
                reached=(met[-1] if met else "none") if asked and known else None,
                note=note,
                stages={stage: threshold.value for stage, threshold in asked.items()},
            )
        )


def _scope(sums: PeriodSums, scope: Scope, basis: Basis) -> float:
    """Unknown where it was not given: a plant without scope 1 sources says 0."""
    return sums.emissions_kg.get((scope, basis), math.nan)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def trajectory(first_year: int, first: float, last_year: int, last: float) -> dict[int, float]:
    """A core indicator's yearly targets, in equal steps from where the plant stands to the final value.

    Raises:
        ValueError: The last year does not come after the first.
    """
    years = last_year - first_year
    if years <= 0:
        raise ValueError(f"a trajectory needs a later year than {first_year}, got {last_year}")
    return {first_year + i: first + (last - first) * i / years for i in range(years + 1)}
