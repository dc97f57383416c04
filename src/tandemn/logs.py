"""What log lines of Tandemn's own processes look like: `logfmt` for people, `json` for programs; both on stderr.

Whoever works on a job or replica binds `job_id` and `replica_id` (structlog's context variables), so that each line
says whose it is.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

import structlog

#: First on a line of logfmt, in this order.
_FIRST = ["timestamp", "level", "event", "job_id", "replica_id"]


class LogFormat(StrEnum):
    LOGFMT = "logfmt"
    JSON = "json"


def configure(log_format: LogFormat) -> None:
    """Set up the log of this process: from INFO on, UTC."""
    renderer = (
        structlog.processors.JSONRenderer()
        if log_format is LogFormat.JSON
        else structlog.processors.LogfmtRenderer(key_order=_FIRST, drop_missing=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
