"""An answer as a table people can keep: CSV of its first sheet, or an XLSX workbook of all.

Asked for by `?format=csv` or `xlsx`, or by an Accept header that names one and
not JSON. CSV begins with a byte order mark, because without it spreadsheet
programs show Chinese names as noise.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request
from openpyxl import Workbook
from starlette.responses import Response

from core.errors import BadRequest

CSV = "text/csv"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
_ASKED = {"json": None, "csv": CSV, "xlsx": XLSX}


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table; a cell is a text, a number or None."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def _media(
    request: Request,
    asked: Annotated[
        str | None, Query(alias="format", description="json, csv or xlsx; default what Accept names.")
    ] = None,
) -> str | None:
    if asked is not None:
        if asked not in _ASKED:
            raise BadRequest(f"format {asked!r} is not one of {', '.join(_ASKED)}")
        return _ASKED[asked]
    accepted = request.headers.get("accept", "")
    return next((media for media in (CSV, XLSX) if media in accepted), None)


InMedia = Annotated[str | None, Depends(_media)]
"""CSV or XLSX where the request asks for a table, None for JSON."""


def download(media: str, name: str, sheets: Callable[[], Sequence[Sheet]]) -> Response:
    """The sheets as a file called `name`."""
    content, suffix = (_csv(sheets()[0]), "csv") if media == CSV else (_xlsx(sheets()), "xlsx")
    return Response(
        content, media_type=media, headers={"Content-Disposition": f'attachment; filename="{name}.{suffix}"'}
    )


def _csv(sheet: Sheet) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(sheet.columns)
    writer.writerows([[_safe(cell) for cell in row] for row in sheet.rows])
    return text.getvalue().encode("utf-8-sig")


def _xlsx(sheets: Sequence[Sheet]) -> bytes:
    book = Workbook(write_only=True)
    for sheet in sheets:
        page = book.create_sheet(sheet.name)
        page.append(list(sheet.columns))
        for row in sheet.rows:
            page.append([_safe(cell) for cell in row])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def _safe(cell: object) -> object:
    """A text that a spreadsheet would run as a formula is kept a text."""
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + cell
    return cell
