"""The seam every protocol fits: a driver owns one connection and hands over columns.

`read` returns the next batch, by poll or by push. When the batch is on disk the
runner calls `stored`, which is when a broker may be told that its messages
arrived. A link that fails raises `DeviceUnreachable`; the runner closes the
driver and opens it again after a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from core.samples import SampleBatch


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device as its driver sees it now; `counters` are running totals (requests, missed_ticks, timeouts …).

    `warning` is what will go wrong although all is well yet, such as a certificate about to expire;
    `identity` is who the device says it is, such as its serial number.
    """

    up: bool
    since_ns: int
    detail: str
    counters: Mapping[str, int]
    warning: str = ""
    identity: Mapping[str, str] = field(default_factory=dict)


class Driver(Protocol):
    name: str  # the connection's id

    async def __aenter__(self) -> Self:
        """Connect; DeviceUnreachable where that fails."""

    async def read(self) -> SampleBatch:
        """The next poll, or the next push; never empty for long: waits for data, not for a device that is down.

        A device that is down shows as bad-status samples once, when it goes down, and in `devices`.
        """

    async def stored(self) -> None:
        """Every batch `read` returned so far is durable."""

    def devices(self) -> Mapping[str, DeviceState]: ...

    async def __aexit__(self, *exc: object) -> None: ...
