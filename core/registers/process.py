"""Processes whose emissions follow from a formula of their own: what each needs, and where it comes from.

An activity of kind `process` names one of these and brings its numbers along;
the formulas are those of `core.carbon.accounting`. A new process is one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.carbon import accounting
from core.carbon.factor_row import FactorRow
from core.carbon.factors import FactorLibrary
from core.carbon.method import MethodSet
from core.errors import BadRequest
from core.results import Scope

Details = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Process:
    """One formula.

    Attributes:
        unit: What the activity's amount counts in.
        needs: Names of the numbers it cannot do without; may: those it takes.
        kg: kgCO2e from (amount, details, method set, library).
        rows: The factor rows that go in, from (details, method set, library).
        heat_gj: Purchased heat in an amount, from (amount, details, library); None: the process is no energy.
        apart: CO2 that did not reach the air: shown as removed, never subtracted from the gross figure.
        source: Document the formula is from.
    """

    unit: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    kg: Callable[[float, Details, MethodSet, FactorLibrary], float]
    source: str
    scope: Scope = Scope.DIRECT
    rows: Callable[[Details, MethodSet, FactorLibrary], tuple[FactorRow, ...]] = lambda *_: ()
    heat_gj: Callable[[float, Details, FactorLibrary], float] | None = None
    apart: bool = False


def _burned(share: object, method: MethodSet) -> float:
    return float(str(share)) if method.oxidation and share is not None else 1.0


def _streams(details: Details, key: str) -> list[tuple[float, float]]:
    """[[amount in t, carbon share], …]."""
    try:
        return [(float(amount_t), float(share)) for amount_t, share in details[key]]
    except (TypeError, ValueError):
        raise BadRequest(f"{key}: wanted a list of [t, carbon share], got {details[key]!r}") from None


def _named(*names: str) -> Callable[[Details], dict[str, float]]:
    return lambda details: {name: float(details[name]) for name in names if name in details}


_FUEL_HEAT = _named("ncv_gj", "carbon_t_per_gj")
_CLINKER = _named(
    "cao", "mgo", "cao_not_from_carbonate", "mgo_not_from_carbonate", "raw_meal_t", "organic_carbon"
)
_CARBONATE = _named("factor_t_per_t", "purity", "calcined")
_ANODE = _named("net_anode_t_per_t", "sulphur", "ash")
_EFFECT = _named("cf4_kg_per_t", "c2f6_kg_per_t")
_DESTROYED = _named("factor_kg_per_t", "destruction", "in_use")
_ETCH = _named("heel", "used", "abated", "abatement")


def _steam_gj(amount: float, details: Details, library: FactorLibrary) -> float:
    return accounting.steam_heat_gj(
        amount,
        float(details["enthalpy_kj_per_kg"]),
        library,
        float(details.get("condensate_t", 0.0)),
        float(details.get("condensate_c", 20.0)),
    )


def _hot_water_gj(amount: float, details: Details, library: FactorLibrary) -> float:
    return accounting.hot_water_gj(amount, float(details["temperature_c"]), library)


def _gwps(*gases: str) -> Callable[[Details, MethodSet, FactorLibrary], tuple[FactorRow, ...]]:
    return lambda _, method, library: tuple(library.gwp_row(gas, method.gwp_set) for gas in gases)


def _heat_rows(constant: str) -> Callable[[Details, MethodSet, FactorLibrary], tuple[FactorRow, ...]]:
    """The heat's factor and the constant its formula takes from the table."""
    return lambda details, _, library: (
        library.row(str(details.get("factor", "heat:heat_cn"))),
        library.row(constant),
    )


def _wastewater_rows(details: Details, method: MethodSet, library: FactorLibrary) -> tuple[FactorRow, ...]:
    stated = () if "b0_kg_per_kg" in details else (library.row("process:wastewater_b0"),)
    return (*stated, library.gwp_row("CH4", method.gwp_set))


def _burning_rows(details: Details, method: MethodSet, library: FactorLibrary) -> tuple[FactorRow, ...]:
    code = library.ipcc_fuel_of.get(str(details["fuel"]), str(details["fuel"]))
    named = (f"ipcc_2006:{code}:{details['sector']}:{gas}" for gas in ("CH4", "N2O"))
    return (*map(library.row, named), *_gwps("CH4", "N2O")(details, method, library))


PROCESSES: Mapping[str, Process] = {
    "fuel-heat": Process(
        "t",
        ("ncv_gj", "carbon_t_per_gj"),
        ("oxidation",),
        lambda amount, d, method, _: accounting.fuel_heat_kgco2(
            amount, **_FUEL_HEAT(d), oxidation=_burned(d.get("oxidation"), method)
        ),
        "GB/T 32150-2015, fuel combustion by heat (C12)",
    ),
    "fuel-carbon": Process(
        "t",
        ("carbon_share",),
        ("oxidation",),
        lambda amount, d, method, _: accounting.fuel_carbon_kgco2(
            amount, float(d["carbon_share"]), _burned(d.get("oxidation"), method)
        ),
        "GB/T 32151, fuel combustion by elemental carbon (C12)",
    ),
    "carbonate": Process(
        "t",
        ("factor_t_per_t",),
        ("purity", "calcined"),
        lambda amount, d, *_: accounting.carbonate_kgco2(amount, **_CARBONATE(d)),
        "GB/T 32151, carbonates, electrodes, alloys and pig iron by their factor (C13)",
    ),
    "carbon-balance": Process(
        "",
        ("inputs", "outputs"),
        (),
        lambda _, d, *__: accounting.carbon_balance_kgco2(_streams(d, "inputs"), _streams(d, "outputs")),
        "GB/T 32151.5 and .10, carbon mass balance (C14)",
    ),
    "carbon-in-products": Process(
        "t",
        ("factor_t_per_t",),
        (),
        lambda amount, d, *_: accounting.kept_in_products_kgco2(amount, float(d["factor_t_per_t"])),
        "GB/T 32151.5-2015, carbon kept in steel and by-products, subtracted (C12, T1)",
    ),
    "clinker": Process(
        "t",
        ("cao", "mgo"),
        ("cao_not_from_carbonate", "mgo_not_from_carbonate", "raw_meal_t", "organic_carbon"),
        lambda amount, d, *_: accounting.clinker_kgco2(amount, **_CLINKER(d)),
        "GB/T 32151.8-2015, clinker (C15)",
    ),
    "anode": Process(
        "t",
        ("net_anode_t_per_t", "sulphur", "ash"),
        (),
        lambda amount, d, *_: accounting.anode_kgco2(amount, **_ANODE(d)),
        "GB/T 32151.4-2015, carbon anodes (C16)",
    ),
    "anode-effect": Process(
        "t",
        ("cf4_kg_per_t", "c2f6_kg_per_t"),
        (),
        lambda amount, d, method, library: accounting.anode_effect_kgco2e(
            amount, **_EFFECT(d), gwp_set=method.gwp_set, library=library
        ),
        "GB/T 32151.4-2015, anode effect (C16)",
        rows=_gwps("CF4", "C2F6"),
    ),
    "n2o": Process(
        "t",
        ("factor_kg_per_t",),
        ("destruction", "in_use"),
        lambda amount, d, method, library: accounting.destroyed_gas_kgco2e(
            amount, **_DESTROYED(d), gwp=library.gwp("N2O", method.gwp_set)
        ),
        "GB/T 32151.10-2015, nitric and adipic acid (C17b)",
        rows=_gwps("N2O"),
    ),
    "etching": Process(
        "kg",
        ("gas", "heel", "used"),
        ("abated", "abatement"),
        lambda amount, d, method, library: accounting.etching_gas_kgco2e(
            amount, gwp=library.gwp(str(d["gas"]), method.gwp_set), **_ETCH(d)
        ),
        "IPCC 2006 Guidelines, volume 3, chapter 6 (C17)",
        rows=lambda d, method, library: (library.gwp_row(str(d["gas"]), method.gwp_set),),
    ),
    "combustion-ch4-n2o": Process(
        "kWh",
        ("fuel", "sector"),
        (),
        lambda amount, d, method, library: accounting.combustion_ch4_n2o_kgco2e(
            amount, str(d["fuel"]), str(d["sector"]), method.gwp_set, library
        ),
        "IPCC 2006 Guidelines, volume 2, chapter 2: CH4 and N2O of burning, of biomass too",
        rows=_burning_rows,
    ),
    "wastewater": Process(
        "kg",
        ("mcf",),
        ("sludge_cod_kg", "recovered_kg", "b0_kg_per_kg"),
        lambda amount, d, method, library: (
            accounting.wastewater_kgch4(
                amount,
                float(d.get("sludge_cod_kg", 0.0)),
                float(d.get("b0_kg_per_kg", library.row("process:wastewater_b0").value)),
                float(d["mcf"]),
                float(d.get("recovered_kg", 0.0)),
            )
            * library.gwp("CH4", method.gwp_set)
        ),
        "IPCC 2006 Guidelines, volume 5, chapter 6 (C17c); amount in kg COD",
        rows=_wastewater_rows,
    ),
    "steam": Process(
        "t",
        ("enthalpy_kj_per_kg",),
        ("condensate_t", "condensate_c", "factor"),
        lambda amount, d, _, library: accounting.heat_kgco2(
            _steam_gj(amount, d, library), library, str(d.get("factor", "heat:heat_cn"))
        ),
        "GB/T 32151, purchased heat (C18)",
        Scope.ENERGY_INDIRECT,
        _heat_rows("heat:feedwater_enthalpy_20C"),
        _steam_gj,
    ),
    "hot-water": Process(
        "t",
        ("temperature_c",),
        ("factor",),
        lambda amount, d, _, library: accounting.heat_kgco2(
            _hot_water_gj(amount, d, library), library, str(d.get("factor", "heat:heat_cn"))
        ),
        "GB/T 32151, purchased heat (C18)",
        Scope.ENERGY_INDIRECT,
        _heat_rows("heat:hot_water_cp"),
        _hot_water_gj,
    ),
    "co2-transferred": Process(
        "kg",
        ("receiver_record",),
        (),
        lambda amount, d, *_: accounting.recovered_kgco2(amount, str(d["receiver_record"])),
        "GB/T 32151.10, CO2 recovered and handed over, measured and with the receiver's record (C17d)",
        apart=True,
    ),
}


def process_of(subject: str, details: Details) -> Process:
    """The process of that name, its details checked.

    Raises:
        BadRequest: There is none, a number it needs is missing, or one it does not know.
    """
    if subject not in PROCESSES:
        raise BadRequest(f"no process {subject!r}, wanted one of {', '.join(PROCESSES)}")
    process = PROCESSES[subject]
    missing = [name for name in process.needs if name not in details]
    if missing:
        raise BadRequest(f"process {subject} needs {', '.join(missing)} in details")
    unknown = [name for name in details if name not in (*process.needs, *process.may)]
    if unknown:
        raise BadRequest(
            f"process {subject} has no {', '.join(unknown)}; it takes {', '.join((*process.needs, *process.may))}"
        )
    return process
