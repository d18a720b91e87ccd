"""Models in time, seals, and closed figures as older revisions had them."""

from __future__ import annotations

from alembic import op

from migrations import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql(op.get_bind(), "0002_pedigree.sql")
