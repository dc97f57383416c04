"""The migrations, from nothing to now, make the schema that the code believes in."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from tandemn.control.store.database import Database
from tandemn.control.store.schema import metadata


def test_the_migrated_schema_is_the_declared_one(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    try:
        database.migrate()
        database.migrate()  # safe to repeat

        def differences(connection):
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            return compare_metadata(context, metadata)

        assert database.run_sync(differences) == []
        tables = database.run_sync(lambda connection: set(inspect(connection).get_table_names()))
        assert tables == {*metadata.tables, "alembic_version"}
    finally:
        database.close()
