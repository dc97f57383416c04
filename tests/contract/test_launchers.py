"""What every launcher does, wherever its replicas run: one suite, run unchanged on each."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
from tests.fakes.control_plane import ControlPlane
from tests.fakes.sky import FakeSky, until

from tandemn.fleet.launchers.launcher import Handle, Launcher, LaunchSpec
from tandemn.fleet.launchers.local import LocalLauncher
from tandemn.fleet.launchers.skypilot import SkyPilotLauncher, keep_log
from tandemn.fleet.launchers.skypilot_watch import Watch
from tandemn.fleet.launchers.tunnels import Tunnels
from tandemn.fleet.reconcile import Presence
from tandemn.placement.catalog.offers import Offer
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import Market
from tandemn.skypilot.environment import SkyPilot

TOKEN = "a-replica-token"
CONFIG = ReplicaConfig(gpu="L4", market=Market.SPOT)


@dataclass
class House:
    """One launcher, and what a test may do behind its back."""

    launcher: Launcher
    again: Callable[[], Launcher]
    """Another launcher of the same state folder: the control plane was started again."""
    take_away: Callable[[Handle], None]
    """The replica goes without a word."""
    serve: Callable[[str], None] = lambda url: None
    """The control plane listens there."""


def offer(zone: str, price: str) -> Offer:
    return Offer(
        provider="aws",
        region=zone[:-1],
        zone=zone,
        instance_type="g6.xlarge",
        gpu="L4",
        gpus=1,
        market=Market.SPOT,
        usd_per_hour=Decimal(price),
        source="a test",
        as_of="2026-11",
    )


def local(folder: Path) -> Iterator[House]:
    launcher = LocalLauncher(folder, 4)

    def take_away(handle: Handle) -> None:
        os.kill(handle["pid"], signal.SIGKILL)

    yield House(launcher, lambda: LocalLauncher(folder, 4), take_away)
    for handle in launcher.living():
        launcher.terminate(handle)


def skypilot(folder: Path) -> Iterator[House]:
    fake = FakeSky(folder / "sky")
    opened: list[tuple[Watch, SkyPilot]] = []

    def launcher() -> SkyPilotLauncher:
        sky = SkyPilot(fake.python(), folder / "sky.log", environment=fake.environment)
        watch = Watch(
            sky,
            Tunnels(sky, folder / "tunnels.log"),
            "https://tandemn.example",
            keep_log=lambda cluster: keep_log(sky, folder, cluster),
            on_change=lambda: None,
            launches_s=0.05,
            clusters_s=0.1,
        )
        opened.append((watch, sky))
        offers = [offer("us-east-1a", "0.30"), offer("us-west-2b", "0.25")]
        return SkyPilotLauncher(sky, watch, cloud="aws", home=folder, offers=lambda: offers)

    def take_away(handle: Handle) -> None:
        fake.preempt(handle["cluster"])

    def serve(url: str) -> None:
        for watch, _ in opened:
            watch.server_url = url

    yield House(launcher(), launcher, take_away, serve)
    for watch, sky in opened:
        watch.close()
        sky.close()
    fake.end_all()


class Names:
    """Replicas are found by their names among all processes of the machine: each test has names of its own."""

    job = "job-1"


def name(number: int = 0) -> str:
    return f"{Names.job}-r{number}"


@pytest.fixture(params=[local, skypilot], ids=["local", "skypilot"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    Names.job = f"job-{uuid.uuid4().hex[:8]}"
    yield from request.param(tmp_path)


def spec(server_url: str = "http://127.0.0.1:9", number: int = 0) -> LaunchSpec:
    return LaunchSpec(
        replica_id=name(number),
        job_id=Names.job,
        config=CONFIG,
        engine="simulated",
        server_url=server_url,
        token=TOKEN,
    )


def is_in(presence: Presence, launcher: Launcher, handle: Handle) -> Callable[[], bool]:
    return lambda: launcher.observe([handle])[0].presence is presence


def test_a_launched_replica_is_there_until_it_is_ended(house):
    launcher = house.launcher
    handle = launcher.launch(spec())
    until(is_in(Presence.THERE, launcher, handle))
    launcher.terminate(handle)
    until(is_in(Presence.GONE, launcher, handle))
    launcher.terminate(handle)  # safe to repeat
    assert launcher.find(name()) is None
    assert launcher.living() == []
    sighting = launcher.observe([handle])[0]
    assert sighting.failure is None


def test_a_replica_that_was_taken_away_is_gone(house):
    launcher = house.launcher
    one, two = launcher.launch(spec()), launcher.launch(spec(number=1))
    until(lambda: len(launcher.living()) == 2)
    until(is_in(Presence.THERE, launcher, two))
    until(lambda: launcher.log_tail(name(), 5))
    house.take_away(one)
    until(is_in(Presence.GONE, launcher, one))
    assert launcher.observe([one])[0].failure is None
    assert launcher.observe([two])[0].presence is Presence.THERE


def test_it_is_found_by_its_name_after_a_restart_that_lost_the_record(house):
    handle = house.launcher.launch(spec())
    again = house.again()
    found = until(lambda: again.find(name()))
    until(is_in(Presence.THERE, again, found))
    assert again.find(name(1)) is None
    again.terminate(found)
    until(is_in(Presence.GONE, again, found))
    until(is_in(Presence.GONE, house.launcher, handle))


def test_a_recorded_handle_is_good_after_a_restart(house):
    handle = house.launcher.launch(spec())
    again = house.again()
    until(is_in(Presence.THERE, again, handle))
    until(lambda: len(again.living()) == 1)  # a launch under way is no cluster yet


def test_every_living_replica_is_listed_recorded_or_not(house):
    house.launcher.launch(spec())
    house.launcher.launch(spec(number=1))
    again = house.again()
    living = until(lambda: len(again.living()) == 2 and again.living())
    for handle in living:
        again.terminate(handle)
    for handle in living:
        until(is_in(Presence.GONE, again, handle))


def test_its_log_can_be_read_while_it_lives_and_after(house):
    launcher = house.launcher
    handle = launcher.launch(spec())
    until(lambda: any("hello" in line for line in launcher.log_tail(name(), 50)))
    assert len(launcher.log_tail(name(), 1)) == 1
    launcher.terminate(handle)
    until(is_in(Presence.GONE, launcher, handle))
    launcher.clean(name())
    assert any("hello" in line for line in launcher.log_tail(name(), 50))
    assert launcher.log_tail(name(7), 50) == []


def test_room_becomes_less(house):
    before = house.launcher.room()
    handle = house.launcher.launch(spec())
    until(is_in(Presence.THERE, house.launcher, handle))
    assert house.launcher.room() < before


def test_the_token_is_on_no_command_line_and_in_no_log(house, tmp_path):
    launcher = house.launcher
    launcher.launch(spec())
    until(lambda: launcher.log_tail(name(), 5))
    lines = [line for process in psutil.process_iter() for line in _command(process)]
    assert any(name() in line for line in lines)
    assert not any(TOKEN in line for line in lines)
    logs = [path.read_text(errors="replace") for path in tmp_path.rglob("*.log")]
    assert logs
    assert not any(TOKEN in text for text in logs)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_it_calls_back_with_its_token(house):
    async with ControlPlane([b"{}"]) as control:
        house.serve(control.url)
        house.launcher.launch(spec(control.url))
        end = time.monotonic() + 30
        while not control.calls["hello"]:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


def test_a_price_is_known_or_none_and_never_nothing(house):
    price = house.launcher.price(CONFIG, 1.0)
    if isinstance(house.launcher, LocalLauncher):
        assert price.usd_per_hour == 0
        return
    assert price.usd_per_hour == Decimal("0.25")
    assert "us-west-2b" in price.source
    assert house.launcher.price(CONFIG.model_copy(update={"gpu": "B200"}), 1.0) is None
