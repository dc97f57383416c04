"""(d) Assembly: joining chunk objects into one output, and what the disk itself can do.

The chunk objects are in the page cache, as those of a job that has just ended are. In the same run, beside
each other: `cp` of as many bytes, and writing them from memory, each with and without a sync.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUT_BYTES = 1_200_000_000
CHUNK_OBJECT_BYTES = 600_000
TARGET_MB_PER_S = 1000.0


async def measure(folder: Path, *, output_bytes: int = OUTPUT_BYTES, rounds: int = 3) -> dict[str, Any]:
    """MB/s of assembly and of the disk, medians of `rounds`."""
    count = output_bytes // CHUNK_OBJECT_BYTES
    data = (b"x" * 299 + b"\n") * (CHUNK_OBJECT_BYTES // 300)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        store = ObjectStore.open(root)
        names = [f"chunks/{n:06}/1-1.output" for n in range(count)]
        for each in names:
            await store.put(each, data)
        os.sync()
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            began = time.perf_counter()
            size = await store.concat("output.jsonl", names)
            rates.setdefault("assembly", []).append(size / (time.perf_counter() - began) / 1e6)
            for what, write in _DISK.items():
                rates.setdefault(what, []).append(_rate(root, write, root / "output.jsonl", size))
            await store.delete("output.jsonl")
    medians = {f"{what}_mb_per_s": round(statistics.median(each), 1) for what, each in rates.items()}
    # The same promise as assembly's: the bytes are on the disk.
    disk = max(medians["cp_synced_mb_per_s"], medians["write_synced_mb_per_s"])
    ratio = medians["assembly_mb_per_s"] / disk
    return {"objects": count, "bytes": size, **medians, "of_the_disk": round(ratio, 3)}


def _rate(root: Path, write: Callable[[Path, Path, int], None], source: Path, size: int) -> float:
    target = root / "disk"
    os.sync()
    began = time.perf_counter()
    write(source, target, size)
    took = time.perf_counter() - began
    target.unlink()
    return size / took / 1e6


def _cp(source: Path, target: Path, size: int) -> None:
    del size
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)


def _cp_synced(source: Path, target: Path, size: int) -> None:
    _cp(source, target, size)
    _sync(target)


def _write(source: Path, target: Path, size: int) -> None:
    del source
    block = b"x" * (1 << 20)
    with target.open("wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)


def _write_synced(source: Path, target: Path, size: int) -> None:
    _write(source, target, size)
    _sync(target)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


_DISK: dict[str, Callable[[Path, Path, int], None]] = {
    "cp": _cp,
    "cp_synced": _cp_synced,
    "write": _write,
    "write_synced": _write_synced,
}
