"""`ecmc certificate`: our own certificate for OPC UA, and which servers we believe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import BadRequest
from ecmc.option import PlantFolder

if TYPE_CHECKING:
    from cryptography import x509

    from collector.pki import Kept, Pki

certificate = typer.Typer(
    no_args_is_help=True, help="Our certificate for OPC UA, and which servers are trusted."
)
app = typer.Typer()
app.add_typer(certificate, name="certificate")

Name = Annotated[str, typer.Argument(help="The thumbprint, or how it begins.")]


@certificate.command()
def create(
    plant: PlantFolder,
    host: Annotated[
        list[str] | None, typer.Option(help="A name or address of this machine; default its host name.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=9125, help="How long it is valid.")] = 730,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the one there is.")] = False,
) -> None:
    """Make our own certificate with a new key; servers have to be told to trust it."""
    made = _pki(plant).create(_plant_name(plant), host or (), days, replace)
    _print_kept(made)
    typer.echo("have the servers trust this file; connections with a `security` use it by themselves")


@certificate.command("list")
def list_(
    plant: PlantFolder, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False
) -> None:
    """Every certificate: our own, the trusted, the rejected."""
    all_kept = list(_pki(plant).kept())
    if as_json:
        typer.echo(json.dumps([_document(one) for one in all_kept], ensure_ascii=False, indent=1))
        return
    for one in all_kept:
        shown = _document(one)
        typer.echo(f"{one.place:8}  {one.thumbprint}  {shown['days_left']:6.0f} days  {shown['name']}")
    if not all_kept:
        typer.echo(f"{_pki(plant).folder}: no certificates; `ecmc certificate create` makes our own")


@certificate.command()
def show(
    plant: PlantFolder,
    name: Annotated[str, typer.Argument(help="A thumbprint or how it begins, or a file.")] = "",
) -> None:
    """What one certificate says; our own where none is named. Exit 1 where it is not valid now."""
    from collector.pki import Kept, Place, read_certificate

    file = Path(name)
    if name and file.is_file():
        found = [Kept(Place.REJECTED, file, read_certificate(file))]
    else:
        wanted = name.replace(":", "").lower()
        found = [
            one
            for one in _pki(plant).kept()
            if (one.thumbprint.startswith(wanted) if name else one.place is Place.OWN)
        ]
    if not found:
        raise BadRequest(f"{_pki(plant).folder}: no certificate {name or 'of our own'}")
    for one in found:
        _print_kept(one)
    if any(not _valid(one.certificate) for one in found):
        raise typer.Exit(1)


@certificate.command()
def trust(
    plant: PlantFolder, name: Annotated[str, typer.Argument(help="A rejected thumbprint, or a file.")]
) -> None:
    """Believe a server (or an authority that signs servers) from now on."""
    _print_kept(_pki(plant).trust(name))
    typer.echo("trusted; a running ecmc tries again by itself within a minute or so")


@certificate.command()
def reject(plant: PlantFolder, name: Name) -> None:
    """Believe a server no longer; from its next connection on."""
    _print_kept(_pki(plant).reject(name))
    typer.echo("rejected, from its next connection on")


def _pki(plant: Path) -> Pki:
    from collector.pki import FOLDER, Pki

    if not plant.is_dir():
        raise BadRequest(f"{plant}: no such plant folder")
    return Pki(plant.resolve() / FOLDER)


def _plant_name(folder: Path) -> str:
    """The plant's id; its folder may still be faulty for want of the very certificate."""
    try:
        found = re.search(r"^plant:\s*([a-z0-9-]+)", (folder / "plant.yaml").read_text("utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        found = None
    return found.group(1) if found else folder.resolve().name


def _valid(one: x509.Certificate) -> bool:
    from collector.pki import check_time
    from core.errors import DeviceRefused

    try:
        check_time(one, "it")
    except DeviceRefused:
        return False
    return True


def _document(one: Kept) -> dict[str, Any]:
    from collector.pki import application_uri, days_left

    return {
        "place": one.place.value,
        "name": one.certificate.subject.rfc4514_string(),
        "thumbprint": one.thumbprint,
        "application_uri": application_uri(one.certificate),
        "issuer": one.certificate.issuer.rfc4514_string(),
        "valid_from": one.certificate.not_valid_before_utc.isoformat(),
        "valid_until": one.certificate.not_valid_after_utc.isoformat(),
        "days_left": round(days_left(one.certificate), 1),
        "file": str(one.file),
    }


def _print_kept(one: Kept) -> None:
    for key, value in _document(one).items():
        typer.echo(f"{key:16}{value}")
