"""Alembic's entry: runs on the connection `migrations.migrate` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema="ecmc",
    transactional_ddl=True,
)
context.run_migrations()
