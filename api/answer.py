"""Answers: the rows people get, as OpenAPI shows them, and columns turned into them.

Rows are rendered by orjson straight from columns; NaN comes out as null. The
models below describe the answers, they are not run over every row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response

from core.clock import NS_PER_S, rfc3339
from core.quality import quality_of, status_code
from core.samples import Times

QualityWord = Literal["good", "uncertain", "bad"]


class Json(Response):
    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def number(value: float) -> float | None:
    """A number as an answer has it: None where nothing is known."""
    return value if math.isfinite(value) else None


class LabelRow(BaseModel):
    zh: str
    en: str


class PartRow(BaseModel):
    status: Literal["ok", "degraded", "down"]
    detail: str


class HealthRow(BaseModel):
    status: Literal["ok", "degraded", "down"]
    parts: dict[str, PartRow]


class PointRow(BaseModel):
    point: str
    device: str | None
    quantity: str
    unit: str
    name: str


class LatestRow(BaseModel):
    point: str
    time: str
    value: float | None
    unit: str
    quality: QualityWord
    status: int


class SampleRow(BaseModel):
    point: str
    time: str
    value: float | None
    quality: QualityWord
    status: int


class SamplePage(BaseModel):
    items: list[SampleRow]
    next: str | None


class ConflictRow(BaseModel):
    point: str
    time: str
    stored: float | None
    offered: float | None


class RejectedRow(BaseModel):
    index: int
    reason: str


class WriteAnswer(BaseModel):
    accepted: int
    repeated: int
    corrected: int
    conflicts: list[ConflictRow]
    conflict_count: int
    rejected: list[RejectedRow]


class CorrectionRow(BaseModel):
    point: str
    time: str
    old: float | None
    new: float | None
    who: str
    why: str
    at: str


class EnergyRow(BaseModel):
    edge: str
    start: str
    energy_kwh: float | None
    coverage: float
    estimated_share: float | None
    shift: str | None = None  # with bucket=shift


class EmissionRow(BaseModel):
    node: str
    start: str
    scope: int
    basis: str
    method_set: str
    emissions_kgco2e: float | None
    coverage: float
    shift: str | None = None  # with bucket=shift
    unverified: bool = False
    uncertainty: float | None = None  # this and what follows from buckets of a month on, or when asked for
    factors: list[str] = []
    levels: list[str] = []


class IntensityRow(BaseModel):
    node: str
    start: str
    intensity_kgco2e_per_kwh: float | None
    shift: str | None = None  # with bucket=shift
    uncertainty: float | None = None  # this and what follows from buckets of a month on, or when asked for
    factors: list[str] = []
    levels: list[str] = []
    unverified: bool = False


class BalanceRow(BaseModel):
    node: str
    start: str
    in_kwh: float | None
    out_kwh: float | None
    residual_kwh: float | None
    shift: str | None = None  # with bucket=shift


class IndicatorRow(BaseModel):
    indicator: str
    value: float | None
    unit: str
    basis: str | None
    coverage: float | None
    method_set: str
    entry: float | None
    final: float | None
    reached: str | None
    note: str
    stages: dict[str, float] = {}
    uncertainty: float | None = None
    factors: list[str] = []
    levels: list[str] = []
    unverified: bool = False


class DeviceRow(BaseModel):
    device: str
    name: LabelRow | None
    connection: str | None
    protocol: str | None
    profile: str | None
    area: str | None
    up: bool | None
    since: str | None
    detail: str
    counters: dict[str, int]
    warning: str
    identity: dict[str, str]


class NodeRow(BaseModel):
    node: str
    kind: str
    carrier: str | None
    origin: str | None
    area: str | None
    name: LabelRow


class EdgeRow(BaseModel):
    edge: str
    from_node: str = Field(alias="from")
    to: str
    carrier: str
    meter: Literal["point", "remainder", "formula"]
    point: str | None
    power_point: str | None


class NetworkAnswer(BaseModel):
    nodes: list[NodeRow]
    edges: list[EdgeRow]


class PlantAnswer(BaseModel):
    plant: str
    name: LabelRow
    zone: str
    region: str
    base_interval_s: int
    method_sets: list[str]
    time: str
    day_start: str
    boot: str


class LiveNodeRow(BaseModel):
    node: str
    power_kw: float | None
    emissions_kgco2e_per_h: float | None
    intensity_kgco2e_per_kwh: float | None


class LiveAnswer(BaseModel):
    time: str
    estimate: Literal[True]
    nodes: list[LiveNodeRow]
    edges_kw: dict[str, float | None]


class AlertRow(BaseModel):
    id: str
    rule: str
    point: str
    kind: Literal["limit", "missing"]
    state: Literal["normal", "active-unack", "active-ack", "returned-unack", "shelved"]
    condition: Literal["normal", "active-unack", "active-ack", "returned-unack"]
    severity: int
    since: str | None
    value: float | None
    unit: str
    limit: float | None
    message: LabelRow
    acknowledged_by: str | None
    shelved_until: str | None


def times(time_ns: Times) -> list[str]:
    """RFC 3339 texts of UTC nanoseconds; a fraction only where there is one."""
    if np.any(time_ns % NS_PER_S):
        whole = time_ns.tolist()
        texts = {at_ns: rfc3339(at_ns) for at_ns in set(whole)}  # what one telegram brought has one time
        return [texts[at_ns] for at_ns in whole]
    seconds = (time_ns // NS_PER_S).astype("datetime64[s]")
    return [f"{text}Z" for text in np.datetime_as_string(seconds).tolist()]


def qualities(status: Sequence[int]) -> list[tuple[str, int]]:
    """Quality word and 32-bit OPC UA code of each stored status."""
    known = {stored: (quality_of(stored).value, status_code(stored)) for stored in set(status)}
    return [known[stored] for stored in status]
