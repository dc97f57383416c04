"""What goes wrong around a job: each ends it, or is waited out, with the reason in `status`, and nothing hangs."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.process import traces
from tests.process.conftest import built
from tests.process.house import House, chat_lines, read_lines

from tandemn.control.election import BEAT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MB = 1_000_000
#: Bytes that the small store holds.
ROOM = 4 * MB


#: An engine that loads, and dies of every request. Not the simulated one: it is started some twenty times.
MORTAL = """\
import http.server, os, sys

class Mortal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        print("out of memory", flush=True)
        os._exit(3)

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Mortal).serve_forever()
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    command = tmp_path_factory.mktemp("engine") / "mortal"
    command.write_text(f"#!{sys.executable} -SE\n{MORTAL}")
    command.chmod(0o755)
    with built(TANDEMN_FLUSH_S="0.5", TANDEMN_VLLM_COMMAND=str(command)) as house:
        assert house.run("server", "start").returncode == 0
        yield house


def deployed(here: Any, house: House, name: str, content: str, *flags: str) -> str:
    """Submit a job, to the simulated engine where no flag says otherwise."""
    (house.home / name).write_text(content)
    engine = () if "--engine" in flags else ("--engine", "simulated")
    done = here(house, "deploy", "m", name, "--slo", "1h", "--json", *engine, *flags)
    assert done.returncode == 0, done.stderr
    job_id: str = json.loads(done.stdout)["job_id"]
    return job_id


def poisoned(count: int, *bad: int, word: str) -> str:
    lines = chat_lines(count).splitlines()
    for number in bad:
        lines[number] = lines[number].replace("please", word)
    return "\n".join(lines) + "\n"


def test_engines_that_refuse_fail_to_load_or_die(house, here):
    """Four jobs beside each other: their engines are no real ones, all else is."""
    loading = deployed(here, house, "a.jsonl", chat_lines(5), "--", "--fail-load")
    dying = deployed(here, house, "b.jsonl", chat_lines(30), "--engine", "vllm")
    refusing = deployed(
        here, house, "c.jsonl", poisoned(30, 4, 11, word="poison"), "--", "--refuse", "poison"
    )
    deadly = deployed(here, house, "d.jsonl", poisoned(30, 7, word="poison"), "--", "--crash-on", "poison")

    status = traces.ended(house, refusing)
    assert status["state"] == "completed"
    assert (status["requests"]["completed"], status["requests"]["failed"]) == (28, 2)
    assert here(house, "download", refusing, "-o", "out.jsonl").returncode == 0
    errors = read_lines(house.home / "out.jsonl.errors.jsonl")
    assert [line["custom_id"] for line in errors] == ["r4", "r11"]
    for line in errors:
        assert line["response"]["status_code"] == 400
        assert line["error"]["message"] == line["response"]["body"]["error"]["message"]
        assert "poison" in line["error"]["message"]
    kept = [line["custom_id"] for line in read_lines(house.home / "out.jsonl")]
    assert kept == [f"r{number}" for number in range(30) if number not in {4, 11}]

    status = traces.ended(house, deadly)
    assert status["state"] == "completed"
    assert here(house, "download", deadly, "-o", "out.jsonl").returncode == 0
    (error,) = read_lines(house.home / "out.jsonl.errors.jsonl")
    assert (error["custom_id"], error["error"]["code"]) == ("r7", "request_killed_engine")

    status = traces.ended(house, loading)
    assert (status["state"], status["code"]) == ("failed", "engine_start_failed")
    assert "replicas in a row failed" in status["reason"]
    assert "ended with status" in status["reason"]
    assert {replica["state"] for replica in status["replicas"]} == {"failed"}
    shown = here(house, "status", loading)
    assert "[engine_start_failed]" in shown.stdout
    assert here(house, "progress", loading).returncode == 1
    assert here(house, "download", loading, "-o", "out.jsonl").returncode == 0
    errors = read_lines(house.home / "out.jsonl.errors.jsonl")
    assert [line["custom_id"] for line in errors] == [f"r{number}" for number in range(5)]
    assert {line["error"]["code"] for line in errors} == {"job_failed"}
    assert (house.home / "out.jsonl").read_bytes() == b""

    status = traces.ended(house, dying)
    assert (status["state"], status["code"]) == ("failed", "engine_died")
    assert "died 6 times without computing a request" in status["reason"]
    assert "out of memory" in status["reason"]
    assert len(status["replicas"]) == 4
    assert (status["requests"]["completed"], status["requests"]["failed"]) == (0, 30)
    traces.nothing_runs(house)


def test_a_port_in_use():
    with built() as house, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = house.run("server", "start", "--port", str(port))
        assert done.returncode == 1
        assert "[server_start_failed]" in done.stderr
        assert "port_unavailable" in done.stderr
        assert f"127.0.0.1:{port}" in done.stderr
        assert house.processes() == []
        assert house.run("server", "start", "--foreground", "--port", str(port)).returncode == 2
        assert house.processes() == []
        # The usual port being taken is no error: another is found.
        assert house.run("server", "start").returncode == 0


@contextmanager
def small_store(folder: Path) -> Iterator[bool]:
    """A folder that holds `ROOM` bytes: a file system of its own where we may mount one; says whether it is."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def no_large_files(pid: int, limit: int) -> Iterator[None]:
    """Let a process write no file beyond `limit` bytes, for a while: what it writes fails like on a full disk."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_the_object_store_fills_up(tmp_path, here):
    folder = tmp_path / "objects"
    with (
        small_store(folder) as is_mounted,
        built(TANDEMN_OBJECTS_URL=str(folder), TANDEMN_FLUSH_S="0.5", TANDEMN_STORE_FULL_S="2") as house,
    ):
        assert house.run("server", "start").returncode == 0
        if not is_mounted:
            resource.prlimit(house.server_pid(), resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))

        # An upload that does not fit.
        (house.home / "big.jsonl").write_text(chat_lines(1) * (ROOM // 150))
        done = here(house, "deploy", "m", "big.jsonl", "--slo", "1h", "--engine", "simulated", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["code"] == "store_full"
        assert str(folder) in done.stderr
        assert [path for path in folder.rglob("*") if path.is_file()] == []

        # Answers that do not fit: 40 of 150,000 characters, in one chunk after a small one that does.
        lines = [json.loads(line) for line in chat_lines(41).splitlines()]
        for line in lines[1:]:
            line["body"] |= {"max_tokens": 150_000, "ignore_eos": True}
        job_id = deployed(
            *(here, house, "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
            *("--chunk-size", "1" if is_mounted else "40", "--", "--ctx", "200000", "--slots", "4"),
        )
        status = traces.ended(house, job_id)
        assert (status["state"], status["code"]) == ("failed", "store_full"), status
        assert "full" in status["reason"]
        assert "[store_full]" in here(house, "status", job_id).stdout
        house.wait_for(lambda: not traces.runners(house), timeout=30)
        assert traces.redis_keys(house) == []
        assert list(folder.rglob("jobs/*/parts")) == []
        # What was finished can be had: by the output where that could be written, else chunk by chunk.
        done = here(house, "download", job_id, "-o", "out.jsonl", "--partial")
        assert done.returncode == 0, done.stderr
        kept = read_lines(house.home / "out.jsonl")
        if is_mounted:
            assert kept[0]["custom_id"] == "r0"
            assert here(house, "download", job_id).returncode == (0 if status["output_file_id"] else 2)


def test_the_database_cannot_be_written_for_a_while(house, here):
    """A job under way outlives a full disk of the state; a new one is refused with the reason."""
    lines = chat_lines(200, max_tokens=100)
    job_id = deployed(
        *(here, house, "a.jsonl", lines, "--chunk-size", "10"),
        *("--", "--slots", "4", "--decode-step-s", "0.002"),
    )
    traces.until(house, job_id, lambda status: status["chunks"]["completed"] > 0)
    with no_large_files(house.server_pid(), 1):
        done = here(house, "deploy", "m", "a.jsonl", "--slo", "1h", "--engine", "simulated", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["code"] in {"database_unavailable", "store_full"}
        done = here(house, "cancel", job_id, "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["code"] == "database_unavailable"
        time.sleep(1.2 * BEAT_S)  # neither a beat nor a line of the log can be written
    status = traces.ended(house, job_id)
    assert (status["state"], status["requests"]["completed"]) == ("completed", 200)
    assert here(house, "download", job_id, "-o", "out.jsonl").returncode == 0
    kept = [line["custom_id"] for line in read_lines(house.home / "out.jsonl")]
    assert kept == [f"r{number}" for number in range(200)]
    traces.nothing_runs(house)


def test_a_database_that_cannot_be_opened():
    with built(TANDEMN_DATABASE_URL="sqlite:////nowhere/at/all/state.db") as house:
        done = house.run("server", "start")
        assert done.returncode == 1
        assert "[server_start_failed]" in done.stderr
        assert "database_unavailable" in done.stderr
        assert "/nowhere/at/all/state.db" in done.stderr
        assert house.processes() == []


def test_the_output_file_cannot_be_written(house):
    """The answers are kept, and the command says how to get them."""
    (house.home / "a.jsonl").write_text(chat_lines(3))
    code = (
        "import resource, runpy, sys;"
        "sys.argv = ['tandemn', 'deploy', 'm', 'a.jsonl', '--slo', '1h', '--engine', 'simulated', '-o', 'full.jsonl'];"
        "from tandemn.cli import follow, answers;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY));"
        "runpy.run_module('tandemn.cli', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=house.environment,
        cwd=house.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "[output_not_written]" in done.stderr
    assert "tandemn download" in done.stderr
    assert not list(house.home.glob("full.jsonl*"))
    assert not list(house.home.glob(".tandemn-*"))
