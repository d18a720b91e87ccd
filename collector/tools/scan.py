"""Which units answer behind a Modbus TCP port, and what they say they are.

One question after the other, since a gateway has one line behind it. A refusal
is an answer: somebody is there. Exceptions 10 and 11 are the gateway saying
that nobody is. A device on Ethernet often takes every unit id for its own; the
scan cannot tell that from many devices, but says when all answers are alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from collector.drivers.modbus.identity import COMMON_MODEL, COMMON_TEXTS, COMMON_WORDS
from collector.drivers.modbus.sunspec import CANDIDATES, model_addresses
from collector.drivers.modbus.transport import (
    GATEWAY_PATH_UNAVAILABLE,
    GATEWAY_TARGET_SILENT,
    READ_COILS,
    READ_DISCRETE_INPUTS,
    READ_HOLDING_REGISTERS,
    READ_INPUT_REGISTERS,
    BadReply,
    DeviceSilent,
    LinkLost,
    ModbusRefused,
    Transport,
)
from core.errors import BadRequest, DeviceUnreachable

_IDENTITY_NAMES = {0: "vendor", 1: "product", 2: "revision", 3: "url", 4: "product name", 5: "model"}
_ASKED = (READ_HOLDING_REGISTERS, READ_INPUT_REGISTERS, READ_COILS, READ_DISCRETE_INPUTS)  # likeliest first
_NOBODY, _SILENT = "nobody", "silent"
_NOBODY_THERE = (GATEWAY_PATH_UNAVAILABLE, GATEWAY_TARGET_SILENT)


@dataclass(frozen=True, slots=True)
class Found:
    """One unit that answers.

    Attributes:
        functions: What each reading function said at address 0: `data`, or why not.
        identity: What the device says it is, by function 43/14 or in its SunSpec common model; many say nothing.
        sunspec_models: Models of its SunSpec list, in order of their addresses.
    """

    unit: int
    functions: dict[int, str] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    sunspec_models: tuple[int, ...] = ()


def unit_range(text: str) -> list[int]:
    """`1-247`, `3`, `1-10,20` as numbers, each once.

    Raises:
        BadRequest: It is none, or names a unit outside 0..255.
    """
    units: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise BadRequest(f"units {text!r}: numbers and ranges wanted, such as 1-32,100") from None
        if not 0 <= low <= high <= 255:
            raise BadRequest(f"units {part.strip()}: from 0 to 255, the smaller first")
        units |= dict.fromkeys(range(low, high + 1))
    return list(units)


async def scan_units(transport: Transport, units: Iterable[int]) -> AsyncIterator[tuple[int, Found | None]]:
    """Each unit asked, with what was found; the transport is connected, and made anew where it was closed.

    Raises:
        LinkLost: Nobody takes the connection any more.
    """
    for unit in units:
        yield unit, await _look_at(transport, unit)


def all_alike(found: Sequence[Found]) -> bool:
    """Whether at least three units gave the very same answers: probably one device that ignores the unit id."""
    return len(found) >= 3 and all(
        (one.functions, one.identity, one.sunspec_models)
        == (found[0].functions, found[0].identity, found[0].sunspec_models)
        for one in found
    )


async def _look_at(transport: Transport, unit: int) -> Found | None:
    functions: dict[int, str] = {}
    for function in _ASKED:
        said = await _said(transport, unit, function)
        if said == _NOBODY:
            return None
        functions[function] = said
        if function == READ_INPUT_REGISTERS and set(functions.values()) == {_SILENT}:
            return None  # whoever is silent to function 3 may still answer to 4; who is silent to both is not there
    identity = await _identity(transport, unit)
    models, of_sunspec = await _sunspec(transport, unit)
    return Found(unit, dict(sorted(functions.items())), of_sunspec | identity, models)


async def _said(transport: Transport, unit: int, function: int) -> str:
    """What came of asking for one register at address 0, in words."""
    try:
        await _again(transport, unit, function)
    except ModbusRefused as why:
        return _NOBODY if why.code in _NOBODY_THERE else why.reason
    except BadReply:
        return "malformed"
    except DeviceUnreachable:
        return _SILENT
    return "data"


async def _again(transport: Transport, unit: int, function: int) -> bytes:
    """Some gateways hang up on a unit they cannot reach: the question is put once more on a new link."""
    try:
        return await transport.request(unit, function, 0, 1)
    except LinkLost:
        await transport.connect()
    try:
        return await transport.request(unit, function, 0, 1)
    except LinkLost as why:
        await transport.connect()
        raise DeviceSilent(str(why)) from None


async def _identity(transport: Transport, unit: int) -> dict[str, str]:
    try:
        objects = await transport.identify(unit)
    except LinkLost:
        await transport.connect()
        return {}
    except (DeviceUnreachable, ModbusRefused):
        return {}
    return {_IDENTITY_NAMES.get(number, f"object {number}"): text for number, text in objects.items()}


async def _sunspec(transport: Transport, unit: int) -> tuple[tuple[int, ...], dict[str, str]]:
    """Its models in order of their addresses, and what its common model says it is."""

    async def read(address: int, count: int) -> bytes:
        return await transport.request(unit, READ_HOLDING_REGISTERS, address, count)

    models: dict[int, int] = {}
    identity: dict[str, str] = {}
    try:
        models = await model_addresses(read, CANDIDATES)
        if COMMON_MODEL in models:
            start = models[COMMON_MODEL] + 2
            data = await read(start, COMMON_WORDS)
            for name, (first, words) in COMMON_TEXTS.items():
                if (
                    text := data[2 * first : 2 * (first + words)]
                    .split(b"\0")[0]
                    .decode("utf-8", "replace")
                    .strip()
                ):
                    identity[name] = text
    except LinkLost:
        await transport.connect()
    except (DeviceUnreachable, ModbusRefused):
        pass  # what was found until then stands
    return tuple(sorted(models, key=models.__getitem__)), identity
