"""The speed of batch jobs: whole job, submit, queue, assembly. Prints what was measured against its target.

    python -m benchmarks.batch [a] [b] [c] [d] [--requests N] [--rounds N] [--json]

benchmarks/README.md says what each part measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import assembly, chunk_queue, submit, whole_job
from benchmarks.product import control_plane

if TYPE_CHECKING:
    from collections.abc import Callable


def part_a(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Whole job / minimal client."""
    with control_plane(folder) as product:
        found = {
            "measured": whole_job.measure(
                product, folder, engine="llamacpp", requests=options.requests, rounds=options.rounds
            )
        }
        if options.stress:
            found["stress"] = whole_job.measure(
                product, folder, engine="simulated", requests=options.requests, rounds=options.rounds
            )
    ratio = found["measured"]["ratio"]
    return {**found, "target": f"ratio >= {whole_job.TARGET}", "is_met": ratio >= whole_job.TARGET}


def part_b(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Submit."""
    with control_plane(folder) as product:
        found = submit.measure(product, folder, lines=options.lines, chunk_size=options.chunk_size)
    is_met = found["seconds"] <= submit.TARGET_S and found["peak_mb"]["pss"] <= submit.TARGET_MB
    return {**found, "target": f"<= {submit.TARGET_S:g} s, <= {submit.TARGET_MB:g} MB", "is_met": is_met}


def part_c(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Queue."""
    found = chunk_queue.run(folder, chunks=options.chunks, callers=options.callers)
    rate = found["in_flight"]["pairs_per_s"]
    target = f">= {chunk_queue.TARGET_PER_S} pairs/s"
    return {**found, "target": target, "is_met": rate >= chunk_queue.TARGET_PER_S}


def part_d(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Assembly."""
    found = asyncio.run(assembly.measure(folder, output_bytes=options.output_bytes))
    target = f">= {assembly.TARGET_MB_PER_S:g} MB/s"
    return {**found, "target": target, "is_met": found["assembly_mb_per_s"] >= assembly.TARGET_MB_PER_S}


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "a": part_a,
    "b": part_b,
    "c": part_c,
    "d": part_d,
}


def main() -> int:
    options = _options()
    found: dict[str, Any] = {}
    for part in options.parts or PARTS:
        load = os.getloadavg()[0]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="tandemn-bench-") as folder:
            found[part] = PARTS[part](options, Path(folder))
        found[part]["load_before"] = round(load, 1)
        found[part]["took_s"] = round(time.perf_counter() - began, 1)
        if not options.json:
            print(f"({part}) {PARTS[part].__doc__} {json.dumps(found[part], indent=2)}", flush=True)
    if options.json:
        print(json.dumps(found))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="a|b|c|d", help="all of them where none is named")
    parser.add_argument("--requests", type=int, default=20_000, help="of the whole job (a)")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of client and job (a)")
    parser.add_argument("--stress", action="store_true", help="also an engine that answers at once (a)")
    parser.add_argument("--lines", type=int, default=submit.LINES, help="of the input (b)")
    parser.add_argument("--chunk-size", type=int, help="requests of a chunk (b); planned where not given")
    parser.add_argument("--chunks", type=int, default=chunk_queue.CHUNKS, help="in the queue (c)")
    parser.add_argument("--callers", type=int, default=chunk_queue.CALLERS, help="in flight (c)")
    parser.add_argument("--output-bytes", type=int, default=assembly.OUTPUT_BYTES, help="assembled (d)")
    parser.add_argument("--folder", type=Path, help="where everything is written; else the temporary folder")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
