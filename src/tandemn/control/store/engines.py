"""How SQLite and PostgreSQL are opened so that a transaction that reads and then writes has no other writer in between.

SQLite: every transaction begins immediate, so that there is one writer at a time; deferred ones that read before
they write failed by the hundred with three processes. PostgreSQL: every transaction is serialisable, and one
that could not have run alone fails and is run again (`is_to_be_repeated`). Row locks would be cheaper, but every
function that reads before it writes would have to know it, and one that forgets loses an update without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, make_url

from tandemn.errors import MissingDependency

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
    from sqlalchemy.exc import DBAPIError

#: How long a writer on SQLite waits for another process's transaction.
BUSY_MS = 30_000
#: PostgreSQL connections, and threads that use them, of one control plane.
POOL_SIZE = 8
#: PostgreSQL's words for: this transaction and another could not both have run alone; or they wait for each other.
_TO_BE_REPEATED = frozenset({"40001", "40P01"})
#: For how long a PostgreSQL server that has gone away without a word may leave unanswered what was sent, in seconds;
#: where nothing was sent, it is asked after that time, and given as long again.
SILENCE_S = 10
#: How long one may take to let us in, and a transaction that hangs may hang: seconds, ms.
_CONNECT_S = 5
_STATEMENT_MS = 60_000


def open_engine(url: str) -> Engine:
    """Open a database by its SQLAlchemy URL; nothing is connected yet.

    Raises:
        MissingDependency: PostgreSQL, and its client is not installed.
    """
    return _sqlite(url) if url.startswith("sqlite") else _postgres(url)


def is_to_be_repeated(error: DBAPIError) -> bool:
    """Whether the same transaction, begun anew, may succeed: nothing of it took effect."""
    return getattr(error.orig, "sqlstate", None) in _TO_BE_REPEATED


def _sqlite(url: str) -> Engine:
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


def _postgres(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    limits = {
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": SILENCE_S * 1000,
        "keepalives_idle": SILENCE_S,
        "keepalives_interval": SILENCE_S // 2,
        "keepalives_count": 2,
        "options": f"-c statement_timeout={_STATEMENT_MS} -c idle_in_transaction_session_timeout={_STATEMENT_MS}",
    }
    try:
        engine = create_engine(
            parsed,
            isolation_level="SERIALIZABLE",
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={name: value for name, value in limits.items() if name not in parsed.query},
        )
    except ModuleNotFoundError as exc:
        raise MissingDependency(
            f"the client of {parsed.get_backend_name()} is not installed ({exc.name})",
            next_step="pip install 'tandemn[postgres]'",
        ) from exc

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def clean(
        _connection: Connection,
        _cursor: DBAPICursor,
        statement: str,
        parameters: Any,
        _context: ExecutionContext | None,
        executemany: bool,  # noqa: FBT001 - SQLAlchemy's
    ) -> tuple[str, Any]:
        return statement, [_clean(each) for each in parameters] if executemany else _clean(parameters)

    return engine


def _clean(parameters: Any) -> Any:
    """PostgreSQL's text has no NUL; logs and names that come from outside may."""
    if isinstance(parameters, dict):
        return {name: _without_nul(value) for name, value in parameters.items()}
    return tuple(_without_nul(value) for value in parameters)


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
