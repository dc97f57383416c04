"""A deployment on one machine, from `tandemn deploy` to `tandemn destroy`, under load, kills and silence."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
from tests.fakes.router_rig import Events, ask, text_of
from tests.process import watch
from tests.process.conftest import built

from tandemn.protocol.replicas import Market
from tandemn.serving.local.folder import fleet_folder

if TYPE_CHECKING:
    from tests.process.house import House


NAME = "one"
#: Spot is slow to come, as in a cloud; longer than a serverless cold start on a busy machine, or it proves nothing.
SPOT_START_S = 12.0
POLICY = """
spot: {max_replicas: 2, target_qps: 1000, upscale_delay: 0, downscale_delay: 5}
serverless: {scaledown_window: 3, concurrency: 16}
"""
#: Long enough that a kill always meets streams half-way.
STREAM_TOKENS = 1500
#: Greedy and without an end: every answer to the same question is the same.
ASKED: dict[str, Any] = {
    "model": "demo/tiny",
    "messages": [{"role": "user", "content": "tell me more"}],
    "temperature": 0,
    "logit_bias": [[2, False]],
    "ignore_eos": True,
}


class Endpoint:
    def __init__(self, url: str, key: str) -> None:
        self.port = int(urlsplit(url).port or 0)
        self.key = key

    def ask(self, tokens: int) -> str:
        status, _, body = ask(self.port, ASKED | {"max_tokens": tokens}, key=self.key)
        assert status == 200, body
        text: str = json.loads(body)["choices"][0]["message"]["content"]
        return text

    def stream(self, tokens: int) -> str:
        events = Events(self.port, ASKED | {"max_tokens": tokens}, key=self.key)
        try:
            assert events.status == 200
            seen = list(events)
            assert seen[-1] == "[DONE]"
            return "".join(map(text_of, seen))
        finally:
            events.close()

    def metrics(self) -> dict[str, float]:
        _, _, text = ask(self.port, path="/metrics", key=self.key, method="GET")
        lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def requests(self, backend: str) -> float:
        return self.metrics().get(f'tandemn_router_requests_total{{backend="{backend}"}}', 0.0)

    def in_flight(self, backend: str) -> float:
        return self.metrics()[f'tandemn_router_inflight{{backend="{backend}"}}']


class Load:
    """Clients that ask without a pause, streams and whole answers; every failure and every wrong word is kept."""

    def __init__(self, endpoint: Endpoint, whole: str) -> None:
        self.endpoint, self.whole = endpoint, whole
        self.failures: list[str] = []
        self.answers = 0
        self._is_over = threading.Event()
        kinds = [(endpoint.stream, STREAM_TOKENS)] * 3 + [(endpoint.ask, 64)] * 3
        self._threads = [threading.Thread(target=self._run, args=kind) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def _run(self, call: Any, tokens: int) -> None:
        while not self._is_over.is_set():
            try:
                text = call(tokens)
                if text != self.whole[:tokens]:
                    self.failures.append(f"another answer: {text!r}")
            except Exception as exc:  # noqa: BLE001 - whatever it is, a client would have seen it
                self.failures.append(repr(exc))
            self.answers += 1

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def house() -> Any:
    with built(TANDEMN_LOCAL_SPOT_START_S=str(SPOT_START_S)) as house:
        yield house


def replicas(house: House, market: Market) -> list[Any]:
    """As the fleet process tells them: whoever else is dead."""
    report = fleet_folder(house.home, f"tandemn-{NAME}").report()
    return [] if report is None else list(report.backends[market].replicas)


def ready_spot(house: House) -> int | None:
    """The pid of the spot replica that is ready, as `tandemn status` shows it."""
    shown = house.json("status", "--service-name", NAME)
    (spot,) = (each for each in shown["backends"] if each["market"] == "spot")
    ready = [each["pid"] for each in spot["replicas"] if each["state"] == "ready"]
    return ready[0] if ready else None


def has_shifted(house: House, endpoint: Endpoint) -> bool:
    """Whether spot answers, and it alone: the long streams that serverless began are over, too."""
    serverless, spot = endpoint.requests("serverless"), endpoint.requests("spot")
    time.sleep(0.5)
    is_alone = endpoint.requests("serverless") == serverless and endpoint.in_flight("serverless") == 0
    return is_alone and endpoint.requests("spot") > spot + 5


def test_a_deployment_lives_through_everything(house: House) -> None:
    policy = house.home / "policy.yaml"
    policy.write_text(POLICY)
    deploy = ["deploy", "--model", "demo/tiny", "--gpu", "cpu", "--cloud", "local", "--service-name", NAME]
    done = house.run(*deploy, "--scaling-policy", str(policy), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    endpoint = Endpoint(told["endpoint"], told["api_key"])

    # The first answers are serverless's: spot boots.
    whole = endpoint.ask(STREAM_TOKENS)
    assert len(whole) == STREAM_TOKENS
    assert endpoint.requests("serverless") >= 1
    assert endpoint.requests("spot") == 0
    assert [each.state for each in replicas(house, Market.SPOT)] == ["booting"]

    load = Load(endpoint, whole)
    try:
        # Traffic shifts, nobody is dropped.
        house.wait_for(lambda: has_shifted(house, endpoint))
        first = house.wait_for(lambda: ready_spot(house))
        # The only spot replica dies under it: it is replaced, and traffic returns.
        os.kill(first, signal.SIGKILL)
        second = house.wait_for(lambda: (pid := ready_spot(house)) and pid != first and pid)
        house.wait_for(lambda: has_shifted(house, endpoint))
        assert endpoint.metrics()['tandemn_router_resumes_total{backend="spot"}'] >= 1
        # So does the control plane, and after it spot once more: nobody is left but the fleet process.
        watch.kill_server(house)
        os.kill(second, signal.SIGKILL)
        house.wait_for(
            lambda: {each.pid for each in replicas(house, Market.SPOT) if each.state == "ready"} - {second}
        )
        house.wait_for(lambda: has_shifted(house, endpoint))
    finally:
        load.end()
    assert load.failures == []
    assert load.answers > 50

    # Nobody asks: nothing runs but the fleet process and the router, and the next request is answered all the same.
    house.wait_for(lambda: not replicas(house, Market.SERVERLESS) and not replicas(house, Market.SPOT))
    assert engines(house) == []
    assert endpoint.ask(64) == whole[:64]

    # A new control plane takes over what it never started, and ends it.
    done = house.run("destroy", "--service-name", NAME, "--yes")
    assert done.returncode == 0, done.stderr
    left = [process for process in house.processes() if "tandemn.control" not in process.cmdline()]
    assert [process.name() for process in left if "redis" not in process.name()] == []


def engines(house: House) -> list[psutil.Process]:
    found = []
    for process in house.processes():
        with suppress(psutil.Error):
            if any("tandemn.fleet.engines" in part for part in process.cmdline()):
                found.append(process)
    return found
