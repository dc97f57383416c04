"""Resume on real vLLM (opt-in): streams of many lengths lose their engine at once and go on elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.router_rig import KEY, Rig, ask, backend, metrics, text_of, wait_for
from tests.ports import free_port

from tandemn import settings
from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineName, EngineSpec

MODEL = Path(__file__).parents[2] / ".cache" / "vllm-cpu" / "model"
#: Two of them on two cores.
READY_S = 400.0
LENGTH = 300
CASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello world"}]},
    "/v1/completions": {"prompt": "the quick brown fox"},
}

pytestmark = pytest.mark.vllm


class Vllm:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        loaded = settings.Settings(home=folder, vllm_command=settings.load().vllm_command)
        adapter = adapters(loaded)[EngineName.VLLM]
        spec = EngineSpec(
            engine=EngineName.VLLM,
            model=str(MODEL),
            port=self.port,
            max_model_len=1024,
            extra_args=("--enforce-eager", "--max-num-seqs", "16"),
        )
        environment = {**os.environ, **adapter.environment(spec)}
        with (folder / f"vllm-{self.port}.log").open("wb") as log:
            command = adapter.command(spec)
            self.popen = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def answers(self) -> bool:
        assert self.popen.poll() is None, "vLLM ended"
        with contextlib.suppress(OSError):
            return bool(ask(self.port, path="/health", method="GET")[0] == 200)
        return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    rig.both = [Vllm(tmp_path), Vllm(tmp_path)]
    try:
        wait_for(lambda: all(engine.answers() for engine in rig.both), READY_S)
        yield rig
    finally:
        rig.end()
        for engine in rig.both:
            engine.kill()


async def read_stream(port: int, path: str, body: dict[str, Any], texts: list[str]) -> None:
    """Append each event's text as it comes; the last element is `[DONE]` where the stream ended so."""
    content = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    head += "Content-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    async for line in reader:
        if line.startswith(b"data: "):
            data = line[6:].decode().strip()
            texts.append(data if data == "[DONE]" else text_of(data))
    writer.close()


@pytest.mark.parametrize("temperature", [0])
def test_greedy_streams_killed_at_many_tokens_equal_the_unbroken_ones(rig, temperature):
    first, second = rig.both
    router = rig.router(
        backend("a", first.url, price_usd_per_hour=0.0), backend("b", second.url, price_usd_per_hour=1.0)
    )
    model = json.loads(ask(second.port, path="/v1/models", method="GET")[2])["data"][0]["id"]
    asked = [
        (
            path,
            {
                "model": model,
                "temperature": temperature,
                "max_tokens": LENGTH,
                "ignore_eos": True,
                **body,
            },
        )
        for path, body in CASES.items()
        for _ in range(3)
    ]
    whole = []
    for path, body in asked:
        status, _, content = ask(second.port, body, path=path)
        assert status == 200, content
        choice = json.loads(content)["choices"][0]
        whole.append(choice["message"]["content"] if "message" in choice else choice["text"])
    told: list[list[str]] = [[] for _ in asked]

    async def all_at_once() -> None:
        tasks = []
        for (path, body), texts in zip(asked, told, strict=True):
            tasks.append(asyncio.create_task(read_stream(router.port, path, body, texts)))
            await asyncio.sleep(0.15)
        while len(told[-1]) < 8:
            await asyncio.sleep(0.005)
        first.kill()
        await asyncio.gather(*tasks)

    asyncio.run(all_at_once())
    assert metrics(router.port)['tandemn_router_resumes_total{backend="a"}'] >= len(asked) - 2
    for texts, want in zip(told, whole, strict=True):
        assert texts[-1] == "[DONE]"
        assert "".join(texts[:-1]) == want
