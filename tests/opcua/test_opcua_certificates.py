"""Trust on encrypted links: nobody is believed for having answered, and what expires says so ahead of time."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from collector.drivers.opcua import OpcuaDriver
from collector.pki import Pki, Place, application_uri, thumbprint
from core.errors import BadRequest, DeviceRefused, FaultyInput
from core.plant.model import OpcuaSource, Plant
from ecmc.certificate import app
from ecmc.folder import read_plant

DEMO = Path(__file__).parents[2] / "simulators" / "plants" / "demo"
POWER = {"power": OpcuaSource("nsu=urn:plant:line1;s=Power")}
OWN = {"certificate": "pki/own/certificate.der", "private_key": "pki/own/key.pem"}
ENCRYPTED = {"security": "Basic256Sha256_SignAndEncrypt", **OWN}


def command(folder: Path, *words: str, ok: bool = True) -> str:
    done = CliRunner().invoke(app, ["certificate", *words, "--plant", str(folder)])
    assert (done.exit_code == 0) is ok, done.output
    return done.output


def signed(
    name: str,
    days: float,
    by: tuple[x509.Certificate, rsa.RSAPrivateKey] | None = None,
    host: str = "127.0.0.1",
    authority: bool = False,
) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (by[0].subject, by[1]) if by else (subject, key)
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    alternative = [x509.UniformResourceIdentifier("urn:line1:server"), x509.DNSName(host)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - timedelta(days=10))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate, key


def written(folder: Path, pair: tuple[x509.Certificate, rsa.RSAPrivateKey]) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(pair[0].public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(
        key_bytes := pair[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain
        )
    )
    assert key_bytes
    return str(certificate), str(key)


async def refusal_of(plant: Plant) -> str:
    with pytest.raises(DeviceRefused) as refused:
        await OpcuaDriver(plant, plant.connections[0]).__aenter__()
    return str(refused.value)


async def first_value(plant: Plant) -> float:
    async with OpcuaDriver(plant, plant.connections[0]) as driver:
        return float((await driver.read()).value[0])


def test_the_certificate_we_make_says_what_servers_check(tmp_path: Path) -> None:
    (tmp_path / "plant.yaml").write_text("plant: forge\n")

    command(tmp_path, "create", "--host", "gateway.plant", "--host", "10.0.0.5", "--days", "400")

    made = x509.load_der_x509_certificate((tmp_path / OWN["certificate"]).read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert application_uri(made) == "urn:gateway.plant:ecmc:forge"
    assert names.get_values_for_type(x509.DNSName) == ["gateway.plant"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5"]
    assert usage.digital_signature
    assert usage.content_commitment
    assert usage.key_encipherment
    assert usage.data_encipherment
    assert usage.key_cert_sign
    assert stat.S_IMODE((tmp_path / OWN["private_key"]).stat().st_mode) == 0o600
    assert "days_left       400" in command(tmp_path, "show") or "399.9" in command(tmp_path, "show")


def test_a_second_certificate_never_replaces_the_first_unasked(tmp_path: Path) -> None:
    store = Pki(tmp_path)
    first = store.create("t").thumbprint

    with pytest.raises(BadRequest, match="--replace"):
        store.create("t")

    assert [kept.thumbprint for kept in store.kept()] == [first]
    assert store.create("t", replace=True).thumbprint != first


def test_a_plant_with_security_wants_the_certificate_and_takes_the_one_made(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "demo")
    text = (folder / "plant.yaml").read_text("utf-8")
    (folder / "plant.yaml").write_text(
        text.replace("security: none", "security: Basic256Sha256_Sign"), "utf-8"
    )

    with pytest.raises(FaultyInput, match="ecmc certificate create --plant"):
        read_plant(folder)
    command(folder, "create")
    options = read_plant(folder).connection_by_id["ua-1"].options

    assert Path(str(options["certificate"])) == (folder / OWN["certificate"]).resolve()
    assert Path(str(options["private_key"])) == (folder / OWN["private_key"]).resolve()


async def test_an_unknown_server_is_refused_until_somebody_trusts_it(
    server: Any, tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    command(tmp_path, "create")
    plant = plant_of(server.port, POWER, folder=str(tmp_path), **ENCRYPTED)

    said = await refusal_of(plant)

    assert "the server's certificate is not trusted" in said
    words = said[said.index("`") + 1 : said.rindex("`")].split()
    assert words[:3] == ["ecmc", "certificate", "trust"]
    assert words[4:] == ["--plant", str(tmp_path)]
    assert "rejected" in command(tmp_path, "list")
    command(tmp_path, "trust", words[3])
    assert await first_value(plant) == 12.5
    command(tmp_path, "reject", words[3])
    assert "not trusted" in await refusal_of(plant)


async def test_one_authority_lets_in_all_servers_it_signed_for_their_host(
    start_server: Callable[..., Any], tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    authority = signed("plant authority", 900, authority=True)
    certificate, key = written(tmp_path / "server", signed("line1", 90, by=authority))
    server = start_server(certificateFile=certificate, privateKeyFile=key)
    authority_file, _ = written(tmp_path / "authority", authority)
    command(tmp_path, "create")
    command(tmp_path, "trust", authority_file)
    plant = plant_of(server.port, POWER, folder=str(tmp_path), **ENCRYPTED)

    assert await first_value(plant) == 12.5

    elsewhere, _ = signed("line2", 90, by=authority, host="line2.plant")
    with pytest.raises(DeviceRefused, match=r"for line2\.plant, not for 127\.0\.0\.1"):
        Pki(tmp_path / "pki").judge(elsewhere, "127.0.0.1")
    impostor, _ = signed("line1", 90, by=signed("plant authority", 900, authority=True))
    with pytest.raises(DeviceRefused, match="not trusted"):
        Pki(tmp_path / "pki").judge(impostor, "127.0.0.1")


async def test_an_expired_server_certificate_is_refused_although_trusted(
    start_server: Callable[..., Any], tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    certificate, key = written(tmp_path / "server", signed("line1", -3))
    server = start_server(certificateFile=certificate, privateKeyFile=key)
    command(tmp_path, "create")
    command(tmp_path, "trust", certificate)

    said = await refusal_of(plant_of(server.port, POWER, folder=str(tmp_path), **ENCRYPTED))

    assert "the server's certificate expired on" in said
    assert "3 days ago" in said


async def test_our_own_expired_certificate_is_said_before_anything_is_sent(
    tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    certificate, key = written(tmp_path / "own", signed("ecmc", -1))
    plant = plant_of(1, POWER, security="Basic256Sha256_Sign", certificate=certificate, private_key=key)

    assert "our own certificate expired on" in await refusal_of(plant)


async def test_a_certificate_about_to_expire_warns_ahead(
    server: Any, tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    command(tmp_path, "create", "--days", "20")
    command(tmp_path, "trust", str(server.pki / "own" / "certs" / "certificate.pem"))
    plant = plant_of(server.port, POWER, folder=str(tmp_path), **ENCRYPTED)

    async with OpcuaDriver(plant, plant.connections[0]) as driver:
        await driver.read()
        state = driver.devices()["line"]

    assert state.up
    assert "the own certificate expires on" in state.warning
    assert "in 20 days" in state.warning
    assert "server" not in state.warning


async def test_login_by_certificate_lets_in_whom_the_server_trusts(
    start_server: Callable[..., Any], tmp_path: Path, plant_of: Callable[..., Plant]
) -> None:
    known = written(tmp_path / "known", signed("operator", 90))
    stranger = written(tmp_path / "stranger", signed("stranger", 90))
    server = start_server(userCertificate=known[0])
    command(tmp_path, "create")
    command(tmp_path, "trust", str(server.pki / "own" / "certs" / "certificate.pem"))

    def plant(user: tuple[str, str]) -> Plant:
        who = {"user_certificate": user[0], "user_private_key": user[1]}
        return plant_of(server.port, POWER, folder=str(tmp_path), **ENCRYPTED, **who)

    assert await first_value(plant(known)) == 12.5
    assert "Identity" in await refusal_of(plant(stranger))


def test_what_strangers_leave_behind_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.pki._REJECTED_KEPT", 2)
    store = Pki(tmp_path)
    strangers = [signed(f"s{i}", 9)[0] for i in range(3)]

    for one in strangers:
        with pytest.raises(DeviceRefused):
            store.judge(one, "h")

    kept = {one.thumbprint for one in store.kept() if one.place is Place.REJECTED}
    assert len(kept) == 2
    assert thumbprint(strangers[-1]) in kept
