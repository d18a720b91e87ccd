"""What can go wrong, named by what the caller can do about it.

The class says whether trying again helps; the message names the thing, what
was seen and what was wanted.
"""

from __future__ import annotations

from dataclasses import dataclass


class EcmcError(Exception):
    """Anything ecmc raises on purpose."""


class DeviceUnreachable(EcmcError):
    """The link failed. Worth trying again."""


class DeviceRefused(EcmcError):
    """The device answered no (say, Modbus exception 2). Trying again will not help."""


class StoreTrouble(EcmcError):
    """The database does not do what was asked. Whoever runs on tries again: people can heal either kind meanwhile."""


class StoreUnavailable(StoreTrouble):
    """The database cannot take or give anything now. Worth trying again."""


class StoreRefused(StoreTrouble):
    """The database will not do this as it stands (rights, version, a foreign table)."""


class DataFolderError(EcmcError):
    """The data folder cannot be used: rights, another process, another version."""


class BadRequest(EcmcError):
    """What was asked for cannot be meant: an unknown name, an impossible range."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input file, at the place a person can find it.

    Lines and columns count from 1; 0 where the fault is the file's as a whole.
    """

    file: str
    line: int
    column: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.reason}"


class FaultyInput(EcmcError):
    """An input file (plant folder, import, table) with its whole list of faults."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))
