"""What log lines of Tandemn's own processes look like: `logfmt` for people, `json` for programs; both on stderr.

Whoever works on a job or replica binds `job_id` and `replica_id` (structlog's context variables), so that each line
says whose it is.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import structlog

from tandemn.settings import LogFormat

if TYPE_CHECKING:
    from typing import TextIO

#: First on a line of logfmt, in this order.
_FIRST = ["timestamp", "level", "event", "job_id", "replica_id"]


class Unfailing:
    """A stream of log lines: what cannot be written (a full disk) is lost, and whoever logs goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


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
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Unfailing(sys.stderr))),
    )
