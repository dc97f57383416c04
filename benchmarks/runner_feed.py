"""How close the runner's feeder comes to a minimal client of the same engine at the same concurrency.

    python -m benchmarks.runner_feed [--engine llamacpp|simulated] [--requests N] [--rounds N]

The minimal client writes requests to sockets and reads answers, nothing else. The feeder does all that the
runner does for a request: reading its line, sending, judging, counting tokens, writing the output line to
the spool. Both run in this process, in turns; the figure is minimal time / feeder time (1.0: no loss).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from tandemn import settings
from tandemn.batch import request_line
from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.protocol.replicas import ChunkLease
from tandemn.runner.chunks import HeldChunk
from tandemn.runner.concurrency import first_limit
from tandemn.runner.feeder import Address, Feeder, Request, Result
from tandemn.runner.record import keep_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ENDPOINT = "/v1/chat/completions"


def input_lines(model: str, requests: int, tokens: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "custom_id": f"request-{n}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {
                    "model": model,
                    "max_tokens": tokens,
                    "ignore_eos": True,
                    "messages": [{"role": "user", "content": f"Say something about the number {n}."}],
                },
            }
        ).encode()
        for n in range(requests)
    ]


async def minimal(address: Address, bodies: list[bytes], concurrency: int) -> None:
    """Send every body and read every answer over keep-alive connections."""
    waiting = iter(bodies)

    async def work() -> None:
        reader: asyncio.StreamReader | None = None
        for body in waiting:
            head = (
                f"POST {address.path} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer {address.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            if reader is None:
                reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert answer.startswith(b"http/1.1 200"), answer
            length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if b"connection: close" in answer:
                writer.close()
                reader = None

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def fed(address: Address, lines: list[bytes], concurrency: int, folder: Path) -> None:
    """Send every line as the runner does."""
    lease = ChunkLease(
        chunk=0, token="1-1", input_url="", byte_start=0, byte_end=0, first_request=0, requests=len(lines)
    )
    chunk = HeldChunk(lease)
    chunk.begin(folder)
    finished = asyncio.Event()

    def on_result(request: Request, result: Result) -> None:
        keep_result("job-1", chunk, request, result)
        if chunk.has_all:
            finished.set()

    async def has_died() -> bool:
        return False

    async def blocks() -> AsyncIterator[bytes]:
        for at in range(0, len(lines), 1000):
            yield b"\n".join((*lines[at : at + 1000], b""))

    feeder = Feeder(on_result, has_died=has_died)
    feeder.resize(concurrency)
    feeder.attach(address)
    found = request_line.iter_requests(blocks(), byte_start=0, requests=len(lines), model="demo/tiny")
    async for line in found:
        feeder.put([Request(owner=chunk, index=line.index, custom_id=line.custom_id, body=line.body)])
        if line.index % 64 == 0:
            await feeder.room()
    await finished.wait()
    assert chunk.spool.answers == len(lines), chunk.spool.errors
    await feeder.close()
    chunk.close()


async def measure(options: argparse.Namespace, folder: Path) -> None:
    name = EngineName(options.engine)
    adapter = adapters(settings.load())[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = EngineSpec(engine=name, model="demo/tiny", port=port, api_key=secrets.token_urlsafe(8))
    process = EngineProcess(adapter, spec, folder / "engine.log")
    await process.start()
    try:
        await process.wait_ready(60)
        address = Address(host=spec.host, port=port, path=ENDPOINT, api_key=spec.api_key)
        concurrency = first_limit(adapter.slots(spec))
        lines = input_lines("demo/tiny", options.requests, options.tokens)
        bodies = [json.dumps(json.loads(line)["body"]).encode() for line in lines]
        await minimal(address, bodies[:200], concurrency)
        ratios = []
        for turn in range(options.rounds):
            times: dict[str, tuple[float, float]] = {}
            for what in ("minimal", "fed") if turn % 2 else ("fed", "minimal"):
                began, cpu = time.perf_counter(), _cpu_s()
                if what == "minimal":
                    await minimal(address, bodies, concurrency)
                else:
                    await fed(address, lines, concurrency, folder)
                times[what] = (time.perf_counter() - began, _cpu_s() - cpu)
            ratios.append(times["minimal"][0] / times["fed"][0])
            told = ", ".join(
                f"{what} {options.requests / wall:.0f}/s {cpu / options.requests * 1e6:.0f} us CPU a request"
                for what, (wall, cpu) in sorted(times.items())
            )
            print(f"{options.engine} at {concurrency}: {told}; ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.3f}")
    finally:
        await process.stop()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="llamacpp", choices=[name.value for name in EngineName])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(options, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
