"""Recomputations that go on after a kill know what they changed before."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql(op.get_bind(), "0009_recompute_kept.sql")
