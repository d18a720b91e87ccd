"""Recomputations that go on after a kill."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql(op.get_bind(), "0005_recompute.sql")
