"""What a connection's devices have taught, kept over a restart: what they refuse, what a request costs, who they are.

One small JSON file a connection. It only saves time: without it everything is
learned again, so a file that cannot be read or written costs nothing but that.
What was learned of a device holds as long as it is the same device, by its
connection, unit id and profile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from collector.drivers.modbus.plan import Cost, Field, Refusals
from collector.memory import Memory
from core.plant.model import Connection, Device

VERSION: Final = 1
ANSWERS_TO_TRUST: Final = 20  # of each length
SPREAD_TO_TRUST: Final = 1.5  # between the shortest and the longest request
LEAST_RATIO: Final = (
    0.01  # of a register to a request: a longer hole is not read along, however free it looks
)
NEWS: Final = 0.2  # relative change of a ratio that is worth writing down


class CostMeter:
    """Round trips of one device by length; their minima lie on the line of its costs.

    The minimum of many answers is free of whatever else the loop, the network and
    the gateway were doing meanwhile.
    """

    def __init__(self) -> None:
        self._best_ns: dict[int, int] = {}
        self._answers: dict[int, int] = {}

    def add(self, count: int, took_ns: int) -> None:
        """One answer of `count` registers."""
        best_ns = self._best_ns.get(count)
        if best_ns is None or took_ns < best_ns:
            self._best_ns[count] = took_ns
        self._answers[count] = self._answers.get(count, 0) + 1

    def cost(self) -> Cost | None:
        """Seconds of a request and of a register; None while the lengths asked for cannot tell them apart."""
        counts = [count for count, answers in self._answers.items() if answers >= ANSWERS_TO_TRUST]
        if len(counts) < 2 or max(counts) < SPREAD_TO_TRUST * min(counts):
            return None
        took_s = [self._best_ns[count] * 1e-9 for count in counts]
        register_s, request_s = (float(each) for each in np.polyfit(counts, took_s, 1))
        request_s = max(request_s, 1e-6)
        return Cost(request_s, max(register_s, LEAST_RATIO * request_s))


class Learned:
    """The file of one connection; `None` for a path keeps nothing.

    What it hands out was read at the start; `keep` writes what is known by now.
    """

    def __init__(self, connection: Connection, folder: Path | None) -> None:
        self._connection = connection
        self._memory = Memory(connection.id, folder)
        known = self._memory.known.get("devices") if self._memory.known.get("version") == VERSION else None
        self._devices: dict[str, dict[str, object]] = known if isinstance(known, dict) else {}

    def refusals(self, device: Device) -> dict[int, Refusals]:
        """What a device refused, by function."""
        found: dict[int, Refusals] = {}
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            known: Any = self._of(device)
            for function, refused in known["refused"].items():
                found[int(function)] = Refusals(
                    {Field(int(address), int(count)) for address, count in refused["fields"]},
                    {int(border) for border in refused["borders"]},
                )
        return found

    def cost(self, device: Device) -> Cost | None:
        """What a request and a register cost the device, in seconds."""
        try:
            known: Any = self._of(device)
            cost = Cost(float(known["request_s"]), float(known["register_s"]))
        except (KeyError, TypeError, ValueError):
            return None
        return cost if cost.request > 0 and cost.register > 0 else None

    def identity(self, device: Device) -> dict[str, str]:
        """Who the device said it was."""
        try:
            known: Any = self._of(device)
            return {str(name): str(text) for name, text in known["identity"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    def keep(
        self,
        known: Mapping[str, tuple[Device, Mapping[int, Refusals], Cost | None, Mapping[str, str]]],
    ) -> None:
        """Write down what is known of each device, by name, if it is news."""
        devices: dict[str, dict[str, object]] = {}
        for name, (device, refusals, measured, identity) in known.items():
            remembered = self.cost(device)
            cost = measured if is_news(remembered, measured) else remembered
            entry: dict[str, object] = {
                "refused": {
                    str(function): {
                        "fields": sorted([one.address, one.count] for one in refused.fields),
                        "borders": sorted(refused.borders),
                    }
                    for function, refused in sorted(refusals.items())
                    if refused.fields or refused.borders
                },
            }
            if cost is not None:
                entry |= {"request_s": cost.request, "register_s": cost.register}
            if identity:
                entry["identity"] = dict(identity)
            if cost is not None or identity or entry["refused"]:
                devices[name] = {"is": self._fingerprint(device), **entry}
        if devices != self._devices:
            self._devices = devices
            self._memory.keep({"version": VERSION, "devices": devices})

    def _of(self, device: Device) -> dict[str, object]:
        known = self._devices[device.id]
        if known["is"] != self._fingerprint(device):
            raise KeyError(device.id)
        return known

    def _fingerprint(self, device: Device) -> str:
        options = self._connection.options
        where = [str(options.get(key)) for key in ("host", "port", "baud")]
        text = json.dumps([*where, device.unit_id, device.profile, str(device.options.get("max_registers"))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_news(before: Cost | None, now: Cost | None) -> bool:
    """Whether a measured cost weighs a register against a request otherwise than before."""
    if before is None or now is None:
        return now is not None
    old, new = before.register / before.request, now.register / now.request
    return abs(new - old) > NEWS * old
