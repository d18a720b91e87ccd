"""One session with an OPC UA server: who we are, whom we believe, how we log in, how much one call may ask.

How many nodes one call may name, each server says for each service, or says
nothing and refuses: then half as many are asked for.

Servers are believed by the plant's trust list (collector/pki.py), never because
they answer. The session is not mended when its link fails: it is closed and
opened again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from asyncua import ua
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties, x509_from_der
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from collector import pki
from collector.drivers.opcua_channel import ChannelClient
from core.errors import BadRequest, DeviceRefused, DeviceUnreachable
from core.metrics import CERTIFICATE_DAYS
from core.plant.model import Connection

# What fails in the library reaches us as an exception and is said once, by the runner.
logging.getLogger("asyncua").setLevel(logging.CRITICAL)

SESSION_TIMEOUT_S: Final = 120
WATCHDOG_S: Final = 10.0

T = TypeVar("T")
_MODES: Final = {
    "Basic256Sha256_Sign": ua.MessageSecurityMode.Sign,
    "Basic256Sha256_SignAndEncrypt": ua.MessageSecurityMode.SignAndEncrypt,
}
_OURS_REFUSED = (
    ua.StatusCodes.BadCertificateUntrusted,
    ua.StatusCodes.BadSecurityChecksFailed,
    ua.StatusCodes.BadCertificateInvalid,
)
_REFUSALS = (
    ua.StatusCodes.BadUserAccessDenied,
    ua.StatusCodes.BadIdentityTokenRejected,
    ua.StatusCodes.BadIdentityTokenInvalid,
    ua.StatusCodes.BadCertificateUriInvalid,
    ua.StatusCodes.BadCertificateUntrusted,
    ua.StatusCodes.BadCertificateInvalid,
    ua.StatusCodes.BadCertificateTimeInvalid,
    ua.StatusCodes.BadSecurityChecksFailed,
    ua.StatusCodes.BadSecurityPolicyRejected,
)
_TOO_MUCH = (
    ua.StatusCodes.BadTooManyOperations,
    ua.StatusCodes.BadRequestTooLarge,
    ua.StatusCodes.BadResponseTooLarge,
    ua.StatusCodes.BadEncodingLimitsExceeded,
)


class Service(Enum):
    """What a server may limit the size of, by the object that says so."""

    READ = ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead
    MONITOR = ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall
    HISTORY = ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerHistoryReadData
    BROWSE = ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse


# At most, whatever the server would take; fewer of what holds a place there through answers of many pages.
MOST_PER_CALL: Final = {
    Service.READ: 1_000,
    Service.MONITOR: 1_000,
    Service.HISTORY: 100,
    Service.BROWSE: 100,
}


class Session:
    """One client of one server.

    Options of the connection: `url`; `security` (`none`, `Basic256Sha256_Sign`,
    `Basic256Sha256_SignAndEncrypt`) with `certificate`, `private_key` and, to believe one server only,
    `server_certificate`; `username`, `password_env`, or `user_certificate`, `user_private_key`; `timeout_s`,
    `session_timeout_s`.

    Attributes:
        namespaces: The server's namespace table.
        limits: How many nodes one call may name.
    """

    def __init__(self, folder: Path, connection: Connection) -> None:
        self.where = f"{connection.id} {connection.options['url']}"
        self._name = connection.id
        self._folder = folder
        self._options = connection.options
        self.timeout_s = float(str(connection.options.get("timeout_s", 4.0)))
        self._client: ChannelClient | None = None
        self._certificates: dict[str, x509.Certificate] = {}  # by whose they are
        self.namespaces: list[str] = []
        self.limits = dict(MOST_PER_CALL)

    async def open(self, lost: Callable[[str], None]) -> None:
        """Connect and log in; `lost` is told once the link fails. `close` it whatever comes of it.

        Raises: whatever the library does; `failure` says what that means.
        """
        client = ChannelClient(
            str(self._options["url"]), timeout=self.timeout_s, watchdog_intervall=WATCHDOG_S
        )
        client.name = client.description = "ecmc"
        client.application_uri = "urn:ecmc:collector"
        client.session_timeout = int(
            float(str(self._options.get("session_timeout_s", SESSION_TIMEOUT_S))) * 1000
        )
        self._client = client
        username = self._options.get("username")
        if username:
            client.set_user(str(username))
            client.set_password(self._password())
        if self._options.get("user_certificate"):
            self._certificates["user"] = await self._own("user_certificate", "the user's certificate")
            await client.load_client_certificate(self._file("user_certificate"))
            await client.load_private_key(self._file("user_private_key"))
        await self._secure(client)

        async def link_lost(why: Exception) -> None:
            lost(f"link lost: {said(why)}")

        client.connection_lost_callback = link_lost
        await client.connect()
        self.namespaces = await client.get_namespace_array()
        await self._read_limits()

    async def split(
        self, service: Service, items: Sequence[T], call: Callable[[list[T]], Awaitable[object]]
    ) -> None:
        """Call with all the items, as many at once as the server takes."""
        at = 0
        while at < len(items):
            part = list(items[at : at + self.limits[service]])
            try:
                await call(part)
            except ua.UaStatusCodeError as why:
                if why.code not in _TOO_MUCH or len(part) == 1:
                    raise
                self.limits[service] = (len(part) + 1) // 2
            else:
                at += len(part)

    async def send(self, request: Any, timeout_s: float | None = None) -> Any:
        """The server's answer to a whole request, in the library's buffer; `timeout_s` of 0: whenever it comes."""
        client = self._client
        if client is None or client.uaclient.protocol is None:
            raise DeviceUnreachable(f"{self.where}: not connected")
        return await client.uaclient.protocol.send_request(request, timeout_s)

    @property
    def services(self) -> Any:
        """The library's services of this session, which take and give whole requests."""
        if self._client is None:
            raise DeviceUnreachable(f"{self.where}: not connected")
        return self._client.uaclient.session

    async def close(self, dead: bool = False) -> None:
        """Take leave; of a dead link without asking."""
        client, self._client = self._client, None
        if client is None:
            return
        if dead:
            client.disconnect_socket()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.disconnect(), 3.0)
        client.disconnect_socket()

    def failure(self, why: Exception) -> DeviceRefused | DeviceUnreachable:
        """What to raise for an exception while opening."""
        if isinstance(why, DeviceRefused | DeviceUnreachable):
            return why
        if isinstance(why, BadRequest):  # a certificate of ours that is none
            return DeviceRefused(f"{self.where}: {why}")
        if isinstance(why, ua.UaStatusCodeError) and why.code in _REFUSALS:
            hint = ""
            if why.code in _OURS_REFUSED and "own" in self._certificates:
                named = pki.described(self._certificates["own"])
                hint = f"; is our certificate trusted there ({named}, {self._file('certificate')})?"
            return DeviceRefused(f"{self.where}: {said(why)}{hint}")
        return DeviceUnreachable(f"{self.where}: {said(why)}")

    def expiry_warning(self) -> str:
        """What to renew soon; sets the metric on the way."""
        soon = []
        for whose, certificate in self._certificates.items():
            days = pki.days_left(certificate)
            CERTIFICATE_DAYS.labels(self._name, whose).set(days)
            if days <= pki.EXPIRY_WARNING_DAYS:
                soon.append(
                    f"the {whose} certificate expires on {certificate.not_valid_after_utc:%Y-%m-%d}, "
                    f"in {days:.0f} days"
                )
        return "; ".join(soon)

    def _password(self) -> str:
        name = self._options.get("password_env")
        if not name:
            return ""
        if str(name) not in os.environ:
            raise DeviceRefused(f"{self.where}: the environment has no {name} to take the password from")
        return os.environ[str(name)]

    async def _secure(self, client: ChannelClient) -> None:
        wanted = str(self._options.get("security") or "none")
        if wanted == "none":
            return
        mode = _MODES[wanted]
        own = self._certificates["own"] = await self._own("certificate", "our own certificate")
        # Servers compare the URI we give with the one in the certificate (BadCertificateUriInvalid).
        client.application_uri = pki.application_uri(own) or client.application_uri
        if self._options.get("server_certificate"):
            server = await self._own("server_certificate", "the server's certificate")
        else:
            server = await self._announced(client, mode)
            store = pki.Pki(self._folder / pki.FOLDER)
            await self._judged(store.judge, server, client.server_url.hostname or "")
        self._certificates["server"] = server
        await client.set_security(
            security_policies.SecurityPolicyBasic256Sha256,
            CertProperties(own.public_bytes(Encoding.DER), "der"),
            self._file("private_key"),
            server_certificate=CertProperties(server.public_bytes(Encoding.DER), "der"),
            mode=mode,
        )

    async def _announced(self, client: ChannelClient, mode: ua.MessageSecurityMode) -> x509.Certificate:
        """The certificate the server shows for the security that is wanted."""
        endpoints = await client.connect_and_get_server_endpoints()
        policy = security_policies.SecurityPolicyBasic256Sha256.URI
        for endpoint in endpoints:
            if endpoint.SecurityMode == mode and endpoint.SecurityPolicyUri == policy:
                found: x509.Certificate | None = x509_from_der(endpoint.ServerCertificate)
                if found is not None:
                    return found
        offered = {
            f"{(one.SecurityPolicyUri or '').rpartition('#')[2]}_{ua.MessageSecurityMode(one.SecurityMode).name}"
            for one in endpoints
        }
        raise DeviceRefused(
            f"{self.where}: the server offers {', '.join(sorted(offered)) or 'nothing'}, "
            f"wanted {self._options['security']}"
        )

    def _file(self, option: str) -> Path:
        return self._folder / str(self._options[option])

    async def _own(self, option: str, whose: str) -> x509.Certificate:
        """A certificate the plant names, valid now."""
        found = await asyncio.to_thread(pki.read_certificate, self._file(option))
        await self._judged(pki.check_time, found, whose)
        return found

    async def _judged(
        self, judge: Callable[[x509.Certificate, str], None], certificate: x509.Certificate, about: str
    ) -> None:
        try:
            await asyncio.to_thread(judge, certificate, about)
        except DeviceRefused as why:
            raise DeviceRefused(f"{self.where}: {why}") from None

    async def _read_limits(self) -> None:
        answers = await self.services.read_attributes(
            [ua.NodeId(ua.Int32(service.value)) for service in Service], ua.AttributeIds.Value
        )
        for service, answer in zip(Service, answers, strict=True):
            limit = answer.Value.Value if answer.Value is not None else None
            most = MOST_PER_CALL[service]
            self.limits[service] = min(limit, most) if isinstance(limit, int) and limit > 0 else most


def said(why: Exception) -> str:
    return f"{type(why).__name__}: {why}" if str(why) else type(why).__name__
