"""The tables. Times are Unix seconds, JSON columns hold what only their owner reads."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

#: SQLite makes a rowid out of INTEGER only, so event numbers are INTEGER there.
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

files = Table(
    "files",
    metadata,
    Column("file_id", String(64), primary_key=True),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("object", Text, nullable=False),  # its name in the object store
    Column("created_at", Float, nullable=False),
    Column("job_id", String(64), nullable=True),  # the job whose output or error file it is
    Column("owner", String(64), nullable=False),
    Column(
        "expires_at", Float, nullable=True
    ),  # asked for by its owner; the server's retention is its setting
    Column("hidden_at", Float, nullable=True),  # not whole yet, or deleted: what there is of it is to go
    Index(None, "created_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("outcome", String(16), nullable=True),  # what a cancelling or assembling job ends as
    Column("reason", Text, nullable=True),
    Column("code", String(64), nullable=True),
    Column("spec", JSON, nullable=False),
    Column("endpoint", String(64), nullable=True),
    Column("model", Text, nullable=False),
    Column("engine", String(16), nullable=True),
    Column("cloud", String(32), nullable=True),
    Column("input_object", Text, nullable=True),  # in the object store, or
    Column("input_url", Text, nullable=True),  # a store of the user's
    Column("created_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("started_at", Float, nullable=True),
    Column("cancelling_at", Float, nullable=True),
    Column("assembling_at", Float, nullable=True),
    Column("ended_at", Float, nullable=True),
    Column("epoch", Integer, nullable=False, default=0),
    Column("requests", Integer, nullable=False, default=0),
    Column("line_errors", JSON, nullable=False, default=list),
    Column("line_errors_total", Integer, nullable=False, default=0),
    Column("statistics", JSON, nullable=False, default=dict),
    Column("groups", JSON, nullable=False, default=list),
    Column("next_replica", Integer, nullable=False, default=0),
    Column("swap", JSON, nullable=True),
    Column("koi", JSON, nullable=True),  # what it recommended, and what came of it
    Column("pace", JSON, nullable=True),  # the last decision on it
    Column("waits", JSON, nullable=True),  # what it waits for
    Column("output_file_id", String(64), nullable=True),
    Column("error_file_id", String(64), nullable=True),
    Column("completed", Integer, nullable=False, default=0),  # of assembled output
    Column("failed", Integer, nullable=False, default=0),
    Column("owner", String(64), nullable=False),
    Column("purged_at", Float, nullable=True),  # when its objects were removed
    Index(None, "state"),
    Index(None, "created_at"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("chunk", Integer, primary_key=True),
    Column("byte_start", BigInteger, nullable=False),
    Column("byte_end", BigInteger, nullable=False),
    Column("first_request", Integer, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("skipped", JSON, nullable=True),
    Column("done", Boolean, nullable=False, default=False),
    Column("token", String(48), nullable=True),  # of the latest grant; NULL: taken back
    Column("holder", String(80), nullable=True),
    Column("grants", Integer, nullable=False, default=0),
    Column("computed", Integer, nullable=False, default=0),  # reported by holders so far
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("recomputed", Integer, nullable=False, default=0),
    Column("prompt_tokens", BigInteger, nullable=False, default=0),
    Column("output_tokens", BigInteger, nullable=False, default=0),
)

strikes = Table(
    "strikes",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("chunk", Integer, primary_key=True),
    Column("request", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("death_id", String(64), nullable=False),  # the last one that was counted
)

replicas = Table(
    "replicas",
    metadata,
    Column("replica_id", String(80), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("group", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=True),
    Column("code", String(64), nullable=True),
    Column("reason_code", String(32), nullable=True),  # before its end: why it was ended by force
    Column("config", JSON, nullable=False),
    Column("launcher", String(16), nullable=False),
    Column("handle", JSON, nullable=True),  # the launcher's own: pid, cluster …
    Column("token_hash", String(64), nullable=True),
    Column("orders", String(8), nullable=False, default="go_on"),
    Column("kill_requested", Boolean, nullable=False, default=False),
    Column("created_at", Float, nullable=False),
    Column("not_before", Float, nullable=False, default=0),  # backoff of a replacement
    Column("launched_at", Float, nullable=True),
    Column("said_hello_at", Float, nullable=True),
    Column("began_at", Float, nullable=True),
    Column("stopping_at", Float, nullable=True),
    Column("last_seen", Float, nullable=True),
    Column("ended_at", Float, nullable=True),
    Column("goodbye", JSON, nullable=True),
    Column("beat", JSON, nullable=True),  # the last heartbeat
    Column("beat_rate", JSON, nullable=True),  # requests/s and tokens/s between the last two
    Column("chunks_completed", Integer, nullable=False, default=0),
    Index(None, "job_id"),
    Index(None, "state"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("service_name", String(40), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("is_deleting", Boolean, nullable=False, default=False),
    Column("warnings", JSON, nullable=False, default=list),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("old_key_until", Float, nullable=True),  # the key before the last rotation is taken until then
    Column("over_budget_at", Float, nullable=True),  # when its budget ended it
    Column("over_budget_reason", Text, nullable=True),
    Column("owner", String(64), nullable=False),
    Index(None, "state"),
)


def _part(table: str) -> Table:
    """What a deployment has elsewhere: its backends, and its router."""
    return Table(
        table,
        metadata,
        Column(
            "service_name",
            String(40),
            ForeignKey("deployments.service_name", ondelete="CASCADE"),
            primary_key=True,
        ),
        Column("name", String(32), primary_key=True),
        Column(
            "version", Integer, nullable=False, default=0
        ),  # bumped by each change: a stale one is dropped
        Column("plan", JSON, nullable=False),
        Column("state", String(16), nullable=False),
        Column("is_tried", Boolean, nullable=False, default=False),  # the intent, before the remote create
        Column("is_ensured", Boolean, nullable=False, default=False),
        Column("remote", JSON, nullable=True),  # the provider's id, right after the create
        Column("replicas", Integer, nullable=True),  # ready at the last look
        Column("seen", JSON, nullable=False, default=list),
        Column("reason", Text, nullable=True),
        Column("code", String(64), nullable=True),
        Column("failures", Integer, nullable=False, default=0),
        Column("not_before", Float, nullable=False, default=0),
    )


backends = _part("backends")
routers = _part("routers")
routers.append_column(Column("pushed", String(64), nullable=True))  # digest of the table that it has

api_keys = Table(
    "api_keys",
    metadata,
    Column("name", String(64), primary_key=True),  # the owner of what is made with it; never given twice
    Column("role", String(16), nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("rotated_at", Float, nullable=True),
    Column("revoked_at", Float, nullable=True),
    Column("last_used_at", Float, nullable=True),
    Index(None, "key_id", unique=True),
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("event_id", String(160), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("path", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("emitted_at", Float, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0),
    Column("fault", Text, nullable=True),  # of the last try
    Index(None, "event_id", unique=True),
    Index(None, "job_id", "seq"),
)

samples = Table(
    "samples",
    metadata,
    Column("replica_id", String(80), primary_key=True),
    Column("at", Float, primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("step_s", Float, nullable=False),  # between two of this replica's samples, as of the last one
    Column("figures", JSON, nullable=False),
    Index(None, "job_id"),
)

events = Table(
    "events",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("job_id", String(64), nullable=True),
    Column("service_name", String(40), nullable=True),
    Column("replica_id", String(80), nullable=True),
    Column("actor", String(80), nullable=True),
    Column("data", JSON, nullable=False, default=dict),
    Index(None, "job_id", "seq"),
    Index(None, "service_name", "seq"),
)

# What routers metered outlives their deployments, so nothing here refers to those: `life` is when one was made.
meter_series = Table(
    "meter_series",
    metadata,
    Column("service_name", String(40), primary_key=True),
    Column("life", Float, primary_key=True),
    Column("series", String(64), primary_key=True),
    Column("next_number", BigInteger, nullable=False),  # of the first period that has not been read
    Column("read_at", Float, nullable=False),
    Column("is_complete", Boolean, nullable=False),  # no period was dropped before it was read
    Column("under_way", JSON, nullable=False, default=list),
)

meter_totals = Table(
    "meter_totals",
    metadata,
    Column("service_name", String(40), primary_key=True),
    Column("life", Float, primary_key=True),
    Column("series", String(64), primary_key=True),
    Column("backend", String(256), primary_key=True),
    Column("totals", JSON, nullable=False),
)

busy_periods = Table(
    "busy_periods",
    metadata,
    Column("service_name", String(40), primary_key=True),
    Column("life", Float, primary_key=True),
    Column("backend", String(256), primary_key=True),
    Column("start", Float, primary_key=True),
    Column("end", Float, nullable=False),
    Column("peak", Integer, nullable=False),
    Column("inflight_s", Float, nullable=False),
    Column("requests", BigInteger, nullable=False),
)

seat = Table(
    "seat",
    metadata,
    Column("name", String(16), primary_key=True),  # one row, `leader`
    Column("term", Integer, nullable=False),  # of the one that leads now; every term has another leader
    Column("holder", String(64), nullable=True),  # NULL: the last one gave it up
)

control_planes = Table(
    "control_planes",
    metadata,
    Column("server_id", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),  # the machine and pid namespace that `pid` is of
    Column("pid", Integer, nullable=False),
    Column("started", Float, nullable=False),
    Column("version", String(32), nullable=False),
    Column("beat", BigInteger, nullable=False),  # counted up while it lives
    Column("seen_at", Float, nullable=False),  # by its own clock; decides nothing
)
