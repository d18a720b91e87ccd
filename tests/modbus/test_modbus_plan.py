"""Which registers go into one request."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.drivers.modbus.plan import Block, Cost, Field, Refusals, halves, plan_blocks, serial_cost


def extents(blocks: list[Block]) -> list[tuple[int, int]]:
    return [(block.address, block.count) for block in blocks]


def price(blocks: list[Block], cost: Cost) -> float:
    return sum(cost.request + cost.register * block.count for block in blocks)


def test_a_small_hole_is_read_along_and_a_large_one_is_not() -> None:
    fields = [Field(0, 2), Field(10, 2), Field(100, 2)]

    blocks = plan_blocks(3, fields, Cost(request=1.0, register=0.05), 125)

    assert extents(blocks) == [(0, 12), (100, 2)]


def test_on_a_slow_serial_line_holes_of_twenty_registers_do_not_pay() -> None:
    cost = serial_cost(9600)

    near = plan_blocks(3, [Field(0, 2), Field(12, 2)], cost, 125)
    far = plan_blocks(3, [Field(0, 2), Field(22, 2)], cost, 125)

    assert cost.register == pytest.approx(0.0023, rel=0.01)
    assert len(near) == 1
    assert len(far) == 2


def test_a_value_is_never_cut() -> None:
    fields = [Field(address, 4) for address in range(0, 40, 4)]

    blocks = plan_blocks(3, fields, Cost(), 10)

    assert extents(blocks) == [(address, 8) for address in range(0, 40, 8)]


def test_a_refused_field_is_left_out_and_not_read_along() -> None:
    refusals = Refusals(fields={Field(5, 1)})

    blocks = plan_blocks(3, [Field(address, 1) for address in range(10)], Cost(), 125, refusals)

    assert extents(blocks) == [(0, 5), (6, 4)]


def test_a_border_is_never_crossed() -> None:
    blocks = plan_blocks(3, [Field(0, 1), Field(9, 1), Field(12, 1)], Cost(), 125, Refusals(borders={9}))

    assert extents(blocks) == [(0, 1), (9, 4)]


def test_a_refused_block_is_cut_at_its_largest_hole() -> None:
    (block,) = plan_blocks(3, [Field(0, 2), Field(4, 2), Field(20, 2), Field(24, 2)], Cost(), 125)

    parts = halves(block)

    assert parts is not None
    assert extents(list(parts)) == [(0, 6), (20, 6)]


def test_a_value_longer_than_a_request_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 registers in one value, at most 2"):
        plan_blocks(3, [Field(0, 4)], Cost(), 2)


field_lists = st.lists(
    st.builds(Field, st.integers(0, 60), st.sampled_from([1, 2, 4])), min_size=1, max_size=9, unique=True
)


@given(field_lists, st.integers(4, 30), st.floats(0.01, 2.0), st.sets(st.integers(0, 60), max_size=3))
def test_every_plan_reads_every_field_whole_and_keeps_the_limits(
    fields: list[Field], most: int, register: float, borders: set[int]
) -> None:
    refusals = Refusals(borders=borders)

    blocks = plan_blocks(3, fields, Cost(1.0, register), most, refusals)

    assert sorted(field for block in blocks for field in block.fields) == sorted(fields)
    for block in blocks:
        assert all(block.address <= f.address and f.end <= block.address + block.count for f in block.fields)
        assert block.count <= most
        if len(block.fields) > 1:
            assert not refusals.forbids(block.address, block.address + block.count)


@given(field_lists, st.floats(0.01, 2.0))
def test_no_way_of_cutting_neighbours_apart_is_cheaper(fields: list[Field], register: float) -> None:
    cost = Cost(1.0, register)
    wanted = sorted(fields)

    planned = price(plan_blocks(3, fields, cost, 125), cost)

    cheapest = float("inf")
    for cuts in range(1 << (len(wanted) - 1)):
        edges = [0, *(i + 1 for i in range(len(wanted) - 1) if cuts >> i & 1), len(wanted)]
        total = 0.0
        for low, high in pairwise(edges):
            part = wanted[low:high]
            total += cost.request + cost.register * (max(f.end for f in part) - part[0].address)
        cheapest = min(cheapest, total)
    assert planned == pytest.approx(cheapest)
