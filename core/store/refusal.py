"""The database's errors in ecmc's two words: try again later, or do not bother.

Whatever the driver raises, the message is one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from asyncpg import exceptions as pg

from core.errors import StoreRefused, StoreUnavailable

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that broke in the middle of its rollback
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
    except Exception as why:
        cause = _cause(why)
        if not isinstance(cause, (*_AWAY, *_REFUSED)):
            raise
        raise _translated(cause) from why


def _cause(why: BaseException) -> BaseException:
    """The driver's own error; migrations raise it wrapped by SQLAlchemy, which is too slow a guest to import here."""
    wrapped = getattr(why, "orig", None)
    cause = getattr(wrapped, "__cause__", None) or wrapped or why
    while isinstance(cause, asyncpg.InterfaceError) and isinstance(cause.__context__, pg.PostgresError):
        cause = cause.__context__  # a transaction that could not even be left, because of what came before
    return cause


def _translated(why: BaseException) -> Exception:
    text = " ".join(str(why).split()) or type(why).__name__
    if isinstance(why, pg.DiskFullError):
        return StoreUnavailable(f"the database's disk is full: {text}")
    if isinstance(why, pg.TooManyConnectionsError):
        return StoreUnavailable(f"the database has no connection left: {text}")
    if isinstance(why, _REFUSED):
        return StoreRefused(_advice(why, text))
    return StoreUnavailable(f"the database does not answer: {text}")


def _advice(why: BaseException, text: str) -> str:
    if isinstance(why, pg.InvalidAuthorizationSpecificationError):
        return f"the database does not let us in: {text}"
    if isinstance(why, pg.InvalidCatalogNameError):
        return f"{text}: create it first"
    if isinstance(why, pg.InsufficientPrivilegeError):
        return f"the database role lacks a right: {text}"
    return f"the database refuses: {text}"
