"""The accounting formulas: what one source emits, from amounts people measure or weigh.

Amounts come in the units the standards use (t, 10^4 Nm3, GJ); what comes out is
kg of CO2 or CO2e, unrounded. No factor stands here: factors arrive from the
library, so that a figure can always name its row. What surprises is what these
functions refuse: a share above 1, a stock that does not add up, CO2 "recovered"
without a receiver's record. They raise instead of guessing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.carbon.factor_row import C_TO_CO2, GJ_PER_KWH
from core.carbon.factors import FactorLibrary
from core.errors import BadRequest

MOLAR_MASS_G = {"CO2": 44.0, "Ar": 40.0, "O2": 32.0, "N2": 28.0, "He": 4.0, "H2": 2.0}
_KG_PER_T = 1000.0


# Combustion


def fuel_heat_kgco2(amount: float, ncv_gj: float, carbon_t_per_gj: float, oxidation: float = 1.0) -> float:
    """CO2 of a burned fuel from its heat.

    Args:
        amount: t or 10^4 Nm3.
        ncv_gj: Net calorific value, GJ per that unit.
        carbon_t_per_gj: tC per GJ.
        oxidation: Share burned; 1 where the regime leaves it out (national ETS, steel).

    Source: GB/T 32150-2015 and GB/T 32151, fuel combustion; AD x NCV x CC x OF x 44/12.
    """
    _amounts(amount=amount, ncv_gj=ncv_gj, carbon_t_per_gj=carbon_t_per_gj)
    _shares(oxidation=oxidation)
    return amount * ncv_gj * carbon_t_per_gj * oxidation * C_TO_CO2 * _KG_PER_T


def fuel_carbon_kgco2(amount_t: float, carbon_share: float, oxidation: float = 1.0) -> float:
    """CO2 of a burned fuel from its measured carbon (as received, mass share).

    Source: GB/T 32151, fuel combustion by elemental carbon; AD x C_ar x OF x 44/12.
    """
    _amounts(amount_t=amount_t)
    _shares(carbon_share=carbon_share, oxidation=oxidation)
    return amount_t * carbon_share * oxidation * C_TO_CO2 * _KG_PER_T


def combustion_ch4_n2o_kgco2e(
    heat_kwh: float, fuel_code: str, sector: str, gwp_set: str, library: FactorLibrary
) -> float:
    """CH4 and N2O of burning, biomass included, which CO2-only methods leave out.

    Args:
        heat_kwh: Fuel burned, NCV.
        sector: `manufacturing` or `energy_industries`.

    Source: IPCC 2006 Guidelines, volume 2, chapter 2, tables 2.2 and 2.3.
    """
    _amounts(heat_kwh=heat_kwh)
    heat_tj = heat_kwh * GJ_PER_KWH / 1000
    code = library.ipcc_fuel_of.get(fuel_code, fuel_code)
    return sum(
        heat_tj * library.row(f"ipcc_2006:{code}:{sector}:{gas}").value * library.gwp(gas, gwp_set)
        for gas in ("CH4", "N2O")
    )


# Process


def carbonate_kgco2(
    amount_t: float, factor_t_per_t: float, purity: float = 1.0, calcined: float = 1.0
) -> float:
    """CO2 driven out of a carbonate, or released by any input with a factor per tonne (electrode, pig iron).

    Source: GB/T 32151 process emissions; IPCC 2006 Guidelines, volume 3, equation 2.1 ff.; AD x EF x purity.
    """
    _amounts(amount_t=amount_t, factor_t_per_t=factor_t_per_t)
    _shares(purity=purity, calcined=calcined)
    return amount_t * factor_t_per_t * purity * calcined * _KG_PER_T


def carbon_balance_kgco2(
    inputs: Iterable[tuple[float, float]], outputs: Iterable[tuple[float, float]]
) -> float:
    """CO2 of a process from the carbon that goes in and does not come out as product.

    Args:
        inputs: (amount in t, carbon mass share) of each input; outputs likewise.

    Raises:
        BadRequest: More carbon comes out than goes in.

    Source: GB/T 32151.5 and .10, carbon mass balance; (sum in - sum out) x 44/12.
    """

    def carbon_t(streams: Iterable[tuple[float, float]]) -> float:
        total = 0.0
        for amount_t, carbon_share in streams:
            _amounts(amount_t=amount_t)
            _shares(carbon_share=carbon_share)
            total += amount_t * carbon_share
        return total

    into_t, out_t = carbon_t(inputs), carbon_t(outputs)
    if out_t > into_t * (1 + 1e-12):
        raise BadRequest(f"carbon balance: {out_t} tC come out of {into_t} tC")
    return max(0.0, into_t - out_t) * C_TO_CO2 * _KG_PER_T


def kept_in_products_kgco2(amount_t: float, factor_t_per_t: float) -> float:
    """Below zero: CO2 that does not arise because its carbon left with steel, pig iron or a by-product.

    Source: GB/T 32151.5-2015, carbon fixed in products, R = AD x EF, taken off combustion and process emissions.
    """
    _amounts(amount_t=amount_t, factor_t_per_t=factor_t_per_t)
    return -amount_t * factor_t_per_t * _KG_PER_T


def clinker_kgco2(
    clinker_t: float,
    cao: float,
    mgo: float,
    *,
    cao_not_from_carbonate: float = 0.0,
    mgo_not_from_carbonate: float = 0.0,
    raw_meal_t: float = 0.0,
    organic_carbon: float = 0.0,
) -> float:
    """CO2 of burning cement clinker, from the oxides in it and the organic carbon of the raw meal; shares by mass.

    Source: GB/T 32151.8-2015, Q x [(FR1 - FR10) x 44/56 + (FR2 - FR20) x 44/40] + Q_raw x FR0 x 44/12.
    """
    _amounts(clinker_t=clinker_t, raw_meal_t=raw_meal_t)
    _shares(cao=cao, mgo=mgo, organic_carbon=organic_carbon)
    _shares(cao_from_carbonate=cao - cao_not_from_carbonate, mgo_from_carbonate=mgo - mgo_not_from_carbonate)
    calcination_t = clinker_t * (
        (cao - cao_not_from_carbonate) * 44 / 56 + (mgo - mgo_not_from_carbonate) * 44 / 40
    )
    return (calcination_t + raw_meal_t * organic_carbon * C_TO_CO2) * _KG_PER_T


def anode_kgco2(aluminium_t: float, net_anode_t_per_t: float, sulphur: float, ash: float) -> float:
    """CO2 of consumed carbon anodes.

    Source: GB/T 32151.4-2015, anode effect apart; use x output x (1 - S - ash) x 44/12.
    """
    _amounts(aluminium_t=aluminium_t, net_anode_t_per_t=net_anode_t_per_t)
    _shares(sulphur=sulphur, ash=ash, carbon=1 - sulphur - ash)
    return aluminium_t * net_anode_t_per_t * (1 - sulphur - ash) * C_TO_CO2 * _KG_PER_T


def anode_effect_kgco2e(
    aluminium_t: float, cf4_kg_per_t: float, c2f6_kg_per_t: float, gwp_set: str, library: FactorLibrary
) -> float:
    """CF4 and C2F6 of anode effects.

    Source: GB/T 32151.4-2015; output x (EF_CF4 x GWP + EF_C2F6 x GWP).
    """
    _amounts(aluminium_t=aluminium_t, cf4_kg_per_t=cf4_kg_per_t, c2f6_kg_per_t=c2f6_kg_per_t)
    return aluminium_t * (
        cf4_kg_per_t * library.gwp("CF4", gwp_set) + c2f6_kg_per_t * library.gwp("C2F6", gwp_set)
    )


def welding_kgco2(gas_kg: float, volume_shares: Mapping[str, float]) -> float:
    """CO2 in shielding gas let go, from the mass of mixture used and its composition by volume.

    Raises:
        BadRequest: A gas of unknown molar mass, or shares that do not add up to 1.

    Source: GB/T 32151.29-2024, CO2 shielded welding; W x x_CO2 x 44 / sum(x_j x M_j).
    """
    _amounts(gas_kg=gas_kg)
    _shares(**{str(gas): share for gas, share in volume_shares.items()})
    unknown = [gas for gas in volume_shares if gas not in MOLAR_MASS_G]
    if unknown:
        raise BadRequest(f"welding gas {unknown[0]!r}: no molar mass, known are {', '.join(MOLAR_MASS_G)}")
    if not math.isclose(sum(volume_shares.values()), 1.0, abs_tol=1e-6):
        raise BadRequest(f"welding gas: volume shares add up to {sum(volume_shares.values())}, wanted 1")
    mean_g = sum(share * MOLAR_MASS_G[gas] for gas, share in volume_shares.items())
    return gas_kg * volume_shares.get("CO2", 0.0) * MOLAR_MASS_G["CO2"] / mean_g


def destroyed_gas_kgco2e(
    output_t: float, factor_kg_per_t: float, gwp: float, destruction: float = 0.0, in_use: float = 1.0
) -> float:
    """N2O of nitric or adipic acid, less what an abatement unit destroys while in use.

    Source: GB/T 32151.10-2015; output x EF x (1 - destruction x use rate) x GWP.
    """
    _amounts(output_t=output_t, factor_kg_per_t=factor_kg_per_t, gwp=gwp)
    _shares(destruction=destruction, in_use=in_use)
    return output_t * factor_kg_per_t * (1 - destruction * in_use) * gwp


def etching_gas_kgco2e(
    gas_kg: float, gwp: float, heel: float, used: float, abated: float = 0.0, abatement: float = 0.0
) -> float:
    """Fluorinated gas through etching and deposition chambers, by-products apart.

    Args:
        heel: Share left in the cylinder; used: share destroyed in the chamber.
        abated: Share of the gas led to an abatement unit; abatement: what that unit destroys.

    Source: IPCC 2006 Guidelines, volume 3, chapter 6; AD x (1 - h) x (1 - U) x (1 - a x d) x GWP.
    """
    _amounts(gas_kg=gas_kg, gwp=gwp)
    _shares(heel=heel, used=used, abated=abated, abatement=abatement)
    return gas_kg * (1 - heel) * (1 - used) * (1 - abated * abatement) * gwp


def wastewater_kgch4(
    cod_kg: float, sludge_cod_kg: float, b0_kg_per_kg: float, mcf: float, recovered_kg: float
) -> float:
    """CH4 of anaerobic treatment, kg CH4 (its GWP comes after).

    Source: IPCC 2006 Guidelines, volume 5, chapter 6; (TOW - S) x B0 x MCF - R.
    """
    _amounts(cod_kg=cod_kg, sludge_cod_kg=sludge_cod_kg, b0_kg_per_kg=b0_kg_per_kg, recovered_kg=recovered_kg)
    _shares(mcf=mcf)
    made_kg = (cod_kg - sludge_cod_kg) * b0_kg_per_kg * mcf
    if sludge_cod_kg > cod_kg or recovered_kg > made_kg * (1 + 1e-12):
        raise BadRequest(
            f"wastewater: {sludge_cod_kg} of {cod_kg} kg COD in sludge and {recovered_kg} of {made_kg} kg CH4 recovered"
        )
    return made_kg - recovered_kg


def recovered_kgco2(measured_kg: float, receiver_record: str) -> float:
    """CO2 handed to another party, which may be subtracted: measured, and with the receiver's record.

    Raises:
        BadRequest: There is no record.
    """
    _amounts(measured_kg=measured_kg)
    if not receiver_record.strip():
        raise BadRequest(f"{measured_kg} kg CO2 recovered: it counts only with the receiver's record")
    return measured_kg


# Fluorinated gases


def gas_lost_kg(
    opening_kg: float, bought_kg: float, sold_kg: float, closing_kg: float, nameplate_change_kg: float = 0.0
) -> float:
    """SF6 or refrigerant that is gone, by mass balance of stock, purchases and what the equipment holds.

    Raises:
        BadRequest: The balance is negative: a purchase or a stock count is missing.

    Source: GB/T 32151 (several parts), IPCC 2006 Guidelines, volume 3, chapter 8, mass balance.
    """
    _amounts(opening_kg=opening_kg, bought_kg=bought_kg, sold_kg=sold_kg, closing_kg=closing_kg)
    lost_kg = opening_kg + bought_kg - sold_kg - closing_kg - nameplate_change_kg
    if not lost_kg >= -1e-9:
        raise BadRequest(f"gas balance is {lost_kg} kg: more is there than came in")
    return max(0.0, lost_kg)


def gas_kgco2e(lost_kg: float, gas: str, gwp_set: str, library: FactorLibrary) -> float:
    """CO2e of a gas let go; `gas` by code or formula, a listed blend included."""
    _amounts(lost_kg=lost_kg)
    return lost_kg * library.gwp(gas, gwp_set)


def blend_gwp(mass_shares: Mapping[str, float], gwp_set: str, library: FactorLibrary) -> float:
    """GWP of a blend that is not listed, from the mass shares of its gases.

    Source: IPCC; a blend's GWP is the mass-weighted sum of its components'.
    """
    _shares(**{str(gas): share for gas, share in mass_shares.items()})
    if not math.isclose(sum(mass_shares.values()), 1.0, abs_tol=1e-6):
        raise BadRequest(f"blend: mass shares add up to {sum(mass_shares.values())}, wanted 1")
    return sum(share * library.gwp(gas, gwp_set) for gas, share in mass_shares.items())


# Purchased heat


def steam_heat_gj(
    steam_t: float,
    enthalpy_kj_per_kg: float,
    library: FactorLibrary,
    condensate_t: float = 0.0,
    condensate_c: float = 20.0,
) -> float:
    """Heat bought as steam; returned condensate subtracts.

    Source: GB/T 32151, purchased heat; t x (h - 83.74) / 1000 with the enthalpy of water at 20 degC.
    """
    _amounts(steam_t=steam_t, enthalpy_kj_per_kg=enthalpy_kj_per_kg, condensate_t=condensate_t)
    if condensate_t > steam_t:
        raise BadRequest(f"{condensate_t} t of condensate came back of {steam_t} t of steam")
    feedwater = library.row("heat:feedwater_enthalpy_20C").value
    return steam_t * (enthalpy_kj_per_kg - feedwater) / 1000 - hot_water_gj(
        condensate_t, condensate_c, library
    )


def hot_water_gj(water_t: float, temperature_c: float, library: FactorLibrary) -> float:
    """Heat bought as hot water, above 20 degC.

    Source: GB/T 32151, purchased heat; t x (T - 20) x 4.1868 / 1000.
    """
    _amounts(water_t=water_t)
    if not temperature_c >= 20:
        raise BadRequest(f"hot water of {temperature_c} degC, wanted 20 or more")
    return water_t * (temperature_c - 20) * library.row("heat:hot_water_cp").value / 1000


def heat_kgco2(heat_gj: float, library: FactorLibrary, factor_id: str = "heat:heat_cn") -> float:
    """CO2 of purchased heat; a supplier's factor goes before the default."""
    _amounts(heat_gj=heat_gj)
    return heat_gj / GJ_PER_KWH * library.row(factor_id).kg_per_kwh


def net_indirect_kg(bought_kg: float, sold_kg: float) -> float:
    """Energy-indirect emissions in the net form some regimes ask for.

    Raises:
        BadRequest: More was sold than bought: exports are reported, never netted into a negative figure.

    Source: GB/T 32150-2015; bought power and heat less sold power and heat.
    """
    if sold_kg > bought_kg:
        raise BadRequest(
            f"{sold_kg} kgCO2 sold of {bought_kg} bought: report the export, it cannot be netted"
        )
    return bought_kg - sold_kg


# Comparing periods


@dataclass(frozen=True, slots=True)
class Effects:
    """Why emissions differ between two periods; the two parts add up to the difference."""

    energy_kg: float
    factor_kg: float


def effects(before_kwh: float, before_kg: float, after_kwh: float, after_kg: float) -> Effects:
    """What using more or less energy did, at the old factor, and what the factor did on the new energy."""
    if not before_kwh > 0:
        raise BadRequest(f"no factor before: {before_kwh} kWh in the earlier period")
    energy_kg = (after_kwh - before_kwh) * before_kg / before_kwh
    return Effects(energy_kg, after_kg - before_kg - energy_kg)


def _amounts(**named: float) -> None:
    for name, value in named.items():
        if not (math.isfinite(value) and value >= 0):
            raise BadRequest(f"{name} is {value}, wanted a number, 0 or more")


def _shares(**named: float) -> None:
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise BadRequest(f"{name} is {value}, wanted a share from 0 to 1")
