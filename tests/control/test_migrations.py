"""The migrations, from nothing to now, make the schema that the code believes in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from tandemn.control.store.database import Database
from tandemn.control.store.schema import metadata
from tandemn.errors import Broken


def test_the_migrated_schema_is_the_declared_one(database_url):
    database = Database(database_url)
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


def test_several_processes_may_migrate_at_once(database_url):
    migrate = (
        "import sys; from tandemn.control.store.database import Database; Database(sys.argv[1]).migrate()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", migrate, database_url]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


def test_a_database_of_a_newer_version_is_left_alone(database):
    database.run_sync(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(Broken) as caught:
        database.migrate()
    assert caught.value.code == "database_newer"
