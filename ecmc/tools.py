"""The engineer's commands: look at a device before it is in the plant, and at one that will not behave.

They only ever read. On a terminal they draw tables and say how far they are;
with `--json` they print one JSON document and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ecmc.loop import run_work
from ecmc.progress import progress_bar

app = typer.Typer()

Target = Annotated[str, typer.Argument(metavar="HOST:PORT", help="A Modbus TCP port; 502 if none is named.")]
PlantFolder = Annotated[Path, typer.Argument(metavar="PLANT", help="Plant folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of a table.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds to wait for an answer.")]


@app.command()
def scan(
    target: Target,
    units: Annotated[str, typer.Option(help="Unit ids: 1-247, or 1-10,20.")] = "1-247",
    timeout_s: Timeout = 0.5,
    as_json: AsJson = False,
) -> None:
    """Which units answer behind a Modbus TCP port, and what they say they are."""
    from collector.tools.link import modbus_link
    from collector.tools.scan import Found, all_alike, scan_units, unit_range

    numbers = unit_range(units)

    async def work() -> list[Found]:
        found = []
        with _progress(as_json) as said:
            async with modbus_link(target, timeout_s) as link:
                done = 0
                async for unit, answer in scan_units(link, numbers):
                    done += 1
                    if answer is not None:
                        found.append(answer)
                    said(f"unit {unit}, {len(found)} found", done / len(numbers))
        return found

    found = run_work(work())
    if as_json:
        _print_json({"target": target, "found": found, "one_device": all_alike(found)})
    else:
        print_table(
            f"{target}: {len(found)} of {len(numbers)} units answer",
            ("unit", "identity", "coils", "inputs", "holding", "input regs", "SunSpec models"),
            [
                (
                    str(one.unit),
                    " ".join(one.identity.values()),
                    *(_in_short(one.functions.get(function, "")) for function in (1, 2, 3, 4)),
                    " ".join(map(str, one.sunspec_models)),
                )
                for one in found
            ],
        )
        if all_alike(found):
            typer.echo("All answer alike: probably one device that does not look at the unit id.")
    if not found:
        raise typer.Exit(1)


@app.command()
def guess(
    target: Target,
    unit: Annotated[int, typer.Argument(min=0, max=255, help="Unit id.")],
    address: Annotated[int, typer.Argument(min=0, max=65_535, help="Address on the wire, counted from 0.")],
    shows: Annotated[str, typer.Option("--shows", help="The number on the meter's display, every digit.")],
    timeout_s: Timeout = 1.0,
    as_json: AsJson = False,
) -> None:
    """Every reading of the words around an address that gives the number on the display."""
    from collector.tools.guess import Display, Guess
    from collector.tools.guess import guess as guess_at
    from collector.tools.link import modbus_link

    display = Display.of(shows)

    async def work() -> list[Guess]:
        async with modbus_link(target, timeout_s) as link:
            return await guess_at(link, unit, address, display)

    found = run_work(work())
    if as_json:
        _print_json({"target": target, "unit": unit, "shows": display.number, "guesses": found})
    else:
        print_table(
            f"{target} unit {unit} address {address} shows {shows}: {len(found)} readings fit",
            ("function", "address", "type", "byte order", "word order", "scale", "value", "also"),
            [
                (
                    str(one.function),
                    f"{one.address}" + (f" ({one.offset:+d})" if one.offset else ""),
                    one.type,
                    one.byte_order,
                    one.word_order,
                    f"{one.scale:g}",
                    f"{one.value:.10g}" + ("" if one.exact else " ~"),
                    " ".join(one.also),
                )
                for one in found[:25]
            ],
        )
        if len(found) > 25:
            typer.echo(
                f"{len(found) - 25} less likely ones are in --json; a number with more digits leaves fewer."
            )
    if not found:
        raise typer.Exit(1)


@app.command()
def probe(
    plant: PlantFolder,
    device: Annotated[str, typer.Argument(help="A Modbus device of the plant.")],
    as_json: AsJson = False,
) -> None:
    """How a device of the plant takes being asked: round trip, longest request, costs, requests at once."""
    from collector.tools.probe import Probed, probe_device
    from ecmc.folder import read_plant

    async def work() -> Probed:
        with _progress(as_json) as said:
            return await probe_device(read_plant(plant), device, said)

    probed = run_work(work())
    if as_json:
        _print_json({**dataclasses.asdict(probed), "in_flight_advised": probed.in_flight_advised})
        return
    print_table(
        f"{device}, unit {probed.unit}: {' '.join(probed.identity.values()) or 'does not say what it is'}",
        ("what", "figure"),
        [
            ("round trip, half of them within", f"{probed.round_trip_p50_ms:.2f} ms"),
            ("round trip, 99 % within", f"{probed.round_trip_p99_ms:.2f} ms"),
            (
                "longest request",
                f"{probed.most_registers} from address {probed.most_from}, function {probed.most_function}; "
                f"beyond: {probed.most_why}",
            ),
            ("cost of a request", f"{probed.request_ms:.3f} ms"),
            ("cost of a register", f"{probed.register_ms:.4f} ms"),
            ("requests of its plan", str(probed.blocks)),
            *((("refused", why)) for why in probed.refused),
            *(
                (
                    f"{one.requests} at once",
                    f"{one.per_s:.0f} requests/s"
                    + (f", {one.failed} failed: {one.why}" if one.failed else ""),
                )
                for one in probed.in_flight
            ),
        ],
    )
    typer.echo(f"for plant.yaml: in_flight: {probed.in_flight_advised} at its connection")


@app.command()
def browse(
    plant: PlantFolder,
    connection: Annotated[str, typer.Argument(help="A connection of the plant.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to listen.")] = 10.0,
    to_csv: Annotated[
        Path | None, typer.Option("--csv", help="Also write a point list to be filled in.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a connection has to offer that could become points."""
    from collector.tools.browse import Offer, write_point_list
    from collector.tools.browse import browse as browse_connection
    from ecmc.folder import read_plant

    async def work() -> list[Offer]:
        with _progress(as_json) as said:
            return await browse_connection(read_plant(plant), connection, seconds, said)

    offers = run_work(work())
    if to_csv is not None:
        write_point_list(offers, to_csv)
    if as_json:
        _print_json({"connection": connection, "offers": offers})
    else:
        columns = list(dict.fromkeys(column for offer in offers for column in offer.cells))
        print_table(
            f"{connection}: {len(offers)} values",
            (*columns, "shows", "note", "in the plant"),
            [
                (
                    *(offer.cells.get(column, "") for column in columns),
                    offer.shows,
                    offer.note,
                    "yes" if offer.used else "",
                )
                for offer in offers
            ],
        )
    if not offers:
        raise typer.Exit(1)


@app.command()
def record(
    plant: PlantFolder,
    connection: Annotated[str, typer.Argument(help="A Modbus TCP or TLS connection of the plant.")],
    file: Annotated[Path, typer.Argument(help="New file, JSON lines.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Poll a connection as the plant does and keep every byte of it."""
    from collector.tools.record import Recorded
    from collector.tools.record import record as record_traffic
    from ecmc.folder import read_plant

    async def work() -> Recorded:
        with _progress(as_json) as said:
            return await record_traffic(read_plant(plant), connection, file, seconds, said)

    recorded = run_work(work())
    if as_json:
        _print_json({"file": str(file), **dataclasses.asdict(recorded)})
    else:
        typer.echo(
            f"{file}: {recorded.requests} requests, {recorded.replies} segments of answers, {recorded.values} values"
        )


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A recording, as `ecmc record` makes it.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 0,
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="How fast its time runs.")] = 1.0,
) -> None:
    """Serve a recording as the device it was taken from, until Ctrl-C."""
    from collector.tools.replay import Recording, ReplayServer

    recording = Recording.read(file)

    async def work() -> None:
        async with ReplayServer(recording, host, port, speed) as server:
            typer.echo(
                f"device {server.host}:{server.port}: {recording.requests} requests over "
                f"{recording.lasts_s:.1f} s, {recording.unanswered} of them unanswered"
            )
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        run_work(work())


def _in_short(said: str) -> str:
    """What a function said at address 0, in a column's width."""
    return {
        "illegal function": "no",
        "illegal data address": "not at 0",
        "illegal data value": "not one",
    }.get(said, said)


@contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[str, float], None]]:
    """Something to be told what is being done and how far it is; a script hears nothing of it."""
    if as_json:
        yield lambda what, part: None
        return
    with progress_bar() as shown:
        yield lambda what, part: shown(round(1000 * part), 1000, what)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table where somebody is looking; into a file or a pipe the title and tab-separated lines."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # nothing is cut off to fit a width
        typer.echo(title)
        for row in (columns, *rows) if rows else ():
            typer.echo("\t".join(row))
        return
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(_plain(document), ensure_ascii=False, indent=1))


def _plain(value: Any) -> Any:
    """Records as objects, and null for what is no number, which JSON cannot say."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
