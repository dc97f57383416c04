"""How close the runner's feeder comes to a minimal client of the same engine at the same concurrency.

    python -m benchmarks.runner_feed [--engine llamacpp|simulated] [--requests N] [--rounds N]

The minimal client writes requests to sockets and reads answers, nothing else. The feeder does all that the
runner does for a request: reading its line, sending, judging, counting tokens, writing the output line to
the spool. Both run in this process, in turns; the figure is minimal time / feeder time (1.0: no loss).
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.inputs import MODEL, generating_line
from benchmarks.minimal_client import bodies, engine, send
from tandemn.batch import request_line
from tandemn.fleet.engines.engine import EngineName
from tandemn.protocol.replicas import ChunkLease
from tandemn.runner.chunks import HeldChunk
from tandemn.runner.feeder import Address, Feeder, Request, Result
from tandemn.runner.record import keep_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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
    found = request_line.iter_requests(blocks(), byte_start=0, requests=len(lines), model=MODEL)
    async for line in found:
        feeder.put([Request(owner=chunk, index=line.index, custom_id=line.custom_id, body=line.body)])
        if line.index % 64 == 0:
            await feeder.room()
    await finished.wait()
    assert chunk.spool.answers == len(lines), chunk.spool.errors
    await feeder.close()
    chunk.close()


async def measure(options: argparse.Namespace, folder: Path) -> None:
    async with engine(options.engine, folder) as (address, concurrency):
        lines = [
            generating_line(number, tokens=options.tokens).rstrip() for number in range(options.requests)
        ]
        requests = bodies(lines)
        await send(address, requests[:200], concurrency, len)
        ratios = []
        for turn in range(options.rounds):
            times: dict[str, tuple[float, float]] = {}
            for what in ("minimal", "fed") if turn % 2 else ("fed", "minimal"):
                began, cpu = time.perf_counter(), _cpu_s()
                if what == "minimal":
                    await send(address, requests, concurrency, len)
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
