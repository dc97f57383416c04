from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from tandemn import server_records
from tandemn.cli import embedded
from tandemn.cli.connection import follow_restart
from tandemn.cli.follow import patiently
from tandemn.client import UserClient
from tandemn.errors import Broken, Conflict, InvalidInput, NotFound
from tandemn.settings import load

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.fakes.control_process")


@pytest.fixture
def settings(home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield load()
    asyncio.run(embedded.stop(home))


async def test_one_server_however_many_commands_ask(settings, home):
    records = await asyncio.gather(*(embedded.ensure(settings, command=COMMAND) for _ in range(5)))
    assert len({record.pid for record in records}) == 1
    assert records[0] == embedded.read(home)
    assert (home.stat().st_mode & 0o777) == 0o700
    stopped = await embedded.stop(home)
    assert stopped == records[0]
    assert not psutil.pid_exists(stopped.pid) or psutil.Process(stopped.pid).status() == psutil.STATUS_ZOMBIE
    assert await embedded.stop(home) is None
    assert await embedded.find(home) is None


async def test_server_holds_nothing_of_the_command_that_started_it(settings):
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    record = await embedded.ensure(settings, command=COMMAND)
    os.close(writer)
    assert os.read(reader, 1) == b""  # end of file: no other holder
    os.close(reader)
    process = psutil.Process(record.pid)
    assert process.cwd() == "/"
    assert os.getsid(record.pid) == record.pid


async def test_dead_server_is_replaced(settings, home):
    first = await embedded.ensure(settings, command=COMMAND)
    os.kill(first.pid, signal.SIGKILL)
    second = await embedded.ensure(settings, command=COMMAND)
    assert second.pid != first.pid


async def test_pid_given_to_another_process_is_not_believed(settings, home):
    home.mkdir(parents=True)
    record = server_records.ServerRecord(url="http://127.0.0.1:1", pid=os.getpid(), started=12.0, version="x")
    (home / "server.json").write_text(record.model_dump_json())
    assert embedded.read(home) is None
    assert await embedded.stop(home) is None
    (home / "server.json").write_text('{"torn')
    assert embedded.read(home) is None


async def test_server_that_ends_at_once_is_reported_with_its_log(settings, home):
    with pytest.raises(Broken) as caught:
        await embedded.ensure(
            settings, command=(*COMMAND, "--fail", "no redis-server: apt-get install redis")
        )
    assert caught.value.code == "server_start_failed"
    assert "apt-get install redis" in caught.value.message
    assert str(home / "logs" / "server.log") in str(caught.value)


async def test_standbys_are_started_found_and_stopped_with_the_others(settings, home):
    first = await embedded.ensure(settings, command=COMMAND)
    second = await embedded.add_standby(settings, command=COMMAND)
    assert second.pid != first.pid
    assert [record.pid for record in server_records.living(home)] == [first.pid, second.pid]
    assert await embedded.ensure(settings, command=COMMAND) == first
    os.kill(first.pid, signal.SIGKILL)
    assert await embedded.ensure(settings, command=COMMAND) == second
    await embedded.add_standby(settings, command=COMMAND)
    assert len(server_records.living(home)) == 2
    assert await embedded.stop(home) == second
    assert server_records.living(home) == []


async def test_other_version_is_refused_but_can_be_stopped(settings, home):
    await embedded.ensure(settings, command=(*COMMAND, "--version", "0.0.1"))
    with pytest.raises(Conflict) as caught:
        await embedded.ensure(settings, command=COMMAND)
    assert caught.value.code == "version_mismatch"
    assert await embedded.stop(home) is not None


async def test_state_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TANDEMN_HOME", str(tmp_path / "file"))
    with pytest.raises(InvalidInput) as caught:
        await embedded.ensure(load(), command=COMMAND)
    assert caught.value.code == "home_unusable"


async def test_client_finds_a_server_that_moved(settings, home):
    record = await embedded.ensure(settings, command=COMMAND)
    async with UserClient("http://127.0.0.1:1") as client:
        follow_restart(client)
        assert client.url == record.url


async def test_what_another_control_plane_says_on_its_former_port_is_no_answer(settings, home):
    record = await embedded.ensure(settings, command=COMMAND)
    asked = []
    async with UserClient("http://127.0.0.1:1") as client:

        async def ask() -> str:
            asked.append(client.url)
            if client.url != record.url:
                raise NotFound("no such job: job-1", code="job_not_found")
            return "ours"

        assert await patiently(client, ask, "") == "ours"
    assert asked == ["http://127.0.0.1:1", record.url]


async def test_what_its_own_control_plane_refuses_is_told_at_once(settings, home):
    record = await embedded.ensure(settings, command=COMMAND)
    async with UserClient(record.url) as client:

        async def ask() -> str:
            raise NotFound("no such job: job-1", code="job_not_found")

        with pytest.raises(NotFound):
            await patiently(client, ask, "")


def test_server_commands_on_the_real_control_plane(settings, home, tandemn):
    none = tandemn("server", "status", "--json")
    assert none.code == 1
    assert none.json["url"] is None
    assert not home.exists()
    assert tandemn("list").out == "no jobs and no deployments\n"  # starts it
    started = tandemn("server", "start", "--json").json
    shown = tandemn("server", "status", "--json").json
    assert shown.pop("control_planes") == [started | {"is_leading": True}]
    assert shown == started
    assert set(started) == {"url", "pid", "version"}
    assert (home / "server.json").stat().st_mode & 0o777 == 0o600
    assert started["url"] in tandemn("server", "start").out
    assert tandemn("server", "start", "--foreground").err.count("[server_running]") == 1
    assert tandemn("status", "nope").err.startswith("error: no such job: nope [job_not_found]\n")
    assert f"pid {started['pid']}" in tandemn("server", "stop").out
    assert tandemn("server", "stop", "--json").json == {"stopped": False, "pid": None}


def test_port_in_use_is_reported_by_the_real_control_plane(settings, tandemn):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = tandemn("server", "start", "--port", str(taken.getsockname()[1]))
    assert result.code == 1
    assert "[port_unavailable] [server_start_failed]" in result.err
