"""An engine as a child process, on programs that misbehave."""

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tandemn.errors import EngineFailed
from tandemn.fleet.engines.engine import EngineMetrics, EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess

#: An engine in a few lines: healthy at once, with a worker process of its own.
SERVER = """
import http.server, subprocess, sys
worker = subprocess.Popen(["sleep", "300"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Program:
    """An adapter that runs a Python program."""

    text: str
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> EngineName:
        return EngineName.SIMULATED

    def check(self, spec: EngineSpec) -> None:
        pass

    def command(self, spec: EngineSpec) -> list[str]:
        return [sys.executable, "-c", self.text, str(spec.port)]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return dict(self.variables)

    def slots(self, spec: EngineSpec) -> int:
        return 1

    def parse_metrics(self, text: str) -> EngineMetrics:
        return EngineMetrics(running=0, waiting=0)


def process_of(program: Program, folder: Path, *, grace_s: float = 5.0, port: int = 0) -> EngineProcess:
    spec = EngineSpec(engine=EngineName.SIMULATED, model="m", port=port)
    return EngineProcess(program, spec, folder / "logs" / "engine.log", stop_grace_s=grace_s)


async def descendants(process: EngineProcess, count: int) -> list[psutil.Process]:
    """Wait until it has that many processes below its leash, and return them."""
    for _ in range(400):
        found = psutil.Process(process.pid).children(recursive=True)
        if len(found) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"never had {count} processes")


async def ended(processes: list[psutil.Process]) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=10)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


async def test_a_program_that_dies_while_loading_is_reported_with_its_status_and_log(tmp_path):
    process = process_of(Program("import sys; print('no such weights'); sys.exit(3)"), tmp_path)
    await process.start()
    with pytest.raises(EngineFailed, match="status 3 while loading") as caught:
        await process.wait_ready(60)
    assert caught.value.code == "engine_start_failed"
    assert "no such weights" in caught.value.message
    assert process.exit_status == 3


async def test_a_program_that_never_answers_is_ended(tmp_path):
    process = process_of(Program("import time; print('loading', flush=True); time.sleep(300)"), tmp_path)
    await process.start()
    with pytest.raises(EngineFailed) as caught:
        await process.wait_ready(0.5)
    assert caught.value.code == "engine_start_timeout"
    assert process.exit_status is not None


async def test_a_port_in_use_is_an_error_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        # As vLLM's server does, which lets others of its user have the port, too.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = process_of(Program(SERVER), tmp_path, port=taken.getsockname()[1])
        with pytest.raises(EngineFailed, match="is in use") as caught:
            await process.start()
    assert caught.value.code == "engine_start_failed"
    assert process.pid is None


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
async def test_while_it_loads_only_the_engine_can_have_its_port(tmp_path, option):
    process = process_of(Program("import time; time.sleep(300)"), tmp_path)
    await process.start()
    try:
        address = (process.spec.host, process.spec.port)
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(address)
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, option, 1)
            server.bind(address)
            server.listen()
            socket.create_connection(address, timeout=10).close()
    finally:
        await process.stop()
    with socket.socket() as anybody:
        anybody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        anybody.bind(address)


async def test_a_command_that_is_not_there_is_reported(tmp_path):
    class Missing(Program):
        def command(self, spec: EngineSpec) -> list[str]:
            return ["/no/such/engine"]

    process = process_of(Missing(""), tmp_path)
    await process.start()
    with pytest.raises(EngineFailed, match="No such file"):
        await process.wait_ready(60)


async def test_stop_ends_the_workers_too(tmp_path):
    process = process_of(Program(SERVER), tmp_path)
    await process.start()
    await process.wait_ready(60)
    processes = await descendants(process, 2)
    await process.stop()
    assert process.exit_status == 128 + signal.SIGTERM
    assert await ended(processes)


async def test_workers_end_with_an_engine_that_dies_by_itself(tmp_path):
    process = process_of(Program(SERVER), tmp_path)
    await process.start()
    await process.wait_ready(60)
    processes = await descendants(process, 2)
    engine = next(p for p in processes if p.name() != "sleep")
    os.kill(engine.pid, signal.SIGKILL)
    assert await asyncio.wait_for(process.wait_dead(), 20) == 128 + signal.SIGKILL
    assert await ended(processes)


async def test_one_that_ignores_sigterm_is_killed_when_the_grace_is_over(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    process = process_of(Program(stubborn + "time.sleep(300)"), tmp_path, grace_s=0.3)
    await process.start()
    for _ in range(400):
        if process.log_path.exists() and "up" in process.log_path.read_text():
            break
        await asyncio.sleep(0.05)
    await process.stop()
    assert process.exit_status == 128 + signal.SIGKILL


@pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel of Linux alone kills the child of a killed leash"
)
async def test_killing_the_leash_kills_the_engine(tmp_path):
    process = process_of(Program(SERVER.replace('worker = subprocess.Popen(["sleep", "300"])', "")), tmp_path)
    await process.start()
    await process.wait_ready(60)
    processes = await descendants(process, 1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait_dead() == 128 + signal.SIGKILL
    assert await ended(processes)


async def test_it_inherits_nothing_but_its_log_and_an_empty_input(tmp_path):
    listing = "import os, sys; print(sorted(os.listdir('/proc/self/fd'), key=int), repr(sys.stdin.read()))"
    if sys.platform != "linux":
        pytest.skip("descriptors are listed in /proc")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        process = process_of(Program(listing), tmp_path)
        await process.start()
        await process.wait_dead()
    finally:
        os.close(reader)
        os.close(writer)
    # The fourth is the listing's own.
    assert process.log_path.read_text().strip() == "['0', '1', '2', '3'] ''"


async def test_the_key_is_in_the_environment_and_not_in_the_log(tmp_path):
    program = Program("import os; print(len(os.environ['ENGINE_KEY']))", (("ENGINE_KEY", "secret-key"),))
    process = process_of(program, tmp_path)
    await process.start()
    await process.wait_dead()
    assert process.log_path.read_text().strip() == "10"
