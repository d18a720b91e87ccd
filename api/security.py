"""Who may ask: no key on loopback by default, a key for every request once ECMC_AUTH is set.

Without keys the door is kept by the address: `run` listens on loopback only,
and requests must name a loopback host, so that no web page a user happens to
visit can reach in under a name of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import problem
from core.errors import BadRequest, Fault, FaultyInput

COOKIE: Final = "ecmc_key"
SHORTEST_SECRET: Final = 12


@dataclass(frozen=True, slots=True)
class Auth:
    """Keys by name, kept as SHA-256: keys are long random text, so a plain hash guards them."""

    sha256_of_key: Mapping[str, str]

    def who(self, key: str) -> str | None:
        """The name of the key, None where there is none such."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        names = [name for name, known in self.sha256_of_key.items() if hmac.compare_digest(known, digest)]
        return names[0] if names else None


def auth_of(setting: str | None) -> Auth | None:
    """The meaning of ECMC_AUTH: unset, `token:<secret>`, or `file:<path>` of `name:sha256` lines.

    Raises:
        BadRequest: It means nothing, or the secret is too short.
        FaultyInput: The key file cannot be read or has faulty lines.
    """
    if not setting:
        return None
    kind, _, rest = setting.partition(":")
    if kind == "token":
        if len(rest) < SHORTEST_SECRET:
            raise BadRequest(f"ECMC_AUTH: a token has at least {SHORTEST_SECRET} characters, got {len(rest)}")
        return Auth({"token": hashlib.sha256(rest.encode()).hexdigest()})
    if kind == "file":
        return _auth_of_file(Path(rest))
    raise BadRequest(f"ECMC_AUTH: wanted token:<secret> or file:<path>, got one that begins with {kind!r}")


def _auth_of_file(path: Path) -> Auth:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as why:
        raise FaultyInput([Fault(str(path), 0, 0, f"key file cannot be read: {why.strerror}")]) from None
    keys: dict[str, str] = {}
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, digest = (part.strip() for part in line.partition(":"))
        if not name or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
            faults.append(Fault(str(path), number, 1, "wanted name:sha256 with 64 hexadecimal digits"))
        elif name in keys:
            faults.append(Fault(str(path), number, 1, f"key {name} is there twice"))
        else:
            keys[name] = digest.lower()
    if not keys and not faults:
        faults.append(Fault(str(path), 0, 0, "no key in the key file"))
    if faults:
        raise FaultyInput(faults)
    return Auth(keys)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open_door(host: str, auth: Auth | None) -> None:
    """Raises BadRequest where anybody on the network could come in."""
    if auth is None and not is_loopback(host):
        raise BadRequest(
            f"will not listen on {host} without keys: set ECMC_AUTH=token:<secret> or file:<path>, "
            "or listen on 127.0.0.1"
        )


class Doorkeeper:
    """Asks for a key, or for a loopback name where there are no keys; health and the console's pages are open."""

    def __init__(self, app: ASGIApp, auth: Auth | None) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._auth is None:
            name = _host_name(headers)
            if not is_loopback(name):
                answer = problem(421, f"this server answers under a loopback name, not {name!r}")
                await answer(scope, receive, send)
                return
        elif not _is_open(scope["path"]):
            who = self._auth.who(_key_of(headers))
            if who is None:
                answer = problem(401, "a key is needed: Authorization: Bearer <key>")
                answer.headers["WWW-Authenticate"] = "Bearer"
                await answer(scope, receive, send)
                return
            scope["ecmc.who"] = who
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in ("/", "/v1/health", "/v1/session", "/favicon.ico") or path.startswith("/console/")


def _host_name(headers: Headers) -> str:
    host = headers.get("host", "")
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""
