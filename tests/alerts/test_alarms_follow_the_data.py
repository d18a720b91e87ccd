from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.bus import ALERTS, AlertNews
from core.errors import BadRequest
from core.plant.model import AlertKind, AlertRule
from core.quality import BAD_NO_COMMUNICATION

HIGH = AlertRule("too-high", AlertKind.LIMIT, "p", high=100.0)
DELAYED = replace(HIGH, on_delay_s=15.0, off_delay_s=60.0, deadband=2.0)
SILENT = AlertRule("silent", AlertKind.MISSING, "p", for_s=30.0)


async def test_a_reading_over_the_limit_alarms_at_the_time_it_was_taken(bench) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 99.0), (10, 101.0))

    alarm = b.alarms.one("too-high")

    assert (alarm["state"], alarm["since"], alarm["value"], alarm["limit"]) == (
        "active-unack",
        "2026-10-01T00:00:10Z",
        101.0,
        100.0,
    )
    assert alarm["message"] == {"zh": "p\uff1a101 kW\uff0c上限 100 kW", "en": "p: 101 kW, high limit 100 kW"}


async def test_the_limit_itself_is_still_inside(bench) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 100.0))
    assert b.state("too-high") == "normal"


async def test_a_low_limit_and_a_high_limit_stand_side_by_side(bench) -> None:
    b = bench(AlertRule("band", AlertKind.LIMIT, "p", low=10.0, high=20.0, deadband=1.0))
    b.observe("p", (0, 9.0))
    assert b.alarms.one("band")["limit"] == 10.0
    b.observe("p", (1, 10.5))
    assert b.state("band") == "active-unack"
    b.observe("p", (2, 11.0))
    assert b.state("band") == "returned-unack"


async def test_an_excursion_shorter_than_the_on_delay_is_nothing(bench) -> None:
    b = bench(DELAYED)
    b.observe("p", (0, 120.0), (14, 120.0), (15, 90.0), (20, 120.0), (30, 120.0))
    assert b.state("too-high") == "normal"


async def test_the_on_delay_ends_to_the_second_by_the_data(bench) -> None:
    b = bench(DELAYED)
    b.observe("p", (0, 120.0), (14.999, 120.0))
    assert b.state("too-high") == "normal"
    b.observe("p", (15, 120.0))
    assert b.state("too-high") == "active-unack"
    assert b.alarms.one("too-high")["since"] == "2026-10-01T00:00:15Z"


async def test_the_deadband_holds_the_alarm_and_does_not_bring_it(bench) -> None:
    b = bench(replace(HIGH, deadband=5.0))
    b.observe("p", (0, 99.0))
    assert b.state("too-high") == "normal"
    b.observe("p", (1, 101.0), (2, 99.0), (3, 95.1))
    assert b.state("too-high") == "active-unack"
    b.observe("p", (4, 95.0))
    assert b.state("too-high") == "returned-unack"


async def test_chatter_at_the_limit_is_one_alarm(bench) -> None:
    b = bench(DELAYED)
    noisy = [(float(second), 100.0 + (1.0 if second % 2 else -1.0)) for second in range(600)]
    b.observe("p", (-20.0, 120.0), (-1.0, 120.0), *noisy)
    assert [state for _, _, state in await b.history()] == ["active-unack"]


async def test_an_acknowledged_alarm_that_returns_is_normal(bench) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 120.0))
    b.at(5)
    answer = await b.alarms.acknowledge("too-high", "li", "seen")
    assert (answer["state"], answer["acknowledged_by"]) == ("active-ack", "li")

    b.observe("p", (10, 90.0))

    assert await b.history() == [
        ("too-high", 0.0, "active-unack"),
        ("too-high", 5.0, "active-ack"),
        ("too-high", 10.0, "normal"),
    ]
    assert [event.who for event in b.log.events] == ["", "li", ""]


async def test_an_alarm_that_returned_by_itself_waits_for_its_acknowledgement(bench) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 120.0), (10, 90.0))
    assert b.state("too-high") == "returned-unack"
    await b.alarms.acknowledge("too-high", "li")
    assert b.state("too-high") == "normal"
    assert b.alarms.active() == []


async def test_there_is_nothing_to_acknowledge_twice(bench) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 120.0))
    await b.alarms.acknowledge("too-high", "li")
    with pytest.raises(BadRequest, match="nothing to acknowledge"):
        await b.alarms.acknowledge("too-high", "li")


async def test_a_second_excursion_needs_a_second_acknowledgement(bench) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 120.0))
    await b.alarms.acknowledge("too-high", "li")
    b.observe("p", (10, 90.0), (20, 120.0))
    alarm = b.alarms.one("too-high")
    assert (alarm["state"], alarm["acknowledged_by"]) == ("active-unack", None)


async def test_late_data_raise_no_alarm(bench) -> None:
    b = bench(DELAYED)
    b.observe("p", (100, 90.0))
    b.observe("p", (0, 120.0), (50, 120.0), (99, 120.0))
    assert b.state("too-high") == "normal"
    assert await b.history() == []


async def test_a_repeated_batch_alarms_once(bench) -> None:
    b = bench(HIGH)
    rows = ((0.0, 120.0), (1.0, 90.0), (2.0, 130.0))
    b.observe("p", *rows)
    b.observe("p", *rows)
    assert [state for _, _, state in await b.history()] == ["active-unack", "returned-unack", "active-unack"]


async def test_a_bad_reading_neither_raises_nor_clears(bench) -> None:
    b = bench(DELAYED)
    b.observe("p", (0, 120.0))
    b.observe("p", (10, np.nan), status=BAD_NO_COMMUNICATION)
    b.observe("p", (20, 120.0))
    assert b.state("too-high") == "normal"  # the delay began anew at 20 s
    b.observe("p", (35, 120.0))
    b.observe("p", (200, np.nan), status=BAD_NO_COMMUNICATION)
    assert b.state("too-high") == "active-unack"


async def test_a_value_that_is_only_sent_on_change_alarms_when_nothing_more_comes(bench) -> None:
    b = bench(DELAYED)
    b.observe("p", (0, 120.0))
    b.alarms.tick(b.at(14))
    assert b.state("too-high") == "normal"
    b.alarms.tick(b.at(15))
    assert b.alarms.one("too-high")["since"] == "2026-10-01T00:00:15Z"


async def test_silence_alarms_once_and_ends_with_the_next_good_reading(bench) -> None:
    b = bench(SILENT)
    b.observe("p", (0, 1.0))
    b.alarms.tick(b.at(30))
    assert b.state("silent") == "normal"
    b.alarms.tick(b.at(31))
    b.alarms.tick(b.at(32))
    b.observe("p", (40, np.nan), status=BAD_NO_COMMUNICATION)
    alarm = b.alarms.one("silent")
    assert (alarm["state"], alarm["value"], alarm["limit"], alarm["unit"]) == (
        "active-unack",
        None,
        30.0,
        "s",
    )
    assert alarm["message"]["en"] == "p: no data for more than 30 s"

    b.observe("p", (50, 1.0))

    assert await b.history() == [("silent", 30.0, "active-unack"), ("silent", 50.0, "returned-unack")]


async def test_a_backlog_that_is_still_arriving_is_not_silence(bench) -> None:
    b = bench(SILENT)
    b.at(3600)
    b.alarms.tick(b.at(3610))  # nothing yet, but we have only just started to listen
    for step in range(5):  # an hour-old buffer, sent a reading every 20 s
        b.at(3610 + 20 * step)
        b.alarms.observe(b.readings("p", (float(step), 1.0)))
        b.alarms.tick(b.at(3610 + 20 * step + 19))
    assert [state for _, _, state in await b.history()] == ["active-unack", "returned-unack"]


async def test_a_point_that_never_spoke_is_missed_after_its_time(bench) -> None:
    b = bench(SILENT)
    b.alarms.tick(b.at(30))
    assert b.state("silent") == "normal"
    b.alarms.tick(b.at(31))
    assert b.state("silent") == "active-unack"


async def test_a_shelved_alarm_is_still_evaluated_and_comes_back_by_itself(bench) -> None:
    b = bench(HIGH)
    b.at(0)
    await b.alarms.shelve("too-high", "li", for_s=60.0, note="maintenance")
    b.observe("p", (10, 120.0))
    alarm = b.alarms.one("too-high")
    assert (alarm["state"], alarm["condition"]) == ("shelved", "active-unack")

    b.alarms.tick(b.at(60))

    assert b.state("too-high") == "active-unack"
    assert [state for _, _, state in await b.history()] == ["shelved", "active-unack", "unshelved"]


async def test_nobody_shelves_an_alarm_for_longer_than_a_day(bench) -> None:
    b = bench(HIGH)
    with pytest.raises(BadRequest, match="86400 s"):
        await b.alarms.shelve("too-high", "li", for_s=86_401)


@pytest.mark.parametrize("steps", ["raise", "ack", "return", "clear", "shelve"])
async def test_a_restart_finds_every_alarm_where_it_was(bench, steps: str) -> None:
    b = bench(HIGH)
    b.observe("p", (0, 90.0), (10, 120.0))
    if steps == "ack":
        await b.alarms.acknowledge("too-high", "li")
    if steps in ("return", "clear"):
        b.observe("p", (20, 90.0))
    if steps == "clear":
        await b.alarms.acknowledge("too-high", "li")
    if steps == "shelve":
        await b.alarms.shelve("too-high", "li", for_s=60.0)
    await b.alarms.flush()

    again = await b.restarted()

    before, after = b.alarms.one("too-high"), again.alarms.one("too-high")
    if steps == "clear":
        assert after["state"] == before["state"] == "normal"
    else:
        assert after == before
    again.observe("p", (10, 120.0))  # the same batch once more
    assert again.alarms.one("too-high")["state"] == before["state"]


async def test_transitions_wait_for_the_database_and_are_told_meanwhile(bench) -> None:
    b = bench(HIGH)
    b.log.away = True
    with b.bus.subscribe(ALERTS) as news:
        b.observe("p", (0, 120.0))
        answer = await b.alarms.acknowledge("too-high", "li")
        told: list[AlertNews] = [news.get_nowait(), news.get_nowait()]
    assert [item.alert["state"] for item in told] == ["active-unack", "active-ack"]
    assert answer["state"] == "active-ack"

    b.log.away = False

    assert [state for _, _, state in await b.history()] == ["active-unack", "active-ack"]


async def test_a_changed_plant_keeps_the_alarms_whose_rules_stay(bench) -> None:
    b = bench(HIGH, SILENT)
    b.observe("p", (0, 120.0))
    b.alarms.adopt(b.plant_with(SILENT, replace(HIGH, high=110.0)))
    assert b.state("too-high") == "active-unack"
    b.observe("p", (1, 105.0))
    assert b.state("too-high") == "returned-unack"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([90.0, 98.5, 99.5, 101.0, np.nan]), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
)
async def test_however_the_readings_are_cut_into_batches_the_alarms_are_the_same(bench, values, cuts) -> None:
    rule = replace(HIGH, on_delay_s=3.0, off_delay_s=4.0, deadband=1.0)
    rows = [(float(second), value) for second, value in enumerate(values)]
    one_by_one, in_batches = bench(rule), bench(rule)
    for row in rows:
        one_by_one.observe("p", row)
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(rows)), len(rows)]
    for first, last in pairwise(edges):
        if last > first:
            in_batches.observe("p", *rows[first:last])
    assert await one_by_one.history() == await in_batches.history()
