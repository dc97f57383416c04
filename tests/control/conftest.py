"""The state, on whichever database the tests run on."""

from __future__ import annotations

import pytest

from tandemn.control.store.database import Database


@pytest.fixture
def new_database(database_url):
    """Open the test's database with options of `Database`; closed when the test is over."""
    opened = []

    def open_it(**options):
        database = Database(database_url, **options)
        database.migrate()
        opened.append(database)
        return database

    yield open_it
    for database in opened:
        database.close()


@pytest.fixture
def database(new_database):
    return new_database()
