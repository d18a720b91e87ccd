"""What must hold of flow tracing on every network, shown on random ones with cycles, storages and idle edges."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.carbon.trace import Tracer, TraceResult
from core.plant.model import Node, NodeKind


@dataclass(frozen=True)
class Link:
    id: str
    source: str
    target: str
    weight: float = 1.0


@dataclass
class Plant:
    nodes: list[Node]
    edges: list[Link]
    edge_kwh: np.ndarray
    source_kappa: np.ndarray
    direct_kg: np.ndarray
    stock_kwh: np.ndarray
    stock_kg: np.ndarray

    def trace(self, **other: object) -> TraceResult:
        given = {"stock_kwh": self.stock_kwh, "stock_kg": self.stock_kg} | other
        return Tracer(self.nodes, self.edges).trace(self.edge_kwh, self.source_kappa, self.direct_kg, **given)

    def rows(self, *kinds: str) -> list[int]:
        return [n for n, node in enumerate(self.nodes) if node.kind in kinds]


def random_plant(seed: int, intervals: int = 6, attributes: int = 2, idle: float = 0.2) -> Plant:
    """A network of a few buses and converters with arbitrary edges between them, so cycles are common."""
    rng = np.random.default_rng(seed)
    sources, inner, loads, stores = (int(n) for n in rng.integers([1, 2, 1, 0], [4, 7, 5, 3]))
    nodes = [Node(f"s{i}", NodeKind.SOURCE) for i in range(sources)]
    nodes += [Node(f"b{i}", NodeKind(rng.choice(["bus", "converter"]))) for i in range(inner)]
    nodes += [Node(f"l{i}", NodeKind(rng.choice(["load", "export"]))) for i in range(loads)]
    nodes += [
        Node(
            f"t{i}",
            NodeKind.STORAGE,
            charge_efficiency=float(rng.uniform(0.8, 1)),
            discharge_efficiency=float(rng.uniform(0.8, 1)),
            standing_loss_kw=float(rng.choice([0.0, 0.3])),
        )
        for i in range(stores)
    ]
    ends: list[tuple[str, str]] = [(f"s{i}", f"b{rng.integers(inner)}") for i in range(sources)]
    ends += [(f"b{rng.integers(inner)}", f"l{i}") for i in range(loads)]
    for i in range(stores):
        ends += [(f"b{rng.integers(inner)}", f"t{i}"), (f"t{i}", f"b{rng.integers(inner)}")]
    for _ in range(int(rng.integers(1, 2 * inner))):
        a, b = rng.choice(inner, 2, replace=False)
        ends.append((f"b{a}", f"b{b}"))
    weight = [float(rng.choice([1.0, 1.0, 2.5])) if a.startswith("b") else 1.0 for a, _ in ends]
    edges = [Link(f"e{i}", a, b, w) for i, ((a, b), w) in enumerate(zip(ends, weight, strict=True))]
    kwh = rng.uniform(0.5, 100, (len(edges), intervals)) * (rng.random((len(edges), intervals)) > idle)
    direct = np.zeros((len(nodes), attributes, intervals))
    for n, node in enumerate(nodes):
        if node.kind is NodeKind.CONVERTER:
            direct[n] = rng.uniform(0, 5, (attributes, intervals))
    return Plant(
        nodes,
        edges,
        kwh,
        rng.uniform(0, 1, (sources, attributes, intervals)),
        direct,
        np.full(stores, 5000.0),
        rng.uniform(0, 2000, (stores, attributes)),
    )


SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=60, deadline=None)


@FEW
@given(SEEDS)
def test_no_carbon_vanishes_or_appears_in_any_interval(seed: int) -> None:
    plant = random_plant(seed)

    result = plant.trace()

    brought = plant.direct_kg.sum(axis=0)
    for i, n in enumerate(plant.rows("source")):
        brought = brought + result.passed_kwh[n] * plant.source_kappa[i]
    found = result.kg_in[plant.rows("load", "export")].sum(axis=0) + result.unallocated_kg.sum(axis=0)
    found = found + np.diff(result.stock_kg, axis=-1).sum(axis=0)
    known = np.isfinite(found)
    np.testing.assert_allclose(found[known], brought[known], rtol=1e-9, atol=1e-9)
    assert result.conservation_error < 1e-9


@FEW
@given(SEEDS)
def test_a_dense_solve_of_the_whole_network_agrees(seed: int) -> None:
    plant = random_plant(seed, idle=0.0)
    result = plant.trace()
    index = {node.id: n for n, node in enumerate(plant.nodes)}
    inner = plant.rows("bus", "converter")
    for t in range(plant.edge_kwh.shape[1]):
        matrix, given_kg = np.zeros((len(plant.nodes),) * 2), plant.direct_kg[:, 0, t].copy()
        for e, edge in enumerate(plant.edges):
            flow, m, n = plant.edge_kwh[e, t] * edge.weight, index[edge.source], index[edge.target]
            matrix[m, m] += flow
            if m in inner:
                matrix[n, m] -= flow
            else:
                given_kg[n] += flow * result.kappa[m, 0, t]
        solvable = [n for n in inner if matrix[n, n] > 0]
        small = matrix[np.ix_(solvable, solvable)]
        if np.linalg.cond(small) > 1e6 or not np.isfinite(result.kappa[solvable, 0, t]).all():
            continue

        kappa = np.linalg.solve(small, given_kg[solvable])

        np.testing.assert_allclose(result.kappa[solvable, 0, t], kappa, rtol=1e-8, atol=1e-12)


@FEW
@given(SEEDS, st.floats(0.01, 100))
def test_scaling_every_energy_scales_every_kilogram(seed: int, factor: float) -> None:
    plant = random_plant(seed)
    plant.nodes = [replace(node, standing_loss_kw=0.0) for node in plant.nodes]
    bigger = replace(
        plant,
        edge_kwh=plant.edge_kwh * factor,
        direct_kg=plant.direct_kg * factor,
        stock_kwh=plant.stock_kwh * factor,
        stock_kg=plant.stock_kg * factor,
    )

    was, became = plant.trace(), bigger.trace()

    np.testing.assert_allclose(became.kg_in, was.kg_in * factor, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(became.kappa, was.kappa, rtol=1e-9, atol=1e-12)


@FEW
@given(SEEDS)
def test_splitting_a_bus_in_two_in_series_changes_no_load(seed: int) -> None:
    plant = random_plant(seed, idle=0.0)
    split = plant.rows("bus", "converter")[0]
    name = plant.nodes[split].id
    edges = [
        replace(edge, source="behind") if edge.source == name else edge for edge in plant.edges
    ] + [Link("tie", name, "behind")]  # fmt: skip
    inflow = sum(kwh for edge, kwh in zip(plant.edges, plant.edge_kwh, strict=True) if edge.target == name)
    if np.isscalar(inflow) or name not in {edge.source for edge in plant.edges}:
        return
    longer = replace(
        plant,
        nodes=[*plant.nodes, Node("behind", NodeKind.BUS)],
        edges=edges,
        edge_kwh=np.vstack([plant.edge_kwh, inflow]),
        direct_kg=np.concatenate([plant.direct_kg, np.zeros((1, *plant.direct_kg.shape[1:]))]),
    )

    was, became = plant.trace(), longer.trace()

    loads = plant.rows("load", "export")
    np.testing.assert_allclose(became.kg_in[loads], was.kg_in[loads], rtol=1e-9, atol=1e-9)


@FEW
@given(SEEDS)
def test_a_source_gone_clean_raises_nobody(seed: int) -> None:
    plant = random_plant(seed)
    cleaner = plant.source_kappa.copy()
    cleaner[0] = 0.0

    was, became = plant.trace(), replace(plant, source_kappa=cleaner).trace()

    assert (np.nan_to_num(became.kg_in) <= np.nan_to_num(was.kg_in) * (1 + 1e-9) + 1e-9).all()


@FEW
@given(SEEDS)
def test_the_total_is_the_sum_of_its_scopes(seed: int) -> None:
    plant = random_plant(seed)

    def with_total(column: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate([column, column.sum(axis=axis, keepdims=True)], axis=axis)

    result = replace(
        plant,
        source_kappa=with_total(plant.source_kappa, 1),
        direct_kg=with_total(plant.direct_kg, 1),
        stock_kg=with_total(plant.stock_kg, 1),
    ).trace()

    np.testing.assert_allclose(result.kg_in[:, 2], result.kg_in[:, :2].sum(axis=1), rtol=1e-9, atol=1e-9)


@FEW
@given(SEEDS, st.integers(1, 19))
def test_a_span_cut_in_two_gives_the_same_bits(seed: int, cut: int) -> None:
    plant = random_plant(seed, intervals=20)
    rng = np.random.default_rng(seed)
    stores = plant.stock_kwh.size
    soc = np.where(rng.random((stores, 20)) < 0.3, rng.uniform(0, 9000, (stores, 20)), np.nan)
    plant.edge_kwh[rng.random(plant.edge_kwh.shape) < 0.02] = np.nan
    whole = plant.trace(soc_kwh=soc)

    first = replace(
        plant,
        edge_kwh=plant.edge_kwh[:, :cut],
        source_kappa=plant.source_kappa[..., :cut],
        direct_kg=plant.direct_kg[..., :cut],
    ).trace(soc_kwh=soc[:, :cut])
    second = replace(
        plant,
        edge_kwh=plant.edge_kwh[:, cut:],
        source_kappa=plant.source_kappa[..., cut:],
        direct_kg=plant.direct_kg[..., cut:],
        stock_kwh=first.stock_kwh[:, -1],
        stock_kg=first.stock_kg[..., -1],
    ).trace(soc_kwh=soc[:, cut:])

    for name in ("kg_in", "kappa", "unallocated_kg", "passed_kwh", "edge_kg"):
        parts = np.concatenate([getattr(first, name), getattr(second, name)], axis=-1)
        np.testing.assert_array_equal(parts, getattr(whole, name), err_msg=name)
    np.testing.assert_array_equal(second.stock_kg, whole.stock_kg[..., cut:])
    np.testing.assert_array_equal(second.stock_kwh, whole.stock_kwh[..., cut:])


@FEW
@given(SEEDS)
def test_intensity_is_the_participation_of_the_sources_times_theirs(seed: int) -> None:
    plant = replace(random_plant(seed), direct_kg=None)
    tracer = Tracer(plant.nodes, plant.edges)

    share = tracer.participation(plant.edge_kwh)

    result = plant.trace()
    heads = np.concatenate([plant.source_kappa, np.nan_to_num(result.stock_kappa)])
    inner = plant.rows("bus", "converter")
    expected = np.einsum("nkt,kat->nat", share[inner], heads)
    unclouded = np.isfinite(result.stock_kappa).all(axis=(0, 1))
    np.testing.assert_allclose(
        expected[..., unclouded], result.kappa[inner][..., unclouded], rtol=1e-9, atol=1e-12
    )


# -- what happens in particular ------------------------------------------------------------------------------


def battery_plant(kwh: dict[str, list[float]]) -> Plant:
    """Grid 0.5 kg/kWh and a battery on one bus with one load."""
    nodes = [
        Node("grid", NodeKind.SOURCE),
        Node("bus", NodeKind.BUS),
        Node("bat", NodeKind.STORAGE),
        Node("shop", NodeKind.LOAD),
    ]
    edges = [
        Link("grid", "grid", "bus"),
        Link("charge", "bus", "bat"),
        Link("discharge", "bat", "bus"),
        Link("use", "bus", "shop"),
    ]
    columns = np.array([kwh[edge.id] for edge in edges], dtype=np.float64)
    kappa = np.full((1, 1, columns.shape[1]), 0.5)
    return Plant(nodes, edges, columns, kappa, None, np.array([10.0]), np.array([[2.0]]))


def test_a_storage_that_gives_more_than_it_holds_is_marked_and_its_carbon_unknown() -> None:
    plant = battery_plant({"grid": [0, 10], "charge": [0, 5], "discharge": [12, 0], "use": [12, 5]})

    result = plant.trace()

    assert result.overdrawn.tolist() == [[True, False]]
    assert np.isnan(result.kg_in[3, 0, 0])
    assert result.kg_in[3, 0, 1] == pytest.approx(2.5)
    assert result.stock_kwh.tolist() == [[10, 0, 5]]
    assert result.stock_kg[0, 0, 1:].tolist() == [0, 2.5]


def test_a_reported_state_of_charge_takes_the_stock_over_and_keeps_its_intensity() -> None:
    plant = battery_plant({"grid": [20, 10], "charge": [10, 0], "discharge": [0, 5], "use": [10, 15]})

    result = plant.trace(soc_kwh=np.array([[16.0, np.nan]]))

    assert result.stock_kwh.tolist() == [[10, 16, 11]]
    assert result.stock_kg[0, 0].tolist() == pytest.approx([2, 7 * 16 / 20, 7 * 11 / 20])
    assert result.unallocated_kg[2, 0].tolist() == pytest.approx([7 * 4 / 20, 0])
    assert result.conservation_error < 1e-12


def test_an_emptied_storage_forgets_unknown_carbon() -> None:
    plant = battery_plant({"grid": [0, 10], "charge": [0, 4], "discharge": [10, 0], "use": [10, 6]})
    plant.stock_kg[:] = np.nan

    result = plant.trace()

    assert np.isnan(result.kg_in[3, 0, 0])
    assert result.stock_kg[0, 0, 2] == pytest.approx(2.0)


def test_an_unmetered_outflow_of_a_bus_hides_no_other_outflow() -> None:
    nodes = [Node("grid", NodeKind.SOURCE), Node("bus", NodeKind.BUS)]
    nodes += [Node(name, NodeKind.LOAD) for name in ("a", "b", "c")]
    edges = [Link("in", "grid", "bus")] + [Link(name, "bus", name) for name in ("a", "b", "c")]
    tracer = Tracer(nodes, edges)

    result = tracer.trace(np.array([[100.0], [40.0], [np.nan], [np.nan]]), np.array([[[0.5]]]))

    np.testing.assert_array_equal(result.kg_in[:, 0, 0], [0, 50, 20, np.nan, np.nan])


def test_an_unknown_source_reaches_only_what_it_feeds() -> None:
    nodes = [Node("grid", NodeKind.SOURCE), Node("dark", NodeKind.SOURCE)]
    nodes += [
        Node("b1", NodeKind.BUS),
        Node("b2", NodeKind.BUS),
        Node("a", NodeKind.LOAD),
        Node("b", NodeKind.LOAD),
    ]
    edges = [
        Link("g", "grid", "b1"),
        Link("d", "dark", "b2"),
        Link("idle", "dark", "b1"),
        Link("a", "b1", "a"),
        Link("b", "b2", "b"),
    ]
    kwh = np.array([[10.0], [5.0], [0.0], [10.0], [5.0]])

    result = Tracer(nodes, edges).trace(kwh, np.array([[[0.5]], [[np.nan]]]))

    assert result.kg_in[4, 0, 0] == 5.0
    assert np.isnan(result.kg_in[5, 0, 0])


@pytest.mark.parametrize("wrong", [-1.0, np.inf])
def test_an_impossible_energy_is_refused_by_name(wrong: float) -> None:
    plant = battery_plant({"grid": [10], "charge": [wrong], "discharge": [0], "use": [10]})

    with pytest.raises(ValueError, match=f"edge 'charge' carries {wrong} kWh"):
        plant.trace()
