"""A day of a deployment in a few minutes: bursts, silence, two preemptions; what was metered against what was lived.

`make day` lives through it at the pace of `Day()`; the suite does so in a minute. The truth is the local provider's own
record of when each of its processes began and ended; the metered figure is made of the router's meter and of looks
from outside, as it is with a cloud.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.fakes.router_rig import ask
from tests.process.conftest import built

from tandemn.protocol.replicas import Market
from tandemn.serving.local.folder import fleet_folder
from tandemn.serving.local.lifetimes import LifetimeLog

if TYPE_CHECKING:
    from tests.process.house import House

NAME = "day"
#: A dollar a second, and two: figures read as seconds.
SPOT_USD, SERVERLESS_USD = 3600, 7200
POLICY = """
spot: {max_replicas: 2, target_qps: 40, upscale_delay: 0, downscale_delay: 4}
serverless: {scaledown_window: 4, concurrency: 8}
"""


@dataclass(frozen=True)
class Day:
    """How long it is, and what happens in it."""

    hours: int = 24
    hour_s: float = 8.0
    """How long an hour takes."""
    begins: int = 0
    """The hour of the day at which it begins; nobody is awake before five."""
    preemptions: int = 2
    spot_start_s: float = 2.0
    seed: int = 20261125


@dataclass
class Figures:
    requests: int
    failed: int
    serverless_lived: float
    serverless_metered: float
    spot_lived: float
    spot_metered: float
    lived_usd: float
    metered_usd: float
    off: float
    """(metered - lived) / lived."""
    saved_of_serverless: float | None
    spot_share: float
    preemptions: int


class Traffic:
    """Clients of which some come and go with the hour: most at noon, none at night, and bursts in between."""

    def __init__(self, endpoint: str, key: str, day: Day) -> None:
        self._port, self._key = int(urlsplit(endpoint).port or 0), key
        chance = random.Random(day.seed)
        hours = range(day.begins, day.begins + day.hours)
        self.levels = [0 if hour % 24 < 5 else chance.choice((0, 1, 3, 6)) for hour in hours]
        # Somebody is awake in every part of the day that has a day.
        self.levels[day.hours // 2] = 6
        self.requests = self.failed = 0
        self._level = 0
        self._is_over = False
        self._lock = threading.Lock()
        self._clients = [threading.Thread(target=self._ask, args=(n,)) for n in range(max(self.levels))]
        for each in self._clients:
            each.start()

    def live(self, hour: int) -> None:
        self._level = self.levels[hour]

    def end(self) -> None:
        self._is_over, self._level = True, 0
        for each in self._clients:
            each.join()

    def _ask(self, number: int) -> None:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": str(number)}], "max_tokens": 24}
        while not self._is_over:
            if number >= self._level:
                time.sleep(0.02)
                continue
            try:
                is_good = ask(self._port, body, key=self._key)[0] == 200
            except OSError:
                is_good = False
            with self._lock:
                self.requests += 1
                self.failed += not is_good
            time.sleep(0.03)


def live_a_day(house: House, day: Day) -> Figures:
    """Deploy, let the hours pass, wait until all is asleep, and compare."""
    policy = house.home / "policy.yaml"
    policy.write_text(POLICY)
    asked = ("--model", "demo/tiny", "--gpu", "cpu", "--cloud", "local", "--service-name", NAME)
    done = house.run("deploy", *asked, "--scaling-policy", str(policy), "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    traffic = Traffic(told["endpoint"], told["api_key"], day)
    busy = [hour for hour, level in enumerate(traffic.levels) if level >= 3]
    preempt_at = busy[:: max(1, len(busy) // day.preemptions)][: day.preemptions]
    preempted = 0
    try:
        for hour in range(day.hours):
            traffic.live(hour)
            time.sleep(day.hour_s / 2)
            if hour in preempt_at:
                preempted += _preempt(house, day.hour_s)
            time.sleep(day.hour_s / 2)
    finally:
        traffic.end()
    house.wait_for(lambda: not _running(house))
    lived = _lived(house)
    # The meter is read every five seconds, and replicas are looked at every second.
    cost = house.wait_for(lambda: _settled(house))
    metered = {part["part"]: float(part["at_least_usd"]) for part in cost["parts"]}
    lived_usd, metered_usd = sum(lived.values()), float(cost["usd"])
    routed = {each["backend"]: each["requests"] for each in cost["routes"]}
    done = house.run("destroy", "--service-name", NAME, "--yes")
    assert done.returncode == 0, done.stderr
    return Figures(
        requests=traffic.requests,
        failed=traffic.failed,
        serverless_lived=lived[Market.SERVERLESS],
        serverless_metered=metered.get("serverless", 0.0),
        spot_lived=lived[Market.SPOT],
        spot_metered=metered.get("spot", 0.0),
        lived_usd=lived_usd,
        metered_usd=metered_usd,
        off=(metered_usd - lived_usd) / lived_usd,
        saved_of_serverless=cost["against_serverless"]["saved_share"],
        spot_share=routed.get("spot", 0) / max(1, sum(routed.values())),
        preemptions=preempted,
    )


def _preempt(house: House, patience_s: float) -> int:
    """Kill a spot replica that is ready, as a cloud does: without a word."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        report = fleet_folder(house.home, f"tandemn-{NAME}").report()
        ready = [] if report is None else report.backends[Market.SPOT].replicas
        pids = [each.pid for each in ready if each.state == "ready" and each.pid]
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            return 1
        time.sleep(0.05)
    return 0


def _running(house: House) -> bool:
    report = fleet_folder(house.home, f"tandemn-{NAME}").report()
    return report is None or any(each.replicas for each in report.backends.values())


def _settled(house: House) -> dict[str, Any] | None:
    """The cost, once two looks a reading apart agree and nothing runs any more."""
    first = house.json("cost", "--service-name", NAME)
    time.sleep(6.0)
    second = house.json("cost", "--service-name", NAME)
    is_done = first["usd"] == second["usd"] and Decimal(second["usd_per_hour"]) == 0
    return second if is_done else None


def _lived(house: House) -> dict[Market, float]:
    log = LifetimeLog(fleet_folder(house.home, f"tandemn-{NAME}").lifetimes)
    now = time.time() + 60.0
    return {market: float(log.total(market, 0.0, now)[1]) for market in (Market.SERVERLESS, Market.SPOT)}


def settings(day: Day) -> dict[str, str]:
    return {
        "TANDEMN_LOCAL_SPOT_START_S": str(day.spot_start_s),
        "TANDEMN_LOCAL_USD_PER_HOUR": str(SPOT_USD),
        "TANDEMN_LOCAL_SERVERLESS_USD_PER_HOUR": str(SERVERLESS_USD),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=int, default=Day.hours)
    parser.add_argument("--hour-s", type=float, default=Day.hour_s)
    given = parser.parse_args()
    day = Day(hours=given.hours, hour_s=given.hour_s)
    with built(**settings(day)) as house:
        figures = live_a_day(house, day)
    sys.stdout.write(json.dumps(asdict(figures), indent=2) + "\n")
    sys.exit(0 if abs(figures.off) <= 0.01 and not figures.failed else 1)


if __name__ == "__main__":
    main()
