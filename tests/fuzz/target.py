"""Coverage-guided fuzzing of one function, with libFuzzer's own watch over hangs and memory."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: One input may take so long; more is a hang.
HANG_S = 20
#: Memory of the whole process; more is a leak.
RSS_MB = 1024
LONGEST_INPUT = 4096


def run(name: str, check: Callable[[bytes], None], seeds: Sequence[bytes], modules: Sequence[str]) -> None:
    """Call `check` with made-up bytes until the time is over; it raises where something is wrong.

    Ends the process: 0 where nothing was found, else libFuzzer's code, with the input in a file that it names.

    Args:
        name: of this part.
        check: raises what it does not expect.
        seeds: inputs to begin with.
        modules: names of the modules whose coverage guides.
    """
    parser = argparse.ArgumentParser(prog=f"tests.fuzz.{name}")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", type=Path, help="call once with the bytes of this file")
    options = parser.parse_args()
    with atheris.instrument_imports(include=list(modules)):
        for module in modules:
            __import__(module)
    if options.replay is not None:
        check(options.replay.read_bytes())
        return
    calls = 0
    began = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal calls
        calls += 1
        check(data)
        if time.monotonic() - began > options.seconds:
            rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
            figures = {
                "part": name,
                "seconds": options.seconds,
                "cases": calls,
                "failures": 0,
                "rss_mb": rss_mb,
            }
            print(json.dumps(figures))
            sys.stdout.flush()
            os._exit(0)  # libFuzzer takes every other way out for a crash

    with tempfile.TemporaryDirectory(prefix="tandemn-fuzz-") as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        arguments = [f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_MB}", f"-max_len={LONGEST_INPUT}"]
        arguments += [f"-artifact_prefix={Path.cwd()}/{name}-", "-verbosity=0", folder]
        atheris.Setup([sys.argv[0], *arguments], one)
        atheris.Fuzz()
