"""An OPC UA server with the compressor line's PLC: the address space of its profile, written each tick.

Faults: `drop` on the device or the connection unplugs the server;
`stall` stops writing; `late_s` lets values come that much later; `exception`
gives every tag the status Bad; `clock_ahead_s` moves the stamps.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from asyncua import Server, ua

from core.clock import datetime_of
from core.plant.model import Device, OpcuaSource, Point
from core.samples import Floats
from simulators.meter import Meters

PLC_NAMESPACE: Final = "urn:plant:line1"
_TICK_S: Final = 0.5
# What the PLC keeps a value in; every other tag is a Float.
_TYPES: Final[Mapping[str, ua.VariantType]] = {
    "s=Line1.Energy.EnergyImport": ua.VariantType.Double,
    "s=Line1.Energy.EnergyExport": ua.VariantType.Double,
    "s=Line1.Gas.VolumeStd": ua.VariantType.Double,
    "s=Line1.CompressedAir.Volume": ua.VariantType.UInt64,
    "s=Line1.Production.GoodCount": ua.VariantType.UInt32,
    "s=Line1.Production.State": ua.VariantType.Int32,
    "i=5001": ua.VariantType.Int16,
    "g=6f2a1c1e-0d1b-4d7e-9a53-0c8d3f1f1a01": ua.VariantType.UInt32,
}
_WHOLE: Final = frozenset(
    {ua.VariantType.UInt64, ua.VariantType.UInt32, ua.VariantType.Int32, ua.VariantType.Int16}
)


class OpcuaServer:
    """One device's tags behind an endpoint; `async with` it, then `run()` until cancelled."""

    def __init__(self, url: str, device: Device, meters: Meters) -> None:
        self.url, self.device = url, device
        self._meters = meters
        self._server: Any = None
        self._plugged = True
        self._nodes: dict[str, ua.NodeId] = {}
        points = [meters.plant.point_by_id[point] for point in device.points]
        self._by_tag: dict[str, list[tuple[Point, OpcuaSource]]] = defaultdict(list)
        for point in points:
            if isinstance(point.source, OpcuaSource):
                self._by_tag[point.source.node_id.partition(";")[2]].append((point, point.source))

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._plug(True)  # asyncua stops only what runs
        await self._server.stop()

    async def run(self) -> None:
        """Write the values each half second; unplug the server and plug it in as its faults say."""
        waiting: deque[tuple[float, dict[str, ua.DataValue]]] = deque()  # (due on the loop's clock, tags)
        loop = asyncio.get_running_loop()
        while True:
            trouble = self._meters.faults.of(self.device.id)
            await self._plug(not (trouble.drop or self._meters.faults.of(self.device.connection or "").drop))
            if not trouble.stall:
                waiting.append((loop.time() + trouble.late_s, self._tags()))
            while waiting and waiting[0][0] <= loop.time():
                await self._write(waiting.popleft()[1])
            await asyncio.sleep(_TICK_S)

    async def _start(self) -> None:
        server = Server()
        await server.init()
        server.set_endpoint(self.url)
        server.set_server_name("Line 1")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        await server.set_application_uri("urn:line1:server")
        namespace = await server.register_namespace(PLC_NAMESPACE)
        folders: dict[str, Any] = {}
        tags = self._tags()
        for tag, value in tags.items():
            node_id = ua.NodeId.from_string(f"ns={namespace};{tag}")
            *path, name = tag.partition("=")[2].split(".") if tag.startswith("s=") else ["Line1", tag]
            parent = server.nodes.objects
            for depth in range(len(path)):
                key = ".".join(path[: depth + 1])
                if key not in folders:
                    folders[key] = await parent.add_folder(namespace, path[depth])
                parent = folders[key]
            await parent.add_variable(node_id, ua.QualifiedName(name, namespace), value.Value)
            self._nodes[tag] = node_id
        await server.start()
        self._server = server
        await self._write(tags)

    async def _plug(self, wanted: bool) -> None:
        """Close the port and every link, or open it again; the tags and sessions live on, as in a real PLC."""
        if wanted != self._plugged:
            self._plugged = wanted
            await (self._server.bserver.start() if wanted else self._server.bserver.stop())

    async def _write(self, tags: Mapping[str, ua.DataValue]) -> None:
        for tag, value in tags.items():
            await self._server.write_attribute_value(self._nodes[tag], value)

    def _tags(self) -> dict[str, ua.DataValue]:
        values = self._meters.values(self.device.id)
        trouble = self._meters.faults.of(self.device.id)
        status = ua.StatusCode(ua.StatusCodes.BadDeviceFailure if trouble.exception else ua.StatusCodes.Good)
        stamp = datetime_of(self._meters.stamp_ns(self.device.id))
        tags = {}
        for tag, points in self._by_tag.items():
            kind = _TYPES.get(tag, ua.VariantType.Float)
            counts = [_counts(source, values[point.id]) for point, source in points]
            numbers = [int(count) if kind in _WHOLE else float(count) for count in counts]
            is_array = points[0][1].element is not None
            variant = ua.Variant(numbers if is_array else numbers[0], kind)
            tags[tag] = ua.DataValue(variant, status, SourceTimestamp=stamp, ServerTimestamp=stamp)
        return tags


def node_value(source: OpcuaSource, value: Floats) -> Floats:
    """The value a reader of a tag gets, in the point's unit, shape as `value`."""
    return _counts(source, value) * source.scale + source.offset


def _counts(source: OpcuaSource, value: npt.ArrayLike) -> Floats:
    """What stands in the tag: whole numbers cut as the PLC cuts them, a Float's seven digits."""
    kind = _TYPES.get(source.node_id.partition(";")[2], ua.VariantType.Float)
    counts = (np.asarray(value, dtype=np.float64) - source.offset) / source.scale
    if kind in _WHOLE:
        return np.asarray(np.trunc(counts + 1e-6))
    return counts if kind is ua.VariantType.Double else counts.astype(np.float32).astype(np.float64)
