from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.process.house import House

from tandemn.cli.app import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def built(**environment: str) -> Iterator[House]:
    """A fresh state folder; whatever a test starts in it has ended when it is over."""
    home = Path(tempfile.mkdtemp(prefix="tdm-"))
    house = House(home, **environment)
    try:
        yield house
    finally:
        try:
            house.close()
        finally:
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def house() -> Iterator[House]:
    """A house for one test."""
    with built() as house:
        yield house


@pytest.fixture(scope="module")
def shared_house() -> Iterator[House]:
    """A house for all tests of a file: a control plane takes seconds to start and stop."""
    with built(TANDEMN_FLUSH_S="0.5") as house:
        yield house


@pytest.fixture
def here(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process, against a house that is served already: a second cheaper than `House.run`."""

    def call(house: House, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(house.home)
        monkeypatch.setenv("TANDEMN_HOME", str(house.home))
        if url is None:
            monkeypatch.delenv("TANDEMN_SERVER_URL", raising=False)
        else:
            monkeypatch.setenv("TANDEMN_SERVER_URL", url)
        capfd.readouterr()
        code = run(arguments)
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return call
