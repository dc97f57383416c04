from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.fakes.user_api import FakeControlPlane

from tandemn.cli.app import run


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Tandemn = Callable[..., Result]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEMN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TANDEMN_SERVER_URL", raising=False)
    return tmp_path / "home"


@pytest.fixture
def plane(monkeypatch, home) -> Iterator[FakeControlPlane]:
    with FakeControlPlane() as plane:
        monkeypatch.setenv("TANDEMN_SERVER_URL", plane.url)
        yield plane


@pytest.fixture
def tandemn(capfd) -> Tandemn:
    def call(*arguments: str) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"custom_id": "a"}\n{"custom_id": "b"}\n')
    return path
