"""`ecmc export`: samples, energy or emissions of a stretch of time as a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ecmc.loop import run_work
from ecmc.option import DataFolder, Dsn, PlantFolder
from ecmc.progress import progress_bar

if TYPE_CHECKING:
    from core.files.exporter import Block
    from core.plant.model import Plant
    from core.store.seam import Bucket, Series, Store

app = typer.Typer()

_ROWS: Final = 50_000
_DAYS: Final = 31


class What(StrEnum):
    SAMPLES = "samples"
    ENERGY = "energy"
    EMISSIONS = "emissions"


class BucketWidth(StrEnum):
    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    SHIFT = "shift"
    D1 = "1d"
    MO1 = "1mo"
    Y1 = "1y"


class Basis(StrEnum):
    LOCATION = "location"
    MARKET = "market"


COLUMNS: Final = {
    What.SAMPLES: ("point", "time", "value", "quality", "status", "unit"),
    What.ENERGY: ("edge", "start", "energy_kwh", "coverage", "estimated_share"),
    What.EMISSIONS: ("node", "start", "scope", "basis", "method_set", "emissions_kgco2e", "coverage"),
}


@app.command()
def export(
    what: Annotated[What, typer.Argument(help="What to write.")],
    file: Annotated[Path, typer.Argument(help="File to write: .csv, .csv.gz, .xlsx or .parquet.")],
    plant: PlantFolder,
    start: Annotated[str, typer.Option(help="RFC 3339.")],
    end: Annotated[str, typer.Option(help="RFC 3339, not included.")],
    point: Annotated[list[str] | None, typer.Option(help="Samples of these points; default all.")] = None,
    edge: Annotated[list[str] | None, typer.Option(help="Energy of these edges; default all.")] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Emissions of these nodes; default all and site.")
    ] = None,
    bucket: Annotated[BucketWidth, typer.Option(help="Width of a row's time.")] = BucketWidth.H1,
    basis: Annotated[Basis, typer.Option(help="Of emissions.")] = Basis.LOCATION,
    method_set: Annotated[str | None, typer.Option(help="Of emissions; default the plant's first.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="csv, csv.gz, xlsx or parquet.")] = None,
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Write samples, energy or emissions of [start, end) to a file."""
    from core.clock import parse_rfc3339
    from core.errors import BadRequest
    from core.files.exporter import format_of, sheet
    from core.results import SITE
    from ecmc.folder import read_plant
    from ecmc.opened import opened_store

    known = read_plant(plant)
    file_format = format_of(file, form)
    try:
        start_ns, end_ns = parse_rfc3339(start), parse_rfc3339(end)
    except ValueError as why:
        raise BadRequest(str(why)) from None
    if end_ns <= start_ns:
        raise BadRequest(f"--end {end} is not after --start {start}")
    if bucket is BucketWidth.SHIFT and not known.shifts:
        raise BadRequest("--bucket shift: plant.yaml names no shifts")

    def blocks(store: Store) -> AsyncIterator[tuple[float, Block]]:
        if what is What.SAMPLES:
            return _samples(store, known, point or [p.id for p in known.points], start_ns, end_ns)
        if what is What.ENERGY:
            edges = _known("edge", edge, [e.id for e in known.edges])
            return _energy(store, edges, start_ns, end_ns, bucket.value)
        nodes = _known("node", node, [*(n.id for n in known.nodes), SITE])
        wanted = _known("method set", [method_set] if method_set else None, known.method_sets)[0]
        return _emissions(store, nodes, start_ns, end_ns, bucket.value, basis.value, wanted)

    async def work() -> int:
        rows = 0
        with progress_bar() as progress:
            async with opened_store(known, data, dsn) as store:
                with sheet(file, file_format, COLUMNS[what], known.zone) as out:
                    async for done, block in blocks(store):
                        progress(int(done * 1000), 1000, "writing")
                        out.add(block)
                        rows += len(next(iter(block.values())))
        return rows

    typer.echo(f"{file}: {run_work(work())} rows")


def _known(kind: str, asked: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    from core.errors import BadRequest

    for name in asked or ():
        if name not in there:
            raise BadRequest(f"unknown {kind} {name!r}")
    return list(asked or there)


async def _samples(
    store: Store, plant: Plant, points: Sequence[str], start_ns: int, end_ns: int
) -> AsyncIterator[tuple[float, Block]]:
    """Point by point, oldest first; each with how much of all that is done, 0 to 1."""
    from core.quality import quality_of

    for n, point in enumerate(points):
        after_ns: int | None = None
        unit = plant.point_by_id[point].unit if point in plant.point_by_id else ""
        while True:
            batch = await store.samples(point, start_ns, end_ns, _ROWS, after_ns)
            word = {code: quality_of(code).value for code in set(batch.status.tolist())}
            block: Block = {
                "point": [point] * len(batch),
                "time": batch.time_ns,
                "value": batch.value,
                "quality": [word[code] for code in batch.status.tolist()],
                "status": batch.status,
                "unit": [unit] * len(batch),
            }
            yield n / len(points), block
            if len(batch) < _ROWS:
                break
            after_ns = int(batch.time_ns[-1])


async def _energy(
    store: Store, edges: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket
) -> AsyncIterator[tuple[float, Block]]:
    for from_ns, to_ns in _windows(start_ns, end_ns, bucket):
        series = await store.energy(edges, from_ns, to_ns, bucket)
        done = (to_ns - start_ns) / (end_ns - start_ns)
        yield done, {"edge": series.name, "start": series.start_ns, **series.columns}


async def _emissions(
    store: Store,
    nodes: Sequence[str],
    start_ns: int,
    end_ns: int,
    bucket: Bucket,
    basis: str,
    method_set: str,
) -> AsyncIterator[tuple[float, Block]]:
    for from_ns, to_ns in _windows(start_ns, end_ns, bucket):
        series = await store.emissions(nodes, from_ns, to_ns, bucket, basis, method_set)
        yield (to_ns - start_ns) / (end_ns - start_ns), _emission_block(series, basis, method_set)


def _emission_block(series: Series, basis: str, method_set: str) -> Block:
    import numpy as np

    assert series.flow is not None
    scopes = np.array([flow.scope for flow in series.flows], dtype=np.int16)
    rows = len(series.name)
    return {
        "node": series.name,
        "start": series.start_ns,
        "scope": scopes[series.flow] if rows else np.array([], dtype=np.int16),
        "basis": [basis] * rows,
        "method_set": [method_set] * rows,
        **series.columns,
    }


def _windows(start_ns: int, end_ns: int, bucket: Bucket) -> list[tuple[int, int]]:
    """Pieces of [start, end) that no bucket is cut by; of days and longer there are few rows, and one piece."""
    from core.results import HOUR_NS

    if bucket in ("shift", "1d", "1mo", "1y"):
        return [(start_ns, end_ns)]
    step_ns = _DAYS * 24 * HOUR_NS
    cuts = [start_ns, *range((start_ns // step_ns + 1) * step_ns, end_ns, step_ns), end_ns]
    return list(pairwise(cuts))
