"""Lines other than plain TCP: a serial line as two pseudo-terminals, and a certificate for TLS."""

from __future__ import annotations

import asyncio
import datetime
import os
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_file, key_file


@asynccontextmanager
async def serial_line(heard: bytearray | None = None) -> AsyncIterator[tuple[str, str]]:
    """Two serial ports joined back to back, as pseudo-terminals; `heard` keeps what the first one says."""
    loop = asyncio.get_running_loop()
    (near, near_port), (far, far_port) = os.openpty(), os.openpty()
    for terminal in (near_port, far_port):
        tty.setraw(terminal)

    def pass_on() -> None:
        said = os.read(near, 4096)
        if heard is not None:
            heard.extend(said)
        os.write(far, said)

    loop.add_reader(near, pass_on)
    loop.add_reader(far, lambda: os.write(near, os.read(far, 4096)))
    try:
        yield os.ttyname(near_port), os.ttyname(far_port)
    finally:
        loop.remove_reader(near)
        loop.remove_reader(far)
        for terminal in (near, near_port, far, far_port):
            os.close(terminal)
