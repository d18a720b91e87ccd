"""What a healthy plant folder holds, in a few lines, before anything connects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from core.plant.model import (
    FormulaMeter,
    NodeKind,
    Plant,
    PointMeter,
    RemainderMeter,
)


def summarise(plant: Plant, per_s: Mapping[str, float]) -> str:
    """The plant in a few lines: what is connected, measured, metered and asked for per second.

    Args:
        per_s: Requests a second by connection; subscriptions ask nothing.
    """
    protocols = Counter(connection.protocol.value for connection in plant.connections)
    meters = Counter(type(edge.meter) for edge in plant.edges)
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


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _listed(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{n} {name}' for name, n in counts.items())})" if counts else ""
