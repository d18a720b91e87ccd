"""All registers of one plant, and the factor library with what people added to it."""

from __future__ import annotations

from typing import Any

import asyncpg

from core.carbon.factors import FactorLibrary
from core.carbon.green_power import GreenPower
from core.plant.model import Plant
from core.registers.book import Book, Register
from core.registers.certificate import CertificateRegister
from core.registers.evidence import EvidenceShelf
from core.registers.green import green_power
from core.registers.meter_event import MeterEvents
from core.registers.own_factor import factor_rows


class Registers:
    """The book, the certificates and the factors of one plant's database."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        plant: Plant,
        library: FactorLibrary,
        known_at_ns: int | None = None,
    ) -> None:
        self._pool = pool
        self.plant = plant
        self.book = Book(pool, known_at_ns)
        self.certificates = CertificateRegister(pool, known_at_ns)
        self.evidence = EvidenceShelf(pool)
        self.meter_events = MeterEvents(pool)
        self._tables = library
        self.library = library

    def known_at(self, known_at_ns: int) -> Registers:
        """What counted at a past time; for reading."""
        then = Registers(self._pool, self.plant, self._tables, known_at_ns)
        then.library = self.library
        return then

    async def load(self) -> FactorLibrary:
        """Read the approved factors; the library that holds them, beside the tables, is `library` from here on."""
        rows = factor_rows(await self.book.entries(Register.FACTOR))
        self.library = self._tables.with_rows(rows) if rows else self._tables
        return self.library

    async def green_power(self, start_ns: int, end_ns: int, generated: str) -> GreenPower | None:
        """What is registered of green electricity for [start, end); `generated` is that period's year or month."""
        entries = await self.book.counted(Register.GREEN_POWER, start_ns, end_ns)
        claims = await self.certificates.claims(generated)
        return green_power(entries, claims, start_ns, end_ns)
