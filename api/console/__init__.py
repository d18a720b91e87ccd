"""The console: static pages that ask this server and nobody else.

Plotly.js comes out of the `plotly` package, squeezed once when first asked for.
"""

from __future__ import annotations

import asyncio
import gzip
import mimetypes
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from api.errors import problem

PAGES: Final = (
    "index.html",
    "inventory.html",
    "console.css",
    "console.js",
    "inventory.js",
    "charts.js",
    "feed.js",
    "words.js",
    "icon.svg",
)
PLOTLY: Final = "plotly.min.js"

# Plotly writes style elements of its own, hence 'unsafe-inline' for styles; scripts are files of ours alone.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def mount(app: FastAPI) -> None:
    """Serve the console at `/` and its files under /console/."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @app.get("/inventory", include_in_schema=False)
    async def inventory() -> Response:
        return _file("inventory.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return RedirectResponse("/console/icon.svg")

    @app.get("/console/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name == PLOTLY:
            squeezed = "gzip" in request.headers.get("accept-encoding", "")
            body = await asyncio.to_thread(_plotly, squeezed)
            headers = {"Cache-Control": "max-age=86400", "Vary": "Accept-Encoding", **_HEADERS}
            if squeezed:
                headers["Content-Encoding"] = "gzip"
            return Response(body, media_type="text/javascript", headers=headers)
        return _file(name) if name in PAGES else problem(404, f"the console has no file {name!r}")


def _file(name: str) -> Response:
    kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    body = files(__package__).joinpath(name).read_bytes()
    return Response(body, media_type=kind, headers={"Cache-Control": "no-cache", **_HEADERS})


@cache
def _plotly(squeezed: bool) -> bytes:
    spec = find_spec("plotly")  # found, not imported: only its file is wanted
    assert spec is not None
    assert spec.submodule_search_locations is not None
    plain = (Path(spec.submodule_search_locations[0]) / "package_data" / PLOTLY).read_bytes()
    return gzip.compress(plain, 6) if squeezed else plain
