"""Which registers to ask for together: the cheapest requests that read every field.

A request costs a fixed part and a part a register, so a hole between two fields
is read along where that is cheaper than a second request. Fields of one device,
function and period are sorted by address and cut into blocks by dynamic
programming; a field is never cut, a block never grows beyond what the device
answers, and nothing that the device once refused is asked for again: `Refusals`
holds single bad fields and the borders no request may cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Field:
    """Registers (or bits) that are one value."""

    address: int
    count: int

    @property
    def end(self) -> int:
        return self.address + self.count


@dataclass(frozen=True, slots=True)
class Block:
    """One request: `count` registers from `address`, and the fields it serves."""

    function: int
    address: int
    count: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request costs, in any one unit of time; only the ratio decides."""

    request: float = 1.0
    register: float = 0.02


def serial_cost(baud: int, turnaround_s: float = 0.005) -> Cost:
    """Seconds on an RTU line of 11 bits a character: 13 bytes of frames and two pauses of 3.5 characters a request.

    Source: Modbus over serial line V1.02, 2.5.1; 6 and 5 + 2n bytes of function 3, with two of CRC each.
    """
    character_s = 11 / baud
    return Cost(request=(13 + 2 * 3.5) * character_s + turnaround_s, register=2 * character_s)


@dataclass(slots=True)
class Refusals:
    """What one device's function does not answer: fields by themselves, and borders between neighbours.

    A border at address x means that no request may hold x - 1 and x both, or
    what stands on either side of the hole that ends at x.
    """

    fields: set[Field] = field(default_factory=set)
    borders: set[int] = field(default_factory=set)

    def forbids(self, start: int, end: int) -> bool:
        return any(start < border < end for border in self.borders) or any(
            start < bad.end and bad.address < end for bad in self.fields
        )


def plan_blocks(
    function: int, fields: Sequence[Field], cost: Cost, most: int, refusals: Refusals | None = None
) -> list[Block]:
    """The cheapest blocks over `fields`, in address order; refused fields are left out.

    Args:
        function: Read function of all of them.
        fields: In any order; overlaps and repetitions allowed.
        cost: What a request and a register cost the device.
        most: Largest number of registers (bits) of one request.
        refusals: What the device has refused so far.

    Raises:
        ValueError: A field is longer than a request may be.
    """
    refusals = refusals or Refusals()
    wanted = sorted({one for one in fields if one not in refusals.fields})
    for one in wanted:
        if one.count > most:
            raise ValueError(
                f"address {one.address}: {one.count} registers in one value, at most {most} in a request"
            )
    starts, ends = [one.address for one in wanted], [one.end for one in wanted]
    forbids = refusals.forbids if refusals.fields or refusals.borders else None
    # the cheapest cost of the first i fields, and where their last block begins
    costs, begins = [0.0], [0]
    for i in range(1, len(wanted) + 1):
        end = ends[i - 1]
        cheapest, begin = costs[i - 1] + cost.request + cost.register * (end - starts[i - 1]), i - 1
        for j in range(i - 2, -1, -1):
            start = starts[j]
            end = max(end, ends[j])
            if end - start > most or (forbids and forbids(start, end)):
                break  # reaching further back only makes it longer
            price = costs[j] + cost.request + cost.register * (end - start)
            if price < cheapest:
                cheapest, begin = price, j
        costs.append(cheapest)
        begins.append(begin)
    blocks: list[Block] = []
    i = len(wanted)
    while i > 0:
        j = begins[i]
        blocks.append(block_of(function, wanted[j:i]))
        i = j
    blocks.reverse()
    return blocks


def block_of(function: int, fields: Sequence[Field]) -> Block:
    start = fields[0].address
    return Block(function, start, max(one.end for one in fields) - start, tuple(fields))


def halves(block: Block) -> tuple[Block, Block] | None:
    """A refused block in two, at its largest hole, else nearest its middle; None where it cannot be cut.

    Fields that overlap stay together.
    """
    fields = block.fields
    middle = block.address + block.count / 2
    cut, best = 0, (-1, 0.0)
    end = fields[0].end
    for i in range(1, len(fields)):
        hole = fields[i].address - end
        if hole >= 0 and (hole, -abs(fields[i].address - middle)) > best:
            cut, best = i, (hole, -abs(fields[i].address - middle))
        end = max(end, fields[i].end)
    if cut == 0:
        return None
    return block_of(block.function, fields[:cut]), block_of(block.function, fields[cut:])
