"""Who we say we are and whom we believe on encrypted OPC UA links: a folder of certificates.

`own/` holds our certificate and its key, `trusted/` the servers (or the
authorities that sign them) we talk to, `rejected/` those that came along
unasked. A server is never believed because it answers: a person moves its
certificate from `rejected/` to `trusted/`. Certificates are known by their
SHA-1 thumbprint, as in every OPC UA tool; the bytes are what is compared.

Revocation lists are not read: a server to be turned away is moved to `rejected/`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import BadRequest, DeviceRefused

FOLDER: Final = "pki"  # in the plant folder
CERTIFICATE: Final = "own/certificate.der"
KEY: Final = "own/key.pem"
EXPIRY_WARNING_DAYS: Final = 30.0
_REJECTED_KEPT: Final = 50  # whoever can connect can fill a folder
_KEY_BITS: Final = 2048  # the least Basic256Sha256 takes


class Place(StrEnum):
    OWN = "own"
    TRUSTED = "trusted"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Kept:
    """One certificate and where it lies."""

    place: Place
    file: Path
    certificate: x509.Certificate

    @property
    def thumbprint(self) -> str:
        return thumbprint(self.certificate)


class Pki:
    """The certificates of one plant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, plant: str, hosts: Sequence[str] = (), days: int = 730, replace: bool = False) -> Kept:
        """Make our own certificate, signed by itself, with a new key (Part 6, 6.2.2).

        Args:
            hosts: Names and addresses this machine goes by; default its host name.

        Raises:
            BadRequest: There is one and `replace` does not say so, or the folder cannot be written.
        """
        file, key_file = self.folder / CERTIFICATE, self.folder / KEY
        if not replace and (file.exists() or key_file.exists()):
            raise BadRequest(
                f"{file}: there is one already; servers that trust it would have to be told of a new one "
                "(--replace makes it all the same)"
            )
        names = list(dict.fromkeys(hosts or (socket.gethostname(),)))
        key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
        certificate = _self_signed(key, plant, names, days)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_secret(
                key_file,
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            )
            _write(file, certificate.public_bytes(serialization.Encoding.DER))
        except OSError as why:
            raise BadRequest(f"{why.filename or file}: {why.strerror}") from None
        return Kept(Place.OWN, file, certificate)

    def kept(self) -> Iterator[Kept]:
        """Every certificate of the folder; a file that is none is passed over."""
        for place in Place:
            folder = self.folder / place
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                try:
                    yield Kept(place, file, read_certificate(file))
                except (BadRequest, OSError):
                    continue

    def trust(self, name: str) -> Kept:
        """Believe a server from now on: one that was rejected, by its thumbprint's beginning, or a file."""
        return self._move(self._named(name, Place.REJECTED), Place.TRUSTED)

    def reject(self, name: str) -> Kept:
        """Believe a server no longer, by its thumbprint's beginning."""
        return self._move(self._named(name, Place.TRUSTED), Place.REJECTED)

    def judge(self, certificate: x509.Certificate, host: str, now: datetime | None = None) -> None:
        """Whether a server may be talked to.

        Trusted are the certificates in `trusted/`, and those that an authority in there signed for
        `host`. Any other is kept in `rejected/` for a person to look at.

        Raises:
            DeviceRefused: Not trusted, or not valid now; says what to do.
        """
        named = described(certificate)
        trusted = [kept.certificate for kept in self.kept() if kept.place is Place.TRUSTED]
        if certificate not in trusted:
            authority = next((one for one in trusted if _signed_by(certificate, one)), None)
            if authority is None:
                where = self._keep_rejected(certificate)
                raise DeviceRefused(
                    f"the server's certificate is not trusted: {named}. If this is the thumbprint the server "
                    f"itself shows, `ecmc certificate trust {thumbprint(certificate)[:12]} "
                    f"--plant {self.folder.parent}` lets it in{where}"
                )
            if host not in _hosts(certificate):
                raise DeviceRefused(
                    f"the server's certificate is for {', '.join(_hosts(certificate)) or 'no host'}, "
                    f"not for {host}: {named}"
                )
            check_time(authority, "the authority's certificate", now)
        check_time(certificate, "the server's certificate", now)

    def _keep_rejected(self, certificate: x509.Certificate) -> str:
        folder = self.folder / Place.REJECTED
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / _file_name(certificate), certificate.public_bytes(serialization.Encoding.DER))
            oldest_last = sorted(folder.glob("*.der"), key=lambda one: one.stat().st_mtime, reverse=True)
            for file in oldest_last[_REJECTED_KEPT:]:
                file.unlink()
        except OSError as why:
            return f" (it could not be kept in {folder}: {why.strerror}; get the file and name it instead)"
        return ""

    def _named(self, name: str, place: Place) -> Kept:
        file = Path(name)
        if place is Place.REJECTED and file.is_file():
            return Kept(place, file, read_certificate(file))
        wanted = re.sub(r"[\s:]", "", name).lower()
        found = [
            one for one in self.kept() if one.place is place and one.thumbprint.startswith(wanted) and wanted
        ]
        if len({one.thumbprint for one in found}) == 1:
            return found[0]
        what = "several begin so" if found else "none there"
        raise BadRequest(f"{self.folder / place}: {what}: {name!r}; `ecmc certificate list` shows them")

    def _move(self, kept: Kept, place: Place) -> Kept:
        file = self.folder / place / _file_name(kept.certificate)
        other = Place.REJECTED if place is Place.TRUSTED else Place.TRUSTED
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, kept.certificate.public_bytes(serialization.Encoding.DER))
            for one in list(self.kept()):
                if one.place is other and one.certificate == kept.certificate:
                    one.file.unlink()
        except OSError as why:
            raise BadRequest(f"{why.filename or file}: {why.strerror}") from None
        return Kept(place, file, kept.certificate)


def read_certificate(file: Path) -> x509.Certificate:
    """A certificate in PEM or DER, told apart by its content.

    Raises:
        BadRequest: The file cannot be read, or is no certificate.
    """
    try:
        content = file.read_bytes()
    except OSError as why:
        raise BadRequest(f"{file}: {why.strerror}") from None
    try:
        if b"-----BEGIN" in content[:4096]:
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except ValueError:
        raise BadRequest(f"{file}: no certificate in PEM or DER") from None


def thumbprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA1()).hex()  # a name, no proof


def application_uri(certificate: x509.Certificate) -> str | None:
    """The application's URI in the certificate; servers compare it with the one we give ourselves."""
    uris = _alternative_names(certificate, x509.UniformResourceIdentifier)
    return uris[0] if uris else None


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> float:
    """Until the certificate is no longer valid; negative afterwards."""
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)


def check_time(certificate: x509.Certificate, whose: str, now: datetime | None = None) -> None:
    """Whether a certificate is valid now.

    Raises:
        DeviceRefused: It expired, or is not valid yet.
    """
    now = now or datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise DeviceRefused(
            f"{whose} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, "
            f"{-days_left(certificate, now):.0f} days ago: {described(certificate)}; have it renewed"
        )
    if now < certificate.not_valid_before_utc:
        raise DeviceRefused(
            f"{whose} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on: "
            f"{described(certificate)}; is a clock wrong?"
        )


def described(certificate: x509.Certificate) -> str:
    return f"{_common_name(certificate)}, thumbprint {thumbprint(certificate)}"


def _self_signed(key: rsa.RSAPrivateKey, plant: str, hosts: Sequence[str], days: int) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"ecmc {plant}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ecmc"),
        ]
    )
    now = datetime.now(UTC)
    public = key.public_key()
    alternative = [x509.UniformResourceIdentifier(f"urn:{hosts[0]}:ecmc:{plant}"), *map(_host_name, hosts)]
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a PLC's clock is seldom right
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=True,
                key_encipherment=True,
                data_encipherment=True,
                key_agreement=False,
                key_cert_sign=True,  # asked of what signs itself
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return True


def _hosts(certificate: x509.Certificate) -> list[str]:
    names = _alternative_names(certificate, x509.DNSName)
    return [*names, *(str(one) for one in _alternative_names(certificate, x509.IPAddress))]


def _alternative_names(certificate: x509.Certificate, kind: type[x509.GeneralName]) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(name.value) for name in names if isinstance(name, kind)]


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string() or "nameless"


def _file_name(certificate: x509.Certificate) -> str:
    plain = re.sub(r"[^\w.-]+", "_", _common_name(certificate))[:60]
    return f"{plain}-{thumbprint(certificate)[:12]}.der"


def _write(file: Path, content: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.replace(file)


def _write_secret(file: Path, content: bytes) -> None:
    """Readable by its owner alone from its first byte on."""
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    part.replace(file)
