"""Where a SunSpec device keeps its models: found by walking the list, never assumed.

A device carries "SunS" at one of a few addresses; behind it follow models, each
with its id and length, up to id 0xFFFF. Positions differ between devices and
change with firmware, so the walk is done at every connect.
Source: SunSpec Device Information Model Specification, 6 (model discovery).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from collector.drivers.modbus.transport import BadReply, ModbusRefused

CANDIDATES = (40000, 50000, 0)
_MARKER = b"SunS"
_END = 0xFFFF
_MOST_MODELS = 256


async def model_addresses(
    read: Callable[[int, int], Awaitable[bytes]], candidates: Sequence[int] = CANDIDATES
) -> dict[int, int]:
    """Address of each model's id register, by model id; empty if the device has no SunSpec marker.

    The first of several models with one id counts.

    Args:
        read: Reads (address, count) holding registers of the device.
        candidates: Where the marker may stand.

    Raises:
        DeviceUnreachable: The device did not answer; nothing is known then.
    """
    for base in candidates:
        try:
            if await read(base, 2) != _MARKER:
                continue
        except ModbusRefused:
            continue
        return await _walk(read, base + 2)
    return {}


async def _walk(read: Callable[[int, int], Awaitable[bytes]], address: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for _ in range(_MOST_MODELS):
        if address + 2 > 0x10000:
            break
        try:
            header = await read(address, 2)
        except ModbusRefused:
            break  # some devices end the list without its end mark
        model, length = int.from_bytes(header[:2], "big"), int.from_bytes(header[2:], "big")
        if model == _END:
            break
        found.setdefault(model, address)
        address += 2 + length
    else:
        raise BadReply(f"more than {_MOST_MODELS} SunSpec models; the list has no end")
    return found
