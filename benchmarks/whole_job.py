"""(a) A whole job on one local replica, against the minimal client: client time / job time.

The job is `tandemn deploy … -o OUT` from its start to its end, the control plane running before: upload,
validation, planning, a replica and its engine started, answers computed, stored, assembled and fetched. The
client's time runs from the start of its process to its last answer. They take turns, in alternating order.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.inputs import MODEL, generating_line, write_lines
from benchmarks.product import finish

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.product import Product

TARGET = 0.95


def measure(product: Product, folder: Path, *, engine: str, requests: int, rounds: int) -> dict[str, Any]:
    """Measure `rounds` pairs; the figure is the median of their ratios."""
    source = folder / "whole-job.jsonl"
    write_lines(source, (generating_line(number, tokens=64) for number in range(requests)))
    _warm_up(product, folder, engine)
    pairs = []
    for turn in range(rounds):
        runs = {}
        for what in (_client, _job) if turn % 2 else (_job, _client):
            runs[what] = what(product, source, folder / "answers.jsonl", engine)
            assert _lines(folder / "answers.jsonl") == requests, "every request has its answer"
        pairs.append({"client_s": round(runs[_client], 2), "job_s": round(runs[_job], 2)})
        pairs[-1]["ratio"] = round(runs[_client] / runs[_job], 3)
        print(f"{engine}, {requests} requests: {pairs[-1]}", file=sys.stderr, flush=True)
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    return {"engine": engine, "requests": requests, "pairs": pairs, "ratio": round(ratio, 3)}


def _warm_up(product: Product, folder: Path, engine: str) -> None:
    """Have the model built, and everything in the page cache."""
    source = folder / "warm-up.jsonl"
    write_lines(source, (generating_line(number, tokens=4) for number in range(50)))
    for what in (_job, _client):
        what(product, source, folder / "answers.jsonl", engine)


def _job(product: Product, source: Path, output: Path, engine: str) -> float:
    flags = ("--slo", "8h", "--cloud", "local", "--replicas", "1", "--engine", engine)
    began = time.perf_counter()
    product.run("deploy", MODEL, str(source), *flags, "-o", str(output))
    return time.perf_counter() - began


def _client(product: Product, source: Path, output: Path, engine: str) -> float:
    command = [sys.executable, "-m", "benchmarks.minimal_client", str(source), str(output)]
    began = time.perf_counter()
    client = subprocess.Popen(
        [*command, "--engine", engine],
        env=product.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    client.stdout.readline()
    took = time.perf_counter() - began
    finish(client)
    return took


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
