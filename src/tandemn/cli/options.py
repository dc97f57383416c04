"""Arguments and flags that several commands share."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer


def _log_to_stderr(is_verbose: bool) -> None:
    if is_verbose:
        logging.basicConfig(
            level=logging.DEBUG, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )


JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, or the beginning of one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="Write the answers to this file, and error lines, if any, to OUT.errors.jsonl.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Write debug logging to stderr.", callback=_log_to_stderr)
]
