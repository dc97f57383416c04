"""Replicas as SkyPilot clusters, one each: `--cloud aws` and every other cloud that SkyPilot has.

A launch returns as soon as SkyPilot's API server has taken the request; the watch (`skypilot_watch`) sees what becomes of
it. Names are deterministic, `tandemn-JOB-r0`: whatever a crash leaves between a launch and its record is found by its
name, as a request under way or as a cluster.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from tandemn.errors import NotFound, TandemnError
from tandemn.fleet.engines.engine import EngineName
from tandemn.fleet.launchers import tunnels, wheel
from tandemn.fleet.launchers.skypilot_task import (
    PREFIX,
    TaskSpec,
    cluster_name,
    place_of_offer,
    places,
    task_config,
)
from tandemn.prices import Price
from tandemn.skypilot.environment import member, task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tandemn.fleet.launchers.launcher import Handle, LaunchSpec, Sighting
    from tandemn.fleet.launchers.skypilot_watch import Watch
    from tandemn.fleet.remains import Remains
    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.jobs import ReplicaConfig
    from tandemn.skypilot.environment import SkyPilot

_log = structlog.get_logger()

#: Clusters that one control plane has at a time: SkyPilot looks at each of them again and again.
MAX_CLUSTERS = 64
#: Launches that SkyPilot's API server works on side by side, each a process of its own there.
MAX_LAUNCHING = 8
#: Lines of a replica's log that are fetched at a time, and kept when its cluster ends.
LOG_LINES = 2000
#: How long a look at a log may take, in seconds.
LOG_S = 30.0


class SkyPilotLauncher:
    """Launches clusters on one cloud, or on any.

    Args:
        sky: SkyPilot's environment.
        watch: what looks after all clusters; shared by the launchers of all clouds.
        cloud: SkyPilot's name of it; None: any.
        home: the state folder.
        offers: what can be rented, by the catalogs that there are.
        secrets: what replicas get beside their token: HF_TOKEN.
        image: a Docker image that has the engine; None: the machine installs it.
    """

    def __init__(
        self,
        sky: SkyPilot,
        watch: Watch,
        *,
        cloud: str | None,
        home: Path,
        offers: Callable[[], Sequence[Offer]],
        secrets: Mapping[str, str] | None = None,
        image: str | None = None,
    ) -> None:
        self.name = cloud or "any"
        self.pool = "clusters"
        self.limit = MAX_CLUSTERS
        self._sky = sky
        self._watch = watch
        self._cloud = cloud
        self._home = home
        self._offers = offers
        self._secrets = dict(secrets or {})
        self._image = image

    def check(self) -> None:
        """Raise MissingDependency where SkyPilot is not installed."""
        _ = self._sky.python

    def room(self) -> int:
        launching, all_of_them = self._watch.counts()
        return max(0, min(MAX_CLUSTERS - all_of_them, MAX_LAUNCHING - launching))

    def price(self, config: ReplicaConfig, now: float) -> Price | None:
        """The cheapest place's: where it lands is known later, and told by what `observe` sees."""
        ranked = places(config, self._offers(), self._cloud)
        return _price(ranked[0], config.nodes, now) if ranked else None

    def launch(self, spec: LaunchSpec) -> Handle:
        cluster = cluster_name(spec.replica_id)
        config = task_config(
            TaskSpec(
                cluster=cluster,
                replica_id=spec.replica_id,
                config=spec.config,
                engine=EngineName(spec.engine),
                server_url=tunnels.url_for(spec.replica_id, spec.server_url),
                wheel=wheel.build(self._home / "wheels", spec.engine),
                places=places(spec.config, self._offers(), self._cloud),
                cloud=self._cloud,
                secrets={**self._secrets, "TANDEMN_REPLICA_TOKEN": spec.token},
                image=self._image,
            )
        )
        request = self._sky.call("launch", answer="request", task=task(config), cluster_name=cluster)
        return self._watched(
            {
                "cluster": cluster,
                "request": request,
                "nodes": spec.config.nodes,
                "market": spec.config.market.value,
            }
        )

    def find(self, replica_id: str) -> Handle | None:
        cluster = cluster_name(replica_id)
        handle: Handle = {"cluster": cluster, "request": None}
        for request in self._sky.call("api_status", cluster_name=cluster):
            if request["name"].endswith("launch") and request["cluster_name"] == cluster:
                handle["request"] = request["request_id"]
        if handle["request"] is None and not self._sky.call("status", cluster_names=[cluster]):
            return None
        return self._watched(handle)

    def living(self) -> list[Handle]:
        records = self._sky.call("status", refresh=member("StatusRefreshMode", "AUTO"))
        return [
            {"cluster": record["name"], "request": None}
            for record in records
            if record["name"].startswith(cluster_name("job-"))
        ]

    def observe(self, handles: Sequence[Handle]) -> list[Sighting]:
        return [self._priced(self._watch.sighting(handle), handle) for handle in handles]

    def stop(self, handle: Handle) -> None:
        """Nothing to do: the runner hears of it at its next call, before any command would reach its machine."""

    def terminate(self, handle: Handle) -> None:
        self._watch.end(handle)

    def remains(self, replica_id: str) -> list[Remains]:
        del replica_id  # its disk is gone with its machine
        return []

    def clean(self, replica_id: str) -> None:
        self._watch.forget(cluster_name(replica_id))

    def log_tail(self, replica_id: str, lines: int) -> list[str]:
        cluster = cluster_name(replica_id)
        if self._watch.is_up(cluster):
            with suppress(TandemnError):
                return read_log(self._sky, cluster, min(lines, LOG_LINES))
        with suppress(FileNotFoundError), log_path(self._home, cluster).open(errors="replace") as log:
            return [line.rstrip("\n") for line in deque(log, maxlen=lines)]
        return []

    def _priced(self, seen: Sighting, handle: Handle) -> Sighting:
        """Add what it costs where it landed; looked up once, while that is news."""
        if seen.place is None or seen.place == handle.get("place"):
            return seen
        fitting = (
            offer
            for offer in self._offers()
            if offer.usd_per_hour is not None
            and offer.instance_type == seen.instance_type
            and offer.market.value == handle.get("market")
            and f"{seen.place}/".startswith(f"{place_of_offer(offer)}/")
        )
        found = next(fitting, None)
        if found is None:
            return seen
        return replace(seen, price=_price(found, handle.get("nodes", 1), time.time()))

    def _watched(self, handle: Handle) -> Handle:
        self._watch.sighting(handle)
        return handle


def _price(offer: Offer, nodes: int, now: float) -> Price:
    assert offer.usd_per_hour is not None, "places have prices"
    return Price(
        usd_per_hour=offer.usd_per_hour * nodes,
        source=f"{offer.source}, {offer.instance_type} in {offer.place} ({offer.as_of})",
        at=now,
    )


def log_path(home: Path, cluster: str) -> Path:
    """Where the end of an ended replica's log is kept."""
    return home / "logs" / "replicas" / f"{cluster.removeprefix(PREFIX)}.log"


def read_log(sky: SkyPilot, cluster: str, lines: int) -> list[str]:
    """Read the end of what a cluster's command printed. Raises TandemnError."""
    text = sky.read(
        "tail_logs",
        "output_stream",
        within_s=LOG_S,
        cluster_name=cluster,
        job_id=None,
        follow=False,
        tail=lines,
    )
    return text.splitlines()


def keep_log(sky: SkyPilot, home: Path, cluster: str) -> None:
    """Fetch the end of a cluster's log before the cluster goes; where it cannot be had, it is gone."""
    try:
        kept = read_log(sky, cluster, LOG_LINES)
    except (NotFound, TandemnError) as exc:
        _log.info("log not kept", cluster=cluster, error=str(exc))
        return
    path = log_path(home, cluster)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in kept))
