"""The alarm rules every plant has about its own figures, beside the missing-data rules of its meters.

Their points are no meter's: `core.alerts.watch` makes the readings from what was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from core.plant.model import (
    AlertKind,
    AlertRule,
    Edge,
    Label,
    Node,
    NodeKind,
    PointMeter,
    Role,
)

CONSERVED: Final = 1e-9  # relative; the promise of every interval
DISK: Final = "disk"  # its readings are levels of core.store.room
POWER_SHARE: Final = 0.05  # how far a day of power may be off its register


def watch_rules(nodes: Sequence[Node], edges: Sequence[Edge]) -> list[AlertRule]:
    """The rules a plant has by itself about its figures; their points are made by `observed` and `observed_day`."""

    def rule(id_: str, high: float, severity: int, zh: str, en: str) -> AlertRule:
        return AlertRule(id_, AlertKind.LIMIT, id_, high=high, severity=severity, name=Label(zh, en))

    rules = [rule(DISK, 0.5, 800, "磁盘空间将不足", "The disk is filling up")]
    if edges:
        rules.append(rule("conservation", CONSERVED, 900, "碳不守恒", "Carbon is not conserved"))
    for node in nodes:
        name = node.name or Label(node.id, node.id)
        if node.kind is NodeKind.BUS and sum(node.id in (e.source, e.target) for e in edges) > 1:
            rules.append(
                rule(
                    f"balance:{node.id}",
                    1.0,
                    400,
                    f"{name.zh} 的不平衡与表计误差之比",
                    f"{name.en}: imbalance over the errors of its meters",
                )
            )
        if node.kind is NodeKind.CONVERTER and node.efficiency is not None:
            rules.append(
                rule(
                    f"balance:{node.id}",
                    1.0,
                    400,
                    f"{name.zh} 的损耗偏离申报值与表计误差之比",
                    f"{name.en}: losses off what is declared, over the errors of its meters",
                )
            )
        if node.kind is NodeKind.STORAGE:
            rules.append(
                rule(
                    f"overdrawn:{node.id}",
                    0.0,
                    600,
                    f"{name.zh} 放出超过所存 (kWh)",
                    f"{name.en}: gave more than it held (kWh)",
                )
            )
    for edge in edges:
        meter = edge.meter
        if not isinstance(meter, PointMeter):
            continue
        rules.append(
            rule(
                f"jump:{edge.id}",
                0.0,
                500,
                f"{meter.point} 跳变，超过额定 (kWh)",
                f"{meter.point} jumped beyond its rating (kWh)",
            )
        )
        if meter.role is Role.REGISTER and meter.power_point is not None:
            rules.append(
                rule(
                    f"frozen:{edge.id}",
                    0.0,
                    600,
                    f"{meter.point} 有功率而不走字 (min)",
                    f"{meter.point} stands still under load (min)",
                )
            )
            rules.append(
                rule(
                    f"power:{edge.id}",
                    POWER_SHARE,
                    300,
                    f"{meter.point} 与本表功率一日之差",
                    f"{meter.point}: a day of power is off its register",
                )
            )
    return rules
