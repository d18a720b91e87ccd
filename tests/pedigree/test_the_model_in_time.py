"""Results before a change of the network keep the network they had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.clock import parse_rfc3339, rfc3339
from core.errors import FaultyInput
from core.plant.archive import read_documents
from core.plant.load import load_plant
from core.plant.model import Plant
from core.results import HOUR_NS, Flow
from core.samples import NS_PER_S

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START_NS = parse_rfc3339("2026-03-01T16:00:00Z")
LOCATION_2 = Flow(2, "location", "zero-carbon-factory")


def changed(folder: Path, *swaps: tuple[str, str], file: str = "plant.yaml") -> Plant:
    """The plant after an edit of its folder."""
    text = (folder / file).read_text("utf-8")
    for old, new in swaps:
        assert old in text
        text = text.replace(old, new)
    (folder / file).write_text(text, "utf-8")
    return load_plant(folder, [PROFILES])


# Welding moves out of the rest: a load that was not there before.
WELDING = (
    ("    - {id: other,", "    - {id: welding, kind: load, carrier: electricity}\n    - {id: other,"),
    (
        "    - {id: e-rest,",
        '    - {id: e-welding, from: main, to: welding, meter: "= e-press * 0.2"}\n    - {id: e-rest,',
    ),
)
LAMPS = (('"= e-press * 0.1"', '"= e-press * 0.3"'),)


async def adopt(works: Any, plant: Plant, at_ns: int, engine_of: Any) -> None:
    await works.store.adopt(plant, at_ns=at_ns)
    works.plant = plant
    works.pipeline.adopt(engine_of(plant))


async def kwh(works: Any, edge: str, start_ns: int, end_ns: int) -> float:
    series = await works.store.energy([edge], start_ns, end_ns, "1y")
    return float(series.columns["energy_kwh"].sum())


async def test_a_change_in_mid_hour_leaves_what_was_before_as_it_was(
    works: Any, readings: Any, engine_of: Any
) -> None:
    end_ns = START_NS + 6 * HOUR_NS
    change_ns = START_NS + 3 * HOUR_NS + 1800 * NS_PER_S
    await works.write(readings(START_NS, end_ns))
    await works.drain()
    before = await kwh(works, "e-rest", START_NS, change_ns)

    await adopt(works, changed(works.folder, *WELDING), change_ns - 100 * NS_PER_S, engine_of)
    await works.store.mark_dirty(START_NS, end_ns - 1, None, "recompute")
    await works.drain()

    press = await kwh(works, "e-press", change_ns, end_ns)
    assert await kwh(works, "e-rest", START_NS, change_ns) == before
    assert await kwh(works, "e-welding", START_NS, change_ns) == 0
    assert await kwh(works, "e-welding", change_ns, end_ns) == pytest.approx(0.2 * press)
    runs = await works.store.runs(START_NS, end_ns)
    assert len({run.plant_fingerprint for run in runs}) == 2
    hour = await works.store.emissions(
        ["welding", "site"], START_NS, end_ns, "1h", "location", "zero-carbon-factory"
    )
    assert np.isfinite(hour.columns["emissions_kgco2e"]).all()


async def test_a_load_taken_out_keeps_its_past(works: Any, readings: Any, engine_of: Any) -> None:
    end_ns, change_ns = START_NS + 6 * HOUR_NS, START_NS + 3 * HOUR_NS
    plant = changed(
        works.folder,
        ("    - {id: lamps, kind: load, carrier: electricity}\n", ""),
        ('    - {id: e-lamps, from: main, to: lamps, meter: "= e-press * 0.1"}\n', ""),
    )
    await adopt(works, plant, change_ns, engine_of)

    await works.write(readings(START_NS, end_ns))
    await works.drain()

    assert await kwh(works, "e-lamps", START_NS, end_ns) == pytest.approx(
        0.1 * await kwh(works, "e-press", START_NS, change_ns)
    )


async def test_stocks_carry_over_a_change_by_name(works: Any, readings: Any, engine_of: Any) -> None:
    """A second battery, named before the first: neither takes the other's charge."""
    end_ns, change_ns = START_NS + 8 * HOUR_NS, START_NS + 4 * HOUR_NS + 900 * NS_PER_S
    plant = changed(
        works.folder,
        (
            "    - {id: bat,",
            "    - {id: ark, kind: storage, carrier: electricity, capacity_kwh: 9}\n    - {id: bat,",
        ),
        (
            "    - {id: e-rest,",
            '    - {id: e-ark, from: main, to: ark, meter: "= e-charge * 0.1"}\n'
            '    - {id: e-back, from: ark, to: main, meter: "= e-charge * 0"}\n    - {id: e-rest,',
        ),
    )
    await works.write(readings(START_NS, end_ns))
    await works.drain()
    flows = works.pipeline._engine.flows
    alone = await works.store.stocks(end_ns, ["bat"], flows)

    await adopt(works, plant, change_ns, engine_of)
    await works.store.mark_dirty(START_NS, end_ns - 1, None, "recompute")
    await works.drain()

    both = await works.store.stocks(end_ns, ["bat", "ark"], flows)
    at_change = await works.store.energy(["e-charge"], change_ns, end_ns, "1y")
    assert both.kwh[0] == alone.kwh[0]
    assert both.kwh[1] == pytest.approx(0.1 * at_change.columns["energy_kwh"].sum())


async def test_a_dated_change_holds_from_its_date_and_restates_what_it_touches(
    works: Any, readings: Any, engine_of: Any
) -> None:
    end_ns, change_ns = START_NS + 6 * HOUR_NS, START_NS + 2 * HOUR_NS
    await works.write(readings(START_NS, end_ns))
    await works.drain()

    dated = changed(
        works.folder, *LAMPS, ("region: CN-CQ", f"region: CN-CQ\nvalid_from: {rfc3339(change_ns)}")
    )
    await adopt(works, dated, end_ns, engine_of)
    await works.drain()

    press = [await kwh(works, "e-press", *span) for span in ((START_NS, change_ns), (change_ns, end_ns))]
    assert await kwh(works, "e-lamps", START_NS, change_ns) == pytest.approx(0.1 * press[0])
    assert await kwh(works, "e-lamps", change_ns, end_ns) == pytest.approx(0.3 * press[1])


async def test_a_date_once_followed_does_not_date_the_next_change(
    works: Any, readings: Any, engine_of: Any
) -> None:
    end_ns, later_ns = START_NS + 6 * HOUR_NS, START_NS + 4 * HOUR_NS
    dated = changed(
        works.folder, *LAMPS, ("region: CN-CQ", f"region: CN-CQ\nvalid_from: {rfc3339(START_NS)}")
    )
    await adopt(works, dated, START_NS + HOUR_NS, engine_of)
    again = changed(works.folder, ('"= e-press * 0.3"', '"= e-press * 0.4"'))
    await adopt(works, again, later_ns, engine_of)

    await works.write(readings(START_NS, end_ns))
    await works.drain()

    assert await kwh(works, "e-lamps", START_NS, later_ns) == pytest.approx(
        0.3 * await kwh(works, "e-press", START_NS, later_ns)
    )
    assert await kwh(works, "e-lamps", later_ns, end_ns) == pytest.approx(
        0.4 * await kwh(works, "e-press", later_ns, end_ns)
    )


async def test_a_past_model_put_in_place_by_name_stays_through_late_data(
    works: Any, readings: Any, engine_of: Any
) -> None:
    end_ns = START_NS + 6 * HOUR_NS
    day = readings(START_NS, end_ns)
    late = (day.point == 5) & (day.time_ns == START_NS + HOUR_NS)
    await works.write(day.take(~late))
    await works.drain()
    await adopt(works, changed(works.folder, *LAMPS), end_ns, engine_of)

    await works.store.restate(
        works.plant.fingerprint, START_NS, START_NS + 2 * HOUR_NS, "lin", "wrong from the start"
    )
    await works.drain()
    await works.write(day.take(late))
    await works.drain()

    for first, last, share in ((0, 2, 0.3), (2, 6, 0.1)):
        span = START_NS + first * HOUR_NS, START_NS + last * HOUR_NS
        assert await kwh(works, "e-lamps", *span) == pytest.approx(share * await kwh(works, "e-press", *span))


async def test_another_process_computes_the_past_with_the_model_of_then(
    works: Any, readings: Any, engine_of: Any
) -> None:
    """What a restart with a changed folder does."""
    end_ns = START_NS + 4 * HOUR_NS
    await works.write(readings(START_NS, end_ns))
    await works.drain()
    before = await kwh(works, "e-lamps", START_NS, end_ns)
    changed(works.folder, *LAMPS)

    again = await type(works).open(works.store_dsn, works.folder, works.clock)
    await again.store.mark_dirty(START_NS, end_ns - 1, None, "recompute")
    await again.drain()

    assert await kwh(again, "e-lamps", START_NS, end_ns) == before
    await again.store.close()


def test_kept_documents_are_the_plant_again(plant_folder: Path) -> None:
    (plant_folder / "factors.csv").write_text(
        "id,valid_from,value,unit,source\nown-steam,2026,0.3,kgCO2e/kWh,contract\n",
        "utf-8",
    )
    plant = load_plant(plant_folder, [PROFILES])

    past = read_documents(plant.documents, plant.fingerprint)

    assert (past.plant.nodes, past.plant.edges, past.plant.points) == (plant.nodes, plant.edges, plant.points)
    assert past.plant.devices == plant.devices
    assert [row.value for row in past.factors] == [0.3]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("valid_from: tomorrow", "wanted a date"),
        ("valid_from: 2026-10-05T08:07:00+08:00", "inside a base interval"),
    ],
)
def test_a_date_that_cannot_be_meant_is_refused(plant_folder: Path, line: str, why: str) -> None:
    with pytest.raises(FaultyInput, match=why):
        changed(plant_folder, ("region: CN-CQ", f"region: CN-CQ\n{line}"))
