"""Options that most commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlantFolder = Annotated[Path, typer.Option("--plant", help="Plant folder.", exists=False)]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Data folder; default by plant and user.")]
Dsn = Annotated[
    str | None, typer.Option("--dsn", help="PostgreSQL or TimescaleDB to use instead of our own.")
]
