"""A machine that is not its replica's head: it runs its part while the replica lives, and asks each time it ends."""

import asyncio
import sys
from dataclasses import replace

from tests.fakes.control_plane import TOKEN, ControlPlane

from tandemn.client import ReplicaClient
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.vllm import Nodes, Vllm
from tandemn.protocol.replicas import Assignment
from tandemn.runner.follower import follow


def fake_vllm(folder, script: str) -> str:
    """An engine's command that notes its arguments and then does as told."""
    path = folder / "vllm"
    path.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/started"\n{script}\n')
    path.chmod(0o755)
    return str(path)


def starts(folder) -> list[str]:
    path = folder / "started"
    return path.read_text().splitlines() if path.exists() else []


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


class Scene:
    def __init__(self, control: ControlPlane, folder, script: str) -> None:
        self.folder = folder
        self.told = asyncio.Event()
        self.control = control
        self.client = ReplicaClient(control.url, "job-1-r0", TOKEN)
        nodes = Nodes(count=2, rank=1, head="10.0.0.1")
        self.adapter = Vllm(fake_vllm(folder, script), nodes=nodes)
        fields = control.assignment.model_dump() | {"engine": EngineName.VLLM, "model": "m", "tp": 8, "pp": 2}
        self.assignment = Assignment(**fields | {"silence_s": 1.0})

    async def follow(self) -> int:
        async with self.client:
            return await follow(
                self.client,
                self.assignment,
                self.adapter,
                self.folder / "engine.log",
                self.told,
                again_s=0.05,
            )


async def test_its_part_is_started_again_while_the_replica_lives(tmp_path):
    async with ControlPlane([b"{}"]) as control:
        scene = Scene(control, tmp_path, "exit 1")
        task = asyncio.create_task(scene.follow())
        await until(lambda: len(starts(tmp_path)) >= 3)
        assert "--nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --headless" in starts(tmp_path)[0]
        assert "--tensor-parallel-size 8 --pipeline-parallel-size 2" in starts(tmp_path)[0]
        control.rejects = True
        assert await task == 0


async def test_a_signal_ends_it_and_its_part(tmp_path):
    async with ControlPlane([b"{}"]) as control:
        scene = Scene(control, tmp_path, f'exec "{sys.executable}" -c "import time; time.sleep(600)"')
        task = asyncio.create_task(scene.follow())
        await until(lambda: starts(tmp_path))
        scene.told.set()
        assert await task == 0


async def test_a_silent_control_plane_ends_it(tmp_path):
    async with ControlPlane([b"{}"]) as control:
        scene = Scene(control, tmp_path, "exit 1")
        task = asyncio.create_task(scene.follow())
        await until(lambda: starts(tmp_path))
        await control.stop()
        assert await task == 1


def test_the_heads_command_spans_the_machines_and_answers():
    spec = EngineSpec(engine=EngineName.VLLM, model="m", port=1, tp=8, pp=2, dp=2)
    head = Vllm("vllm", nodes=Nodes(count=2, rank=0, head="10.0.0.1"))
    assert "--nnodes" in head.command(spec)
    assert "--headless" not in head.command(spec)
    alone = Vllm("vllm")
    assert "--nnodes" not in alone.command(spec)
    command = alone.command(spec)
    assert command[command.index("--data-parallel-size") + 1] == "2"
    assert alone.slots(spec) == 2 * alone.slots(replace(spec, dp=1))
