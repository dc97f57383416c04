"""The runner as a process, with a real engine process, against a control plane that speaks the protocol."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.fakes.control_plane import TOKEN, ControlPlane

DONE_S = 30


def request_lines(count: int, *, text: str = "hello", tokens: int = 8) -> list[bytes]:
    return [
        json.dumps(
            {
                "custom_id": f"r-{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "any",
                    "max_tokens": tokens,
                    "ignore_eos": True,
                    "messages": [{"role": "user", "content": f"{text} {n}"}],
                },
            }
        ).encode()
        for n in range(count)
    ]


@contextlib.asynccontextmanager
async def running(
    plane: ControlPlane, folder: Path, *, token: str = TOKEN, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    with (folder / "runner.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tandemn.runner",
            *("--server", plane.url, "--replica", "job-1-r0", "--work", str(folder / "work")),
            env={**os.environ, "TANDEMN_REPLICA_TOKEN": token, "TANDEMN_HOME": str(folder / "home")}
            | environment,
            stderr=log,
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write((folder / "runner.log").read_text()[-4000:])
        raise
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()


async def until(condition: Callable[[], object], seconds: float = DONE_S) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def ids(lines: list[Any]) -> list[str]:
    return [line["custom_id"] for line in lines]


async def test_a_job_is_computed_in_input_order_and_a_refusal_is_an_error_line(tmp_path):
    lines = request_lines(44) + request_lines(1, text="unwanted")
    async with (
        ControlPlane(lines, chunk_size=10, engine_args=["--refuse", "unwanted"]) as plane,
        running(plane, tmp_path) as runner,
    ):
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert ids(plane.output()) == [f"r-{n}" for n in range(44)]
        (error,) = plane.error_lines()
        assert error["response"]["status_code"] == 400
        assert "told by --refuse" in error["error"]["message"]
        assert plane.goodbye.outcome == "completed"
        assert sum(c.output_tokens for c in plane.completed.values()) == 44 * 8
        assert plane.beats[0].state == "starting"
        assert not (tmp_path / "work" / "spool").exists()


async def test_the_embedded_engine_serves_a_job(tmp_path):
    lines = request_lines(30)
    plane = ControlPlane(lines, chunk_size=15, engine="llamacpp", model="demo/tiny")
    async with plane, running(plane, tmp_path) as runner:
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert ids(plane.output()) == [f"r-{n}" for n in range(30)]


async def test_stored_answers_are_not_computed_again(tmp_path):
    lines = request_lines(20)
    async with ControlPlane(lines, chunk_size=20) as plane:
        plane.objects["parts/0/0-1-0"] = b"".join(
            b'%d o {"custom_id":"r-%d","stored":true}\n' % (n, n) for n in range(0, 20, 2)
        )
        async with running(plane, tmp_path) as runner:
            assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        output = plane.output()
        assert ids(output) == [f"r-{n}" for n in range(20)]
        assert [line.get("stored", False) for line in output] == [True, False] * 10
        assert plane.beats[-1].requests_done <= 10


async def test_a_request_that_kills_the_engine_is_tried_alone_and_its_neighbours_do_not_suffer(tmp_path):
    lines = request_lines(8) + request_lines(1, text="poison") + request_lines(8)
    arguments = ["--slots", "4", "--crash-on", "poison", "--decode-step-s", "0.005"]
    async with (
        ControlPlane(lines, chunk_size=17, engine_args=arguments) as plane,
        running(plane, tmp_path) as runner,
    ):
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert len(plane.output()) == 16
        (error,) = plane.error_lines()
        assert error["error"]["code"] == "request_killed_engine"
        assert len(plane.deaths) == 3
        assert [death.in_flight for death in plane.deaths[1:]] == [{0: [8]}, {0: [8]}]


async def test_an_engine_that_fails_to_load_is_reported_with_its_log(tmp_path):
    async with (
        ControlPlane(request_lines(3), engine_args=["--fail-load"]) as plane,
        running(plane, tmp_path) as runner,
    ):
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 1
        assert plane.goodbye.outcome == "failed"
        assert plane.goodbye.code == "engine_start_failed"
        assert "fails to load, as told" in plane.goodbye.reason


async def test_an_engine_that_dies_of_everything_ends_the_runner(tmp_path):
    lines = request_lines(10, text="poison")
    async with (
        ControlPlane(lines, engine_args=["--crash-on", "poison"]) as plane,
        running(plane, tmp_path) as runner,
    ):
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 1
        assert plane.goodbye.code == "engine_died"


async def test_sigterm_stores_what_is_finished_and_releases_the_rest(tmp_path):
    lines = request_lines(200)
    arguments = ["--slots", "4", "--decode-step-s", "0.01"]
    async with ControlPlane(lines, chunk_size=100, engine_args=arguments, flush_s=60) as plane:
        async with running(plane, tmp_path) as runner:
            await until(lambda: plane.beats and plane.beats[-1].requests_done >= 8)
            runner.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(runner.wait(), 15) == 0
        assert plane.goodbye.outcome == "preempted"
        assert plane.held == {}
        stored = sum(raw.count(b"\n") for raw in plane.stored_parts(0).values())
        assert stored >= 8
        # What the first one stored, the second does not compute again.
        async with running(plane, tmp_path) as runner:
            plane.beats.clear()
            await until(lambda: plane.is_done)
            assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert ids(plane.output()) == [f"r-{n}" for n in range(200)]
        assert plane.beats[-1].requests_done <= 200 - stored


async def test_a_lease_that_is_taken_away_is_dropped_without_harm(tmp_path):
    lines = request_lines(60)
    arguments = ["--slots", "4", "--decode-step-s", "0.01"]
    async with (
        ControlPlane(lines, chunk_size=20, engine_args=arguments) as plane,
        running(plane, tmp_path) as runner,
    ):
        await until(lambda: 0 in plane.begun)
        plane.take_away(0)
        await until(lambda: len(plane.completed) == 2)
        assert sorted(plane.completed) == [1, 2]
        plane.lost.clear()
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0


async def test_a_stopped_runner_that_wakes_drops_what_it_lost(tmp_path):
    lines = request_lines(40)
    arguments = ["--slots", "2", "--decode-step-s", "0.02"]
    async with (
        ControlPlane(lines, chunk_size=20, engine_args=arguments) as plane,
        running(plane, tmp_path) as runner,
    ):
        await until(lambda: 0 in plane.begun)
        runner.send_signal(signal.SIGSTOP)
        plane.take_away(0)
        plane.take_away(1)
        plane.pending[:] = [1]
        await asyncio.sleep(0.5)
        runner.send_signal(signal.SIGCONT)
        await until(lambda: plane.completed)
        assert sorted(plane.completed) == [1]


async def test_it_computes_on_while_the_control_plane_is_gone(tmp_path):
    lines = request_lines(60)
    arguments = ["--slots", "4", "--decode-step-s", "0.01"]
    async with (
        ControlPlane(lines, chunk_size=20, engine_args=arguments) as plane,
        running(plane, tmp_path) as runner,
    ):
        await until(lambda: plane.beats and plane.beats[-1].requests_done)
        done = plane.beats[-1].requests_done
        await plane.stop()
        await asyncio.sleep(1.0)
        await plane.start()
        beats = len(plane.beats)
        await until(lambda: len(plane.beats) > beats)
        assert plane.beats[beats].requests_done > done
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert ids(plane.output()) == [f"r-{n}" for n in range(60)]
        assert plane.goodbye.outcome == "completed"


async def test_a_full_store_is_said_and_outlived(tmp_path):
    lines = request_lines(20)
    async with ControlPlane(lines) as plane, running(plane, tmp_path) as runner:
        plane.is_full = True
        await until(lambda: any(beat.note == "the store is full" for beat in plane.beats))
        plane.is_full = False
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert len(plane.output()) == 20


async def test_a_silent_control_plane_ends_it(tmp_path):
    async with ControlPlane(request_lines(5), silence_s=0.5) as plane, running(plane, tmp_path) as runner:
        plane.orders = "go_on"
        await until(lambda: plane.beats)
        await plane.stop()
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 1


async def test_a_replica_that_has_ended_for_its_control_plane_ends_at_once(tmp_path):
    async with ControlPlane(request_lines(500)) as plane, running(plane, tmp_path) as runner:
        await until(lambda: plane.beats)
        plane.rejects = True
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 1
    assert plane.goodbye is None


@contextlib.asynccontextmanager
async def nothing_found(port: int) -> AsyncIterator[None]:
    """A server that answers 404 to everything, in words of its own."""
    server = web.AppRunner(web.Application())
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", port).start()
    yield
    await server.cleanup()


@pytest.mark.parametrize("is_tandemn", [True, False])
async def test_a_stranger_on_the_port_of_its_control_plane_is_passed_over(tmp_path, is_tandemn):
    """Another control plane may have taken it while this one was away, or anything else that speaks HTTP."""
    lines = request_lines(200)
    arguments = ["--slots", "4", "--decode-step-s", "0.005"]
    async with (
        ControlPlane(lines, engine_args=arguments) as plane,
        running(plane, tmp_path, TANDEMN_HEARTBEAT_S="0.2") as runner,
    ):
        await until(lambda: plane.begun and plane.completed)
        await plane.stop()
        other = ControlPlane(request_lines(1))
        other.token, other.port = "of another replica", plane.port
        async with other if is_tandemn else nothing_found(plane.port):
            said = "is not the control plane of this replica"
            await until(lambda: said in (tmp_path / "runner.log").read_text())
            await asyncio.sleep(1)
            assert runner.returncode is None
        assert other.calls.total() <= 3, "it asks a stranger again and again"
        await plane.start()
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert len(plane.output()) == 200


async def test_a_drain_finishes_what_is_held(tmp_path):
    lines = request_lines(400)
    arguments = ["--slots", "4", "--decode-step-s", "0.005"]
    async with (
        ControlPlane(lines, chunk_size=20, engine_args=arguments) as plane,
        running(plane, tmp_path) as runner,
    ):
        await until(lambda: plane.begun)
        plane.orders = "drain"
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert plane.held == {}
        assert plane.released == []
        assert 0 < len(plane.completed) < 20
        assert plane.goodbye.outcome == "completed"


async def test_a_notice_of_the_cloud_ends_a_runner_that_still_loads(tmp_path):
    async def token(request):
        return web.Response(text="t")

    async def action(request):
        return web.Response(text='{"action": "terminate", "time": "2020-01-01T00:00:00Z"}')

    metadata = web.Application()
    metadata.router.add_put("/latest/api/token", token)
    metadata.router.add_get("/latest/meta-data/spot/instance-action", action)
    server = web.AppRunner(metadata)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{server.addresses[0][1]}"
    environment = {"TANDEMN_SPOT_NOTICES": "true", "TANDEMN_METADATA_URL": url}
    async with (
        ControlPlane(request_lines(50), engine_args=["--load-s", "30"]) as plane,
        running(plane, tmp_path, **environment) as runner,
    ):
        assert await asyncio.wait_for(runner.wait(), DONE_S) == 0
        assert plane.goodbye.outcome == "preempted"
        assert plane.held == {}
    await server.cleanup()
