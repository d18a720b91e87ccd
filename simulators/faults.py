"""Trouble that can be switched on, device by device, while everything runs.

In code: `faults.set("m-press", drop=True)`. By hand: write the same into the
watched JSON file, `{"m-press": {"drop": true}}`, with any editor; a device that
no longer stands in the file is well again. The id of a connection instead of a
device's unplugs the whole link.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """How long answers take on a wire, as a log-normal through two quantiles, and the share that never comes."""

    median_s: float
    percentile_95_s: float
    worst_s: float
    lost: float

    def delay_s(self, chance: random.Random) -> float:
        spread = math.log(self.percentile_95_s / self.median_s) / 1.645
        return min(self.worst_s, self.median_s * math.exp(spread * chance.gauss(0.0, 1.0)))


# Seen in public captures (recordings/README.md, traces): a device on TCP, a serial gateway
# with four units, and the same gateway in trouble.
LINES: Final = {
    "direct": Line(0.009, 0.030, 0.046, 0.0),
    "gateway": Line(0.077, 0.498, 1.13, 0.024),
    "troubled": Line(0.447, 3.05, 5.1, 0.33),
}


class Trouble(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wrong with one device.

    Attributes:
        drop: The link breaks at the first word with the device.
        stall: The device is asked and never answers; a publisher falls silent.
        late_s: Every answer comes this much later.
        line: Modbus answers come and fail as on one of the measured `LINES`; empty: at once.
        exception: Modbus exception code of every answer; a Bad status over OPC UA; no number over MQTT.
        exception_at: Only for requests that touch this Modbus address; None for all.
        rollover: Counters that wrap stand just before their end, and wrap.
        frozen: Values stop, the device goes on answering.
        clock_ahead_s: The device's own stamps are this far from the truth.
    """

    drop: bool = False
    stall: bool = False
    late_s: float = 0.0
    line: Literal["", "direct", "gateway", "troubled"] = ""
    exception: int = 0
    exception_at: int | None = None
    rollover: bool = False
    frozen: bool = False
    clock_ahead_s: float = 0.0


_WELL: Final = Trouble()


class Faults:
    """Which device has which trouble now."""

    def __init__(self) -> None:
        self._now: dict[str, Trouble] = {}

    def of(self, name: str) -> Trouble:
        return self._now.get(name, _WELL)

    def set(self, name: str, **changes: bool | int | float | str) -> None:
        """Change some of a device's troubles, leave its others.

        Raises:
            ValueError: There is no such trouble, or it takes another kind of value.
        """
        try:
            self._now[name] = msgspec.convert(msgspec.structs.asdict(self.of(name)) | changes, Trouble)
        except msgspec.ValidationError as why:
            raise ValueError(f"fault of {name}: {why}") from None

    def clear(self, name: str | None = None) -> None:
        """Make a device well again, or all of them."""
        if name is None:
            self._now.clear()
        else:
            self._now.pop(name, None)

    def replace_all(self, troubles: Mapping[str, Trouble]) -> None:
        """Exactly these troubles from now on."""
        self._now = dict(troubles)

    async def watch(self, file: Path, every_s: float = 0.5) -> None:
        """Follow a JSON file until cancelled; a file that cannot be read or meant changes nothing."""
        seen = b""
        while True:
            text = await asyncio.to_thread(_read, file)
            if text != seen:
                seen = text
                try:
                    self.replace_all(msgspec.json.decode(text or b"{}", type=dict[str, Trouble]))
                except msgspec.DecodeError as why:
                    log.warning("fault file ignored", extra={"file": str(file), "why": str(why)})
                else:
                    log.info("faults changed", extra={"faults": text.decode()})
            await asyncio.sleep(every_s)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
