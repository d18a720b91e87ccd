"""Every committed board is what its module makes, is what Grafana's types say, and refers to nothing that is not there."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dashboards.build import BOARDS, FOLDER, board_json
from dashboards.check import Around, faults, schema_faults

Board = dict[str, Any]


@pytest.mark.parametrize("name", BOARDS)
def test_making_a_board_again_gives_the_committed_bytes(name: str) -> None:
    assert board_json(name).encode() == (FOLDER / f"{name}.json").read_bytes()


def test_no_board_lies_in_the_folder_that_nothing_makes(boards: dict[str, Board]) -> None:
    assert set(boards) == set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_what_grafanas_own_types_say(name: str, boards: dict[str, Board]) -> None:
    assert schema_faults(boards[name]) == []


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_refers_to_nothing_that_is_not_there(
    name: str, boards: dict[str, Board], around: Around
) -> None:
    assert faults(boards[name], around) == []


def _panel(board: Board, kind: str = "stat") -> Any:
    return next(panel for panel in board["panels"] if panel["type"] == kind)


def _put(path: str, value: object) -> Callable[[Board], None]:
    """Sets `a.b.0.c` of the board; a first step `stat` or `timeseries` means the first such panel."""

    def change(board: Board) -> None:
        first, *steps, last = path.split(".")
        node: Any = (
            _panel(board, first) if first in ("stat", "timeseries") else board[first] if steps else board
        )
        for step in steps if first in ("stat", "timeseries") or steps else ():
            node = node[int(step)] if isinstance(node, list) else node[step]
        node[last] = value

    return change


def _without_text(board: Board) -> None:
    del _panel(board, "timeseries")["targets"][0]["rawSql"]


SCHEMA_FAULTS = {
    "tooltip mode": _put("timeseries.options", 7),
    "schemaVersion as text": lambda board: board.update(schemaVersion="42"),
    "panel without type": lambda board: board["panels"][0].pop("type"),
    "grid position as text": _put("stat.gridPos.x", "0"),
    "threshold mode": _put("stat.fieldConfig.defaults.thresholds.mode", "relative"),
    "variable type": _put("templating.list.0.type", "list"),
}


@pytest.mark.parametrize("name", SCHEMA_FAULTS)
def test_the_schema_finds_a_wrong_shape(name: str, boards: dict[str, Board]) -> None:
    board = copy.deepcopy(boards["overview"])

    SCHEMA_FAULTS[name](board)

    assert schema_faults(board)


LINT_FAULTS: dict[str, tuple[Callable[[Board], Any], str]] = {
    "unknown top-level key": (lambda board: board.update(pannels=[]), "unknown key pannels"),
    "unit typo": (_put("stat.fieldConfig.defaults.unit", "kwattt"), "no unit kwattt"),
    "query without text": (_without_text, "the query has no text"),
    "overlapping panels": (_put("timeseries.gridPos.y", 0), "lies over panel"),
    "too wide": (_put("timeseries.gridPos.w", 25), "of 24"),
    "id used twice": (_put("stat.id", 2), "panels have the id 2"),
    "unknown source": (_put("stat.datasource.uid", "other"), "no data source other"),
    "undefined variable": (
        _put("timeseries.targets.0.rawSql", "SELECT '$nothing'"),
        "variable $nothing is not defined",
    ),
    "too fast": (lambda board: board.update(refresh="1s"), "faster than 5s"),
    "title without Chinese": (_put("stat.title", "Power"), "no Chinese"),
    "plug-in panel": (_put("stat.type", "netsage-sankey-panel"), "not built in"),
    "link to no board": (_put("links.0.url", "/d/ecmc-nowhere/x"), "link to the board ecmc-nowhere"),
    "link into Grafana": (_put("links.0.url", "/console/"), "link /console/"),
    "refId used twice": (
        lambda board: _panel(board)["targets"].append(_panel(board)["targets"][0]),
        "queries have the refId A",
    ),
    "time series as table": (_put("timeseries.targets.0.format", "table"), "asks for a table"),
}


@pytest.mark.parametrize("name", LINT_FAULTS)
def test_the_lint_finds_what_the_schema_lets_pass(
    name: str, boards: dict[str, Board], around: Around
) -> None:
    board = copy.deepcopy(boards["overview"])
    plant_fault, told = LINT_FAULTS[name]

    plant_fault(board)

    assert any(told in fault for fault in faults(board, around)), faults(board, around)


def test_boards_can_be_checked_without_what_makes_them() -> None:
    script = "import sys; sys.modules['grafana_foundation_sdk'] = None; import dashboards.check"

    subprocess.run([sys.executable, "-c", script], check=True)
