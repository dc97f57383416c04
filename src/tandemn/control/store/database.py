"""The connection to the state: SQLite by default, PostgreSQL by URL; migrations on start."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from tandemn.control.store.outbox import TELLS_KOI
from tandemn.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tandemn.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

#: How long a writer waits for another process's transaction.
BUSY_MS = 30_000
#: PostgreSQL connections, and threads that use them.
POOL_SIZE = 8


class Database:
    """Runs functions of a connection, each in one transaction, off the event loop.

    A function that reads and then writes sees no other writer in between: SQLite transactions begin
    immediate (deferred ones fail when three processes read then write), PostgreSQL ones are repeatable
    by row locks in the statements themselves.
    """

    def __init__(self, url: str, *, tells_koi: bool = False) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self._engine = _sqlite_engine(url) if self.is_sqlite else create_engine(url, pool_size=POOL_SIZE)
        # Every connection knows it: what is told stands in the transaction of what it tells of.
        self._engine = self._engine.execution_options(**{TELLS_KOI: tells_koi})
        # SQLite has one writer at a time anyway; one thread spares the lock's polling.
        workers = 1 if self.is_sqlite else POOL_SIZE
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="database")
        self._fence: Callable[[Connection], None] | None = None

    def fenced(self, fence: Callable[[Connection], None]) -> Database:
        """Return this database, but that every transaction asks `fence` first, which raises where it must not be."""
        fenced = copy.copy(self)
        fenced._fence = fence  # noqa: SLF001 - our own copy
        return fenced

    def migrate(self) -> None:
        """Bring the schema to this version's; safe to repeat.

        Raises:
            StoreUnavailable: there is no database there, and none can be made.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except DBAPIError as exc:
            raise StoreUnavailable(
                f"the state database {self._engine.url.render_as_string()} cannot be opened: {exc.orig}",
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
        try:
            with self._engine.begin() as connection:
                if self._fence is not None:
                    self._fence(connection)
                return function(connection, *args, **kwargs)
        except (OperationalError, DBAPIError) as exc:
            if isinstance(exc, OperationalError) or exc.connection_invalidated:
                raise StoreUnavailable(
                    f"the state database refused: {exc.orig}", code="database_unavailable"
                ) from exc
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._engine.dispose()


def open_database(settings: Settings) -> Database:
    """Open the database that the settings name, else the one of the state folder."""
    return Database(
        settings.database_url or f"sqlite:///{settings.home_path / 'state.db'}",
        tells_koi=settings.koi_service_url is not None,
    )


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_MS / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # An intent must not be forgotten after a power cut: what it launched would bill unrecorded.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
