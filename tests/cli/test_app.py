import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fakes.user_api import job_status
from typer.main import get_group

from tandemn import __version__
from tandemn.cli import app as module
from tandemn.errors import Conflict, QueueUnavailable


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its words: `server start` …"""
    group: Any = get_group(module.app)
    for name in module.COMMANDS:
        command = group.get_command(None, name)
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
        else:
            yield from ((f"{name} {word}", one) for word, one in below.items())


@pytest.mark.parametrize("words", [words for words, _ in commands()])
def test_help_of_every_command_shows_examples_and_verbose(words, tandemn):
    result = tandemn(*words.split(), "--help")
    assert result.code == 0
    assert f"Usage: tandemn {words} " in result.out
    assert f"\n      tandemn {words}" in result.out
    assert "-v, --verbose" in result.out


def test_help_names_every_command(tandemn):
    for arguments in ([], ["--help"]):
        result = tandemn(*arguments)
        assert result.code == 0
        for name, (_, summary) in module.COMMANDS.items():
            assert f"  {name} " in result.out
            assert summary in " ".join(result.out.split())


def test_version(tandemn):
    assert tandemn("--version").out == f"tandemn {__version__}\n"


def test_reading_commands_write_json():
    without = {"download", "cancel", "destroy", "router"}
    for words, command in commands():
        flags = {flag for param in command.params for flag in param.opts}
        assert "--json" in flags or words in without, words


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["deploi"], "error: No such command 'deploi'. Did you mean 'deploy'? [wrong_usage]"),
        (["status"], "error: give a JOB, or --service-name S [wrong_usage]"),
        (["status", "x", "--nonsense"], "error: No such option: --nonsense [wrong_usage]"),
        (
            ["list", "--state", "[bold]x[/bold]"],
            "error: --state: '[bold]x[/bold]' is no state of a job or deployment [wrong_usage]",
        ),
        (["list", "--limit", "x"], "[wrong_usage]"),
        (["server"], "error: Missing command [wrong_usage]"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_where_help_is(arguments, what, tandemn):
    result = tandemn(*arguments)
    assert result.code == 2
    assert what in result.err
    assert "next step: " in result.err
    assert result.out == ""


def test_errors_are_not_wrapped_and_keep_brackets(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    long = "[red]/a path/" + "x" * 500 + "[/red]"
    plane.refusals["GET", "/api/jobs/job-1"] = Conflict(long, code="some_code", next_step="do [this]")
    result = tandemn("status", "job-1")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {long} [some_code]\nnext step: do [this]\n"


def test_with_json_an_error_is_one_json_value_on_stdout_too(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    plane.refusals["GET", "/api/jobs/job-1"] = QueueUnavailable("redis is down")
    result = tandemn("status", "job-1", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "queue_unavailable"
    assert result.err == "error: redis is down [queue_unavailable]\n"
    assert tandemn("status", "--json").json["error"]["code"] == "wrong_usage"


def test_unknown_job(plane, tandemn):
    result = tandemn("status", "nope")
    assert result.code == 2
    assert result.err == "error: no job nope [job_not_found]\nnext step: `tandemn list` shows the jobs\n"


def test_server_that_is_named_but_not_there(monkeypatch, home, tandemn):
    monkeypatch.setenv("TANDEMN_SERVER_URL", "http://127.0.0.1:1")
    result = tandemn("list")
    assert result.code == 1
    assert "[server_unavailable]" in result.err
    assert not home.exists()  # nothing was started


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("TANDEMN_SERVER_URL", "localhost:1", "invalid_server_url"),
        ("TANDEMN_LOCAL_SLOTS", "many", "invalid_setting"),
    ],
)
def test_wrong_settings_are_named(name, value, code, monkeypatch, home, tandemn):
    monkeypatch.setenv(name, value)
    result = tandemn("list")
    assert result.code == 2
    assert name in result.err
    assert f"[{code}]" in result.err


def test_key_is_sent_and_not_logged(plane, monkeypatch):
    monkeypatch.setenv("TANDEMN_API_KEY", "sk-secret")
    done = _process("list", "-v")
    assert plane.keys == {"Bearer sk-secret"}
    assert "GET /api/jobs: 200" in done.stderr
    assert "sk-secret" not in done.stderr


def test_closed_pipe_ends_quietly(plane):
    plane.jobs = {f"job-{number}": [job_status(f"job-{number}")] for number in range(2000)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tandemn.cli", "list", "--limit", "2000"],
        stdout=writer,
        check=False,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


def test_a_poor_locale_does_not_break_output(plane, monkeypatch):
    plane.jobs["job-1"] = [job_status(reason="sch\u00f6n \u2192 \U0001f600")]
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = _process("status", "job-1")
    assert done.returncode == 0
    assert "sch\\xf6n" in done.stdout


def _process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tandemn.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
