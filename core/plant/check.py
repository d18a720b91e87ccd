"""What a healthy plant folder holds, in a few lines, before anything connects."""

from __future__ import annotations

from collections import Counter, defaultdict

from core.plant.model import (
    FormulaMeter,
    ModbusSource,
    NodeKind,
    Plant,
    PointMeter,
    RemainderMeter,
)

MAX_REGISTERS = 125  # Modbus application protocol 1.1b3, 6.3
BRIDGED_REGISTERS = 20  # a hole up to this size is cheaper read than gone round


def summarise(plant: Plant) -> str:
    """The plant in a few lines: what is connected, measured, metered and asked for per second."""
    protocols = Counter(connection.protocol.value for connection in plant.connections)
    meters = Counter(type(edge.meter) for edge in plant.edges)
    per_s = planned_requests_per_s(plant)
    silent = sum(1 for point in plant.points if point.source is None)
    lines = [
        f"plant {plant.id}: {plant.name.zh} / {plant.name.en}, {plant.zone.key}, region {plant.region}, "
        f"base interval {plant.base_interval_s} s",
        f"{_count(len(plant.connections), 'connection')}{_listed(protocols)}",
        _count(len(plant.devices), "device"),
        f"{_count(len(plant.points), 'point')}" + (f", {silent} by import alone" if silent else ""),
        f"{sum(per_s.values()):.4g} requests/s planned"
        + "".join(f", {connection} {rate:.4g}" for connection, rate in per_s.items() if len(per_s) > 1),
        f"{_count(len(plant.nodes), 'node')}, {_count(len(plant.edges), 'edge')}: {meters[PointMeter]} metered, "
        f"{meters[FormulaMeter]} by formula, {meters[RemainderMeter]} remainder",
        f"{_count(len(plant.alerts), 'alert rule')}, method sets {', '.join(plant.method_sets)}",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in notes(plant))])


def planned_requests_per_s(plant: Plant) -> dict[str, float]:
    """Modbus requests a second by connection, as neighbouring registers go together; subscriptions ask nothing."""
    blocks: dict[tuple[str, float, str, int, int | None], list[ModbusSource]] = defaultdict(list)
    for point in plant.points:
        device = plant.device_by_id.get(point.device or "")
        if device is None or device.connection is None or not isinstance(point.source, ModbusSource):
            continue
        source = point.source
        key = (device.connection, point.period_s, device.id, source.function, source.sunspec_model)
        blocks[key].append(source)
    per_s: dict[str, float] = {}
    for (connection, period_s, device_id, _, _), sources in blocks.items():
        most = plant.device_by_id[device_id].options.get("max_registers", MAX_REGISTERS)
        count = _block_count(sources, most if isinstance(most, int) else MAX_REGISTERS)
        per_s[connection] = per_s.get(connection, 0.0) + count / period_s
    return per_s


def notes(plant: Plant) -> list[str]:
    """What is allowed and yet worth a second look."""
    found = []
    fuels = {node.carrier for node in plant.nodes if node.kind is NodeKind.SOURCE and node.fuel}
    for edge in plant.edges:
        target = plant.node_by_id[edge.target]
        if (
            edge.carrier in fuels
            and target.kind in (NodeKind.LOAD, NodeKind.CONVERTER)
            and target.burns != edge.carrier
        ):
            found.append(
                f"{target.id} takes {edge.carrier} and burns none of it: no combustion is counted there"
            )
    meters = {
        plant.point_by_id[edge.meter.point].device
        for edge in plant.edges
        if isinstance(edge.meter, PointMeter)
    }
    unrated = [device.id for device in plant.devices if device.id in meters and device.rated_kw is None]
    if unrated:
        found.append(
            f"no rated_kw, so a jump of the register cannot be told from a load: {', '.join(unrated)}"
        )
    pointless = [device.id for device in plant.devices if not device.points]
    if pointless:
        found.append(f"devices without a point: {', '.join(pointless)}")
    return found


def _block_count(sources: list[ModbusSource], most: int) -> int:
    count = start = end = 0
    for source in sorted(sources, key=lambda source: source.address):
        if (
            not count
            or source.address > end + BRIDGED_REGISTERS
            or source.address + source.words - start > most
        ):
            count, start, end = count + 1, source.address, source.address
        end = max(end, source.address + source.words)
    return count


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _listed(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{n} {name}' for name, n in counts.items())})" if counts else ""
