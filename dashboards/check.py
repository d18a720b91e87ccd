"""What is wrong with a board before any Grafana has seen it: its JSON, its references, its queries.

The schema knows shapes, not meanings: a misspelt unit, an undefined variable or
a query without text pass it, so those are looked for here. `rendered` does to a
query what Grafana's PostgreSQL source does before it sends it, so that a test
can run every query of every board on a real server.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]

Board = Mapping[str, Any]

SQL: Final = "grafana-postgresql-datasource"
PROMETHEUS: Final = "prometheus"
PANEL_TYPES: Final = frozenset(
    [
        "alertlist",
        "annolist",
        "barchart",
        "bargauge",
        "gauge",
        "heatmap",
        "piechart",
        "row",
        "stat",
        "state-timeline",
        "table",
        "text",
        "timeseries",
    ]
)
_TOP_KEYS: Final = frozenset(
    [
        "annotations",
        "description",
        "editable",
        "fiscalYearStartMonth",
        "graphTooltip",
        "id",
        "links",
        "liveNow",
        "panels",
        "preload",
        "refresh",
        "schemaVersion",
        "tags",
        "templating",
        "time",
        "timepicker",
        "timezone",
        "title",
        "uid",
        "version",
        "weekStart",
    ]
)
_GRID_COLUMNS: Final = 24
_FASTEST_REFRESH_S: Final = 5
_CHINESE: Final = re.compile(r"[\u4e00-\u9fff]")
_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]")
_OWN_VARIABLE: Final = re.compile(r"__\w+")
_DURATION: Final = re.compile(r"(\d+)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class FaultyQuery(ValueError):
    """Grafana would answer this query with an error instead of sending it."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a board may refer to.

    Attributes:
        sources: uid of each provisioned data source with its type.
        boards: uids of all boards.
        units: Grafana's unit ids.
    """

    sources: Mapping[str, str]
    boards: Collection[str]
    units: Collection[str]


@dataclass(frozen=True, slots=True)
class BoardQuery:
    """One query of a board: `where` it stands, its source's type, its text, `table` or `time_series`."""

    where: str
    source_type: str
    text: str
    form: str


def schema_faults(board: Board) -> list[str]:
    """Where the JSON is not what Grafana's own types say."""
    schema = json.loads((Path(__file__).parent / "schema.json").read_text("utf-8"))
    found = jsonschema.Draft7Validator(schema).iter_errors(board)
    return sorted(
        f"{'.'.join(str(step) for step in fault.absolute_path)}: {fault.message}" for fault in found
    )


def faults(board: Board, around: Around) -> list[str]:
    """What the schema lets pass and a reader of the board would stumble over."""
    found = [f"unknown key {key}" for key in sorted(board.keys() - _TOP_KEYS)]
    found += _naming_faults(board)
    found += _grid_faults(board)
    found += _reference_faults(board, around)
    found += [fault for panel in board["panels"] for fault in _panel_faults(panel, around)]
    return found


def queries(board: Board) -> Iterator[BoardQuery]:
    """Every query: of panels, of variables, of annotations."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield _query(f"panel {panel['id']} {target['refId']}", target)
    for variable in board.get("templating", {}).get("list", ()):
        if variable["type"] == "query":
            asked = variable["query"]
            text = asked if isinstance(asked, str) else asked.get("query", "")
            yield BoardQuery(f"variable {variable['name']}", variable["datasource"]["type"], text, "table")
    for note in board.get("annotations", {}).get("list", ()):
        if "target" in note:
            yield _query(f"annotation {note['name']}", note["target"])


def _query(where: str, target: Mapping[str, Any]) -> BoardQuery:
    kind = target["datasource"]["type"]
    text = target.get("rawSql", "") if kind == SQL else target.get("expr", "")
    return BoardQuery(where, kind, text, target.get("format", "time_series"))


# what a person sees ----------------------------------------------------------
def _naming_faults(board: Board) -> Iterator[str]:
    if not board.get("uid"):
        yield "the board has no uid"
    if not _CHINESE.search(board.get("title", "")):
        yield f"the board's title has no Chinese: {board.get('title')!r}"
    refresh = board.get("refresh") or ""
    if refresh and duration_s(refresh) < _FASTEST_REFRESH_S:
        yield f"refresh {refresh} is faster than {_FASTEST_REFRESH_S}s"
    for number, count in Counter(panel.get("id") for panel in board["panels"]).items():
        if number is None or count > 1:
            yield f"{count} panels have the id {number}"


def _grid_faults(board: Board) -> Iterator[str]:
    taken: dict[tuple[int, int], object] = {}
    for panel in board["panels"]:
        at, name = panel["gridPos"], panel.get("id")
        if at["x"] + at["w"] > _GRID_COLUMNS:
            yield f"panel {name} reaches column {at['x'] + at['w']} of {_GRID_COLUMNS}"
        cells = [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
        for other in sorted({str(taken[cell]) for cell in cells if cell in taken}):
            yield f"panel {name} lies over panel {other}"
        taken.update(dict.fromkeys(cells, name))


# what it refers to -----------------------------------------------------------
def _reference_faults(board: Board, around: Around) -> Iterator[str]:
    variables = {variable["name"] for variable in board.get("templating", {}).get("list", ())}
    for where, source in _sources(board):
        if around.sources.get(source.get("uid", "")) != source.get("type"):
            yield f"{where}: no data source {source.get('uid')} of type {source.get('type')} is provisioned"
    for query in queries(board):
        if not query.text.strip():
            yield f"{query.where}: the query has no text"
        for name in sorted(_names_of_variables(query.text) - variables):
            yield f"{query.where}: variable ${name} is not defined"
    for link in _links(board):
        target = re.match(r"/d/([^/?]+)", link)
        if target and target[1] not in around.boards:
            yield f"link to the board {target[1]}, which is not there"
        elif target is None and link.startswith("/"):
            yield f"link {link} leads to a page of Grafana's own, not of ours"


def _sources(node: object, where: str = "board") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "gridPos" in node:
            where = f"panel {node.get('id')}"
        for key, value in node.items():
            if key == "datasource" and isinstance(value, Mapping):
                yield where, value
            else:
                yield from _sources(value, where)
    elif isinstance(node, list):
        for value in node:
            yield from _sources(value, where)


def _links(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "url" and isinstance(value, str):
                yield value
            else:
                yield from _links(value)
    elif isinstance(node, list):
        for value in node:
            yield from _links(value)


def _panel_faults(panel: Mapping[str, Any], around: Around) -> Iterator[str]:
    where = f"panel {panel.get('id')}"
    if panel["type"] == "library-panel" or "libraryPanel" in panel:
        yield f"{where}: library panels live in one Grafana only"
    elif panel["type"] not in PANEL_TYPES:
        yield f"{where}: panel type {panel['type']} is not built in"
    if not _CHINESE.search(panel.get("title", "")):
        yield f"{where}: the title has no Chinese: {panel.get('title')!r}"
    refs = Counter(target["refId"] for target in panel.get("targets", ()))
    yield from (f"{where}: {count} queries have the refId {ref}" for ref, count in refs.items() if count > 1)
    config = panel.get("fieldConfig", {})
    units = [config.get("defaults", {}).get("unit")]
    for override in config.get("overrides", ()):
        units += [setting["value"] for setting in override["properties"] if setting["id"] == "unit"]
    for unit in units:
        if unit is not None and unit not in around.units and not unit.startswith(("suffix:", "prefix:")):
            yield f"{where}: Grafana has no unit {unit}"
    form = panel.get("targets", [{}])[0].get("format")
    if panel["type"] == "timeseries" and form == "table":
        yield f"{where}: a time series asks for a table"


# what Grafana makes of a query -----------------------------------------------
@dataclass(frozen=True, slots=True)
class Asked:
    """What a query is rendered for: the range of time, the interval of a pixel, the variables' values.

    Attributes:
        timescale: The source's "TimescaleDB" switch.
    """

    start: datetime
    end: datetime
    interval: str = "1m"
    variables: Mapping[str, str] = field(default_factory=dict)
    timescale: bool = False


def duration_s(text: str) -> float:
    """Seconds of `15m`; FaultyQuery where it is no such thing."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise FaultyQuery(f"{text!r} is no interval like 30s, 15m or 1h")
    return int(match[1]) * _SECONDS[match[2]]


def rendered(text: str, asked: Asked) -> str:
    """The query as Grafana's PostgreSQL source sends it.

    Variables come first, then the interval, then the macros; a macro's arguments
    end at the first closing bracket and are split at commas.

    Raises:
        FaultyQuery: An undefined variable, an unknown macro, wrong arguments.
    """
    for name in _names_of_variables(text):
        if name not in asked.variables:
            raise FaultyQuery(f"variable ${name} is not defined")
    text = _VARIABLE.sub(lambda m: asked.variables.get(m[1] or m[2] or m[3], m[0]), text)
    milliseconds = round(duration_s(asked.interval) * 1000)
    text = text.replace("$__interval_ms", str(milliseconds)).replace("$__interval", asked.interval)
    # A comma right behind a group names the column.
    text = re.sub(r"\$__timeGroup(\([^)]*\)),", r"$__timeGroupAlias\1,", text)
    text = re.sub(r"\$(__\w+)\(([^)]*)\)", lambda m: _macro(m[1], m[2], asked), text)
    if left := re.search(r"\$__\w+", text):
        raise FaultyQuery(f"macro {left[0]} has no arguments")
    return text


def _names_of_variables(text: str) -> set[str]:
    names = {m[1] or m[2] or m[3] for m in _VARIABLE.finditer(text)}
    return {name for name in names if not _OWN_VARIABLE.fullmatch(name) and not name.isdigit()}


def _macro(name: str, arguments: str, asked: Asked) -> str:
    args = [argument.strip() for argument in arguments.split(",")] if arguments.strip() else []
    start, end = (
        moment.astimezone(UTC).isoformat().replace("+00:00", "Z") for moment in (asked.start, asked.end)
    )
    start_s, end_s = int(asked.start.timestamp()), int(asked.end.timestamp())
    wanted = {
        "__timeFrom": 0,
        "__timeTo": 0,
        "__timeGroup": 2,
        "__timeGroupAlias": 2,
        "__unixEpochGroup": 2,
    }.get(name, 1)
    if len(args) < wanted:
        raise FaultyQuery(f"macro ${name} needs {wanted} arguments, got {len(args)}")
    match name:
        case "__timeFilter":
            return f"{args[0]} BETWEEN '{start}' AND '{end}'"
        case "__timeFrom":
            return f"'{start}'"
        case "__timeTo":
            return f"'{end}'"
        case "__timeGroup" | "__timeGroupAlias":
            seconds = duration_s(args[1].strip("'"))
            group = f"floor(extract(epoch from {args[0]})/{seconds:g})*{seconds:g}"
            if asked.timescale:
                group = f"time_bucket('{seconds:.3f}s',{args[0]})"
            return group if name == "__timeGroup" else f'{group} AS "time"'
        case "__time":
            return f'{args[0]} AS "time"'
        case "__timeEpoch":
            return f'extract(epoch from {args[0]}) as "time"'
        case "__unixEpochFilter":
            return f"{args[0]} >= {start_s} AND {args[0]} <= {end_s}"
        case "__unixEpochGroup":
            seconds = duration_s(args[1].strip("'"))
            return f"floor(({args[0]})/{seconds:g})*{seconds:g}"
    raise FaultyQuery(f"unknown macro ${name}")
