"""The connection to the state: SQLite by default, PostgreSQL by URL; migrations on start."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from tandemn.control.store import engines
from tandemn.control.store.outbox import TELLS_KOI
from tandemn.errors import Broken, InvalidInput, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

#: How often a transaction that others came in the way of is begun again before its caller is told to wait.
TRIES = 12
#: The wait before the second try, in seconds; doubled with each further one, and spread.
FIRST_WAIT_S = 0.002
#: Of PostgreSQL's advisory locks, the one under which the schema is changed.
MIGRATION_LOCK = 0x7A4D_E311


class Database:
    """Runs functions of a connection, each in one transaction, off the event loop.

    A function that reads and then writes sees no other writer in between (`engines` says how). It may be
    called several times before one of its transactions stands, so it must do nothing but use the connection.
    """

    def __init__(self, url: str, *, tells_koi: bool = False) -> None:
        self.is_sqlite = url.startswith("sqlite")
        # Every connection knows it: what is told stands in the transaction of what it tells of.
        self._engine = engines.open_engine(url).execution_options(**{TELLS_KOI: tells_koi})
        # SQLite has one writer at a time anyway; one thread spares the lock's polling.
        workers = 1 if self.is_sqlite else engines.POOL_SIZE
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="database")
        self._fence: Callable[[Connection], None] | None = None
        self.counts = Counts()

    def fenced(self, fence: Callable[[Connection], None]) -> Database:
        """Return this database, but that every transaction asks `fence` first, which raises where it must not be."""
        fenced = copy.copy(self)
        fenced._fence = fence  # noqa: SLF001 - our own copy
        return fenced

    def migrate(self) -> None:
        """Bring the schema to this version's; safe to repeat, and to do in several processes at once.

        Raises:
            StoreUnavailable: there is no database there, and none can be made.
            Broken: a newer version has changed the schema (code `database_newer`).
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        # Serialisable, PostgreSQL would look at the schema as it was before the wait for the lock.
        engine = (
            self._engine
            if self.is_sqlite
            else self._engine.execution_options(isolation_level="READ COMMITTED")
        )
        try:
            with engine.begin() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as exc:
            raise Broken(
                f"the state database {self._name} is of a newer version of Tandemn: {exc}",
                code="database_newer",
                next_step="upgrade this control plane to the version of the others",
            ) from exc
        except DBAPIError as exc:
            raise StoreUnavailable(
                f"the state database {self._name} cannot be opened: {_said(exc)}",
                code="database_unavailable",
                next_step="check TANDEMN_DATABASE_URL, or that the state folder can be written to",
            ) from exc

    async def run(
        self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call `function(connection, …)` in one transaction, in a thread.

        Raises:
            StoreUnavailable: the database does not answer, or its disk is full.
        """
        work = partial(self.run_sync, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def run_sync(
        self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call `function(connection, …)` in one transaction, here."""
        wait_s = FIRST_WAIT_S
        for left in range(TRIES - 1, -1, -1):
            try:
                with self._engine.begin() as connection:
                    if self._fence is not None:
                        self._fence(connection)
                    return function(connection, *args, **kwargs)
            except DBAPIError as exc:
                if not (engines.is_to_be_repeated(exc) and left):
                    raise _translated(exc) from exc
            self.counts.repeated += 1
            time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            wait_s *= 2
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._engine.dispose()

    @property
    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)


@dataclass(slots=True)
class Counts:
    """What `/metrics` is told."""

    repeated: int = 0
    """Transactions that were begun again because others came in their way."""


def _translated(error: DBAPIError) -> Exception:
    """Say what the caller can do about it; an error of our own SQL stays what it is."""
    if isinstance(error, DataError):
        return InvalidInput(f"a value that the database cannot hold: {_said(error)}", code="invalid_value")
    passing = isinstance(error, OperationalError) or error.connection_invalidated
    if passing or engines.is_to_be_repeated(error):
        return StoreUnavailable(f"the state database refused: {_said(error)}", code="database_unavailable")
    return error


def _said(error: DBAPIError) -> str:
    """The database's own words, on one line."""
    return " ".join(str(error.orig).split())


def open_database(settings: Settings) -> Database:
    """Open the database that the settings name, else the one of the state folder."""
    return Database(
        settings.database_url.get_secret_value()
        if settings.database_url is not None
        else f"sqlite:///{settings.home_path / 'state.db'}",
        tells_koi=settings.koi_service_url is not None,
    )
