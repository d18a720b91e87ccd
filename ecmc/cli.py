"""The `ecmc` command, each command a few lines over `ecmc.compose` and `ecmc.command`.

Exit codes: 0 done; 1 done, and the answer is no; 2 could not be done, with the reason on stderr.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from core.clock import rfc3339
from core.errors import BadRequest, EcmcError, Fault, FaultyInput
from ecmc import certificate, export, tools, vault
from ecmc.loop import run_work
from ecmc.option import DataFolder, Dsn, PlantFolder
from ecmc.progress import progress_bar

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(tools.app)
app.add_typer(vault.app)
app.add_typer(export.app)
app.add_typer(certificate.app)

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of the API and console; 0 takes a free one.")]


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ecmc {version('ecmc')}")
        raise typer.Exit


@app.callback()
def main_options(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which ecmc this is.")
    ] = False,
) -> None:
    """From a meter's register to a provable kilogram of CO2."""


@app.command()
def check(
    plant: Annotated[Path, typer.Argument(help="Plant folder.")],
    requests: Annotated[
        bool, typer.Option("--requests", help="Also every Modbus request it will make.")
    ] = False,
) -> None:
    """Read a plant folder; say what is in it, or everything that is wrong with it."""
    from collector.tools import forecast
    from core.plant.check import summarise
    from ecmc.folder import read_plant
    from ecmc.tools import print_table

    read = read_plant(plant)
    asked = forecast.requests(read)
    typer.echo(summarise(read, forecast.requests_per_s(asked)))
    for line in forecast.lines_said(read, forecast.busy(asked)):
        typer.echo(line)
    if requests:
        print_table(
            f"{len(asked)} Modbus requests",
            ("connection", "device", "unit", "function", "address", "registers", "points", "every"),
            [
                (
                    one.connection,
                    one.device,
                    str(one.unit),
                    str(one.function),
                    str(one.address) if one.model is None else f"model {one.model} + {one.address}",
                    str(one.count),
                    str(len(one.points)),
                    f"{one.period_s:g} s",
                )
                for one in asked
            ],
        )


@app.command()
def run(
    plant: PlantFolder,
    data: DataFolder = None,
    dsn: Dsn = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    parquet: Annotated[
        bool,
        typer.Option("--parquet", help="From now on, keep closed months of samples as Parquet files too."),
    ] = False,
) -> None:
    """Collect, compute and serve until SIGTERM or Ctrl-C."""
    from ecmc.compose import run_plant
    from ecmc.folder import read_plant

    if parquet and find_spec("pyarrow") is None:
        raise BadRequest("--parquet needs pyarrow: pip install 'ecmc[parquet]'")
    _log_to_stderr()

    def ready(address: str) -> None:
        typer.echo(f"console {address}")

    run_work(run_plant(read_plant(plant), data, dsn, host, port, ready, parquet=parquet))


@app.command()
def demo(
    data: DataFolder = None,
    dsn: Dsn = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    days: Annotated[int, typer.Option(min=0, max=400, help="Days of history to begin with.")] = 2,
    speed: Annotated[
        float, typer.Option(min=0.1, max=3600, help="How fast the simulated plant's time runs.")
    ] = 1.0,
) -> None:
    """A simulated plant on real protocols, and everything that reads it."""
    from ecmc.demo import run_demo

    _log_to_stderr()
    run_work(run_demo(data, dsn, host, port, days, speed))


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="Samples: point,time,value[,quality]; CSV, gzip, XLSX or Parquet.")
    ],
    plant: PlantFolder,
    data: DataFolder = None,
    dsn: Dsn = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="Differing values replace stored ones, on record.")
    ] = False,
    why: Annotated[str, typer.Option(help="Reason kept with a correction.")] = "",
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Take the good rows of a faulty file.")
    ] = False,
) -> None:
    """Import samples of any age in any order; returns when their results are readable."""
    from ecmc.command import import_samples
    from ecmc.folder import read_plant

    def faulty(fault: Fault) -> None:
        typer.echo(f"faulty line {fault.line}: column {fault.column}: {fault.reason}")

    with progress_bar() as progress:
        report = run_work(
            import_samples(
                read_plant(plant),
                file,
                data,
                dsn,
                correct=correct,
                why=why,
                skip_faulty=skip_faulty,
                fault=faulty,
                progress=progress,
            )
        )
    for conflict in report.conflicts:
        typer.echo(
            f"conflict {conflict.point} {rfc3339(conflict.time_ns)}: {conflict.stored!r} stands, "
            f"{conflict.offered!r} was offered"
        )
    typer.echo(
        f"accepted {report.accepted}, repeated {report.repeated}, conflicting {report.conflict_count}, "
        f"faulty {report.faults}" + (f", corrected {report.corrected}" if correct else "")
    )
    if report.faults and not skip_faulty:
        typer.echo(
            "nothing was imported: mend the faulty rows, or pass --skip-faulty to leave them out", err=True
        )
        raise typer.Exit(2)


@app.command()
def withdraw(
    point: Annotated[list[str], typer.Argument(help="Points.")],
    plant: PlantFolder,
    start: Annotated[str, typer.Option("--from", help="RFC 3339.")],
    end: Annotated[str, typer.Option("--to", help="RFC 3339, not included.")],
    why: Annotated[str, typer.Option(help="Reason kept on record.")],
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Take wrong samples back, on record; returns when the figures without them are readable."""
    from ecmc.command import withdraw_samples
    from ecmc.folder import read_plant

    for name, count in run_work(withdraw_samples(read_plant(plant), point, start, end, why, data, dsn)):
        typer.echo(f"{name}: {count} samples withdrawn")


@app.command()
def trace(case: Annotated[Path, typer.Argument(help="A flow-tracing case, JSON.")]) -> None:
    """Trace carbon through a small network given as JSON; the result is JSON on stdout."""
    from core.carbon.trace import trace_case

    try:
        body = json.loads(case.read_text("utf-8"))
    except (OSError, ValueError) as why:
        typer.echo(f"{case}: {why}", err=True)
        raise typer.Exit(2) from None
    typer.echo(json.dumps(trace_case(body), indent=1))


@app.command()
def recompute(
    plant: PlantFolder,
    start: Annotated[str, typer.Option("--from", help="RFC 3339.")],
    end: Annotated[str, typer.Option("--to", help="RFC 3339.")],
    known_at: Annotated[str | None, typer.Option(help="Use what was known then; default now.")] = None,
    model: Annotated[
        str, typer.Option(help="`then`: the model that held; `current`: state that the present one held.")
    ] = "then",
    out: Annotated[
        Path | None,
        typer.Option(help="Change nothing stored: write the months' emissions into this folder, as Parquet."),
    ] = None,
    method_set: Annotated[
        list[str] | None, typer.Option(help="With --out: count by these; default the plant's.")
    ] = None,
    bucket: Annotated[
        str | None, typer.Option(help="With --out: width of a row's time, 1h (default), 15m or base.")
    ] = None,
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Compute a window again; print what changed, by how much, and what made it change. Goes on after a kill."""
    from ecmc.command import recompute_window, restate_window
    from ecmc.folder import read_plant

    if model not in ("then", "current"):
        raise BadRequest(f"--model {model}: wanted then or current")
    if out is None and (method_set or bucket):
        raise BadRequest(
            "--method-set and --bucket are of --out, which writes files and changes nothing stored"
        )
    if out is not None and model != "then":
        raise BadRequest("--out counts by the models that held: --model current is not of it")
    if out is not None and find_spec("pyarrow") is None:
        raise BadRequest("--out needs pyarrow: pip install 'ecmc[parquet]'")
    with progress_bar() as progress:
        if out is not None:
            files = restate_window(
                read_plant(plant),
                start,
                end,
                known_at,
                out,
                method_set,
                bucket or "1h",
                data,
                dsn,
                progress=lambda done, of: progress(done, of, "counting"),
            )
            for line in run_work(files):
                typer.echo(line)
            return
        work = recompute_window(
            read_plant(plant),
            start,
            end,
            known_at,
            data,
            dsn,
            current_model=model == "current",
            progress=lambda done, of: progress(done, of, "computing"),
        )
        lines = run_work(work)
    for line in lines:
        typer.echo(line)


@app.command()
def seal(
    period: Annotated[str, typer.Argument(help="Day 2026-10-05 or month 2026-10, in the plant's zone.")],
    plant: PlantFolder,
    why: Annotated[str, typer.Option(help="Reason kept with the seal.")] = "closed by hand",
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Close a day or month now: what changes later is a new revision beside it."""
    from ecmc.command import seal_period
    from ecmc.folder import read_plant

    closed = run_work(seal_period(read_plant(plant), period, why, data, dsn))
    typer.echo(f"{closed.period} {closed.label} revision {closed.revision} sealed, {closed.digest.hex()}")


@app.command()
def verify(
    plant: PlantFolder,
    chain: Annotated[
        str | None, typer.Option(help="What the chain ended in once: it must still hold that seal.")
    ] = None,
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Compute every closed day again from its readings and check the chain of seals; exit 1 names the first difference."""
    from ecmc.command import verify_plant
    from ecmc.folder import read_plant

    verdict = run_work(verify_plant(read_plant(plant), chain, data, dsn))
    if verdict.difference is not None:
        typer.echo(verdict.difference)
        raise typer.Exit(1)
    typer.echo(
        f"{verdict.seals} seals hold: {verdict.replayed} days computed again from their readings, the same bits"
    )
    if verdict.hashed:
        assert verdict.lost_before_ns is not None
        typer.echo(
            f"{verdict.hashed} days by their hashes alone: readings before {rfc3339(verdict.lost_before_ns)} "
            "are no longer kept"
        )
    if verdict.link:
        typer.echo(f"the chain ends in {verdict.link}")


def _log_to_stderr() -> None:
    import logging

    from ecmc.logline import LineFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)  # health says it once, in one line
    for chatty in (
        "asyncua",
        "pymodbus",
        "amqtt",
        "transitions",
        "uvicorn.access",
        "uvicorn.error",
        "asyncio",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main() -> None:
    """Entry point: errors we raise on purpose end as one plain message and exit code 2."""
    import logging

    from ecmc.logline import LineFormatter

    if logging.lastResort is not None:  # of the commands that keep no log, where something is worth a warning
        logging.lastResort.setFormatter(LineFormatter())
    try:
        code = app(standalone_mode=False)  # an Exit raised by a command comes back as its code
    except FaultyInput as why:
        for fault in why.faults:
            typer.echo(str(fault))
        sys.exit(2)
    except EcmcError as why:
        typer.echo(f"ecmc: {why}", err=True)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except Exception as why:
        show = getattr(why, "show", None)  # usage errors know how to show themselves
        if show is None:
            raise
        show()
        sys.exit(getattr(why, "exit_code", 2))
    if isinstance(code, int):
        sys.exit(code)
