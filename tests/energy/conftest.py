"""A small plant built by hand, for what the network makes of it."""

from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo

import pytest

from core.plant.formula import parse_formula
from core.plant.model import (
    Device,
    Edge,
    FormulaMeter,
    Kind,
    Label,
    Meter,
    Node,
    NodeKind,
    Plant,
    Point,
    PointMeter,
    RemainderMeter,
    Role,
)

MakePlant = Callable[..., Plant]


def _meter(edge: str, how: str, source: str) -> Meter:
    if how == "meter":
        return PointMeter(f"{edge}.energy", Role.REGISTER)
    if how.startswith("remainder"):
        return RemainderMeter(how.removeprefix("remainder").strip() or source)
    return FormulaMeter(parse_formula(how))


@pytest.fixture
def make_plant() -> MakePlant:
    """Make a plant of nodes `id: kind` and edges `(id, from, to, how)`, each meter of class 0.5 where not said."""

    def make(
        nodes: dict[str, str],
        edges: Sequence[tuple[str, str, str, str]],
        accuracy_class: dict[str, float | None] | None = None,
    ) -> Plant:
        classes = accuracy_class or {}
        metered = [edge for edge, _, _, how in edges if how == "meter"]
        return Plant(
            id="test",
            name=Label("试验", "Test"),
            zone=ZoneInfo("Asia/Shanghai"),
            region="CN",
            base_interval_s=60,
            method_sets=("zero-carbon-factory",),
            areas=(),
            connections=(),
            devices=tuple(
                Device(edge, None, None, (f"{edge}.energy",), accuracy_class=classes.get(edge, 0.5))
                for edge in metered
            ),
            points=tuple(
                Point(f"{edge}.energy", "active_energy_import_total", "kWh", Kind.COUNTER, device=edge)
                for edge in metered
            ),
            nodes=tuple(Node(name, NodeKind(kind), "electricity") for name, kind in nodes.items()),
            edges=tuple(
                Edge(edge, source, target, _meter(edge, how, source), "electricity")
                for edge, source, target, how in edges
            ),
            alerts=(),
            folder="",
            fingerprint="",
        )

    return make
