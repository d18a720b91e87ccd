"""The demo plant's energy, whole at every instant: what flows in is what flows out.

Measured: hall 1 is the steel works' year, hall 2 the metal-processing year at
900 MWh/a, the roof an NREL inverter's year at 300 kW. Modelled: how hall 2
splits into its machines, lighting, canteen and offices, the boiler (steam
follows hall 2 and the season) and the battery (charges from spare PV and at
night, discharges in the evening peak). The grid is the balance of all that.

The recordings are of other years. A day is played from the recording's day
nearest in the year that is the same weekday, so Sundays stay quiet; the sun
knows no weekdays and is played by day of the year. Quarter hours keep the
recorded local clock.

Everything is a function of time and nothing is remembered: energy since
commissioning is the sum of whole quarter hours plus an analytic part of the
present one. Inside a quarter hour power ripples, but the ripple's energy over
the quarter is zero, so each quarter carries exactly the recorded energy. A
restart therefore goes on with the very same registers, and history of any
length comes out of the same call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from core.clock import time_ns_of
from core.samples import NS_PER_S, Floats, Times
from simulators.recording import recording, steel

QUARTER_NS: Final = 900 * NS_PER_S
QUARTERS_A_DAY: Final = 96
COMMISSIONED: Final = date(2024, 1, 1)  # the day every register stood at zero
ZONE: Final = ZoneInfo("Asia/Shanghai")

HALL_2_MWH_A: Final = 900.0
ROOF_KW: Final = 300.0
TRANSFORMER_LOSS: Final = 0.012  # of hall 1's energy, on its own transformer
BOILER_EFFICIENCY: Final = 0.91
GAS_KWH_PER_NM3: Final = 38.931 / 3.6  # 389.31 GJ per 10^4 Nm3 (NDRC defaults for other industry)

BATTERY_KWH: Final = 500.0
BATTERY_KW: Final = 150.0
BATTERY_EFFICIENCY: Final = 0.96  # each way
BATTERY_STANDING_KW: Final = 0.2
GRID_MARGIN_KW: Final = 10.0  # the battery leaves this much import, as controllers do against back-feed

# Every flow that is not a sum of others, with the depth of its ripple.
RIPPLE: Final[Mapping[str, float]] = {
    "hall-1": 0.25,
    "press": 0.30,
    "welding": 0.35,
    "air": 0.15,
    "air-2": 0.15,
    "hall-2-rest": 0.10,
    "lighting": 0.02,
    "canteen": 0.20,
    "offices": 0.10,
    "roof": 0.15,
    "steam": 0.08,
}
_HALL_2: Final = {"press": 0.30, "welding": 0.16, "air": 0.20, "air-2": 0.09, "hall-2-rest": 0.25}
_AT_MAIN: Final = ("hall-1", *_HALL_2, "lighting", "canteen", "offices")
_GOLDEN: Final = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class State:
    """The plant at n moments; every column has shape (n,).

    Attributes:
        time_ns: The moments, UTC.
        energy_kwh: Since commissioning, by flow. Only ever rises.
        power_kw: By flow.
        soc: State of charge of the battery, 0 to 1.
        running_h: Hours with load since commissioning, by machine (air, air-2).
    """

    time_ns: Times
    energy_kwh: Mapping[str, Floats]
    power_kw: Mapping[str, Floats]
    soc: Floats
    running_h: Mapping[str, Floats]


class DemoPlant:
    """The demo plant as a function of time.

    Args:
        seed: Another seed, another ripple and another split of hall 2; the totals stay.
        speed: How fast the recordings are played. Registers still count power times real time;
            from `anchor_ns` on, the played hours are squeezed.
        anchor_ns: Where played and real time agree; needed when `speed` is not 1.
    """

    def __init__(self, seed: int = 1, speed: float = 1.0, anchor_ns: int | None = None) -> None:
        if speed != 1.0 and anchor_ns is None:
            raise ValueError(f"a plant played at {speed} times needs the moment it starts from (anchor_ns)")
        self._seed = seed
        self._speed = speed
        self._anchor_ns = anchor_ns or 0
        midnight = datetime(COMMISSIONED.year, COMMISSIONED.month, COMMISSIONED.day, tzinfo=ZONE)
        self._start_ns = time_ns_of(midnight)
        self._years = 0
        self._table: _Table | None = None
        self._anchor: State | None = None

    def state(self, time_ns: npt.ArrayLike) -> State:
        """The plant at each moment.

        Raises:
            ValueError: A moment lies before commissioning.
        """
        moments = np.atleast_1d(np.asarray(time_ns, dtype=np.int64))
        if self._speed == 1.0:
            return self._played(moments, moments)
        played = self._anchor_ns + np.rint((moments - self._anchor_ns) * self._speed).astype(np.int64)
        if self._anchor is None:
            at = np.array([self._anchor_ns], dtype=np.int64)
            self._anchor = self._played(at, at)
        now, then = self._played(moments, played), self._anchor
        return State(
            moments,
            {
                flow: then.energy_kwh[flow] + (energy - then.energy_kwh[flow]) / self._speed
                for flow, energy in now.energy_kwh.items()
            },
            now.power_kw,
            now.soc,
            {m: then.running_h[m] + (h - then.running_h[m]) / self._speed for m, h in now.running_h.items()},
        )

    def _played(self, moments: Times, played: Times) -> State:
        table = self._table_until(int(played.max()) if played.size else self._start_ns)
        since = played - self._start_ns
        if since.size and since.min() < 0:
            raise ValueError(f"the demo plant was commissioned on {COMMISSIONED}, asked for a time before")
        quarter = since // QUARTER_NS
        share = (since - quarter * QUARTER_NS) / QUARTER_NS
        return table.at(moments, quarter, share)

    def _table_until(self, time_ns: int) -> _Table:
        years = 1 + int((time_ns - self._start_ns) // (365 * 86_400 * NS_PER_S))
        if self._table is None or years > self._years:
            self._years = years + 1
            self._table = _Table(self._years * 366, self._seed)
        return self._table


class _Table:
    """Quarter-hour energy of every flow since commissioning, and the running sums before each quarter."""

    def __init__(self, days: int, seed: int) -> None:
        load_kwh = _leaf_energy(days, seed)
        demand = sum((load_kwh[name] for name in _AT_MAIN), np.zeros(days * QUARTERS_A_DAY))
        demand = demand + TRANSFORMER_LOSS * load_kwh["hall-1"]
        charge, discharge, self._soc_kwh = _battery(demand, load_kwh["roof"])
        self._net_kwh = demand + charge - discharge - load_kwh["roof"]
        self._names = tuple(load_kwh)
        energy = np.stack([load_kwh[name] for name in self._names])
        self._depth = np.array([RIPPLE[name] for name in self._names])[:, None]
        # The grid's direction must not turn within a quarter hour, or its two registers would
        # need the ripple's zero crossings: where the balance is small, so is the ripple.
        self._weight = np.array([_weight_at_grid(name) for name in self._names])
        swing = (np.abs(self._weight[:, None]) * self._depth * energy).sum(axis=0)
        self._calm = np.minimum(1.0, 0.95 * np.abs(self._net_kwh) / np.maximum(swing, 1e-9))
        self._phase_step = 2 * np.pi * _GOLDEN * (1 + np.arange(len(self._names)) + seed)
        self._since = _running(energy)
        self._battery_since = _running(np.stack([charge, discharge]))
        self._grid_since = _running(np.stack([np.maximum(self._net_kwh, 0), np.maximum(-self._net_kwh, 0)]))
        machines = [self._names.index(name) for name in ("air", "air-2")]
        self._running_since = _running(np.where(energy[machines] > 0.25, 0.25, 0.0))

    def at(self, moments: Times, quarter: npt.NDArray[np.int64], share: Floats) -> State:
        since, part, power = self._since[:, quarter], *self._ripple(quarter, share)
        energy = self._since[:, quarter + 1] - since
        kwh = dict(zip(self._names, since + energy * part, strict=True))
        kw = dict(zip(self._names, energy * power * 4, strict=True))

        since = self._battery_since[:, quarter]
        flat = self._battery_since[:, quarter + 1] - since
        for row, name in enumerate(("charge", "discharge")):
            kwh[name], kw[name] = since[row] + flat[row] * share, flat[row] * 4

        net_kwh = self._weight @ (energy * part) + (flat[0] - flat[1]) * share
        net_kw = self._weight @ (energy * power * 4) + (flat[0] - flat[1]) * 4
        imports = self._net_kwh[quarter] >= 0
        bought_since, sold_since = self._grid_since[:, quarter]
        kwh["grid"] = bought_since + np.where(imports, net_kwh, 0.0)
        kwh["sold"] = sold_since + np.where(imports, 0.0, -net_kwh)
        kw["grid"] = np.where(imports, np.maximum(net_kw, 0.0), 0.0)
        kw["sold"] = np.where(imports, 0.0, np.maximum(-net_kw, 0.0))

        for flows in (kwh, kw):
            flows["hall-2"] = np.sum([flows[name] for name in _HALL_2], axis=0)
            flows["transformer-loss"] = TRANSFORMER_LOSS * flows["hall-1"]
            flows["gas"] = flows["steam"] / BOILER_EFFICIENCY
        soc_kwh = self._soc_kwh[quarter] + (self._soc_kwh[quarter + 1] - self._soc_kwh[quarter]) * share
        hours = self._running_since[:, quarter]
        hours = hours + (self._running_since[:, quarter + 1] - hours) * share
        return State(moments, kwh, kw, soc_kwh / BATTERY_KWH, dict(zip(("air", "air-2"), hours, strict=True)))

    def _ripple(self, quarter: npt.NDArray[np.int64], share: Floats) -> tuple[Floats, Floats]:
        """Of each leaf's quarter: the part of its energy gone by, and power over its mean.

        Two waves of whole periods a quarter hour, so both vanish over it: 1 + d(0.6 sin + 0.4 sin).
        """
        depth = self._depth * self._calm[quarter]
        phase = self._phase_step[:, None] * (quarter + 1)
        part, power = np.broadcast_to(share, depth.shape), np.ones(depth.shape)
        for periods, height in ((2, 0.6), (11, 0.4)):
            turn = 2 * np.pi * periods
            angle = turn * share + phase * periods
            power = power + depth * height * np.sin(angle)
            part = part + depth * height * (np.cos(phase * periods) - np.cos(angle)) / turn
        return part, power


def _weight_at_grid(name: str) -> float:
    """By how much a flow's kWh changes the grid's."""
    if name == "roof":
        return -1.0
    if name == "hall-1":
        return 1.0 + TRANSFORMER_LOSS
    return 1.0 if name in _AT_MAIN else 0.0


def _running(quarters: Floats) -> Floats:
    """What came before each quarter, shape (k, n + 1)."""
    return np.concatenate([np.zeros((len(quarters), 1)), np.cumsum(quarters, axis=1)], axis=1)


def _leaf_energy(days: int, seed: int) -> dict[str, Floats]:
    """Quarter-hour kWh of every measured or modelled flow, each of shape (days * 96,)."""
    day = np.arange(days)
    dates = np.datetime64(COMMISSIONED) + day
    day_of_year = (dates - dates.astype("datetime64[Y]")).astype(np.int64)
    weekday = (dates.astype(np.int64) + 3) % 7  # Monday is 0; 1970-01-01 was a Thursday
    recorded = _recorded_day(day_of_year, weekday)

    hall_1_year, hall_2_year, roof_year = _recorded_years()
    hall_1, hall_2 = hall_1_year[recorded].ravel(), hall_2_year[recorded].ravel()
    roof = roof_year[np.minimum(day_of_year, 364)].ravel()

    quarter = np.arange(days * QUARTERS_A_DAY)
    clock_h = quarter % QUARTERS_A_DAY / 4
    works = np.repeat(weekday < 5, QUARTERS_A_DAY)
    shares = {
        name: share * (1 + 0.3 * np.sin(2 * np.pi * _GOLDEN * (number + seed) * (1 + quarter // 4)))
        for number, (name, share) in enumerate(_HALL_2.items())
    }
    whole = np.sum(list(shares.values()), axis=0)
    leaves = {"hall-1": hall_1} | {name: hall_2 * share / whole for name, share in shares.items()}
    shift = works & (clock_h >= 6) & (clock_h < 22)
    leaves["lighting"] = np.where(shift, 12.0, 2.5) / 4
    leaves["canteen"] = np.where(works, 2 + 18 * np.exp(-(((clock_h - 11.25) / 1.2) ** 2)), 2.0) / 4
    leaves["offices"] = np.where(works & (clock_h >= 8) & (clock_h < 18), 14.0, 5.0) / 4
    leaves["roof"] = roof
    season = 1 + 0.3 * np.cos(2 * np.pi * np.repeat(day_of_year - 15, QUARTERS_A_DAY) / 365)
    leaves["steam"] = (10.0 + 0.8 * hall_2) * season
    return leaves


def _recorded_day(
    day_of_year: npt.NDArray[np.int64], weekday: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Day of 2018 (which began on a Monday) nearest in the year with the same weekday."""
    day = day_of_year + (weekday - day_of_year % 7 + 3) % 7 - 3
    return np.where(day < 0, day + 7, np.where(day > 364, day - 7, day))


@cache
def _recorded_years() -> tuple[Floats, Floats, Floats]:
    """Hall 1, hall 2 and the roof, kWh a quarter hour, each of shape (365, 96); read once."""
    hall_1 = steel()["energy_kwh"].reshape(365, QUARTERS_A_DAY)
    metal_w = recording("metal_processing")["power_w_per_mwh_a"].reshape(365, QUARTERS_A_DAY)
    return hall_1, metal_w * HALL_2_MWH_A / 4000, _roof_year()


def _roof_year() -> Floats:
    """PV of the complete year 2013, kWh a quarter hour; a hole is filled from the day before at that clock."""
    pv = recording("pv_system50")
    rated_kw = np.nanmax(pv["power_kw"])
    year = pv["power_kw"][-365 * QUARTERS_A_DAY :].reshape(365, QUARTERS_A_DAY) * (ROOF_KW / rated_kw / 4)
    for day in range(1, 365):
        year[day] = np.where(np.isnan(year[day]), year[day - 1], year[day])
    return np.nan_to_num(year, nan=0.0)


def _battery(demand_kwh: Floats, roof_kwh: Floats) -> tuple[Floats, Floats, Floats]:
    """Charge and discharge at the switchboard by quarter, and the content before each quarter (one more), kWh.

    Spare PV is stored; from 0 to 6 h the battery fills slowly to 80 %; from 17 to 22 h it carries
    the load. The power is one set point a quarter hour.
    """
    margin, limit = GRID_MARGIN_KW / 4, BATTERY_KW / 4
    content = 0.5 * BATTERY_KWH
    charge, discharge, contents = [], [], [content]
    for quarter, (demand, roof) in enumerate(zip(demand_kwh.tolist(), roof_kwh.tolist(), strict=True)):
        clock_h = quarter % QUARTERS_A_DAY / 4
        into = out = 0.0
        spare = roof - demand + margin
        if spare > 0:
            into = min(spare, limit, (0.95 * BATTERY_KWH - content) / BATTERY_EFFICIENCY)
        elif clock_h < 6:
            into = min(0.4 * limit, (0.8 * BATTERY_KWH - content) / BATTERY_EFFICIENCY)
        elif 17 <= clock_h < 22:
            out = min(-spare, limit, (content - 0.1 * BATTERY_KWH) * BATTERY_EFFICIENCY)
        into, out = max(into, 0.0), max(out, 0.0)
        content += into * BATTERY_EFFICIENCY - out / BATTERY_EFFICIENCY
        content = max(content - BATTERY_STANDING_KW / 4, 0.0)
        charge.append(into)
        discharge.append(out)
        contents.append(content)
    return np.array(charge), np.array(discharge), np.array(contents)
