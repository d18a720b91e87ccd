"""`explain`: a figure recomputed by hand from its answer alone, level by level down to the register."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from core.clock import parse_rfc3339
from core.errors import BadRequest
from core.proof.explain import EdgeExplained, Explanations, NodeExplained
from core.results import HOUR_NS
from core.samples import SampleBatch

METHOD = "zero-carbon-factory"


@pytest.fixture
async def opened(works: Any, readings: Callable[..., SampleBatch]) -> Any:
    """A day of results, and what opens them."""
    start_ns = parse_rfc3339("2026-03-01T16:00:00Z")
    await works.write(readings(start_ns, start_ns + 24 * HOUR_NS))
    await works.drain()
    works.start_ns, works.end_ns = start_ns, start_ns + 24 * HOUR_NS
    works.explain = explanations(works)
    return works


def explanations(works: Any) -> Explanations:
    return Explanations(works.pipeline.history, works.store)


async def node(opened: Any, name: str, scope: int = 2, basis: str = "location", **more: Any) -> NodeExplained:
    found = await opened.explain.node(name, opened.start_ns, opened.end_ns, scope, basis, METHOD, **more)
    assert isinstance(found, NodeExplained)
    return found


async def follow(opened: Any, link: str) -> NodeExplained | EdgeExplained:
    """Open what a link names."""
    asked = dict(parse_qsl(urlsplit(link).query))
    start_ns, end_ns = parse_rfc3339(asked["start"]), parse_rfc3339(asked["end"])
    if "edge" in asked:
        return await opened.explain.edge(asked["edge"], start_ns, end_ns)
    return await opened.explain.node(
        asked["node"], start_ns, end_ns, int(asked["scope"]), asked["basis"], asked["method_set"]
    )


async def stored(opened: Any, name: str, scope: int) -> float:
    series = await opened.store.emissions([name], opened.start_ns, opened.end_ns, "1y", "location", METHOD)
    kg = series.columns["emissions_kgco2e"]
    return sum(k for k, flow in zip(kg, series.flow, strict=True) if series.flows[flow].scope == scope)


@pytest.mark.parametrize("scope", [1, 2])
@pytest.mark.parametrize(
    "name", ["site", "grid", "roof", "gas", "main", "bat", "boiler", "press", "other", "sold"]
)
async def test_the_items_of_any_node_add_up_to_its_figure(opened: Any, name: str, scope: int) -> None:
    found = await node(opened, name, scope)

    kg = await stored(opened, name, scope)
    assert found.emissions_kgco2e == pytest.approx(kg, rel=1e-12, abs=1e-9)
    assert sum(item.emissions_kgco2e for item in found.items) == pytest.approx(kg, rel=1e-9, abs=1e-9)
    assert found.unexplained_kgco2e == pytest.approx(0, abs=1e-9 * max(1.0, abs(kg)))


async def test_a_tonne_is_walked_down_to_a_register(opened: Any) -> None:
    site = await node(opened, "site")
    source = next(item for item in site.items if item.id == "grid")
    grid = await follow(opened, source.upstream)
    (item,) = grid.items
    (factor,) = grid.factors
    edge = await follow(opened, source.explain)
    at_start, at_end = (
        next(r.value for r in edge.readings if r.point == "grid.energy" and r.time == when)
        for when in ("2026-03-01T16:00:00Z", "2026-03-02T16:00:00Z")
    )

    assert factor.id == item.factor == "grid_cn:CN-CQ:2023:average"
    assert (at_end - at_start) * edge.register["kwh_per_unit"] == pytest.approx(edge.energy_kwh, rel=1e-9)
    assert edge.energy_kwh * factor.kgco2e_per_kwh == pytest.approx(site.emissions_kgco2e, rel=1e-9)
    assert factor.document or factor.source
    assert edge.meter.address == {
        "connection": "mb1",
        "protocol": "modbus-tcp",
        "unit_id": 7,
        "function": 3,
        "address": 40960,
        "type": "uint32",
        "byte_order": "big",
        "word_order": "big",
        "scale": 0.01,
        "offset": 0.0,
        "sunspec_model": None,
    }
    assert edge.meter.accuracy_class == 0.5
    assert {r.quality for r in edge.readings} == {"good"}


async def test_a_loads_figure_is_worked_by_hand_from_its_intervals(opened: Any) -> None:
    first = await node(opened, "press", limit=50)
    rest = await node(opened, "press", limit=50, from_ns=parse_rfc3339(first.intervals.next))
    rows = [*first.intervals.items, *rest.intervals.items]

    by_hand = sum(row.energy_kwh * row.intensity_kgco2e_per_kwh for row in rows)

    assert rest.intervals.next is None
    assert len(rows) == 96
    assert by_hand == pytest.approx(first.emissions_kgco2e, rel=1e-9)


async def test_burned_gas_shows_its_fuels_terms(opened: Any) -> None:
    boiler = await node(opened, "boiler", scope=1)
    (burns,) = [item for item in boiler.items if item.what == "burns"]
    (factor,) = boiler.factors

    gas = await opened.explain.edge("e-gas", opened.start_ns, opened.end_ns)

    assert gas.register["kwh_per_unit"] == pytest.approx(389.31e-4 / 0.0036)
    assert factor.kgco2e_per_kwh == pytest.approx(0.0153 * 0.99 * 44 / 12 * 1000 * 0.0036)
    assert burns.emissions_kgco2e == pytest.approx(gas.energy_kwh * factor.kgco2e_per_kwh)
    assert "oxidation 0.99" in factor.note


async def test_a_virtual_meter_opens_into_its_inputs(opened: Any) -> None:
    lamps = await opened.explain.edge("e-lamps", opened.start_ns, opened.end_ns)
    rest = await opened.explain.edge("e-rest", opened.start_ns, opened.end_ns)

    (press,) = lamps.inputs
    assert (lamps.meter.kind, lamps.meter.formula) == ("formula", "= e-press * 0.1")
    assert press.energy_kwh * 0.1 == pytest.approx(lamps.energy_kwh)
    kwh = {item.id: item.energy_kwh for item in rest.inputs}
    arriving = kwh["e-grid"] + kwh["e-roof"] + kwh["e-discharge"]
    leaving = kwh["e-charge"] + kwh["e-press"] + kwh["e-lamps"] + kwh["e-sold"]
    assert rest.energy_kwh == pytest.approx(arriving - leaving)


async def test_a_silence_and_a_correction_are_shown_with_the_figure(works: Any, readings: Any) -> None:
    from core.samples import NS_PER_S, batch_of_rows
    from core.store.seam import Correction

    start_ns = parse_rfc3339("2026-03-01T16:00:00Z")
    day = readings(start_ns, start_ns + 24 * HOUR_NS)
    silent = (day.time_ns > start_ns + 6 * HOUR_NS) & (day.time_ns < start_ns + 9 * HOUR_NS)
    press = day.points.index["press.energy"]
    await works.write(day.take(~(silent & (day.point == press))))
    at_ns = start_ns + 12 * HOUR_NS
    kwh = float(day.value[(day.point == press) & (day.time_ns == at_ns)][0]) + 1.0
    await works.write(
        batch_of_rows([("press.energy", at_ns, kwh, 0)]), Correction("lin", "misread", at_ns + NS_PER_S)
    )
    await works.drain()

    edge = await explanations(works).edge("e-press", start_ns, start_ns + 24 * HOUR_NS, limit=5)

    assert edge.marks == {"gap": 12}
    assert [row["start"] for row in edge.marked][:2] == ["2026-03-01T22:00:00Z", "2026-03-01T22:15:00Z"]
    assert edge.next == "2026-03-01T23:15:00Z"
    (corrected,) = edge.corrections
    assert (corrected.who, corrected.why, corrected.new) == ("lin", "misread", kwh)
    assert edge.estimated_share > 0


async def test_a_month_opens_within_a_second(works: Any, readings: Any) -> None:
    start_ns = parse_rfc3339("2026-02-28T16:00:00Z")
    month_ns = 31 * 24 * HOUR_NS
    await works.write(readings(start_ns, start_ns + month_ns))
    await works.drain()
    explain = explanations(works)

    began = time.perf_counter()
    for name in ("site", "main", "bat"):
        await explain.node(name, start_ns, start_ns + month_ns, 2, "market", METHOD)
    await explain.edge("e-rest", start_ns, start_ns + month_ns)
    took_s = time.perf_counter() - began

    assert took_s < 4  # a second each


async def test_what_was_not_there_is_a_clear_error(opened: Any) -> None:
    with pytest.raises(BadRequest, match="no node 'nowhere'"):
        await node(opened, "nowhere")
    with pytest.raises(BadRequest, match="over a year"):
        await opened.explain.node("site", 0, 400 * 24 * HOUR_NS, 2, "location", METHOD)
