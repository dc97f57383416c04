"""What a replica's machine tells: its real CPU and memory, and GPUs through whatever `nvidia-smi` says."""

from __future__ import annotations

import stat
import time

import pytest

from tandemn.protocol.replicas import MAX_GPUS, EngineReading, GpuReading
from tandemn.runner import machine
from tandemn.runner.engine_supervisor import per_second
from tandemn.runner.machine import FAILURES, Machine, parse_gpus

#: As the driver writes it on a machine of two H100s.
TWO = "37, 70012, 81559\n0, 4, 81559\n"


@pytest.fixture
def driver(tmp_path):
    """Make an `nvidia-smi` of a shell script."""

    def write(script: str) -> str:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


async def test_cpu_and_memory_are_always_told():
    read = await Machine().read()
    assert 0 <= read.cpu_use <= 1
    assert 0 < read.memory_used_bytes < read.memory_total_bytes
    assert read.gpus == []


async def test_gpus_are_told_as_the_driver_tells_them(driver, tmp_path):
    asked = tmp_path / "asked"
    read = await Machine(driver(f'echo "$@" > {asked}; printf "{TWO}"')).read()
    assert [(gpu.use, gpu.memory_used_bytes, gpu.memory_total_bytes) for gpu in read.gpus] == [
        (0.37, 70012 * 2**20, 81559 * 2**20),
        (0.0, 4 * 2**20, 81559 * 2**20),
    ]
    assert "utilization.gpu,memory.used,memory.total" in asked.read_text()


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("", []),
        ("No devices were found\n", []),
        ("[N/A], 12, 100\n", [GpuReading(memory_used_bytes=12 * 2**20, memory_total_bytes=100 * 2**20)]),
        ("[Not Supported], [Not Supported], [Not Supported]\n", [GpuReading()]),
        ("nan, inf, -1\n", [GpuReading()]),
        ("250, 1, 2\n", [GpuReading(use=1.0, memory_used_bytes=2**20, memory_total_bytes=2**21)]),
    ],
)
def test_what_is_not_told_is_none(text, gpus):
    assert parse_gpus(text) == gpus


def test_gpus_without_end_are_bounded():
    assert len(parse_gpus("1, 2, 3\n" * 1000)) == MAX_GPUS


async def test_a_driver_that_fails_or_hangs_costs_nothing_else_and_is_asked_no_more(
    driver, tmp_path, monkeypatch
):
    monkeypatch.setattr(machine, "GPUS_S", 0.2)
    asked = tmp_path / "asked"
    for script in (f"echo >> {asked}; exit 9", f"echo >> {asked}; exec sleep 60"):
        asked.write_text("")
        it = Machine(driver(script))
        began = time.monotonic()
        for _ in range(FAILURES + 3):
            read = await it.read()
            assert read.gpus == []
            assert read.memory_total_bytes > 0
        assert asked.read_text().count("\n") == FAILURES
        assert time.monotonic() - began < 30


async def test_a_driver_that_is_gone_is_no_fault():
    assert (await Machine("/nowhere/nvidia-smi").read()).gpus == []


@pytest.mark.parametrize(
    ("before", "now", "passed_s", "rate"),
    [
        (None, 5, 2.0, None),
        (5, None, 2.0, None),
        (100, 5, 2.0, None),
        (5, 9, 0.0, None),
        (5, 9, 2.0, 2.0),
    ],
)
def test_the_engines_rate_is_between_two_readings(before, now, passed_s, rate):
    assert per_second(before, now, passed_s) == rate


def test_an_engine_tells_nothing_before_its_first_reading():
    assert EngineReading().tokens_per_s is None
