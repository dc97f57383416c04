"""Data in and out of a batch job: validating a large input in its own process, and assembling an output.

    python -m benchmarks.batch_data [--lines N] [--output-bytes N] [--folder DIR]

Prints JSON. Validation is measured from asking to answer, the start of its process included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from tandemn.batch.input_process import Parameters, validate_in_process
from tandemn.objects import ObjectStore

LINE_BYTES = 300
LINES = 1_000_000
OUTPUT_BYTES = 1_200_000_000
CHUNK_OBJECT_BYTES = 600_000
MIB = 1024 * 1024


def request_line(number: int, line_bytes: int = LINE_BYTES) -> bytes:
    """One chat request of exactly `line_bytes` bytes, its LF included."""
    body = {"model": "demo/tiny", "messages": [{"role": "user", "content": ""}], "max_tokens": 64}
    line = {
        "custom_id": f"request-{number:08}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    bare = msgspec.json.encode(line)
    body["messages"] = [{"role": "user", "content": "x" * (line_bytes - 1 - len(bare))}]
    return msgspec.json.encode(line) + b"\n"


async def write_input(store: ObjectStore, name: str, lines: int) -> int:
    """Store an input of `lines` requests; return its bytes."""

    async def blocks() -> Any:
        step = 10_000
        for first in range(0, lines, step):
            yield b"".join(request_line(n) for n in range(first, min(first + step, lines)))

    return await store.put_stream(name, blocks())


async def measure_validation(store: ObjectStore, lines: int) -> dict[str, float]:
    """Seconds, lines/s, MB/s and the process's peak memory for an input of `lines` requests."""
    size = await write_input(store, "input.jsonl", lines)
    begun = time.perf_counter()
    parameters = Parameters(
        store=store.url, name="input.jsonl", index_store=store.url, index_name="input.index"
    )
    report = await validate_in_process(parameters)
    took = time.perf_counter() - begun
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert report.requests == lines
    assert report.is_valid
    return {
        "lines": lines,
        "bytes": size,
        "seconds": round(took, 3),
        "lines_per_s": round(lines / took),
        "mb_per_s": round(size / took / 1e6, 1),
        "child_cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        # The largest child that has ended: the only one this program starts.
        "child_peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


async def measure_assembly(store: ObjectStore, output_bytes: int) -> dict[str, float]:
    """MB/s of joining many chunk objects into one, their pages in memory; the result is on the disk.

    In the same run: the rate of the disk itself, for as many bytes from memory.
    """
    count = output_bytes // CHUNK_OBJECT_BYTES
    data = (b"x" * 299 + b"\n") * (CHUNK_OBJECT_BYTES // 300)
    names = [f"chunks/{n:06}/1-1.output" for n in range(count)]
    for name in names:
        await store.put(name, data)
    begun = time.perf_counter()
    size = await store.concat("output.jsonl", names)
    took = time.perf_counter() - begun
    return {
        "objects": count,
        "bytes": size,
        "seconds": round(took, 3),
        "mb_per_s": round(size / took / 1e6, 1),
        "disk_mb_per_s": round(disk_rate(store, data, size), 1),
    }


def disk_rate(store: ObjectStore, block: bytes, size: int) -> float:
    """MB/s of writing `size` bytes to a file beside the objects and syncing it."""
    assert store.local_root is not None
    with tempfile.NamedTemporaryFile(dir=store.local_root, buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(0, size, len(block)):
            file.write(block)
        os.fsync(file.fileno())
        return size / (time.perf_counter() - begun) / 1e6


async def measure(folder: Path, lines: int, output_bytes: int) -> dict[str, Any]:
    """Both measurements, in a folder that is emptied afterwards."""
    store = ObjectStore.open(folder)
    try:
        return {
            "validation": await measure_validation(store, lines),
            "assembly": await measure_assembly(store, output_bytes),
        }
    finally:
        for prefix in ("chunks",):
            await store.delete_prefix(prefix)
        for name in ("input.jsonl", "input.index", "output.jsonl"):
            await store.delete(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--output-bytes", type=int, default=OUTPUT_BYTES)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(
            json.dumps(asyncio.run(measure(given.folder or Path(temporary), given.lines, given.output_bytes)))
        )


if __name__ == "__main__":
    main()
