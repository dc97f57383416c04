"""The entry point: which command is in which file, and how every one of them ends.

A command's file is imported when it is called: all of them together would cost half a second before the
first line of help. Errors become plain text and exit codes here and nowhere else.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from tandemn import __version__
from tandemn.cli.output import EXIT_INTERRUPTED, emit, error_lines, error_value, note, say
from tandemn.errors import InvalidInput, TandemnError

#: Command -> the file that has it, and its line in `tandemn --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "deploy": ("deploy", "run a batch job (model, requests, deadline), or deploy an endpoint (model, GPU)"),
    "plan": ("plan", "what a job or deployment would run on, and why; launches nothing"),
    "progress": ("progress", "watch a job until it ends"),
    "status": ("status", "how one job or deployment stands"),
    "list": ("status", "deployments and jobs, newest first"),
    "download": ("download", "fetch a job's answers"),
    "cancel": ("cancel", "cancel a job, keep what is finished"),
    "destroy": ("cancel", "end a deployment or a job, and all that runs for it"),
    "endpoint": ("endpoint", "a deployment's endpoint and key; rotate the key"),
    "add": ("replicas", "add replicas to a running job"),
    "kill": ("replicas", "kill replicas of a running job"),
    "swap": ("replicas", "replace the replicas of a running job by others"),
    "cost": ("cost", "what was spent, by job and by part"),
    "logs": ("logs", "what replicas, backends and routers wrote"),
    "metrics": ("metrics", "what a job's engines and machines do, or did"),
    "events": ("logs", "what happened to a job or deployment, or on the whole control plane"),
    "show-gpus": ("show_gpus", "what can be rented, compared"),
    "quota": ("plan", "what AWS lets this account launch"),
    "check": ("upkeep", "does everything answer, and who is signed in where"),
    "gc": ("upkeep", "what providers have and no record knows"),
    "simulate": ("simulate", "replay deadline pacing on spot traces"),
    "router": ("router", "route online traffic over spot and serverless backends"),
    "login": ("login", "talk to a shared control plane, with a key"),
    "logout": ("login", "talk to this machine's own again"),
    "keys": ("keys", "who may use the control plane, and as what"),
    "server": ("server", "start, stop or look at the control plane of this machine"),
}


class _Commands(TyperGroup):
    """Imports a command's file when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tandemn.cli.{COMMANDS[cmd_name][0]}")
        group = get_group(module.app)
        command = group if group.name == cmd_name else group.commands[cmd_name]
        return _keep_examples(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # The suggestions for a mistyped name are taken from the keys of this mapping.
        self.commands: Any = dict.fromkeys(COMMANDS)
        return super().resolve_command(ctx, args)


def _keep_examples(command: Any) -> Any:
    """Keep the examples in the help of a command, and of those below it, from being rewrapped."""
    if command.help:
        command.help = command.help.replace("\n\nExamples:\n", "\n\n\b\nExamples:\n")
    for below in getattr(command, "commands", {}).values():
        _keep_examples(below)
    return command


app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None)


def _print_version(value: bool) -> None:
    if value:
        say(f"tandemn {__version__}")
        raise typer.Exit


@app.callback()
def tandemn(
    *,
    version: bool = typer.Option(
        False, "--version", help="Print the version and end.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Cheap LLM inference that does not break: batch jobs over spot and serverless GPUs.

    Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 the deadline or budget cannot be met.

    Examples:
        tandemn deploy demo/tiny requests.jsonl --slo 4h -o answers.jsonl
        tandemn deploy --model demo/tiny --gpu cpu --cloud local
        tandemn deploy --help
    """
    del version  # its callback has answered


def main() -> None:
    """Run `tandemn` as a program."""
    for stream in (sys.stdout, sys.stderr):
        # A locale that lacks a character must not turn an answer into a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error that Tandemn raises on purpose ends here."""
    try:
        return _dispatch(arguments)
    except TandemnError as error:
        return _report(error, as_json=_wants_json(arguments))
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted")
        return EXIT_INTERRUPTED


def _dispatch(arguments: Sequence[str]) -> int:
    group = _keep_examples(get_group(app))
    try:
        code = group.main(list(arguments) or ["--help"], prog_name="tandemn", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "tandemn"
        raise InvalidInput(
            error.format_message().strip().removesuffix("."),
            code="wrong_usage",
            next_step=f"`{command} --help` shows its arguments",
        ) from error
    return code if isinstance(code, int) else 0


def _report(error: TandemnError, *, as_json: bool) -> int:
    """Tell a person on stderr, and a script on stdout too: it reads one JSON value there, whatever happened."""
    note(error_lines(error))
    if as_json:
        emit(error_value(error))
    return error.exit_code


def _wants_json(arguments: Sequence[str]) -> bool:
    # Read from the bare arguments: wrong usage ends before any flag is parsed. What follows `--` is the engine's.
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours
