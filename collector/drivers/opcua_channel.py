"""A secure channel that also reads answers under tokens renewed since (Part 4, 5.6.2; Part 6, 6.7.3).

A publish request waits at the server for seconds, and its answer may come under
the token it was asked with, as node-opcua's does even past that token's end. The
library forgets the keys of that token at its end, and dates the end by the
server's clock: with a lifetime below a minute, or a server whose clock is half
a lifetime slow, it takes such an answer for an attack and closes the connection.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

from asyncua import Client, ua
from asyncua.common.connection import SecureConnection, TransportLimits

LONGEST_ANSWER_S: Final = 120.0


class _Channel(SecureConnection):  # type: ignore[misc]  # the library has no types
    """Keeps the keys of a token that was renewed, for the rest of its lifetime and a quarter more or for
    LONGEST_ANSWER_S, whichever is longer, by our own clock.
    """

    def __init__(self, security_policy: Any, limits: TransportLimits) -> None:
        super().__init__(security_policy, limits)
        self._renewed: dict[int, tuple[Any, Any, float]] = {}  # verifier, decryptor, until; by token

    def set_channel(
        self, params: Any, request_type: ua.SecurityTokenRequestType, client_nonce: bytes
    ) -> None:
        super().set_channel(params, request_type, client_nonce)
        if request_type == ua.SecurityTokenRequestType.Renew:
            self.revolve_tokens()

    def revolve_tokens(self) -> None:
        crypto: Any = self.security_policy.symmetric_cryptography
        keys = getattr(crypto, "Verifier", None), getattr(crypto, "Decryptor", None)  # None without security
        # Renewed with a quarter of the lifetime left, and read for a quarter more.
        left_s = max(self.security_token.RevisedLifetime / 2 / 1000, LONGEST_ANSWER_S)
        now_s = time.monotonic()
        self._renewed = {token: kept for token, kept in self._renewed.items() if kept[2] > now_s}
        self._renewed[self.security_token.TokenId] = (*keys, now_s + left_s)
        super().revolve_tokens()
        crypto.prev_key_expiration = math.inf  # else the library wipes the keys that are kept here

    def _check_sym_header(self, security_hdr: ua.SymmetricAlgorithmHeader) -> None:
        kept = self._renewed.get(security_hdr.TokenId)
        if kept is None or kept[2] < time.monotonic():
            super()._check_sym_header(security_hdr)
            return
        # What the library tries where the newest keys do not fit.
        crypto: Any = self.security_policy.symmetric_cryptography
        crypto.Prev_Verifier, crypto.Prev_Decryptor = kept[:2]


class ChannelClient(Client):  # type: ignore[misc]
    """The library's client on such a channel."""

    async def connect_socket(self) -> None:
        await super().connect_socket()
        protocol = self.uaclient.protocol
        assert protocol is not None
        protocol._connection = _Channel(protocol._connection.security_policy, protocol._connection._limits)

    async def open_secure_channel(self, renew: bool = False) -> None:
        """As the library's; but a renewal answered too late still counts, and does not end the renewing."""
        protocol = self.uaclient.protocol
        if protocol is not None and isinstance(
            protocol._open_secure_channel_exchange, ua.OpenSecureChannelResponse
        ):
            protocol._open_secure_channel_exchange = None
        try:
            await super().open_secure_channel(renew=renew)
        except TimeoutError:
            if not renew:
                raise
