"""Arguments and flags that several commands share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from tandemn.errors import InvalidInput

_Model = TypeVar("_Model", bound=BaseModel)


def _log_to_stderr(is_verbose: bool) -> None:
    if is_verbose:
        logging.basicConfig(
            level=logging.DEBUG, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )


JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, or the beginning of one.")]
ServiceName = Annotated[
    str | None, typer.Option("--service-name", metavar="S", help="A deployment, by its name.")
]
ServiceNameNeeded = Annotated[str, typer.Option("--service-name", metavar="S", help="The deployment's name.")]
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


def one_of(job: str | None, service_name: str | None) -> None:
    """Refuse a command that names neither a job nor a deployment, or both.

    Raises:
        InvalidInput: what the commands of both ask for.
    """
    if (job is None) == (service_name is None):
        raise InvalidInput(
            "give a JOB, or --service-name S" if job is None else "give JOB or --service-name, not both",
            code="wrong_usage",
            next_step="`tandemn list` shows jobs and deployments",
            param="job",
        )


def given(context: typer.Context) -> set[str]:
    """Name the parameters that stand on the command line, whatever value they have there."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def checked(kind: type[_Model], names: Mapping[str, str], /, **fields: Any) -> _Model:
    """Make a request of flags; `names` says which arguments are not called as their field is.

    Raises:
        InvalidInput: a flag has a value that it cannot take; the message names it.
    """
    try:
        return kind(**fields)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        name = names.get(field, f"--{field.replace('_', '-')}")
        raise InvalidInput(f"{name}: {first['msg']}", code="wrong_usage", param=field) from exc
