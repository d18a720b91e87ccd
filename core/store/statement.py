"""The longer SQL statements, one a file in core/store/sql."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from core.clock import datetime_of

_FOLDER = Path(__file__).parent / "sql"


@cache
def statement(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def time_literal(time_ns: int) -> str:
    """A time inside a statement, where parameters cannot go."""
    return f"'{datetime_of(time_ns).isoformat()}'::timestamptz"
