"""The engine's supervisor, on real engine processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from tandemn.fleet.engines.simulated import Simulated
from tandemn.protocol.replicas import Assignment
from tandemn.runner import engine_supervisor
from tandemn.runner.engine_supervisor import EngineSupervisor

if TYPE_CHECKING:
    from tandemn.fleet.engines.engine import EngineSpec


class Unlucky(Simulated):
    """Finds a port taken that it has chosen for a part of its own, once."""

    def __init__(self) -> None:
        self.starts = 0

    def command(self, spec: EngineSpec) -> list[str]:
        self.starts += 1
        if self.starts == 1:
            return [sys.executable, "-c", "raise OSError(98, 'Address already in use')"]
        return super().command(spec)


async def test_a_port_that_was_taken_meanwhile_is_another_try(tmp_path):
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
    adapter = Unlucky()
    supervisor = EngineSupervisor(
        adapter, assignment, cast("Any", None), tmp_path / "engine.log", lambda _chunk: None
    )
    try:
        await supervisor.start()
        assert supervisor.is_up
        assert adapter.starts == 2
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
