"""Meters that fall silent: their weekdays tell what they carried, marked; a register's gap keeps its sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.lookback import WEEK_NS, WEEKS
from core.plant.load import load_plant
from core.plant.model import Plant
from core.results import HOUR_NS, Mark, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START = parse_rfc3339("2026-03-02T00:00:00Z")
KNOWN = parse_rfc3339("2026-11-22T00:00:00Z")
DAY = 24 * HOUR_NS
QUARTER = 900 * NS_PER_S
PLANT = """\
plant: shops
name: {zh: 车间, en: Shops}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
gap_spread: weekday
method_sets: [ghg-protocol]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: main, kind: bus, carrier: electricity}
    - {id: press, kind: load, carrier: electricity}
    - {id: paint, kind: load, carrier: electricity}
    - {id: lamps, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-press, from: main, to: press, meter: press.power}
    - {id: e-paint, from: main, to: paint, meter: paint.energy}
    - {id: e-lamps, from: main, to: lamps, meter: lamps.energy}
"""
POINTS = """\
point,device,name,quantity,unit,period_s
grid.energy,,,active_energy_import_total,kWh,300
press.power,,,active_power_total,kW,300
paint.energy,,,active_energy_import_total,kWh,300
lamps.energy,,,active_energy_import_total,kWh,300
"""
NAMES = ("grid.energy", "press.power", "paint.energy", "lamps.energy")


@pytest.fixture
def shops(tmp_path: Path) -> Plant:
    (tmp_path / "plant.yaml").write_text(PLANT, "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    return load_plant(tmp_path, [PROFILES])


def kw(name: str, hour: np.ndarray) -> np.ndarray:
    """Each load by the hour since START: a shift from the eighth to the sixteenth hour of the day, lamps always."""
    shift = (hour % 24 >= 8) & (hour % 24 < 16)
    loads = {
        "press.power": 60.0 * shift,
        "paint.energy": 20.0 + 20.0 * shift,
        "lamps.energy": 4.0 + 0.0 * hour,
    }
    return sum(loads.values()) if name == "grid.energy" else loads[name]


def readings(days: float, silent: dict[str, tuple[float, float]] | None = None) -> SampleBatch:
    """Every five minutes; `silent`: from which day to which a point says nothing."""
    time_ns = START + np.arange(0, int(days * DAY) + 1, 300 * NS_PER_S)
    points, times, values = [], [], []
    for number, name in enumerate(NAMES):
        hour = (time_ns - START) / HOUR_NS
        load = kw(name, hour)
        value = load if name.endswith("power") else 1000 + np.concatenate(([0.0], np.cumsum(load)[:-1])) / 12
        first, last = (silent or {}).get(name, (0.0, 0.0))
        heard = (time_ns <= START + first * DAY) | (time_ns >= START + last * DAY)
        points.append(np.full(int(heard.sum()), number))
        times.append(time_ns[heard])
        values.append(value[heard])
    return sample_batch(
        PointTable(NAMES), np.concatenate(points), np.concatenate(times), np.concatenate(values)
    )


def computed(plant: Plant, batch: SampleBatch, start_ns: int, end_ns: int) -> WindowResult:
    """As the pipeline does it, with all readings as context."""
    engine = Engine(plant, FactorLibrary.shipped())
    result = engine.compute(batch, start_ns, end_ns, None, KNOWN)
    if result.wanted:
        result = engine.compute(batch, start_ns, end_ns, None, KNOWN, dict.fromkeys([0, *WEEKS], batch))
    return result


def column(result: WindowResult, edge: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    row, energy = result.edges.index(edge), result.energy
    return energy.energy_kwh[row], energy.covered[row], energy.estimated_kwh[row], energy.mark[row]


def test_several_silent_meters_of_a_node_carry_what_their_weekdays_carried_and_are_marked(
    shops: Plant,
) -> None:
    batch = readings(10, silent={"press.power": (8.0, 99.0), "paint.energy": (8.0, 99.0)})

    result = computed(shops, batch, START + 8 * DAY + 7 * HOUR_NS, START + 8 * DAY + 10 * HOUR_NS)

    for edge, idle, busy in (("e-press", 0.0, 15.0), ("e-paint", 5.0, 10.0)):
        kwh, covered, estimated, mark = column(result, edge)
        np.testing.assert_allclose(kwh[[0, 1, 2, 5, 6, 11]], [idle] * 3 + [busy] * 3, rtol=1e-9)
        assert (covered == 0).all()
        np.testing.assert_array_equal(estimated, kwh)
        assert ((mark & (Mark.SILENT | Mark.SUBSTITUTED)) == Mark.SILENT | Mark.SUBSTITUTED).all()
    kwh, covered, _, mark = column(result, "e-lamps")
    np.testing.assert_allclose(kwh, 1.0)
    assert (covered == 1).all()
    assert (mark == 0).all()
    # The carbon goes on, and the hour before shift change the node balances: nothing was blanked.
    assert np.isfinite(result.emissions_kg).all()
    np.testing.assert_allclose(result.residual_kwh[result.nodes.index("main")][[0, 1, 6]], 0, atol=1e-9)


def test_a_meter_without_weeks_before_stays_unknown_and_is_never_zero(shops: Plant) -> None:
    batch = readings(2, silent={"press.power": (1.0, 99.0), "paint.energy": (1.0, 99.0)})

    result = computed(shops, batch, START + DAY + 9 * HOUR_NS, START + DAY + 10 * HOUR_NS)

    kwh, covered, _, mark = column(result, "e-press")
    assert np.isnan(kwh).all()
    assert (covered == 0).all()
    assert ((mark & Mark.SILENT) != 0).all()
    np.testing.assert_allclose(column(result, "e-lamps")[0], 1.0)


def test_where_nobody_speaks_and_before_the_gap_time_nothing_is_put_in(shops: Plant) -> None:
    batch = readings(8.5, silent={"press.power": (8.4, 99.0), "paint.energy": (8.4, 99.0)})

    result = computed(shops, batch, START + 8 * DAY + 9 * HOUR_NS, START + 8 * DAY + 14 * HOUR_NS)

    kwh, _, _, mark = column(result, "e-press")
    ends, gap = (
        12,
        3,
    )  # readings end at noon, the press's two hours and 24 minutes before; a gap is three quarters
    silent = (mark & Mark.SILENT) != 0
    assert not silent[: 2 + gap - 1].any()
    assert silent[2 + gap : ends].all()
    assert not silent[ends:].any()
    assert np.isnan(kwh[ends:]).all()


def test_a_gap_is_spread_as_the_weekdays_carry_it_and_keeps_its_sum(shops: Plant) -> None:
    gap = {"paint.energy": (8.0 + 6 / 24, 8.0 + 12 / 24)}  # over the begin of the shift
    span = START + 8 * DAY + 5 * HOUR_NS, START + 8 * DAY + 13 * HOUR_NS

    kwh, covered, estimated, mark = column(computed(shops, readings(10, gap), *span), "e-paint")

    hours = kwh.reshape(-1, 4).sum(axis=1)
    np.testing.assert_allclose(hours, [20, 20, 20, 40, 40, 40, 40, 40], rtol=1e-9)
    np.testing.assert_allclose(
        estimated.reshape(-1, 4).sum(axis=1), [0, 20, 20, 40, 40, 40, 40, 0], atol=1e-9
    )
    assert covered.reshape(-1, 4).sum(axis=1).tolist() == [4, 0, 0, 0, 0, 0, 0, 4]
    assert ((mark & Mark.GAP) != 0).reshape(-1, 4).all(axis=1).tolist() == [False, *[True] * 6, False]


def test_a_gap_in_the_first_week_is_flat(shops: Plant) -> None:
    gap = {"paint.energy": (1.0 + 6 / 24, 1.0 + 12 / 24)}

    result = computed(shops, readings(3, gap), START + DAY + 6 * HOUR_NS, START + DAY + 12 * HOUR_NS)

    np.testing.assert_allclose(column(result, "e-paint")[0], (2 * 20 + 4 * 40) / 24, rtol=1e-9)


@pytest.mark.parametrize("hours", [1, 3])
def test_a_silence_gives_the_same_bits_however_its_window_is_cut(shops: Plant, hours: int) -> None:
    silent = {"press.power": (8.1, 99.0), "lamps.energy": (8.2, 99.0), "paint.energy": (8.2, 8.7)}
    batch = readings(10, silent)
    whole = computed(shops, batch, START + 8 * DAY, START + 9 * DAY)

    for begin in range(0, 24, hours):
        span = START + 8 * DAY + begin * HOUR_NS, START + 8 * DAY + (begin + hours) * HOUR_NS
        part = computed(shops, batch, *span)
        cells = slice(begin * 4, (begin + hours) * 4)
        for name in ("energy_kwh", "covered", "estimated_kwh", "mark"):
            np.testing.assert_array_equal(
                getattr(part.energy, name), getattr(whole.energy, name)[:, cells], err_msg=f"{name} {begin}"
            )


def test_what_is_asked_for_names_each_point_once_a_week(shops: Plant) -> None:
    batch = readings(10, silent={"press.power": (8.0, 99.0), "paint.energy": (8.0, 99.0)})
    span = START + 9 * DAY, START + 9 * DAY + HOUR_NS

    result = Engine(shops, FactorLibrary.shipped()).compute(batch, *span, None, KNOWN)

    assert [(w.weeks, sorted(w.points)) for w in result.wanted] == [
        (week, ["paint.energy", "press.power"]) for week in WEEKS
    ]
    assert {(w.start_ns, w.end_ns) for w in result.wanted} == {span}
    assert WEEK_NS == 7 * DAY
