"""Recomputation says what changed and why, its parts add up, and a kill costs nothing but time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.bus import LocalBus
from core.clock import parse_rfc3339, rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.compute.workers import Workers
from core.energy.register import EventKind, MeterEvent
from core.errors import BadRequest
from core.health import Health
from core.plant.load import load_plant
from core.proof.recompute import Cause, Recomputed, recompute
from core.proof.sealing import Sealing
from core.results import HOUR_NS
from core.seal import Seal, hour_digests

ECMC = Path(sys.executable).with_name("ecmc")
PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START_NS = parse_rfc3339("2026-03-01T16:00:00Z")
END_NS = START_NS + 24 * HOUR_NS
SITE_2 = "emissions site scope 2 location zero-carbon-factory kgCO2e"


class Killed(Exception):
    """The process is gone."""


async def again(works: Any, start_ns: int = START_NS, end_ns: int = END_NS, **how: Any) -> Recomputed:
    made = await recompute(
        works.pipeline, works.store, start_ns, end_ns, now_ns=works.clock.now_ns(), who="mai", **how
    )
    for figure in made.figures.values():  # whatever the cause, the parts are the whole
        assert sum(figure.by.values()) == pytest.approx(figure.after - figure.before, rel=1e-9, abs=1e-9)
    return made


@pytest.fixture
async def twin(databases: Any, works: Any) -> AsyncIterator[Any]:
    """The same works on another database."""
    opened = await type(works).open(await asyncio.to_thread(databases.new), works.folder, works.clock)
    yield opened
    await opened.store.close()


async def read_by_the_hour(end_ns: int, readings: Any, *several: Any) -> None:
    for works in several:
        await works.write(readings(START_NS, end_ns, every_s=3600))
        await works.drain()


async def counted_on_by_hand(works: Any, hours: int) -> None:
    """The press shows 4 kWh more at this hour than it did when its figures were computed."""
    await works.store.pool.execute(
        "UPDATE ecmc.sample SET value = value + 4 WHERE time = to_timestamp($1) AND point_id ="
        " (SELECT id FROM ecmc.point WHERE name = 'press.energy')",
        (START_NS + hours * HOUR_NS) / 1e9,
    )


async def computed_day(works: Any, readings: Any) -> None:
    await works.write(readings(START_NS, END_NS))
    await works.drain()


async def test_nothing_new_changes_nothing(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    made = await again(works)
    assert made.figures == {}
    assert made.seen > 50


async def test_a_factor_published_later_is_the_factors_doing(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    made = await again(works, known_at_ns=parse_rfc3339("2025-06-01T00:00:00Z"))

    assert set(made.figures[SITE_2].by) == {Cause.FACTOR}
    assert not [name for name in made.figures if name.startswith("energy")]
    back = await again(works)
    assert back.figures[SITE_2].after == made.figures[SITE_2].before


async def test_a_factor_row_that_came_since_is_the_factors_doing(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    engine = works.pipeline.history.current
    newer = replace(
        engine.library.row("grid_cn:CN-CQ:2023:average"),
        id="grid_cn:CN-CQ:2025:average",
        value=0.3,
        valid_from="2025",
        published="2026-11-22T12:00:00Z",
    )
    works.pipeline.adopt(Engine(works.plant, engine.library.with_rows([newer]), engine.events))
    works.clock.time_ns += 24 * HOUR_NS

    made = await again(works)
    assert set(made.figures[SITE_2].by) == {Cause.FACTOR}
    assert made.figures[SITE_2].after < made.figures[SITE_2].before


async def test_a_meter_event_is_the_events_doing(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    engine = works.pipeline.history.current
    event = MeterEvent(START_NS + 6 * HOUR_NS, EventKind.RATIO, ratio=2.0, known_ns=time.time_ns())
    works.pipeline.adopt(Engine(works.plant, engine.library, [*engine.events, ("m-grid", event)]))
    works.clock.time_ns += HOUR_NS

    made = await again(works)
    grid = made.figures["energy e-grid kWh"]
    assert set(grid.by) == {Cause.EVENT}
    assert grid.after == pytest.approx(grid.before * (6 + 18 * 2) / 24, rel=0.02)


async def test_the_current_model_put_over_the_past_is_the_models_doing(
    works: Any, readings: Any, engine_of: Any
) -> None:
    await computed_day(works, readings)
    text = (works.folder / "plant.yaml").read_text("utf-8")
    (works.folder / "plant.yaml").write_text(text.replace("e-press * 0.1", "e-press * 0.2"), "utf-8")
    plant = load_plant(works.folder, [PROFILES])
    await works.store.adopt(plant, at_ns=works.clock.now_ns())
    works.plant = plant
    works.pipeline.adopt(engine_of(plant))

    of_its_time = await again(works)
    assert of_its_time.figures == {}
    made = await again(works, current_model=True)
    lamps = made.figures["energy e-lamps kWh"]
    assert set(lamps.by) == {Cause.MODEL}
    assert lamps.after == pytest.approx(2 * lamps.before)
    assert (await again(works)).figures == {}  # it stays: the model is stated to have held


async def test_readings_taken_out_by_hand_are_the_readings_doing(works: Any, readings: Any) -> None:
    hours = 9 * 24
    await read_by_the_hour(START_NS + hours * HOUR_NS, readings, works)
    await counted_on_by_hand(works, hours)
    made = await again(works, START_NS, START_NS + hours * HOUR_NS)
    press = made.figures["energy e-press kWh"]
    assert press.before == pytest.approx(60 * hours, rel=1e-3)  # of the whole window, not of what changed
    assert press.by == {Cause.READING: pytest.approx(4.0)}


async def test_a_run_that_was_killed_goes_on_and_says_all_that_it_changed(
    works: Any, twin: Any, readings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its second piece was written, before that was noted; what it hands on in the battery goes on too."""
    end_ns = START_NS + 16 * 24 * HOUR_NS
    await read_by_the_hour(end_ns, readings, works, twin)
    for one in (works, twin):
        for hours in (7 * 24, 16 * 24):  # from the second piece to the first, and more in the last
            await counted_on_by_hand(one, hours)
    how = {"known_at_ns": parse_rfc3339("2025-06-01T00:00:00Z")}
    pieces: list[tuple[int, int]] = []
    real = Pipeline.recompute

    async def dies_after_the_second(self: Pipeline, start: int, end: int, *rest: Any) -> Any:
        pieces.append((start, end))
        written = await real(self, start, end, *rest)
        if len(pieces) == 2:
            raise Killed
        return written

    whole = await again(twin, START_NS, end_ns, **how)
    monkeypatch.setattr(Pipeline, "recompute", dies_after_the_second)
    with pytest.raises(Killed):
        await again(works, START_NS, end_ns, **how)
    made = await again(works, START_NS, end_ns, **how)

    assert made.resumed_ns == pieces[0][1]
    assert pieces[2] == pieces[1]
    assert made.seen == whole.seen
    assert made.figures == whole.figures
    assert made.figures["energy e-press kWh"].by == {Cause.READING: pytest.approx(4.0)}
    press = made.figures["emissions press scope 2 location zero-carbon-factory kgCO2e"]
    assert set(press.by) == {Cause.READING, Cause.FACTOR}
    nothing = await again(works, START_NS, end_ns, **how)
    assert nothing.figures == {}  # all of it stands as it was asked for
    assert nothing.resumed_ns is None


async def test_what_an_older_ecmc_began_is_known_to_be_incomplete(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    await works.store.pool.execute(
        "INSERT INTO ecmc.recompute (start_time, end_time, asked, known_at, done_until, who) VALUES"
        " (to_timestamp($1), to_timestamp($2), 'known at now, model of its time', now(), to_timestamp($3), 'mai')",
        *(ns / 1e9 for ns in (START_NS, END_NS, START_NS + HOUR_NS)),
    )
    broken_off, anew = await again(works), await again(works)

    assert (broken_off.resumed_ns, broken_off.has_forgotten) == (START_NS + HOUR_NS, True)
    assert (anew.resumed_ns, anew.has_forgotten) == (None, False)


async def test_a_command_that_was_killed_leaves_no_process_behind_and_prints_all_in_the_end(
    works: Any, twin: Any, readings: Any
) -> None:
    end_ns = START_NS + 15 * 24 * HOUR_NS
    await read_by_the_hour(end_ns, readings, works, twin)
    words = ["recompute", "--plant", str(works.folder), "--from", rfc3339(START_NS), "--to", rfc3339(end_ns)]
    words += ["--known-at", "2025-06-01T00:00:00Z", "--dsn"]

    first = psutil.Popen([ECMC, *words, works.store_dsn], stdout=subprocess.PIPE)
    while not await works.store.pool.fetchval(
        "SELECT count(*) FROM ecmc.recompute WHERE done_until > start_time"
    ):
        assert first.poll() is None
        await asyncio.sleep(0.01)
    children = first.children(recursive=True)
    first.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, [first, *children], 10)
    said, whole = await asyncio.gather(
        *(
            asyncio.to_thread(subprocess.check_output, [ECMC, *words, one.store_dsn], text=True)
            for one in (works, twin)
        )
    )

    assert children
    assert alive == []
    (went_on,) = set(said.splitlines()) - set(whole.splitlines())
    assert went_on.startswith("went on at 2026-03-0")
    assert [line for line in said.splitlines() if line != went_on] == whole.splitlines()
    assert await works.store.pool.fetchval("SELECT count(*) FROM ecmc.recompute") == 0


async def test_a_closed_day_gets_a_new_revision_by_the_command(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    await Sealing(works.store, works.pipeline.history, works.clock).close("2026-03-02", "mai", "report")

    again_by = Sealing(works.store, works.pipeline.history, works.clock)
    await again(works, known_at_ns=parse_rfc3339("2025-06-01T00:00:00Z"))
    await works.drain()
    both = await asyncio.gather(
        *(closed_again(again_by) for _ in range(2))
    )  # an ecmc that runs, and the command

    (seal,) = [seal for seals in both for seal in seals]
    assert (seal.label, seal.revision, seal.why) == ("2026-03-02", 2, "computed again for a recomputation")
    assert (await again_by.verify()).difference is None


async def closed_again(sealing: Sealing) -> list[Seal]:
    return [seal async for seal in sealing.close_changed()]


async def test_a_storages_carry_over_is_counted_with_its_cause(works: Any, readings: Any) -> None:
    """The battery was charged at the old factor and gives it back after the piece: the parts still add up."""
    end_ns = START_NS + 9 * 24 * HOUR_NS
    await works.write(readings(START_NS, end_ns, every_s=3600))
    await works.drain()
    made = await again(works, START_NS, end_ns, known_at_ns=parse_rfc3339("2025-06-01T00:00:00Z"))
    battery = [name for name in made.figures if name.startswith("emissions bat scope 2 location")]
    assert battery
    assert all(set(made.figures[name].by) == {Cause.FACTOR} for name in battery)


async def test_a_window_beyond_the_readings_makes_no_empty_hours(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    hours = await works.store.pool.fetchval("SELECT count(*) FROM ecmc.run")

    made = await again(works, START_NS - 400 * HOUR_NS, END_NS + 400 * HOUR_NS)
    with pytest.raises(BadRequest, match="no readings from 2026-02-13T00:00:00Z"):
        await again(works, START_NS - 400 * HOUR_NS, START_NS - 40 * HOUR_NS)

    # Nor does a model dated long before, nor what the battery hands on after its carbon has changed.
    await works.store.mark_dirty(START_NS - 9000 * HOUR_NS, END_NS + 400 * HOUR_NS, None, "plant")
    await works.drain()
    await again(works, START_NS, START_NS + 9 * HOUR_NS, known_at_ns=parse_rfc3339("2025-06-01T00:00:00Z"))
    await works.drain()

    assert (made.start_ns, made.end_ns, made.figures) == (START_NS, END_NS + HOUR_NS, {})
    assert await works.store.pool.fetchval("SELECT count(*) FROM ecmc.run") == hours


async def test_a_pool_of_processes_gives_the_same_bits(works: Any, readings: Any) -> None:
    await computed_day(works, readings)
    before = hour_digests((await works.store.stored(START_NS, END_NS))[0])
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        pipeline = Pipeline(
            works.pipeline.history.current, works.store, LocalBus(), Health(), works.clock, Workers(pool)
        )
        await pipeline.recompute(START_NS, END_NS, works.clock.now_ns(), "recompute")
    assert hour_digests((await works.store.stored(START_NS, END_NS))[0]) == before


async def test_pieces_side_by_side_where_no_storage_hands_on(
    works: Any, readings: Any, engine_of: Any
) -> None:
    text = (works.folder / "plant.yaml").read_text("utf-8")
    lines = [line for line in text.splitlines() if "id: bat" not in line and "charge" not in line]
    (works.folder / "plant.yaml").write_text("\n".join(lines), "utf-8")
    works.plant = load_plant(works.folder, [PROFILES])
    await works.store.adopt(works.plant, at_ns=START_NS - 90 * 24 * HOUR_NS)
    works.pipeline.adopt(engine_of(works.plant))
    end_ns = START_NS + 40 * 24 * HOUR_NS
    await works.write(readings(START_NS, end_ns, every_s=3600))
    await works.drain()

    made = await again(works, START_NS, end_ns, known_at_ns=parse_rfc3339("2025-06-01T00:00:00Z"))
    whole = await again(works, START_NS, end_ns)

    assert set(made.figures[SITE_2].by) == {Cause.FACTOR}
    assert whole.figures[SITE_2].after == pytest.approx(made.figures[SITE_2].before, rel=1e-12)
