"""The database's errors in ecmc's two words: try again later, or do not bother.

Whatever the driver raises, the message is one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from asyncpg import exceptions as pg
from sqlalchemy.exc import DBAPIError

from core.errors import StoreRefused, StoreUnavailable

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    pg.PostgresConnectionError,
    pg.OperatorInterventionError,  # shutting down, starting up, killed
    pg.InsufficientResourcesError,  # disk, memory, connections
    pg.TransactionRollbackError,  # deadlock, serialization
    pg.LockNotAvailableError,
    pg.PostgresIOError,
    pg.ReadOnlySQLTransactionError,  # a standby, or one that has just been promoted away from
)
_REFUSED = (
    pg.InvalidAuthorizationSpecificationError,  # wrong password, unknown role
    pg.InvalidCatalogNameError,
    pg.InsufficientPrivilegeError,
    pg.FeatureNotSupportedError,
    pg.SyntaxOrAccessError,
)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the driver raises into StoreUnavailable or StoreRefused."""
    try:
        yield
    except DBAPIError as wrapped:
        cause = getattr(wrapped.orig, "__cause__", None) or wrapped.orig
        raise _translated(cause) from wrapped
    except (*_AWAY, *_REFUSED) as why:
        raise _translated(why) from why


def _translated(why: BaseException | None) -> Exception:
    text = " ".join(str(why).split()) or type(why).__name__
    if isinstance(why, pg.DiskFullError):
        return StoreUnavailable(f"the database's disk is full: {text}")
    if isinstance(why, pg.TooManyConnectionsError):
        return StoreUnavailable(f"the database has no connection left: {text}")
    if isinstance(why, _REFUSED):
        return StoreRefused(_advice(why, text))
    if isinstance(why, _AWAY):
        return StoreUnavailable(f"the database does not answer: {text}")
    return why if isinstance(why, Exception) else StoreUnavailable(text)


def _advice(why: BaseException, text: str) -> str:
    if isinstance(why, pg.InvalidAuthorizationSpecificationError):
        return f"the database does not let us in: {text}"
    if isinstance(why, pg.InvalidCatalogNameError):
        return f"{text}: create it first"
    if isinstance(why, pg.InsufficientPrivilegeError):
        return f"the database role lacks a right: {text}"
    return f"the database refuses: {text}"
