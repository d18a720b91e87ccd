"""A restatement in files: the stored figures to the last bit, those of another knowledge without storing them."""

from __future__ import annotations

import json
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from core.clock import parse_rfc3339, time_ns_of
from core.compute.workers import HERE, Workers
from core.errors import BadRequest
from core.plant.load import load_plant
from core.proof.restate import Restated, restate
from core.results import HOUR_NS
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.part import energies, energy_schema, part_writer

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START_NS = parse_rfc3339("2026-03-26T16:00:00Z")
END_NS = START_NS + 9 * 24 * HOUR_NS  # into April
OLD_NS = parse_rfc3339("2025-06-01T00:00:00Z")

Figures = dict[tuple[str, int, int, str, str], tuple[float, float]]


def written(made: Restated) -> Figures:
    """Every row: kg and coverage by node, start, scope, basis and method set."""
    found: Figures = {}
    for path in sorted(made.folder.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            kg = row["emissions_kgco2e"]
            key = (
                row["node"],
                time_ns_of(row["start"]),
                row["scope"],
                row["basis"],
                row["method_set"],
            )
            assert key not in found
            found[key] = (np.nan if kg is None else kg, row["coverage"])
    return found


async def stored(works: Any, bucket: str = "1h") -> Figures:
    """The same as the database has it."""
    engine = works.pipeline.history.current
    found: Figures = {}
    for method in works.plant.method_sets:
        for basis in ("location", "market"):
            series = await works.store.emissions(
                engine.nodes, START_NS, END_NS + HOUR_NS, bucket, basis, method
            )
            rows = zip(
                series.name,
                series.start_ns.tolist(),
                series.flow.tolist(),
                series.columns["emissions_kgco2e"].tolist(),
                series.columns["coverage"].tolist(),
                strict=True,
            )
            for node, start_ns, flow, kg, coverage in rows:
                found[node, start_ns, series.flows[flow].scope, basis, method] = (kg, coverage)
    return found


def assert_same_bits(one: Figures, other: Figures) -> None:
    assert one.keys() == other.keys()
    differ = [
        key for key in one if not np.array_equal(np.array(one[key]), np.array(other[key]), equal_nan=True)
    ]
    assert differ == []


async def computed(works: Any, readings: Any) -> None:
    """A battery, a silent meter, and a change of the network within an hour."""
    batch = readings(START_NS, END_NS)
    silent = (batch.point == batch.points.index["press.energy"]) & (
        np.abs(batch.time_ns - START_NS - 30 * HOUR_NS) < 3 * HOUR_NS
    )
    await works.write(batch.take(np.flatnonzero(~silent)))
    await works.drain()


async def adopt_change(works: Any, engine_of: Any) -> None:
    """The lamps take another share of the press, from within an hour on."""
    file = works.folder / "plant.yaml"
    file.write_text(file.read_text("utf-8").replace("e-press * 0.1", "e-press * 0.2"), "utf-8")
    works.plant = load_plant(works.folder, [PROFILES])
    await works.store.adopt(works.plant, at_ns=START_NS + 5 * 24 * HOUR_NS + 1800 * NS_PER_S)
    works.pipeline.adopt(engine_of(works.plant))


async def filed(works: Any, folder: Path, workers: Workers = HERE, **how: Any) -> Restated:
    return await restate(
        works.store,
        works.pipeline.history,
        workers,
        folder,
        START_NS,
        END_NS,
        now_ns=works.clock.now_ns(),
        **how,
    )


@pytest.mark.parametrize("bucket", ["1h", "15m"])
async def test_with_what_is_known_now_the_files_are_what_is_stored(
    works: Any, readings: Any, engine_of: Any, tmp_path: Path, bucket: str
) -> None:
    await adopt_change(works, engine_of)
    await computed(works, readings)

    made = await filed(works, tmp_path / "out", bucket=bucket)

    assert_same_bits(written(made), await stored(works, bucket))
    assert made.parts == 4  # March, the hour two models share, March again, April
    assert all(kg == pytest.approx(here, rel=1e-12) for kg, here in made.site.values())
    told = json.loads((made.folder / "restatement.json").read_text("utf-8"))["factors"]
    assert {"grid_cn:CN-CQ:2023:average", "number:0.0"} <= told.keys() == made.factors


async def test_with_what_was_known_then_they_are_what_a_recomputation_would_store(
    works: Any, readings: Any, tmp_path: Path
) -> None:
    await computed(works, readings)
    before = await stored(works)

    made = await filed(works, tmp_path / "out", known_at_ns=OLD_NS)

    assert_same_bits(await stored(works), before)  # nothing stored has changed
    await works.pipeline.recompute(START_NS, END_NS + HOUR_NS, OLD_NS, "recompute")
    assert_same_bits(written(made), await stored(works))


async def test_a_battery_that_reports_its_charge(
    works: Any, readings: Any, engine_of: Any, tmp_path: Path
) -> None:
    yaml, points = works.folder / "plant.yaml", works.folder / "points.csv"
    yaml.write_text(yaml.read_text("utf-8").replace("capacity_kwh: 100,", "capacity_kwh: 100, soc: bat.soc,"))
    points.write_text(points.read_text("utf-8") + "bat.soc,,,battery_soc,%,,,,,900\n")
    works.plant = load_plant(works.folder, [PROFILES])
    await works.store.adopt(works.plant, at_ns=START_NS - 24 * HOUR_NS)
    works.pipeline.adopt(engine_of(works.plant))
    time_ns = np.arange(START_NS, END_NS, 1800 * NS_PER_S)
    soc = 50 + np.round(30 * np.sin(np.arange(time_ns.size) / 9.0), 1)
    await works.write(sample_batch(PointTable(("bat.soc",)), np.zeros(time_ns.size), time_ns, soc))
    await computed(works, readings)

    made = await filed(works, tmp_path / "out")

    assert_same_bits(written(made), await stored(works))


async def test_a_method_set_the_plant_does_not_keep(works: Any, readings: Any, tmp_path: Path) -> None:
    await computed(works, readings)
    made = await filed(works, tmp_path / "out", method_sets=["cbam"])

    cbam = {flow: kg for flow, (kept, kg) in made.site.items() if np.isnan(kept)}
    grid = await works.store.energy(["e-grid"], START_NS, END_NS, "1y")
    national = works.pipeline.history.current.library.row("grid_cn:CN:2023:average").value
    (kg,) = (kg for flow, kg in cbam.items() if flow.scope == 2 and flow.basis == "location")
    assert {flow.method_set for flow in made.site} == {"cbam"}
    assert kg == pytest.approx(float(grid.columns["energy_kwh"].sum()) * national)
    with pytest.raises(BadRequest, match="no method set 'none'"):
        await filed(works, tmp_path / "out", method_sets=["none"])


class Dying(Executor):
    """Runs what it is given here, until it is killed in the second."""

    def __init__(self) -> None:
        self.ran = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.ran += 1
        future: Future[Any] = Future()
        if self.ran == 2:
            future.set_exception(KeyboardInterrupt())
        else:
            future.set_result(fn(*args, **kwargs))
        return future


async def test_killed_it_makes_what_is_missing_and_late_data_what_they_change(
    works: Any, readings: Any, tmp_path: Path
) -> None:
    await computed(works, readings)
    whole = written(await filed(works, tmp_path / "whole"))
    out = tmp_path / "out"

    dying = Dying()
    with pytest.raises(KeyboardInterrupt):
        await filed(works, out, Workers(dying))
    made = await filed(works, out, Workers(dying))
    again = await filed(works, out, Workers(dying))

    assert (made.parts, made.kept) == (2, 1)
    assert (again.parts, again.kept, dying.ran) == (2, 2, 3)
    assert_same_bits(written(again), whole)
    assert again.site == made.site

    late = readings(END_NS + 900 * NS_PER_S, END_NS + 6 * HOUR_NS)
    await works.write(late)
    await works.drain()
    assert ((await filed(works, out)).kept) == 1  # March


async def test_a_window_without_results_is_refused(works: Any, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="nothing was ever computed"):
        await filed(works, tmp_path / "out")


def test_an_energy_that_is_zero_throughout_is_read_as_zero_not_as_less(tmp_path: Path) -> None:
    """Statistics of Parquet call the least of zeros -0.0."""
    path = tmp_path / "part.parquet"
    with part_writer(path, energy_schema(), {}) as out:
        out.add_energy(("e-press",), START_NS, 60 * NS_PER_S, np.zeros((1, 4)), np.ones((1, 4)))

    ((kwh, covered),) = energies(path, 1)

    assert not np.signbit(kwh).any()
    assert (kwh == 0).all()
    assert (covered == 1).all()
