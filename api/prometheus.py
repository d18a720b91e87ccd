"""As much of Prometheus' HTTP API as Grafana's built-in Prometheus source asks for, over what ecmc computed.

Nothing is scraped or stored for it. Answers and errors have Prometheus' own
form; what is outside the subset is answered 422 `bad_data` with the place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from api.deps import InPlant, InServices, Services
from api.metric import METRICS, Metric, Moments, is_firing, matching, named, select
from api.promql import Aggregation, Expression, Number, Selector, parse, parse_selector
from core.clock import NS_PER_S, parse_rfc3339, rfc3339
from core.errors import BadRequest, StoreUnavailable
from core.plant.model import AlertKind, AlertRule, Plant
from core.samples import Flags, Floats

MOST_STEPS: Final = 11_000  # as Prometheus
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w|y)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}

Row = tuple[Mapping[str, str], Floats, Flags]


class FaultyParameter(BadRequest):
    """A parameter of the request is missing or cannot be read; Prometheus answers 400."""


class PrometheusRoute(APIRoute):
    """Errors as Prometheus says them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except FaultyParameter as why:
                return _error(400, "bad_data", str(why))
            except BadRequest as why:
                return _error(422, "bad_data", str(why))
            except StoreUnavailable as why:
                return _error(503, "unavailable", str(why))

        return answer


router = APIRouter(prefix="/prometheus/api/v1", tags=["prometheus"], route_class=PrometheusRoute)


class Given:
    """Parameters of the query string and of a form, which is how Grafana sends long ones."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = list(pairs)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def get(self, name: str) -> str | None:
        found = self.all(name)
        return found[-1] if found else None

    def text(self, name: str) -> str:
        found = self.get(name)
        if not found:
            raise FaultyParameter(f"the parameter {name} is missing")
        return found

    def time_ns(self, name: str, default_ns: int | None = None) -> int:
        """A time in Unix seconds or RFC 3339."""
        if default_ns is not None and not self.get(name):
            return default_ns
        text = self.text(name)
        try:
            seconds = float(text)
        except ValueError:
            try:
                return parse_rfc3339(text)
            except ValueError:
                raise FaultyParameter(f"{name}: {text!r} is no time in seconds or RFC 3339") from None
        if not -2e9 < seconds < 1e11:
            raise FaultyParameter(f"{name}: {text!r} is no time in seconds")
        return round(seconds * 1000) * (NS_PER_S // 1000)

    def duration_s(self, name: str) -> float:
        text = self.text(name)
        match = _DURATION.fullmatch(text)
        try:
            seconds = float(match[1]) * _SECONDS[match[2]] if match else float(text)
        except ValueError:
            seconds = math.nan
        if not 0.001 <= seconds < 1e10:
            raise FaultyParameter(f"{name}: {text!r} is no duration like 15 or 15s")
        return seconds

    def limit(self) -> int | None:
        text = self.get("limit")
        if not text or text == "0":
            return None
        if not text.isdigit():
            raise FaultyParameter(f"limit: {text!r} is no number")
        return int(text)


async def _given(request: Request) -> Given:
    pairs = list(request.query_params.multi_items())
    if request.method == "POST":
        body = await request.body()
        try:
            pairs += parse_qsl(body.decode(), keep_blank_values=True)
        except UnicodeDecodeError:
            raise FaultyParameter("the form is not UTF-8") from None
    return Given(pairs)


InGiven = Annotated[Given, Depends(_given)]


# queries -----------------------------------------------------------------------
@router.get("/query")
@router.post("/query", include_in_schema=False)
async def query(services: InServices, given: InGiven) -> Response:
    """An expression at one `time` (default now)."""
    expression = parse(given.text("query"))
    time_ns = given.time_ns("time", services.clock.now_ns())
    if isinstance(expression, Number):
        return _success({"resultType": "scalar", "result": [time_ns / NS_PER_S, _text(expression.value)]})
    rows = await _evaluated(services, expression, Moments(np.array([time_ns])))
    result = [
        {"metric": labels, "value": [time_ns / NS_PER_S, _text(float(value[0]))]} for labels, value, _ in rows
    ]
    return _success({"resultType": "vector", "result": result})


@router.get("/query_range")
@router.post("/query_range", include_in_schema=False)
async def query_range(services: InServices, given: InGiven) -> Response:
    """An expression from `start` to `end`, both inside, every `step`."""
    expression = parse(given.text("query"))
    start_ns, end_ns, step_s = given.time_ns("start"), given.time_ns("end"), given.duration_s("step")
    step_ns = round(step_s * NS_PER_S)
    if end_ns < start_ns:
        raise FaultyParameter("end is before start")
    if (end_ns - start_ns) // step_ns >= MOST_STEPS:
        raise FaultyParameter(f"more than {MOST_STEPS:,} steps: a longer step or a shorter range is wanted")
    time_ns = np.arange(start_ns, end_ns + 1, step_ns)
    if isinstance(expression, Number):
        everywhere = np.ones(time_ns.size, dtype=np.bool_)
        rows: list[Row] = [({}, np.full(time_ns.size, expression.value), everywhere)]
    else:
        rows = await _evaluated(services, expression, Moments(time_ns, step_s))
    seconds = time_ns / NS_PER_S
    result = [
        {
            "metric": labels,
            "values": [
                [at, _text(figure)]
                for at, figure in zip(seconds[there].tolist(), value[there].tolist(), strict=True)
            ],
        }
        for labels, value, there in rows
    ]
    return _success({"resultType": "matrix", "result": result})


async def _evaluated(services: Services, expression: Expression, at: Moments) -> list[Row]:
    if isinstance(expression, Selector):
        return list(await select(services, expression, at))
    assert isinstance(expression, Aggregation)
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in await _evaluated(services, expression.inner, at):
        key = tuple((label, row[0][label]) for label in expression.by if label in row[0])
        groups.setdefault(key, []).append(row)
    return [_aggregated(expression.operation, dict(key), rows) for key, rows in groups.items()]


def _aggregated(operation: str, labels: dict[str, str], rows: list[Row]) -> Row:
    """One series of several; what is not there does not count, what is unknown makes the result unknown."""
    value, there = np.stack([row[1] for row in rows]), np.stack([row[2] for row in rows])
    if operation in ("sum", "avg"):
        total = np.where(there, value, 0.0).sum(axis=0)
        result = total if operation == "sum" else total / np.maximum(there.sum(axis=0), 1)
    elif operation == "min":
        result = np.where(there, value, np.inf).min(axis=0)
    else:
        result = np.where(there, value, -np.inf).max(axis=0)
    return labels, result, np.asarray(there.any(axis=0))


# what there is -----------------------------------------------------------------
@router.get("/labels")
@router.post("/labels", include_in_schema=False)
async def labels(services: InServices, given: InGiven) -> Response:
    """Names of labels."""
    found = await _listed(services, given)
    return _success(sorted({name for row in found for name in row})[: given.limit()])


@router.get("/label/{name}/values")
async def label_values(services: InServices, given: InGiven, name: str) -> Response:
    """Values of a label."""
    found = await _listed(services, given)
    return _success(sorted({row[name] for row in found if name in row})[: given.limit()])


@router.get("/series")
@router.post("/series", include_in_schema=False)
async def series(services: InServices, given: InGiven) -> Response:
    """Series by `match[]`."""
    given.text("match[]")
    return _success((await _listed(services, given))[: given.limit()])


async def _listed(services: Services, given: Given) -> list[dict[str, str]]:
    selectors = [parse_selector(text) for text in given.all("match[]")]
    found: list[dict[str, str]] = []
    for metric in METRICS:
        if not selectors:
            found += [named(metric, row) for row in await metric.series(services)]
            continue
        rows = [row for selector in selectors for row in await matching(services, metric, selector)]
        once = {tuple(sorted(row.items())): row for row in rows}
        found += [named(metric, row) for row in once.values()]
    return found


@router.get("/metadata")
async def metadata(given: InGiven) -> Response:
    """What each metric means."""
    wanted: list[Metric] = [metric for metric in METRICS if given.get("metric") in (None, "", metric.name)]
    return _success({metric.name: [{"type": "gauge", "help": metric.help, "unit": ""}] for metric in wanted})


@router.get("/status/buildinfo")
async def buildinfo() -> Response:
    """Whom Grafana talks to; the version is that of the Prometheus API spoken."""
    return _success(
        {
            "version": "2.24.0",
            "revision": f"ecmc {version('ecmc')}",
            "branch": "",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
        }
    )


@router.get("/query_exemplars")
@router.post("/query_exemplars", include_in_schema=False)
async def query_exemplars() -> Response:
    """None: there are no traces behind these figures."""
    return _success([])


# alarms ------------------------------------------------------------------------
@router.get("/rules")
async def rules(services: InServices, plant: InPlant, given: InGiven) -> Response:
    """Alarm rules as alerting rules, one group."""
    if given.get("type") == "record":
        return _success({"groups": []})
    alarms = {str(alarm["rule"]): alarm for alarm in services.alarms.all()}
    now = rfc3339(services.clock.now_ns())
    found = [_rule(plant, rule, alarms[rule.id], now) for rule in plant.alerts if rule.id in alarms]
    return _success({"groups": [{"name": plant.id, "file": "alerts.yaml", "interval": 1, "rules": found}]})


@router.get("/alerts")
async def alerts(services: InServices) -> Response:
    """Alarms whose condition holds."""
    return _success({"alerts": [_alert(alarm) for alarm in services.alarms.active() if is_firing(alarm)]})


def _rule(plant: Plant, rule: AlertRule, alarm: Mapping[str, Any], now: str) -> dict[str, object]:
    firing = is_firing(alarm)
    return {
        "type": "alerting",
        "name": rule.id,
        "query": _condition(rule),
        "duration": rule.for_s if rule.kind is AlertKind.MISSING else rule.on_delay_s,
        "state": "firing" if firing else "inactive",
        "health": "ok",
        "labels": {"severity": str(rule.severity), "point": rule.point},
        "annotations": {"summary": alarm["message"]["en"], "summary_zh": alarm["message"]["zh"]},
        "alerts": [_alert(alarm)] if firing else [],
        "lastEvaluation": now,
        "evaluationTime": 0,
    }


def _condition(rule: AlertRule) -> str:
    """The rule as a person who knows PromQL would read it."""
    point = f'ecmc_point{{point="{rule.point}"}}'
    if rule.kind is AlertKind.MISSING:
        return f"absent({point})"
    sides = [
        f"{point} {sign} {limit:g}"
        for sign, limit in (("<", rule.low), (">", rule.high))
        if limit is not None
    ]
    return " or ".join(sides)


def _alert(alarm: Mapping[str, Any]) -> dict[str, object]:
    return {
        "labels": {
            "alertname": alarm["rule"],
            "state": alarm["state"],
            "severity": str(alarm["severity"]),
            "point": alarm["point"],
        },
        "annotations": {"summary": alarm["message"]["en"], "summary_zh": alarm["message"]["zh"]},
        "state": "firing",
        "activeAt": alarm["since"],
        "value": _text(math.nan if alarm["value"] is None else float(alarm["value"])),
    }


# -------------------------------------------------------------------------------
def _success(data: object) -> Response:
    return Response(orjson.dumps({"status": "success", "data": data}), media_type="application/json")


def _error(status: int, kind: str, message: str) -> Response:
    body = {"status": "error", "errorType": kind, "error": message}
    return Response(orjson.dumps(body), status, media_type="application/json")


def _text(figure: float) -> str:
    if math.isnan(figure):
        return "NaN"
    if math.isinf(figure):
        return "+Inf" if figure > 0 else "-Inf"
    return repr(figure)
