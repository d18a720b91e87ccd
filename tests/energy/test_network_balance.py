"""What edges nobody reads carry, and how nodes balance, worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from core.energy.network import Network, NetworkEnergy, converter_residual_kwh, storage_residual_kwh
from core.plant.model import Node, NodeKind
from core.results import IntervalEnergy, Mark

HALL = {"grid": "source", "main": "bus", "press": "load", "welding": "load", "rest": "load"}


def seen(*kwh: float) -> IntervalEnergy:
    energy = np.array(kwh, dtype=np.float64)
    known = np.isfinite(energy)
    return IntervalEnergy(energy, known.astype(float), np.zeros(energy.size), np.zeros(energy.size, np.int16))


def edge(network: Network, result: NetworkEnergy, name: str) -> IntervalEnergy:
    e = network.edges.index(name)
    whole = result.energy
    return IntervalEnergy(whole.energy_kwh[e], whole.covered[e], whole.estimated_kwh[e], whole.mark[e])


def test_a_remainder_takes_what_the_others_leave_and_the_node_balances(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-rest", "main", "rest", "remainder"),
                ("e-grid", "grid", "main", "meter"),
                ("e-press", "main", "press", "meter"),
            ],
        )
    )

    result = network.close({"e-grid": seen(100, 100), "e-press": seen(30, 100)})

    assert edge(network, result, "e-rest").energy_kwh.tolist() == [70, 0]
    assert result.residual_kwh[network.nodes.index("main")].tolist() == [0, 0]
    assert result.in_kwh[network.nodes.index("grid")].tolist() == [100, 100]
    assert result.in_kwh[network.nodes.index("rest")].tolist() == [70, 0]


def test_a_remainder_below_zero_carries_zero_and_its_deficit_is_the_residual(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-grid", "grid", "main", "meter"),
                ("e-press", "main", "press", "meter"),
                ("e-rest", "main", "rest", "remainder"),
            ],
        )
    )

    result = network.close({"e-grid": seen(100), "e-press": seen(103)})

    rest = edge(network, result, "e-rest")
    assert rest.energy_kwh.tolist() == [0]
    assert rest.mark[0] & Mark.NEGATIVE
    assert result.residual_kwh[network.nodes.index("main")].tolist() == [-3]


def test_a_virtual_meter_is_computed_after_what_it_reads(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-welding", "main", "welding", "= e-rest * 0.5"),
                ("e-rest", "main", "rest", "= e-press * 0.3 + 2"),
                ("e-press", "main", "press", "meter"),
                ("e-grid", "grid", "main", "meter"),
            ],
        )
    )

    result = network.close({"e-press": seen(20), "e-grid": seen(40)})

    assert edge(network, result, "e-welding").energy_kwh.tolist() == [4]


def test_a_formula_that_divides_by_zero_is_unknown_and_not_zero(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-grid", "grid", "main", "meter"),
                ("e-press", "main", "press", "meter"),
                ("e-welding", "main", "welding", "= e-grid / e-press"),
                ("e-rest", "main", "rest", "remainder"),
            ],
        )
    )

    result = network.close({"e-grid": seen(10, 10), "e-press": seen(0, 5)})

    np.testing.assert_array_equal(edge(network, result, "e-welding").energy_kwh, [np.nan, 2])
    np.testing.assert_array_equal(edge(network, result, "e-rest").energy_kwh, [np.nan, 3])


def test_a_single_silent_meter_of_a_bus_is_closed_by_its_balance(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-grid", "grid", "main", "meter"),
                ("e-press", "main", "press", "meter"),
                ("e-welding", "main", "welding", "meter"),
            ],
        )
    )

    result = network.close(
        {"e-grid": seen(100, np.nan), "e-press": seen(np.nan, 30), "e-welding": seen(60, 20)}
    )

    press, grid = edge(network, result, "e-press"), edge(network, result, "e-grid")
    assert press.energy_kwh.tolist() == [40, 30]
    assert press.estimated_kwh.tolist() == [40, 0]
    assert press.covered.tolist() == [0, 1]
    assert press.mark.tolist() == [Mark.SUBSTITUTED, 0]
    assert grid.energy_kwh.tolist() == [100, 50]
    assert result.coverage[network.nodes.index("press")].tolist() == [0, 1]


def test_closing_one_bus_lets_the_next_one_close(make_plant) -> None:
    network = Network(
        make_plant(
            {"grid": "source", "main": "bus", "sub": "bus", "press": "load", "rest": "load"},
            [
                ("e-rest", "main", "rest", "meter"),
                ("e-sub", "main", "sub", "meter"),
                ("e-press", "sub", "press", "meter"),
                ("e-grid", "grid", "main", "meter"),
            ],
        )
    )

    result = network.close({"e-grid": seen(100), "e-press": seen(30)})

    assert edge(network, result, "e-sub").energy_kwh.tolist() == [30]
    assert edge(network, result, "e-rest").energy_kwh.tolist() == [70]


def test_two_silent_meters_stay_unknown_without_a_profile_and_blank_no_other_edge(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-grid", "grid", "main", "meter"),
                ("e-press", "main", "press", "meter"),
                ("e-welding", "main", "welding", "meter"),
                ("e-rest", "main", "rest", "meter"),
            ],
        )
    )
    measured = {"e-grid": seen(100), "e-rest": seen(10)}
    profile = np.array([[np.nan], [50.0], [35.0], [np.nan]])

    unknown = network.close(measured)
    substituted = network.close(measured, profile)

    np.testing.assert_array_equal(unknown.energy.energy_kwh[:, 0], [100, np.nan, np.nan, 10])
    assert np.isnan(unknown.residual_kwh[network.nodes.index("main"), 0])
    assert substituted.energy.energy_kwh[:, 0].tolist() == [100, 50, 35, 10]
    assert (substituted.energy.mark[[1, 2], 0] == Mark.SUBSTITUTED).all()
    assert substituted.residual_kwh[network.nodes.index("main"), 0] == pytest.approx(5)


def test_a_virtual_meter_is_as_estimated_and_as_covered_as_its_inputs(make_plant) -> None:
    network = Network(
        make_plant(
            HALL,
            [
                ("e-grid", "grid", "main", "meter"),
                ("e-press", "main", "press", "meter"),
                ("e-welding", "main", "welding", "= e-press * 0.5"),
            ],
        )
    )
    gap = IntervalEnergy(np.array([40.0]), np.array([0.25]), np.array([30.0]), np.array([Mark.GAP], np.int16))

    result = network.close({"e-grid": seen(100), "e-press": gap})

    welding = edge(network, result, "e-welding")
    assert (welding.energy_kwh[0], welding.covered[0], welding.estimated_kwh[0]) == (20, 0.25, 15)
    assert welding.mark[0] == Mark.GAP


def test_a_residual_is_tested_against_its_meters_classes(make_plant) -> None:
    plant = make_plant(
        HALL,
        [
            ("e-grid", "grid", "main", "meter"),
            ("e-press", "main", "press", "meter"),
            ("e-rest", "main", "rest", "meter"),
        ],
        {"e-grid": 0.5, "e-press": 1.0, "e-rest": 2.0},
    )
    network = Network(plant)

    result = network.close({"e-grid": seen(1000, 1000), "e-press": seen(600, 600), "e-rest": seen(395, 380)})

    main = network.nodes.index("main")
    band = np.hypot(np.hypot(5, 6), [7.9, 7.6])  # C24: classes combine by the root of the sum of squares
    np.testing.assert_allclose(result.residual_band_kwh[main], band)
    assert result.outside_band[main].tolist() == [False, True]


def test_an_unknown_class_gives_no_band_rather_than_a_narrow_one(make_plant) -> None:
    plant = make_plant(
        HALL,
        [("e-grid", "grid", "main", "meter"), ("e-press", "main", "press", "meter")],
        {"e-grid": None},
    )
    network = Network(plant)

    result = network.close({"e-grid": seen(100), "e-press": seen(50)})

    assert np.isnan(result.residual_band_kwh[network.nodes.index("main"), 0])
    assert not result.outside_band.any()


def test_a_storage_balances_its_flows_against_its_stock() -> None:
    battery = Node(
        "bat", NodeKind.STORAGE, charge_efficiency=0.9, discharge_efficiency=0.8, standing_loss_kw=2.0
    )

    residual = storage_residual_kwh(
        battery, np.array([10.0, 0.0]), np.array([0.0, 8.0]), np.array([50.0, 58.0, 45.0]), 0.5
    )

    np.testing.assert_allclose(residual, [0, 2])


def test_formulas_that_read_each_other_are_refused(make_plant) -> None:
    plant = make_plant(HALL, [("a", "main", "press", "= b * 2"), ("b", "main", "rest", "= a / 2")])

    with pytest.raises(ValueError, match="ring: a -> b -> a"):
        Network(plant)


def test_nothing_measured_is_an_error(make_plant) -> None:
    network = Network(make_plant(HALL, [("e-grid", "grid", "main", "meter")]))

    with pytest.raises(ValueError, match="no edge of the network is measured"):
        network.close({})


@pytest.mark.parametrize(("silent", "kwh"), [("e-in", (9.5 + 0.5 + 4 / 60) / 0.98), ("e-out", 9.5)])
def test_a_silent_edge_of_a_converter_is_closed_by_its_declared_losses(
    make_plant, silent: str, kwh: float
) -> None:
    plant = make_plant(
        {"grid": "source", "trafo": "converter", "hall": "load", "lamp": "load"},
        [
            ("e-in", "grid", "trafo", "meter"),
            ("e-out", "trafo", "hall", "meter"),
            ("e-lamp", "trafo", "lamp", "meter"),
        ],
    )
    nodes = tuple(replace(n, efficiency=0.98, no_load_kw=4.0) if n.id == "trafo" else n for n in plant.nodes)
    speak = {"e-in": (9.5 + 0.5 + 4 / 60) / 0.98, "e-out": 9.5, "e-lamp": 0.5}
    measured = {name: seen(one) for name, one in speak.items() if name != silent}

    closed = Network(replace(plant, nodes=nodes)).close(measured)
    blind = Network(plant).close(measured)

    row = plant.edges.index(plant.edge_by_id[silent])
    np.testing.assert_allclose(closed.energy.energy_kwh[row], kwh, rtol=1e-12)
    assert closed.energy.mark[row].tolist() == [Mark.SUBSTITUTED]
    assert np.isnan(blind.energy.energy_kwh[row]).all()  # what it loses nobody said


def test_a_remainder_of_a_converter_leaves_its_declared_losses(make_plant) -> None:
    plant = make_plant(
        {"grid": "source", "trafo": "converter", "hall": "load"},
        [("e-in", "grid", "trafo", "meter"), ("e-out", "trafo", "hall", "remainder")],
    )
    nodes = tuple(replace(n, efficiency=0.98, no_load_kw=4.0) if n.id == "trafo" else n for n in plant.nodes)

    energy = Network(replace(plant, nodes=nodes)).close({"e-in": seen(10.0)}).energy

    np.testing.assert_allclose(energy.energy_kwh[1], 9.8 - 4 / 60)


def test_an_empty_storage_has_nothing_left_to_lose() -> None:
    node = Node("bat", NodeKind.STORAGE, "electricity", capacity_kwh=100, standing_loss_kw=2.0)

    residual = storage_residual_kwh(
        node, np.array([0.0, 5.0]), np.array([0.0, 0.0]), np.array([1.0, 0.0, 3.0]), 1.0
    )

    np.testing.assert_allclose(residual, [0.0, 0.0])


def test_a_converter_balances_against_what_it_is_declared_to_lose() -> None:
    trafo = Node("trafo", NodeKind.CONVERTER, efficiency=0.98, no_load_kw=4.0)

    residual = converter_residual_kwh(trafo, np.array([100.0, 100.0]), np.array([94.0, 90.0]), 1.0)

    np.testing.assert_allclose(residual, [0.0, 4.0])
