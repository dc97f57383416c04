"""(b) Submit: a large input through `tandemn deploy` until the job is planned; then it is cancelled.

Memory is the sum over the command line, the control plane and the validation process, sampled: as PSS,
which counts a page that two of them share once, and as RSS, which counts it twice.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.inputs import MODEL, sized_line, write_lines
from benchmarks.product import finish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.product import Product

LINES, LINE_BYTES = 1_000_000, 300
TARGET_S, TARGET_MB = 8.0, 300.0
#: Between two samples of memory.
_SAMPLE_S = 0.05
#: Between two looks at whether the job is planned.
_LOOK_S = 0.02


def measure(
    product: Product, folder: Path, *, lines: int = LINES, chunk_size: int | None = None
) -> dict[str, Any]:
    """Seconds to `validated and planned`, lines/s, MB/s and peak memory."""
    source = folder / "submit.jsonl"
    size = write_lines(source, (sized_line(number, line_bytes=LINE_BYTES) for number in range(lines)))
    flags = ["--slo", "100h", "--cloud", "local", "--replicas", "1", "--json"]
    flags += ["--chunk-size", str(chunk_size)] if chunk_size else []
    before_s = _cpu_s(product.pid)
    began = time.perf_counter()
    command = product.start("deploy", MODEL, str(source), *flags)
    with _sampled(command.pid, product.pid) as memory:
        job_id = json.loads(finish(command))["job_id"]
        returned = time.perf_counter() - began
        planned_s = _await_planned(product, job_id) + returned
    server_cpu_s = _cpu_s(product.pid) - before_s
    status = product.json("status", job_id)
    product.run("destroy", job_id, "--yes")
    return {
        "lines": lines,
        "bytes": size,
        "chunks": status["chunks"]["total"],
        "seconds": round(planned_s, 2),
        "command_s": round(returned, 2),
        "lines_per_s": round(lines / planned_s),
        "mb_per_s": round(size / planned_s / 1e6, 1),
        "server_cpu_s": round(server_cpu_s, 2),
        "peak_mb": memory,
    }


def _await_planned(product: Product, job_id: str) -> float:
    """Seconds from now until the job has left planning, by the times of its events."""
    now = time.time()
    while True:
        events = map(json.loads, product.run("events", job_id, "--json").splitlines())
        planned: list[float] = [each["at"] for each in events if each["kind"] == "job_planned"]
        if planned:
            return max(0.0, planned[0] - now)
        time.sleep(_LOOK_S)


@contextmanager
def _sampled(command: int, server: int) -> Iterator[dict[str, float]]:
    """Give a mapping that holds, after the block, the peaks in MB, and who had what at the peak."""
    peak: dict[str, float] = {"pss": 0.0, "rss": 0.0, "redis": 0.0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            pss, rss = _memory(command, server)
            redis = pss.pop("redis", 0.0)
            if sum(pss.values()) > peak["pss"]:
                peak.update(pss=round(sum(pss.values()), 1), redis=round(redis, 1))
                peak.update({name: round(value, 1) for name, value in pss.items()})
            peak["rss"] = round(max(peak["rss"], rss), 1)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _memory(command: int, server: int) -> tuple[dict[str, float], float]:
    """PSS of each part, and the sum of the RSS without Redis's, in MB."""
    pss: dict[str, float] = {}
    rss = 0.0
    for process in _processes(command, server):
        try:
            name = {command: "command", server: "server"}.get(process.pid, "validation")
            name = "redis" if "redis" in process.name() else name
            found = process.memory_full_info()
        except psutil.Error:
            continue
        pss[name] = pss.get(name, 0.0) + found.pss / 1e6
        rss += found.rss / 1e6 if name != "redis" else 0.0
    return pss, rss


def _processes(command: int, server: int) -> list[psutil.Process]:
    found = []
    for pid in (command, server):
        try:
            process = psutil.Process(pid)
            below = [each for each in process.children() if "tandemn.runner" not in each.cmdline()]
            found += [process, *below]
        except psutil.Error:
            continue
    return found


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system
