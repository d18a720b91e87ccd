"""Evidence files, kept in the database beside what they back and known by the SHA-256 of their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import asyncpg

from core.clock import datetime_of
from core.errors import BadRequest
from core.store.refusal import refusals

LARGEST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    name: str
    media: str
    content: bytes


class EvidenceShelf:
    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def keep(self, evidence: Evidence, who: str, at_ns: int) -> str:
        """Keep a file; its SHA-256 in hex. The same content again is the same file.

        Raises:
            BadRequest: Empty, or larger than LARGEST_BYTES.
        """
        if not 0 < len(evidence.content) <= LARGEST_BYTES:
            raise BadRequest(
                f"evidence {evidence.name!r} has {len(evidence.content):,} bytes, wanted 1 to {LARGEST_BYTES:,}"
            )
        sha256 = hashlib.sha256(evidence.content).hexdigest()
        with refusals():
            await self._pool.execute(
                "INSERT INTO ecmc.evidence (sha256, name, media, content, who, at)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (sha256) DO NOTHING",
                sha256,
                evidence.name,
                evidence.media,
                evidence.content,
                who,
                datetime_of(at_ns),
            )
        return sha256

    async def get(self, sha256: str) -> Evidence | None:
        with refusals():
            row = await self._pool.fetchrow(
                "SELECT name, media, content FROM ecmc.evidence WHERE sha256 = $1", sha256
            )
        return None if row is None else Evidence(row["name"], row["media"], row["content"])
