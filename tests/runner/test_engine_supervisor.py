"""The engine's supervisor, on real engine processes."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from tandemn.fleet.engines.simulated import Simulated
from tandemn.protocol.replicas import Assignment
from tandemn.runner import engine_supervisor
from tandemn.runner.engine_supervisor import EngineSupervisor


async def test_a_port_that_was_taken_meanwhile_is_another_try(tmp_path, monkeypatch):
    """Between the choice of a port and its use, anybody's connection may be given it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free, ports = engine_supervisor._free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(engine_supervisor, "_free_port", lambda: ports.pop() if ports else free())
        assignment = Assignment(
            job_id="job-1",
            replica_id="job-1-r0",
            engine="simulated",
            model="m",
            endpoint="/v1/chat/completions",
            heartbeat_s=1,
            flush_s=1,
            silence_s=60,
            engine_start_s=60,
        )
        supervisor = EngineSupervisor(
            Simulated(), assignment, cast("Any", None), tmp_path / "engine.log", lambda _chunk: None
        )
        try:
            await supervisor.start()
            assert supervisor.is_up
            assert supervisor.address.port != taken.getsockname()[1]
        finally:
            await supervisor.stop()


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("port 4 of 127.0.0.1 is in use", True),
        ("OSError: [Errno 98] error while attempting to bind on address: address already in use", True),
        ("[Errno 98] Address already in use", True),
        ("CUDA out of memory", False),
    ],
)
def test_what_says_that_a_port_was_taken(message, lost):
    assert engine_supervisor.lost_its_port(message) is lost
