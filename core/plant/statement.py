"""`inventory` and `products` in plant.yaml: what people declare beside what is metered.

Base year, what is left out and why, and how far a factor may be off that does
not say so itself. Source: ISO 14064-1:2018, 5.2 to 6.4 and 8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from core.carbon.product import Allocation, CbamSector
from core.plant.document import Entry, did_you_mean
from core.plant.model import Exclusion, Kind, Label, Point, Product, Statement


def read_statement(entry: Entry, sources: Collection[str]) -> Statement:
    """Args:
    sources: What an uncertainty may be stated for: nodes, factor and fuel ids, `grid`.
    """
    stated = Statement(
        base_year=entry.integer("base_year", None, least=1990, most=2200),
        base_year_kgco2e=entry.number("base_year_kgco2e", None, least=0),
        recalculation_threshold=entry.number("recalculation_threshold_pct", 5.0, above=0, most=100) / 100,
        exclusions=tuple(_exclusion(one) for one in entry.children("exclusions", "exclusion")),
        uncertainty=_uncertainty(entry, sources),
    )
    if stated.base_year_kgco2e is not None and stated.base_year is None:
        entry.fault("base_year_kgco2e", "base_year_kgco2e without its base_year")
    entry.finish()
    return stated


def _exclusion(one: Entry) -> Exclusion:
    what, reason = one.label("what"), one.label("reason")
    for key, label in (("what", what), ("reason", reason)):
        if label is None:
            one.fault(key, f"{key} is missing: an exclusion names what is left out and why")
    scope = one.integer("scope", 3, least=1, most=3)
    one.finish()
    return Exclusion(what or Label("", ""), scope, reason or Label("", ""))


def _uncertainty(entry: Entry, sources: Collection[str]) -> dict[str, float]:
    stated = entry.child("uncertainty_pct")
    if stated is None:
        return {}
    shares: dict[str, float] = {}
    for key in stated.data:
        name = str(key)
        if name not in sources:
            hint = did_you_mean(name, sources)
            stated.fault(name, f"{name!r} is no source node, factor, fuel or grid{hint}")
        shares[name] = stated.number(name, 0.0, least=0, most=1000) / 100
    stated.finish()
    return shares


def read_products(
    entry: Entry, nodes: Collection[str], points: Mapping[str, Point], factors: Collection[str]
) -> tuple[Product, ...]:
    """`products`: ids, where they are made, and by which rule they share carbon."""
    products: dict[str, Product] = {}
    for one in entry.children("products", "product"):
        product = _product(one, nodes, points, factors)
        if product.id in products:
            one.fault("id", f"id {product.id!r} stands twice")
        products[product.id] = product
        one.finish()
    return tuple(products.values())


def _product(
    one: Entry, nodes: Collection[str], points: Mapping[str, Point], factors: Collection[str]
) -> Product:
    id_ = one.text("id", required=True)

    def named(key: str) -> tuple[str, ...]:
        names = one.texts(key)
        for name, place in names:
            if name not in nodes:
                one.faults.append(
                    place.fault(f"product {id_}: unknown node {name!r}{did_you_mean(name, nodes)}")
                )
        return tuple(name for name, _ in names)

    counter = one.text("counter") or None
    if counter is not None and counter not in points:
        one.fault("counter", f"unknown point {counter!r}{did_you_mean(counter, points)}")
    elif counter is not None and points[counter].kind is not Kind.COUNTER:
        one.fault("counter", f"point {counter} is no counter but a {points[counter].kind.value}")
    factor = one.text("life_cycle_factor") or None
    if factor is not None and factor not in factors:
        one.fault("life_cycle_factor", f"no factor {factor!r}{did_you_mean(factor, factors)}")
    cbam = one.child("cbam")
    sector = cn_code = ""
    if cbam is not None:
        sector = cbam.text("sector", required=True, choices=[sector.value for sector in CbamSector])
        cn_code = cbam.text("cn_code", required=True)
        cbam.finish()
    unit = one.text("unit", required=True)
    if cbam is not None and unit != "t":
        one.fault("unit", f"unit is {unit!r}: embedded emissions are per t")
    return Product(
        id=id_,
        name=one.label("name") or Label(id_, id_),
        unit=unit,
        nodes=named("nodes"),
        shared=named("shared"),
        allocation=one.text("allocation", Allocation.MASS.value, choices=[rule.value for rule in Allocation]),
        counter=counter,
        life_cycle_factor=factor,
        cbam_sector=sector or None,
        cn_code=cn_code or None,
    )
