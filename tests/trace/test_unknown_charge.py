"""A storage that was charged once with carbon nobody knows must not stay unknown for ever."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.carbon.trace import Tracer
from core.plant.model import Edge, Node, NodeKind, PointMeter, Role
from core.samples import Floats


def _edge(name: str, source: str, target: str) -> Edge:
    return Edge(name, source, target, PointMeter(name, Role.REGISTER), "electricity")


NODES = (
    Node("grid", NodeKind.SOURCE, "electricity"),
    Node("main", NodeKind.BUS, "electricity"),
    Node("bat", NodeKind.STORAGE, "electricity"),
    Node("hall", NodeKind.LOAD, "electricity"),
)
EDGES = (
    _edge("in", "grid", "main"),
    _edge("charge", "main", "bat"),
    _edge("discharge", "bat", "main"),
    _edge("use", "main", "hall"),
)
#            blind: the grid's carbon is unknown while the battery charges
FLOW_KWH = np.array(
    [[30.0, 30.0, 30.0, 10.0], [10.0, 10.0, 10.0, 0.0], [0.0, 0.0, 0.0, 10.0], [20.0, 20.0, 20.0, 20.0]]
)
KAPPA = np.array([[[0.5, np.nan, 0.5, 0.5]]])


def stock_kg(cuts: list[int], keep_mean: bool) -> Floats:
    tracer = Tracer(NODES, EDGES)
    kwh, kg, found = np.array([20.0]), np.array([[4.0]]), [4.0]
    for first, last in pairwise(cuts):
        part = tracer.trace(
            FLOW_KWH[:, first:last], KAPPA[:, :, first:last], stock_kwh=kwh, stock_kg=kg, keep_mean=keep_mean
        )
        kwh, kg = part.stock_kwh[:, -1], part.stock_kg[:, :, -1]
        found.extend(part.stock_kg[0, 0, 1:].tolist())
    return np.array(found)


def test_unknown_energy_joins_at_the_stocks_own_intensity() -> None:
    kg = stock_kg([0, 4], keep_mean=True)

    # 20 kWh 4 kg; + 10 kWh at 0.5 = 30 kWh 9 kg; + 10 kWh unknown at 0.3 = 40 kWh 12 kg; + 10 at 0.5; - 10 of 50
    np.testing.assert_allclose(kg, [4.0, 9.0, 12.0, 17.0, 13.6])


def test_the_blind_interval_itself_stays_unknown() -> None:
    tracer = Tracer(NODES, EDGES)

    traced = tracer.trace(
        FLOW_KWH, KAPPA, stock_kwh=np.array([20.0]), stock_kg=np.array([[4.0]]), keep_mean=True
    )

    assert np.isnan(traced.kg_in[3, 0]).tolist() == [False, True, False, False]


def test_without_the_option_the_stock_is_unknown_as_the_rule_says() -> None:
    assert np.isnan(stock_kg([0, 4], keep_mean=False)).tolist() == [False, False, True, True, True]


def test_a_stock_that_began_unknown_takes_the_intensity_of_the_first_known_energy() -> None:
    flow = np.array([[30.0, 30.0, 30.0], [10.0, 10.0, 10.0], [5.0, 5.0, 5.0], [25.0, 25.0, 25.0]])
    tracer = Tracer(NODES, EDGES)

    traced = tracer.trace(flow, np.array([[[0.5]]]), keep_mean=True)

    # It gives 5 kWh before it holds any: nobody knows of what. What the grid brings is 0.5, and so is what it keeps.
    assert np.isnan(traced.kg_in[3, 0]).tolist() == [True, False, False]
    np.testing.assert_allclose(traced.stock_kwh[0], [0.0, 10.0, 15.0, 20.0])
    np.testing.assert_allclose(traced.stock_kg[0, 0], [0.0, 5.0, 7.5, 10.0])
    np.testing.assert_allclose(traced.kg_in[3, 0, 1:], [12.5, 12.5])


@pytest.mark.parametrize("cuts", [[0, 1, 4], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_a_cut_changes_no_bit(cuts: list[int]) -> None:
    np.testing.assert_array_equal(stock_kg(cuts, keep_mean=True), stock_kg([0, 4], keep_mean=True))
