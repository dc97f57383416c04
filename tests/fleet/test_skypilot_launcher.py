"""What is SkyPilot's own: launches that fail later, clusters that do not come up, tunnels that break."""

import os
import signal
import socket
from decimal import Decimal
from pathlib import Path

import pytest
from tests.fakes.sky import FakeSky, Faults, until

from tandemn.errors import Broken, InvalidInput, MissingDependency, NoCapacity, Retryable
from tandemn.fleet.launchers.launcher import LaunchSpec
from tandemn.fleet.launchers.skypilot import SkyPilotLauncher, keep_log
from tandemn.fleet.launchers.skypilot_watch import Watch
from tandemn.fleet.launchers.tunnels import Tunnels, port_of, url_for
from tandemn.fleet.reconcile import Presence
from tandemn.placement.catalog.offers import Offer
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import Market
from tandemn.skypilot.environment import SkyPilot

CONFIG = ReplicaConfig(gpu="L4", market=Market.SPOT)
CLUSTER = "tandemn-job-1-r0"


def offers() -> list[Offer]:
    return [
        Offer(
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
        for zone, price in (("us-east-1a", "0.30"), ("us-west-2b", "0.25"))
    ]


class House:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fake = FakeSky(folder / "sky")
        self.sky = SkyPilot(self.fake.python(), folder / "sky.log", environment=self.fake.environment)
        self.tunnels = Tunnels(self.sky, folder / "tunnels.log")
        self.changes = 0
        self.watch = Watch(
            self.sky,
            self.tunnels,
            "https://tandemn.example",
            keep_log=lambda cluster: keep_log(self.sky, folder, cluster),
            on_change=self._changed,
            launches_s=0.05,
            clusters_s=0.1,
        )
        self.launcher = SkyPilotLauncher(
            self.sky, self.watch, cloud="aws", home=folder, offers=offers, secrets={"HF_TOKEN": "hf-secret"}
        )

    def _changed(self) -> None:
        self.changes += 1

    def launch(self, server_url="https://tandemn.example"):
        return self.launcher.launch(
            LaunchSpec(
                replica_id="job-1-r0",
                job_id="job-1",
                config=CONFIG,
                engine="simulated",
                server_url=server_url,
                token="a-token",
            )
        )

    def seen(self, handle):
        return self.launcher.observe([handle])[0]

    def gone(self, handle):
        return until(lambda: self.seen(handle).presence is Presence.GONE and self.seen(handle))


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.watch.close()
    house.sky.close()
    house.fake.end_all()


def test_where_it_landed_and_what_that_costs_is_told(house):
    house.fake.fail(Faults(unavailable=["aws/us-west-2/us-west-2b"]))
    handle = house.launch()
    seen = until(lambda: house.seen(handle).place and house.seen(handle))
    assert seen.place == "aws/us-east-1/us-east-1a"
    assert seen.price.usd_per_hour == Decimal("0.30")
    until(lambda: house.changes > 0)


def test_a_launch_that_finds_nothing_says_what_was_tried(house):
    house.fake.fail(Faults(unavailable=["aws/us-west-2/us-west-2b", "aws/us-east-1/us-east-1a"]))
    failure = house.gone(house.launch()).failure
    assert isinstance(failure, NoCapacity)
    assert "us-west-2b" in failure.message
    assert "us-east-1a" in failure.message
    assert house.fake.clusters() == []


def test_a_launch_without_credentials_is_for_the_user_to_mend(house):
    house.fake.fail(Faults(error={"type": "NoCloudAccessError", "message": "aws is not enabled"}))
    failure = house.gone(house.launch()).failure
    assert isinstance(failure, InvalidInput)
    assert failure.code == "cloud_credentials"


def test_a_launch_that_is_refused_at_once_raises(house):
    house.fake.fail(Faults(refuse={"launch": "ResourcesMismatchError"}))
    with pytest.raises(InvalidInput) as caught:
        house.launch()
    assert caught.value.code == "cluster_mismatch"


def test_a_machine_that_cannot_be_set_up_is_ended_and_says_why(house):
    house.fake.fail(Faults(command="FAILED_SETUP"))
    seen = house.gone(house.launch())
    assert isinstance(seen.failure, Broken)
    assert seen.failure.code == "cluster_setup_failed"
    assert house.fake.clusters() == []


def test_a_launch_under_way_can_be_ended(house):
    house.fake.fail(Faults(boot_s=60))
    handle = house.launch()
    until(lambda: house.fake.clusters() == [CLUSTER])
    house.launcher.terminate(handle)
    assert house.gone(handle).failure is None
    assert house.fake.clusters() == []
    names = [call["name"] for call in house.fake.calls()]
    assert names.index("sky.api_cancel") < names.index("sky.down")


def test_an_end_that_fails_is_tried_again_and_not_believed(house, monkeypatch):
    monkeypatch.setattr("tandemn.fleet.launchers.skypilot_watch.AGAIN_S", 0.1)
    handle = house.launch()
    until(lambda: house.seen(handle).place)
    house.fake.fail(Faults(refuse={"down": "yes"}))
    house.launcher.terminate(handle)
    until(lambda: [call["name"] for call in house.fake.calls()].count("sky.down") > 1)
    assert house.seen(handle).presence is Presence.THERE
    house.fake.fail(Faults())
    house.gone(handle)


def test_while_skypilot_does_not_answer_nothing_is_gone(house):
    handle = house.launch()
    until(lambda: house.seen(handle).place)
    house.fake.fail(Faults(refuse={"status": "ApiServerConnectionError"}))
    before = len(house.fake.calls())
    until(lambda: len(house.fake.calls()) > before + 3)
    assert house.seen(handle).presence is Presence.THERE
    os.kill(house.sky._worker.process.pid, signal.SIGKILL)
    house.fake.fail(Faults())
    until(lambda: len(house.fake.calls()) > before + 8)
    assert house.seen(handle).presence is Presence.THERE


def test_a_cluster_of_which_the_api_server_has_lost_the_request_is_asked_of_the_cloud(house):
    house.fake.fail(Faults(boot_s=60))
    handle = house.launch()
    until(lambda: house.fake.clusters() == [CLUSTER])
    (house.fake.folder / "requests" / f"{handle['request']}.json").unlink()
    until(lambda: house.seen(handle).presence is Presence.THERE)
    (house.fake.folder / "clusters" / f"{CLUSTER}.json").unlink()
    assert house.gone(handle).failure is None


def test_the_task_carries_secrets_as_secrets_and_places_in_order(house):
    house.launch()
    task = house.fake.task(CLUSTER)
    assert task["secrets"] == {"HF_TOKEN": "hf-secret", "TANDEMN_REPLICA_TOKEN": "a-token"}
    assert [each["infra"] for each in task["resources"]["ordered"]] == [
        "aws/us-west-2/us-west-2b",
        "aws/us-east-1/us-east-1a",
    ]
    others = str({key: value for key, value in task.items() if key != "secrets"})
    assert "hf-secret" not in others
    assert "a-token" not in others


def test_without_skypilot_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sky = SkyPilot(None, tmp_path / "log", environment={"PATH": str(tmp_path)})
    watch = Watch(sky, Tunnels(sky, tmp_path / "t"), "https://x", keep_log=print, on_change=lambda: None)
    launcher = SkyPilotLauncher(sky, watch, cloud="aws", home=tmp_path, offers=offers)
    with pytest.raises(MissingDependency, match="uv tool install"):
        launcher.check()


# Tunnels


def test_only_a_control_plane_on_loopback_needs_a_tunnel():
    assert url_for("job-1-r0", "https://tandemn.example") == "https://tandemn.example"
    assert url_for("job-1-r0", "http://127.0.0.1:26336") == f"http://127.0.0.1:{port_of('job-1-r0')}"
    assert port_of("job-1-r0") != port_of("job-1-r1")


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


def through(port: int, server: socket.socket) -> bool:
    """Whether what is sent to the node's port arrives at the control plane's."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as there:
            there.sendall(b"hello")
            here, _ = server.accept()
            with here:
                return here.recv(5) == b"hello"
    except OSError:
        return False


def test_a_tunnel_that_breaks_is_opened_again(house, server, monkeypatch):
    monkeypatch.setattr("tandemn.fleet.launchers.tunnels.BACKOFF_S", (0.1, 0.2))
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    house.watch.server_url = url
    handle = house.launch(url)
    port = port_of("job-1-r0")
    until(lambda: through(port, server))
    pid_file = house.fake.folder / "ssh" / CLUSTER
    first = int(pid_file.read_text())
    os.kill(first, signal.SIGKILL)
    until(lambda: int(pid_file.read_text()) != first)
    until(lambda: through(port, server))
    house.launcher.terminate(handle)
    house.gone(handle)
    until(lambda: not through(port, server))


def test_a_call_that_is_not_answered_is_retryable(house):
    house.fake.fail(Faults(boot_s=60))
    request = house.launch()["request"]
    with pytest.raises(Retryable):
        house.sky.call("get", within_s=0.1, request_id=request)
