"""A process is known again by its pid and start time, whatever the clock does and whatever it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import psutil
import pytest

from tandemn import processes


@pytest.fixture
def sleeper(tmp_path):
    """A process whose name reads like fields of its own `stat`."""
    program = tmp_path / "a) S 1 (b"
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    while psutil.Process(process.pid).name() != program.name:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_it_started_when_psutil_says(sleeper):
    told = psutil.Process(sleeper.pid).create_time() - psutil.boot_time()
    assert processes.start_time(sleeper.pid) == pytest.approx(told, abs=0.02)
    assert 0 <= processes.age_s(processes.start_time(sleeper.pid)) < 30


def test_it_is_the_same_after_the_clock_was_set(sleeper, monkeypatch):
    started = processes.start_time(sleeper.pid)
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 1)
    assert psutil.boot_time() == boot + 1
    found = processes.living(sleeper.pid, started)
    assert found is not None
    assert found.pid == sleeper.pid
    assert processes.living(sleeper.pid, started - 1) is None, "its pid was another's a second earlier"


def test_one_that_has_ended_is_not_living_before_its_parent_asks(sleeper):
    started = processes.start_time(sleeper.pid)
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert processes.living(sleeper.pid, started) is None
    sleeper.wait()
    assert processes.living(sleeper.pid, started) is None
    with pytest.raises(psutil.NoSuchProcess):
        processes.start_time(sleeper.pid)


@pytest.mark.parametrize("pid", [-1, 1 << 70, 1 << 22])
def test_a_pid_that_cannot_be_is_nobodys(pid):
    assert processes.living(pid, 0.0) is None
    assert processes.living(os.getpid(), 0.0) is None
