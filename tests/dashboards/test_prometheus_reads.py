"""What Grafana's built-in Prometheus source asks is answered, from the figures /v1 gives, in Prometheus' own form."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.deps import Services
from api.promql import Aggregation, Selector, parse
from api.security import auth_of
from core.alerts import Alarms
from core.bus import LiveNode, LiveUpdate, LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.errors import BadRequest, StoreUnavailable
from core.health import Health
from core.plant.model import (
    Plant,
)
from core.quality import BAD
from core.samples import NS_PER_S, PointTable, batch_of_rows, sample_batch
from core.store.postgres import PostgresStore

NOW = "2026-10-05T04:07:30Z"
NOW_S = parse_rfc3339(NOW) // NS_PER_S
METHOD = "zero-carbon-factory"
POWER = "m.active_power_total"


class NoLog:
    async def append(self, events: Any) -> None: ...

    async def last(self) -> list[Any]:
        return []


class Clock:
    def now_ns(self) -> int:
        return parse_rfc3339(NOW)


class Grafana:
    """Speaks as the data source does: forms by POST, times in seconds, answers unpacked."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def instant(self, expression: str, time: float | str = NOW_S) -> Any:
        answer = await self.http.post("/query", data={"query": expression, "time": str(time)})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["result"]

    async def range(self, expression: str, start: str, end: str, step: str) -> dict[str, dict[float, float]]:
        form = {"query": expression, "start": seconds(start), "end": seconds(end), "step": step}
        answer = await self.http.post("/query_range", data=form)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"]["resultType"] == "matrix"
        return {
            str(sorted(row["metric"].items())): {at: float(figure) for at, figure in row["values"]}
            for row in answer.json()["data"]["result"]
        }


def seconds(text: str) -> str:
    return str(parse_rfc3339(text) / NS_PER_S)


def figures(rows: list[dict[str, Any]], label: str) -> dict[str, float]:
    return {row["metric"][label]: float(row["value"][1]) for row in rows}


@pytest.fixture
async def services(filled: str, plant: Plant) -> AsyncIterator[Services]:
    store = await PostgresStore.open(filled, plant)
    bus, clock = LocalBus(), Clock()
    alarms = Alarms(plant, NoLog(), bus, clock)

    async def indicators(start_ns: int, end_ns: int, method_set: str) -> list[dict[str, object]]:
        hours = (end_ns - start_ns) / NS_PER_S / 3600
        return [
            {
                "indicator": "energy_tce",
                "value": hours,
                "unit": "tce",
                "basis": "calorific",
                "method_set": method_set,
            }
        ]

    live = LiveUpdate(
        parse_rfc3339(NOW),
        (
            LiveNode("grid", 60.0, 30.0, 0.5),
            LiveNode("main", 60.0, 30.0, 0.5),
            LiveNode("press", None, None, None),
            LiveNode("site", 60.0, 30.0, 0.5),
        ),
        {"e-grid": 61.5, "e-press": None},
    )
    yield Services(
        plant=lambda: plant,
        store=store,
        bus=bus,
        health=Health(),
        alarms=alarms,
        clock=clock,
        devices=dict,
        live=lambda: live,
        indicators=indicators,
        inventories=None,  # type: ignore[arg-type]  # no board asks for these
        green_ledger=None,  # type: ignore[arg-type]
        green_hours=None,  # type: ignore[arg-type]
        library=FactorLibrary.shipped,
        registers=lambda: None,  # type: ignore[arg-type]
        factors_changed=None,  # type: ignore[arg-type]
        counter_ledger=None,  # type: ignore[arg-type]
        footprints=None,  # type: ignore[arg-type]
        event_changed=None,  # type: ignore[arg-type]
        boot="b",
    )
    await store.close()


@pytest.fixture
async def grafana(services: Services) -> AsyncIterator[Grafana]:
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/prometheus/api/v1") as http:
        yield Grafana(http)


# save and test, then the editor ---------------------------------------------------
async def test_save_and_test_finds_somebody_there(grafana: Grafana) -> None:
    answer = await grafana.http.post("/query", data={"query": "1+1", "time": str(NOW_S)})
    build = await grafana.http.get("/status/buildinfo")

    assert answer.json() == {"status": "success", "data": {"resultType": "scalar", "result": [NOW_S, "2.0"]}}
    assert build.json()["data"]["version"] == "2.24.0"


async def test_the_editor_lists_metrics_labels_and_values(grafana: Grafana) -> None:
    names = (await grafana.http.get("/label/__name__/values")).json()["data"]
    labels = (await grafana.http.post("/labels", data={"match[]": "ecmc_energy_kwh"})).json()["data"]
    edges = (await grafana.http.get("/label/edge/values", params={"match[]": "ecmc_power_kw"})).json()["data"]
    found = (await grafana.http.post("/series", data={"match[]": '{__name__=~"ecmc_po.*",point=""}'})).json()[
        "data"
    ]
    meaning = (await grafana.http.get("/metadata", params={"metric": "ecmc_point"})).json()["data"]

    assert {"ecmc_power_kw", "ecmc_emissions_kgco2e", "ecmc_point", "ALERTS"} <= set(
        names
    ) or "ALERTS" not in names
    assert labels == ["__name__", "bucket", "carrier", "edge", "source", "target"]
    assert edges == ["e-grid", "e-press"]
    assert [row["edge"] for row in found] == ["e-grid", "e-press"]
    assert meaning["ecmc_point"][0]["type"] == "gauge"


async def test_every_listed_series_can_be_asked_for(grafana: Grafana) -> None:
    names = (await grafana.http.get("/label/__name__/values")).json()["data"]

    for name in names:
        assert isinstance(await grafana.instant(name), list)


# one moment -----------------------------------------------------------------------
async def test_a_moment_without_a_bucket_answers_for_the_day_so_far(grafana: Grafana) -> None:
    rows = await grafana.instant("ecmc_energy_kwh")

    assert {row["metric"]["bucket"] for row in rows} == {"1d"}
    assert figures(rows, "edge") == {"e-grid": 727.0, "e-press": 727.0}
    assert rows[0]["value"][0] == NOW_S


@pytest.mark.parametrize(
    ("bucket", "expected"),
    [("1m", 1.0), ("15m", 15.0), ("1h", 60.0), ("1d", 1440.0), ("1mo", 6487.0), ("1y", 19567.0)],
)
async def test_a_named_bucket_answers_for_the_bucket_that_holds_the_moment(
    bucket: str, expected: float, grafana: Grafana
) -> None:
    yesterday = seconds("2026-10-04T03:59:10Z")

    rows = await grafana.instant(f'ecmc_energy_kwh{{edge="e-grid",bucket="{bucket}"}}', yesterday)

    assert figures(rows, "edge") == {"e-grid": expected}


async def test_emissions_come_by_scope_and_add_up(grafana: Grafana) -> None:
    by_scope = await grafana.instant('ecmc_emissions_kgco2e{node="site",basis="location"}')
    total = await grafana.instant('sum(ecmc_emissions_kgco2e{node="site",basis="location"})')
    by_node = await grafana.instant('sum by (node) (ecmc_emissions_kgco2e{kind!~"site|bus"})')

    assert figures(by_scope, "scope") == pytest.approx({"1": 72.7, "2": 290.8})
    assert float(total[0]["value"][1]) == pytest.approx(363.5)
    assert total[0]["metric"] == {}
    assert figures(by_node, "node") == pytest.approx({"grid": 363.5, "press": 363.5})


async def test_intensity_is_that_of_the_day_and_unknown_on_a_basis_nobody_computed(grafana: Grafana) -> None:
    rows = await grafana.instant('ecmc_intensity_kgco2e_per_kwh{node="main"}')

    assert figures(rows, "basis") == pytest.approx({"location": 0.5, "market": math.nan}, nan_ok=True)


async def test_the_board_s_live_figures_are_there(grafana: Grafana, boards: dict[str, Any]) -> None:
    asked = [
        target["expr"].replace("$method_set", METHOD)
        for board in boards.values()
        for panel in board["panels"]
        for target in panel["targets"]
        if "expr" in target
    ]

    answers = [await grafana.instant(expression) for expression in asked]

    assert len(asked) == 4
    values = [answer[0]["value"][1] if answer else None for answer in answers]
    assert values == ["60.0", None, "30.0", "24.0"]  # no roof in this plant


async def test_a_label_without_a_value_is_left_out(grafana: Grafana) -> None:
    rows = await grafana.instant('ecmc_live_power_kw{node="site"}')

    assert rows[0]["metric"] == {"__name__": "ecmc_live_power_kw", "node": "site", "kind": "site"}


async def test_power_is_live_now_and_the_last_interval_s_mean_before(grafana: Grafana) -> None:
    now = await grafana.instant('ecmc_power_kw{edge="e-grid"}')
    before = await grafana.instant('ecmc_power_kw{edge="e-grid"}', seconds("2026-10-05T03:00:30Z"))

    assert figures(now, "edge") == {"e-grid": 61.5}
    assert figures(before, "edge") == {"e-grid": 60.0}


async def test_an_unknown_figure_is_nan_and_spreads_through_a_sum(grafana: Grafana) -> None:
    press = await grafana.instant('ecmc_power_kw{edge="e-press"}')
    total = await grafana.instant("sum(ecmc_power_kw)")

    assert press[0]["value"][1] == "NaN"
    assert total[0]["value"][1] == "NaN"


# ranges ---------------------------------------------------------------------------
async def test_a_range_takes_the_bucket_of_its_step(grafana: Grafana) -> None:
    hours = await grafana.range(
        'ecmc_energy_kwh{edge="e-grid"}', "2026-10-05T00:00:00Z", "2026-10-05T06:00:00Z", "3600"
    )

    (line,) = hours.values()
    start = parse_rfc3339("2026-10-05T00:00:00Z") // NS_PER_S
    assert line == {start + 3600 * i: kwh for i, kwh in enumerate([60.0, 60.0, 60.0, 60.0, 7.0])}


async def test_days_of_a_range_begin_at_the_plant_s_midnight(grafana: Grafana) -> None:
    days = await grafana.range(
        'ecmc_energy_kwh{edge="e-grid"}', "2026-10-02T16:00:00Z", "2026-10-04T16:00:00Z", "1d"
    )

    assert list(next(iter(days.values())).values()) == [1440.0, 1440.0, 727.0]


async def test_a_reading_stands_for_five_minutes_and_a_bad_one_for_none(
    grafana: Grafana, services: Services
) -> None:
    at_ns = parse_rfc3339("2026-09-20T00:00:00Z")
    minute_ns = 60 * NS_PER_S
    rows = [
        (POWER, at_ns, 10.0, 0),
        (POWER, at_ns + minute_ns, 20.0, 0),
        (POWER, at_ns + 10 * minute_ns, math.nan, BAD),
    ]
    await services.store.write(batch_of_rows(rows))

    line = await grafana.range(
        f'ecmc_point{{point="{POWER}"}}', "2026-09-19T23:59:00Z", "2026-09-20T00:11:00Z", "1m"
    )

    ((_, values),) = line.items()
    shown = {round((at * NS_PER_S - at_ns) / minute_ns): figure for at, figure in values.items()}
    assert shown == pytest.approx(
        {0: 10.0, **dict.fromkeys(range(1, 7), 20.0), 10: math.nan, 11: math.nan}, nan_ok=True
    )


async def test_the_newest_reading_is_the_latest_one(grafana: Grafana) -> None:
    rows = await grafana.instant('ecmc_point{quantity="active_power_total"}')

    assert [(row["metric"]["unit"], row["value"][1]) for row in rows] == [("kW", "60.0")]


async def test_a_moment_past_is_answered_from_the_samples_of_then(
    grafana: Grafana, services: Services
) -> None:
    at = "2026-09-22T00:00:00Z"
    await services.store.write(batch_of_rows([(POWER, parse_rfc3339(at), 33.0, 0)]))

    then = await grafana.instant("ecmc_point", seconds("2026-09-22T00:04:00Z"))
    stale = await grafana.instant("ecmc_point", seconds("2026-09-22T00:06:00Z"))

    assert figures(then, "point") == {POWER: 33.0}
    assert stale == []


# who may ask ------------------------------------------------------------------------
async def test_with_keys_grafana_s_header_opens_the_door(services: Services) -> None:
    services.auth = auth_of("token:a-long-enough-key")
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://ecmc:8000/prometheus/api/v1") as http:
        without = await http.get("/query", params={"query": "1+1"})
        with_key = await http.get(
            "/query", params={"query": "1+1"}, headers={"Authorization": "Bearer a-long-enough-key"}
        )

    assert (without.status_code, with_key.status_code) == (401, 200)


# alarms ---------------------------------------------------------------------------
async def test_a_raised_alarm_shows_as_prometheus_shows_alerts(grafana: Grafana, services: Services) -> None:
    services.alarms.observe(sample_batch(PointTable((POWER,)), [0], [parse_rfc3339(NOW)], [200.0]))

    rows = await grafana.instant('ALERTS{alertstate="firing"}')
    count = await grafana.instant('sum(ecmc_alarms{state=~"active-.*"})')
    (alert,) = (await grafana.http.get("/alerts")).json()["data"]["alerts"]
    (group,) = (await grafana.http.get("/rules")).json()["data"]["groups"]

    assert [row["metric"]["alertname"] for row in rows] == ["high"]
    assert count[0]["value"][1] == "1.0"
    assert (alert["labels"]["alertname"], alert["state"], alert["value"]) == ("high", "firing", "200.0")
    assert alert["activeAt"] == NOW
    assert [(rule["name"], rule["state"]) for rule in group["rules"]] == [("high", "firing")]
    assert group["rules"][0]["query"] == f'ecmc_point{{point="{POWER}"}} > 100'


async def test_without_an_alarm_the_count_is_zero_and_not_missing(grafana: Grafana) -> None:
    count = await grafana.instant('sum(ecmc_alarms{state=~"active-.*"})')

    assert count[0]["value"][1] == "0.0"


# errors ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("form", "status", "told"),
    [
        ({"query": "rate(ecmc_energy_kwh[5m])"}, 422, "rate"),
        ({"query": "ecmc_energy_kwh[5m]"}, 422, "[5m]"),
        ({"query": "ecmc_energy_kwh * 2"}, 422, "* 2"),
        ({"query": 'ecmc_energy_kwh{edge="a"'}, 422, "wanted"),
        ({"query": '{edge=~".*"}'}, 422, "a selector needs a name"),
        ({"query": 'ecmc_energy_kwh{edge=~"("}'}, 422, "pattern"),
        ({"query": "sum without (node) (ecmc_energy_kwh)"}, 422, "without"),
        ({"query": ""}, 400, "query is missing"),
        ({"query": "ecmc_point", "time": "yesterday"}, 400, "yesterday"),
    ],
)
async def test_what_is_outside_the_subset_is_refused_in_prometheus_words(
    form: dict[str, str], status: int, told: str, grafana: Grafana
) -> None:
    answer = await grafana.http.post("/query", data=form)

    assert answer.status_code == status
    assert (answer.json()["status"], answer.json()["errorType"]) == ("error", "bad_data")
    assert told in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"end": "2026-09-01T00:00:00Z"}, 400, "end is before start"),
        ({"step": "0"}, 400, "step"),
        ({"step": "1"}, 400, "11,000"),
        ({"query": 'ecmc_energy_kwh{bucket="1m"}', "end": "2027-10-01T00:00:00Z"}, 422, "rows"),
    ],
)
async def test_a_range_too_fine_or_upside_down_is_refused(
    change: dict[str, str], status: int, told: str, grafana: Grafana
) -> None:
    asked = {
        "query": "ecmc_energy_kwh",
        "start": "2026-10-01T00:00:00Z",
        "end": "2026-10-05T00:00:00Z",
        "step": "1h",
    }

    answer = await grafana.http.get("/query_range", params={**asked, **change})

    assert answer.status_code == status
    assert told in answer.json()["error"]


async def test_a_database_that_is_away_is_said_to_be_away(grafana: Grafana, services: Services) -> None:
    class Away:
        async def energy(self, *asked: Any) -> Any:
            raise StoreUnavailable("the database does not answer")

    services.store = Away()  # type: ignore[assignment]

    answer = await grafana.http.get("/query", params={"query": "ecmc_energy_kwh"})

    assert answer.status_code == 503
    assert answer.json()["errorType"] == "unavailable"


# the language -----------------------------------------------------------------------
def test_by_may_stand_before_or_behind() -> None:
    assert parse("sum by (a, b) (x)") == parse("sum(x) by (a,b,)") == parse(" sum by(a,b)(x) ")


def test_a_selector_reads_every_kind_of_matcher() -> None:
    expression = parse("""x{a="1",b!='2', c=~`3|4`, d!~"5.*",}""")

    assert isinstance(expression, Selector)
    assert expression.matches({"__name__": "x", "a": "1", "c": "4"})
    assert not expression.matches({"__name__": "x", "a": "1", "c": "34"})
    assert not expression.matches({"__name__": "x", "a": "1", "c": "3", "d": "55"})
    assert not expression.matches({"__name__": "x", "a": "1", "b": "2", "c": "3"})


def test_an_escaped_quote_belongs_to_the_value() -> None:
    expression = parse(r'x{a="say \"hi\""}')

    assert isinstance(expression, Selector)
    assert expression.matchers[1].value == 'say "hi"'


def test_a_metric_may_be_called_as_an_operation_is_begun() -> None:
    assert isinstance(parse("summary_kwh"), Selector)
    assert isinstance(parse("max(min by (a) (x))"), Aggregation)
    with pytest.raises(BadRequest):
        parse("count(x)")
