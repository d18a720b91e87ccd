"""What each device of the demo plant shows, quantity by quantity.

Power and energy come from the plant's balance; voltages, currents, temperatures
and the like are dressed on so that they agree with them (three phases add up to
the total, current follows from power). `Meters` answers for live servers and,
in bulk, for history; what a register then keeps of a value is register.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from core.clock import Clock, datetime_of, time_ns_of
from core.plant.model import Kind, Plant
from core.samples import NS_PER_S, Floats, Times
from simulators.faults import Faults
from simulators.plant import (
    BATTERY_EFFICIENCY,
    GAS_KWH_PER_NM3,
    ROOF_KW,
    ZONE,
    DemoPlant,
    State,
)

_PHASES: Final = {"l1": 0.34, "l2": 0.33, "l3": 0.33}
_KWH_PER_GJ: Final = 1000 / 3.6
_STEAM_GJ_PER_T: Final = 2.36  # saturated steam at 1.0 MPa gauge over feed water at 100 degC
_AIR_KWH_PER_NM3: Final = 0.11  # a good screw compressor at 7 bar
_PIECES_PER_H: Final = 90.0
_SHIFTS_H: Final = (6, 14, 22)

Quantities = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class _Feeder:
    """An electricity meter: the flow it counts as import, and as export where it sees both ways."""

    imports: str
    exports: str | None = None
    power_factor: float = 0.93


_FEEDERS: Final = {
    "m-grid": _Feeder("grid", "sold", 0.94),
    "m-hall-1": _Feeder("hall-1", power_factor=0.88),
    "m-hall-2": _Feeder("hall-2", power_factor=0.91),
    "m-press": _Feeder("press", power_factor=0.86),
    "m-welding": _Feeder("welding", power_factor=0.82),
    "plc-line1": _Feeder("air", power_factor=0.87),
    "lighting": _Feeder("lighting", power_factor=0.97),
    "canteen": _Feeder("canteen", power_factor=0.98),
}


class Meters:
    """The devices of the demo plant with their faults, read now or over any past.

    Raises (from the constructor):
        ValueError: The folder has a device, or a quantity of one, that the model does not know.
    """

    def __init__(self, plant: Plant, model: DemoPlant, clock: Clock, faults: Faults) -> None:
        self.plant, self.clock, self.faults = plant, clock, faults
        self.model = model
        self._frozen_ns: dict[str, int] = {}
        self._shift: dict[str, float] = {}  # what a rolled-over counter was moved by
        self._quantity = {point.id: _model_quantity(point.id, point.quantity) for point in plant.points}
        self._fresh: tuple[int, State] | None = None
        self._check(model)

    def _check(self, model: DemoPlant) -> None:
        state = model.state(self.clock.now_ns())
        for device in self.plant.devices:
            known = device_quantities(device.id, state)
            for point_id in device.points:
                if self._quantity[point_id] not in known:
                    raise ValueError(f"the demo model knows no {self._quantity[point_id]} of {device.id}")

    def values(self, device_id: str) -> dict[str, float]:
        """Every point of a device as it stands now, faults included, before its register cuts it."""
        trouble, now_ns = self.faults.of(device_id), self.clock.now_ns()
        if trouble.frozen:
            now_ns = self._frozen_ns.setdefault(device_id, now_ns)
        else:
            self._frozen_ns.pop(device_id, None)
        shown = device_quantities(device_id, self._state(now_ns))
        values = {
            point: float(shown[self._quantity[point]][0])
            for point in self.plant.device_by_id[device_id].points
        }
        if trouble.rollover:
            self._roll_over(device_id, values)
        elif self._shift:
            self._moved_for_good(values)
        return values

    def stamp_ns(self, device_id: str) -> int:
        """The time on the device's own clock."""
        return self.clock.now_ns() + round(self.faults.of(device_id).clock_ahead_s * NS_PER_S)

    def history(self, point_ids: Sequence[str], time_ns: Times) -> dict[str, Floats]:
        """The points over past moments, without faults, before their registers cut them."""
        state = self.model.state(time_ns)
        devices = dict.fromkeys(self.plant.point_by_id[point].device for point in point_ids)
        shown = {device: device_quantities(device, state) for device in devices if device is not None}
        return {
            point: shown[device][self._quantity[point]]
            for point in point_ids
            if (device := self.plant.point_by_id[point].device) is not None
        }

    def _state(self, now_ns: int) -> State:
        # Devices asked in the same tenth of a second see the same plant, which costs one evaluation.
        now_ns -= now_ns % (NS_PER_S // 10)
        if self._fresh is None or self._fresh[0] != now_ns:
            self._fresh = now_ns, self.model.state(now_ns)
        return self._fresh[1]

    def _roll_over(self, device_id: str, values: dict[str, float]) -> None:
        for point_id in self.plant.device_by_id[device_id].points:
            point = self.plant.point_by_id[point_id]
            if point.kind is Kind.COUNTER and point.counter_modulus and point_id not in self._shift:
                step = point.resolution or 1e-6 * point.counter_modulus
                self._shift[point_id] = point.counter_modulus - 3 * step - values[point_id]
        self._moved_for_good(values)

    def _moved_for_good(self, values: dict[str, float]) -> None:
        """A counter that wrapped does not come back when the fault is switched off."""
        for point_id in values.keys() & self._shift.keys():
            modulus = self.plant.point_by_id[point_id].counter_modulus
            if modulus:
                values[point_id] = (values[point_id] + self._shift[point_id]) % modulus


def _model_quantity(point_id: str, quantity: str) -> str:
    """The model's name of a point: its quantity, with the PLC's second counter of volume apart."""
    return "gas_volume_std_total" if point_id == "plc-line1.volume_std_total_2" else quantity


def device_quantities(device_id: str, state: State) -> Quantities:
    """What a device measures at the state's moments, each of its shape.

    Raises:
        ValueError: The demo plant has no such device.
    """
    if device_id == "plc-line1":
        return _electricity(_FEEDERS[device_id], state) | _line(state)
    if device_id in _FEEDERS:
        return _electricity(_FEEDERS[device_id], state)
    if device_id == "pv":
        return _inverter(state)
    if device_id == "battery":
        return _battery(state)
    if device_id == "m-gas":
        return _gas(state)
    if device_id == "m-steam":
        return _steam(state)
    if device_id == "air-2":
        return _compressor(state)
    raise ValueError(f"the demo model knows no device {device_id!r}")


def _electricity(feeder: _Feeder, state: State) -> dict[str, Floats]:
    import_kwh, import_kw = state.energy_kwh[feeder.imports], state.power_kw[feeder.imports]
    export_kwh, export_kw = np.zeros_like(import_kwh), np.zeros_like(import_kw)
    if feeder.exports:
        export_kwh, export_kw = state.energy_kwh[feeder.exports], state.power_kw[feeder.exports]
    power_kw = import_kw - export_kw
    tangent = np.tan(np.arccos(feeder.power_factor))
    reactive_kvar, apparent_kva = np.abs(power_kw) * tangent, np.abs(power_kw) / feeder.power_factor
    reactive_kvarh = (import_kwh + export_kwh) * tangent
    shown = _voltages(state.time_ns) | {
        "active_power_total": power_kw,
        "reactive_power_total": reactive_kvar,
        "apparent_power_total": apparent_kva,
        "power_factor_total": np.copysign(feeder.power_factor, power_kw),
        "active_energy_import_total": import_kwh,
        "active_energy_export_total": export_kwh,
        "active_energy_total": import_kwh + export_kwh,
        "reactive_energy_import_total": reactive_kvarh,
        "reactive_energy_export_total": np.zeros_like(import_kwh),
        "reactive_energy_total": reactive_kvarh,
    }
    currents = []
    for phase, share in _PHASES.items():
        current_a = share * apparent_kva * 1000 / shown[f"voltage_{phase}"]
        currents.append(current_a)
        shown |= {
            f"current_{phase}": current_a,
            f"active_power_{phase}": share * power_kw,
            f"reactive_power_{phase}": share * reactive_kvar,
            f"apparent_power_{phase}": share * apparent_kva,
            f"power_factor_{phase}": shown["power_factor_total"],
            f"active_energy_import_{phase}": share * import_kwh,
            f"active_energy_export_{phase}": share * export_kwh,
            f"thd_voltage_{phase}": np.full_like(power_kw, 2.1),
        }
    shown["current_total"] = np.sum(currents, axis=0)
    shown["current_avg"] = shown["current_total"] / 3
    ones = np.ones_like(power_kw)
    return shown | {"ct_ratio": ones, "pt_ratio": ones}


def _voltages(time_ns: Times) -> dict[str, Floats]:
    day = 2 * np.pi * (time_ns / (86_400 * NS_PER_S))
    base_v = 230.5 + 1.5 * np.sin(day) + 0.6 * np.sin(97 * day)
    shown = {"voltage_l1": base_v, "voltage_l2": base_v + 0.7, "voltage_l3": base_v - 0.4}
    shown["voltage_ln_avg"] = base_v + 0.1
    for pair in ("l12", "l23", "l31"):
        shown[f"voltage_{pair}"] = shown["voltage_ln_avg"] * np.sqrt(3)
    shown["voltage_ll_avg"] = shown["voltage_l12"]
    shown["frequency"] = 50 + 0.015 * np.sin(411 * day)
    return shown


def _inverter(state: State) -> dict[str, Floats]:
    feeder = _electricity(_Feeder("roof", power_factor=0.999), state)
    power_kw = state.power_kw["roof"]
    dc_kw = power_kw / 0.975
    dc_v = np.where(power_kw > 0, 640.0, 0.0)
    return feeder | {
        "active_energy_yield_total": state.energy_kwh["roof"],
        "dc_power_total": dc_kw,
        "dc_voltage": dc_v,
        "dc_current": np.where(power_kw > 0, dc_kw * 1000 / 640.0, 0.0),
        "device_temperature": 24 + 30 * power_kw / ROOF_KW,
        "device_status": np.where(power_kw > 0, 4.0, 2.0),  # SunSpec: MPPT, sleeping
    }


def _battery(state: State) -> dict[str, Floats]:
    power_kw = state.power_kw["discharge"] - state.power_kw["charge"]
    none = np.zeros_like(power_kw)
    soc_percent = 100 * state.soc
    return _voltages(state.time_ns) | {
        "active_power_total": power_kw,
        "battery_power": power_kw,
        "battery_charge_energy_total": state.energy_kwh["charge"],
        "battery_discharge_energy_total": state.energy_kwh["discharge"],
        "battery_soc": soc_percent,
        "battery_soh": none + 98.5,
        "battery_voltage": 700 + 0.8 * soc_percent,
        "battery_current": power_kw * 1000 / (700 + 0.8 * soc_percent),
        "battery_temperature": 24 + np.abs(power_kw) * (1 - BATTERY_EFFICIENCY),
        "grid_power": state.power_kw["grid"] - state.power_kw["sold"],
        "load_power": state.power_kw["grid"] - state.power_kw["sold"] + power_kw,
        "active_energy_import_total": state.energy_kwh["grid"],
        "active_energy_export_total": state.energy_kwh["sold"],
        "dc_power_total": none,  # no modules on this one
        "active_energy_yield_total": none,
        "active_energy_yield_today": none,
    }


def _gas(state: State) -> dict[str, Floats]:
    standard_nm3 = state.energy_kwh["gas"] / GAS_KWH_PER_NM3
    standard_nm3_h = state.power_kw["gas"] / GAS_KWH_PER_NM3
    day = 2 * np.pi * (state.time_ns / (86_400 * NS_PER_S))
    degc, kpa = 18 + 3 * np.sin(day), 104.2 + 0.3 * np.sin(53 * day)
    # The totaliser of working volume counts at the line's usual 18 degC and 104.2 kPa.
    usual = 101.325 / 104.2 * (273.15 + 18) / 273.15
    return {
        "volume_std_total": standard_nm3,
        "volume_total": standard_nm3 * usual,
        "flow_volume_std": standard_nm3_h,
        "flow_volume": standard_nm3_h * (101.325 / kpa) * ((273.15 + degc) / 273.15),
        "temperature": degc,
        "pressure": kpa,
    }


def _steam(state: State) -> dict[str, Floats]:
    heat_kw, heat_gj = state.power_kw["steam"], state.energy_kwh["steam"] / _KWH_PER_GJ
    bar = 1000 - 0.12 * heat_kw
    return {
        "heat_power": heat_kw,
        "heat_energy_total": heat_gj,
        "flow_mass": heat_kw / _KWH_PER_GJ / _STEAM_GJ_PER_T,
        "mass_total": heat_gj / _STEAM_GJ_PER_T,
        "pressure": bar,
        "temperature": 184.1 - 0.01 * (1000 - bar),
    }


def _compressor(state: State) -> dict[str, Floats]:
    power_kw = state.power_kw["air-2"]
    is_loaded = power_kw > 5
    return {
        "active_power_total": power_kw,
        "motor_current": power_kw * 1000 / (np.sqrt(3) * 400 * 0.86),
        "compressor_outlet_pressure": np.where(is_loaded, 740.0, 700.0),
        "device_temperature": 68 + 0.6 * power_kw,
        "temperature": 3 + 0.05 * power_kw,  # pressure dew point of the dried air
        "running_hours": state.running_h["air-2"],
        "loaded_hours": 0.8 * state.running_h["air-2"],
        "device_status": np.where(is_loaded, 3.0, 1.0),  # bit 0 runs, bit 1 loaded
        "error_code": np.zeros_like(power_kw),
    }


def _line(state: State) -> dict[str, Floats]:
    power_kw = state.power_kw["air"]
    steam = _steam(state)
    return {
        "flow_volume_std": power_kw / _AIR_KWH_PER_NM3,
        "volume_std_total": state.energy_kwh["air"] / _AIR_KWH_PER_NM3,
        "flow_mass": steam["flow_mass"],  # the PLC repeats the boiler house's meters
        "pressure": steam["pressure"],
        "gas_volume_std_total": state.energy_kwh["gas"] / GAS_KWH_PER_NM3,
        "production_good_count": _pieces(state),
        "device_status": np.where(power_kw > 8, 2.0, 1.0),  # running, idle
        "device_temperature": 31 + 0.3 * power_kw,
        "running_hours": state.running_h["air"],
    }


def _pieces(state: State) -> Floats:
    """Good pieces at the line's steady pace; the PLC counts anew each shift."""
    hours = np.array([_hours_into_shift(datetime_of(int(time))) for time in state.time_ns])
    return np.floor(hours * _PIECES_PER_H)


def _hours_into_shift(moment: datetime) -> float:
    local = moment.astimezone(ZONE)
    begun = [local.replace(hour=hour, minute=0, second=0, microsecond=0) for hour in _SHIFTS_H]
    latest = max((at for at in begun if at <= local), default=begun[-1] - timedelta(days=1))
    return (time_ns_of(local) - time_ns_of(latest)) / NS_PER_S / 3600
