"""Who a device says it is: the texts it carries, such as its serial number.

They are no samples. They tell one device from another: where a text changes,
somebody exchanged the meter (or its firmware), and what was learned of the old
one holds no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from collector.drivers.modbus.decode import byte_positions
from core.plant.model import Device, ModbusSource, Order

COMMON_MODEL: Final = 1
COMMON_WORDS: Final = 64
# Words from behind the header of the common model, and how many (SunSpec Device Information Model Specification).
COMMON_TEXTS: Final = {
    "vendor": (0, 16),
    "product": (16, 16),
    "revision": (40, 8),
    "serial number": (48, 16),
}


def texts_of(device: Device, models: Mapping[int, int] | None) -> dict[str, ModbusSource]:
    """Where a device's texts stand: as its profile says, and in the common model of a SunSpec device."""
    texts: dict[str, ModbusSource] = {}
    start = (models or {}).get(COMMON_MODEL)
    if start is not None:
        for name, (first, words) in COMMON_TEXTS.items():
            texts[name] = ModbusSource(
                3, start + 2 + first, "string", words, Order.BIG, Order.BIG, scale=1.0, offset=0.0
            )
    named = device.options.get("texts", {})
    assert isinstance(named, Mapping)  # the loader typed it
    return texts | dict(named)


def text_of(data: bytes, source: ModbusSource) -> str:
    """The text, or the number as one, in the words of an answer; empty where the device says nothing there."""
    ordered = bytes(data[at] for at in byte_positions(source, 0))
    if source.type != "string":
        number = int.from_bytes(ordered, "big")
        return "" if number in (0, 256 ** len(ordered) - 1) else str(number)
    return ordered.split(b"\0")[0].strip(b"\xff ").decode("utf-8", "replace").strip()


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What a device says of itself that it did not say before, in words; empty where it is the same."""
    return ", ".join(
        f"{name} {text!r} instead of {before[name]!r}"
        for name, text in now.items()
        if before.get(name, text) != text
    )
