"""The client to beat: it starts an engine, sends it requests over plain sockets, and keeps the answers.

    python -m benchmarks.minimal_client INPUT OUTPUT --engine llamacpp

Nothing is checked, retried, stored safely or put in order: what a careful person's quick script would do.
The engine is started, and its answer awaited, by the same code as the runner's.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from benchmarks.inputs import ENDPOINT, MODEL
from tandemn import settings
from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.runner.concurrency import first_limit
from tandemn.runner.feeder import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable


class _Line(msgspec.Struct):
    body: msgspec.Raw


@asynccontextmanager
async def engine(name: str, folder: Path) -> AsyncIterator[tuple[Address, int]]:
    """Start an engine of demo/tiny; give its address and how many requests a runner would have in flight."""
    adapter = adapters(settings.load())[EngineName(name)]
    spec = EngineSpec(
        engine=adapter.name,
        model=MODEL,
        api_key=secrets.token_urlsafe(8),
    )
    process = EngineProcess(adapter, spec, folder / "engine.log")
    await process.start()
    try:
        await process.wait_ready(60)
        address = Address(host=process.spec.host, port=process.spec.port, path=ENDPOINT, api_key=spec.api_key)
        yield address, first_limit(adapter.slots(spec))
    finally:
        await process.stop()


def bodies(lines: Iterable[bytes]) -> list[bytes]:
    """Take the requests out of their lines."""
    decoder = msgspec.json.Decoder(_Line)
    return [bytes(decoder.decode(line).body) for line in lines]


async def send(
    address: Address, requests: Iterable[bytes], concurrency: int, keep: Callable[[bytes], object]
) -> None:
    """Send every request and `keep` every answer, over keep-alive connections."""
    waiting = iter(requests)

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
            keep(await reader.readexactly(length))
            if b"connection: close" in answer:
                writer.close()
                reader = None

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def run(options: argparse.Namespace) -> None:
    requests = bodies(options.input.read_bytes().splitlines())
    with tempfile.TemporaryDirectory() as folder, options.output.open("wb") as output:
        async with engine(options.engine, Path(folder)) as (address, concurrency):
            await send(address, requests, concurrency, lambda answer: output.write(answer + b"\n"))
            output.close()
            print("done", flush=True)  # what follows is the engine's end, which nobody waits for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--engine", default="llamacpp")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
