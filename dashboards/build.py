"""Writes boards/*.json from the board modules: `python -m dashboards.build`. The same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.overview import overview

FOLDER = Path(__file__).parent / "boards"
BOARDS: dict[str, Callable[[], dashboard.Dashboard]] = {"overview": overview}


def board_json(name: str) -> str:
    """A board as Grafana reads it, keys sorted."""
    body = json.loads(JSONEncoder().encode(BOARDS[name]().build()))
    for variable in body["templating"]["list"]:
        for key in [
            key for key in variable if key.startswith("auto")
        ]:  # the SDK gives interval settings to all kinds
            del variable[key]
    return json.dumps(body, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in BOARDS:
        (FOLDER / f"{name}.json").write_text(board_json(name), "utf-8")


if __name__ == "__main__":
    main()
