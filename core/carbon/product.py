"""Carbon of what is made: footprints of batches and orders, and embedded emissions of CBAM goods.

Energy metered at a product stays with it; what is shared is split by a declared
rule. What surprises: scrap carries nothing away. All carbon of a batch ends up
on its good output, so a worse yield is a larger footprint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from core.carbon.factors import FactorLibrary
from core.errors import BadRequest

CBAM_DEFAULT = "cbam_default_total"


class Allocation(StrEnum):
    """How shared carbon is split, declared with every footprint."""

    MACHINE_HOURS = "machine-hours"
    MASS = "mass"
    VALUE = "value"
    RATED_CONSUMPTION = "rated-consumption"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, shift or order.

    Attributes:
        direct_kg: Carbon traced to what was metered for it alone.
        driver: Its amount of the allocation rule: hours, t, value or rated kWh.
        good: Good output; scrap: output that is none. Same unit.
    """

    id: str
    direct_kg: float
    driver: float
    good: float
    scrap: float = 0.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Carbon of one batch; `per_good_kg` is NaN where nothing good came out."""

    id: str
    direct_kg: float
    shared_kg: float
    per_good_kg: float
    allocation: Allocation

    @property
    def total_kg(self) -> float:
        return self.direct_kg + self.shared_kg


def footprints(batches: Sequence[Batch], shared_kg: float, allocation: Allocation) -> list[Footprint]:
    """Direct carbon plus the batch's part of the shared carbon, borne by good output. Nothing of it vanishes.

    Raises:
        BadRequest: Negative amounts, or shared carbon with no driver to split it by.

    Source: ISO 14067:2018, 6.4.6 and GB/T 24067-2024, allocation by a physical or economic relationship.
    """
    for batch in batches:
        for name in ("driver", "good", "scrap"):
            if not getattr(batch, name) >= 0:
                raise BadRequest(f"batch {batch.id}: {name} is {getattr(batch, name)}, wanted 0 or more")
    drivers = sum(batch.driver for batch in batches)
    if shared_kg != 0 and not drivers > 0:
        raise BadRequest(f"{shared_kg} kg to be split by {allocation}, but no batch has any")
    made = []
    for batch in batches:
        shared = shared_kg * batch.driver / drivers if drivers > 0 else 0.0
        total = batch.direct_kg + shared
        made.append(
            Footprint(
                batch.id,
                batch.direct_kg,
                shared,
                total / batch.good if batch.good > 0 else math.nan,
                allocation,
            )
        )
    return made


class CbamSector(StrEnum):
    """Groups of goods; the definitive period counts indirect emissions for cement and fertilisers only."""

    CEMENT = "cement"
    FERTILISERS = "fertilisers"
    IRON_AND_STEEL = "iron-and-steel"
    ALUMINIUM = "aluminium"
    HYDROGEN = "hydrogen"

    @property
    def counts_indirect(self) -> bool:
        return self in (CbamSector.CEMENT, CbamSector.FERTILISERS)


@dataclass(frozen=True, slots=True)
class Precursor:
    """A good of the same regulation that went into another; `indirect` None: not known.

    `rows` are the factor rows of a default value and its mark-up; empty where the figure is the supplier's.
    """

    cn_code: str
    mass_t: float
    direct_t_per_t: float
    indirect_t_per_t: float | None = None
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """Specific embedded emissions of a CBAM good, tCO2e per tonne."""

    cn_code: str
    direct_t_per_t: float
    indirect_t_per_t: float | None
    indirect_counts: bool

    @property
    def see_t_per_t(self) -> float:
        """What is declared: direct, and indirect where the good's group counts it."""
        if not self.indirect_counts:
            return self.direct_t_per_t
        return math.nan if self.indirect_t_per_t is None else self.direct_t_per_t + self.indirect_t_per_t


def specific_embedded(
    cn_code: str,
    sector: CbamSector,
    activity_t: float,
    direct_kg: float,
    electricity_kg: float | None,
    precursors: Sequence[Precursor] = (),
) -> Embedded:
    """Attributed emissions over activity level, plus what the precursors bring.

    Args:
        activity_t: Mass of good product.
        direct_kg: Direct emissions attributed, heating and cooling included, wherever made.
        electricity_kg: Emissions of the electricity used; None: not known.

    Raises:
        BadRequest: No activity, or a precursor whose indirect emissions the good needs and nobody gave.

    Source: (EU) 2023/956 annex IV, simple and complex goods; SEE = (AttrEm + sum(M_i x SEE_i)) / AL.
    """
    if not activity_t > 0:
        raise BadRequest(f"CN {cn_code}: activity level is {activity_t} t, wanted more than 0")
    counts = sector.counts_indirect
    direct_t = direct_kg / 1000 + sum(p.mass_t * p.direct_t_per_t for p in precursors)
    indirect_t = None if electricity_kg is None else electricity_kg / 1000
    for precursor in precursors:
        if precursor.indirect_t_per_t is None:
            if counts:
                raise BadRequest(f"CN {cn_code}: precursor {precursor.cn_code} lacks its indirect emissions")
            indirect_t = None
        elif indirect_t is not None:
            indirect_t += precursor.mass_t * precursor.indirect_t_per_t
    return Embedded(
        cn_code, direct_t / activity_t, None if indirect_t is None else indirect_t / activity_t, counts
    )


def default_precursor(cn_code: str, mass_t: float, code: str, year: int, library: FactorLibrary) -> Precursor:
    """A precursor by a default value with the mark-up of its year. Defaults are totals: nothing is left indirect.

    Raises:
        BadRequest: No such default value, or no mark-up is known for so early a year.
    """
    row = library.row_by_id.get(f"materials:{code}:{CBAM_DEFAULT}")
    if row is None:
        known = [r.id.split(":")[1] for r in library.rows if r.kind == CBAM_DEFAULT]
        raise BadRequest(f"no CBAM default value {code!r}, wanted one of {', '.join(known)}")
    markups = {int(str(r.valid_from)): r for r in library.series["cbam_markup:default"]}
    per_t = default_with_markup(row.value / 1000, year, {at: r.value / 100 for at, r in markups.items()})
    used = markups[max(at for at in markups if at <= year)]
    return Precursor(cn_code, mass_t, per_t, 0.0, (row.id, used.id))


def default_with_markup(default_t_per_t: float, year: int, markup: Mapping[int, float]) -> float:
    """A default value with the mark-up of its year; the latest known year holds on.

    Raises:
        BadRequest: No mark-up is known for so early a year.
    """
    years = [known for known in markup if known <= year]
    if not years:
        raise BadRequest(f"no mark-up of default values for {year}, known from {min(markup)}")
    return default_t_per_t * (1 + markup[max(years)])
