"""Looks after SkyPilot's clusters: what became of each launch, what is still there, and that what should go is gone.

One thread asks SkyPilot again and again, so that whoever wants to know of a cluster never waits for a cloud. "There" and
"gone" are only what SkyPilot says after it has asked the cloud (FORCE); a cluster that vanished was taken away. A launch
that failed is gone when whatever it left behind is.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import structlog

from tandemn.errors import Broken, NotFound, Retryable, TandemnError
from tandemn.fleet.launchers.launcher import Sighting
from tandemn.fleet.launchers.tunnels import Tunnels, needs_tunnel, node_names, port_of
from tandemn.fleet.reconcile import Presence
from tandemn.skypilot.environment import member

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tandemn.fleet.launchers.launcher import Handle
    from tandemn.skypilot.environment import SkyPilot

_log = structlog.get_logger()

#: How often launches under way are asked for, in seconds: SkyPilot's own server answers, no cloud is asked.
LAUNCHES_S = 3.0
#: How often clouds are asked whether clusters are still there, in seconds: a preemption is noticed so much later, and
#: each look is a call or two for each cluster.
CLUSTERS_S = 15.0
#: How long ending a cluster may take before it is tried again, in seconds.
DOWN_S = 600.0
#: Wait before a failed end is tried again, in seconds.
AGAIN_S = 15.0
#: Clusters that are ended at a time.
ENDINGS = 4
#: Statuses of a request that has not ended.
UNDER_WAY = frozenset({"PENDING", "RUNNING", "WAITING"})
#: Statuses of a command on a cluster that ended badly, before or while it ran.
COMMAND_FAILED = frozenset({"FAILED", "FAILED_SETUP", "FAILED_DRIVER", "CANCELLED"})
#: Lines of its log that a failed command's reason quotes.
QUOTED_LINES = 15


class Stage(StrEnum):
    LAUNCHING = "launching"
    UP = "up"
    """SkyPilot said that it came up; it has not been missed since."""
    GONE = "gone"


@dataclass(slots=True)
class _Cluster:
    name: str
    request: str | None
    nodes: int
    stage: Stage
    is_seen: bool = False
    """Whether a look has told anything about it."""
    runs: bool = False
    """Whether its command has begun."""
    is_ending: bool = False
    ends_again_at: float = 0.0
    under_end: bool = False
    failure: TandemnError | None = None
    record: dict[str, Any] | None = None


class Watch:
    """One per control plane; `start` it, and `close` it before its end.

    Args:
        sky: SkyPilot's environment.
        tunnels: opened for clusters that are up, where `server_url` is on loopback.
        server_url: where replicas call back.
        keep_log: called with a cluster's name before it ends.
        on_change: called, in a thread, when a cluster has come up or gone.
        launches_s: how often launches are looked at.
        clusters_s: how often clouds are asked.
    """

    def __init__(
        self,
        sky: SkyPilot,
        tunnels: Tunnels,
        server_url: str,
        *,
        keep_log: Callable[[str], None],
        on_change: Callable[[], None],
        launches_s: float = LAUNCHES_S,
        clusters_s: float = CLUSTERS_S,
    ) -> None:
        self._sky = sky
        self._tunnels = tunnels
        self.server_url = server_url
        self._keep_log = keep_log
        self._on_change = on_change
        self._launches_s = launches_s
        self._clusters_s = clusters_s
        self._clusters: dict[str, _Cluster] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        self._asked_clouds_at = -clusters_s
        self._pool = ThreadPoolExecutor(ENDINGS, thread_name_prefix="skypilot-end")
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End the looking; clusters are left as they are."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tunnels.close()

    def sighting(self, handle: Handle) -> Sighting:
        """Tell what was last seen of a cluster; one that is new here is looked at from now on."""
        with self._lock:
            cluster = self._known(handle)
            return _sighting(cluster)

    def counts(self) -> tuple[int, int]:
        """How many clusters are being launched, and how many there are at all."""
        with self._lock:
            there = [each for each in self._clusters.values() if each.stage is not Stage.GONE]
            return sum(each.stage is Stage.LAUNCHING for each in there), len(there)

    def is_up(self, name: str) -> bool:
        with self._lock:
            cluster = self._clusters.get(name)
            return cluster is not None and cluster.stage is Stage.UP

    def end(self, handle: Handle) -> None:
        """See to it that the cluster goes; safe to repeat."""
        with self._lock:
            self._known(handle).is_ending = True
        self._wake.set()

    def forget(self, name: str) -> None:
        """It has ended and that is recorded."""
        with self._lock:
            cluster = self._clusters.get(name)
            if cluster is not None and cluster.stage is Stage.GONE:
                del self._clusters[name]

    def _known(self, handle: Handle) -> _Cluster:
        name: str = handle["cluster"]
        if name not in self._clusters:
            request = handle.get("request")
            stage = Stage.UP if request is None else Stage.LAUNCHING
            self._clusters[name] = _Cluster(name, request, handle.get("nodes", 1), stage)
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="skypilot-watch", daemon=True)
                self._thread.start()
            self._wake.set()
        return self._clusters[name]

    def _run(self) -> None:
        while not self._is_closed:
            self._wake.clear()
            try:
                self.look(time.monotonic())
            except TandemnError as exc:
                _log.warning("cannot look for clusters", code=exc.code, error=str(exc))
            except Exception:  # noqa: BLE001 - a supervisor: one bad look must not end all looking
                _log.exception("a look for clusters failed")
            self._wake.wait(self._launches_s)

    def look(self, now: float) -> None:
        """Look once: at launches, at clouds where it is time to, at what should go, and at tunnels."""
        before = self._stages()
        self._look_at_launches()
        if now - self._asked_clouds_at >= self._clusters_s or self._has_unseen():
            self._asked_clouds_at = now
            self._look_at_clusters()
        self._end_what_should(now)
        self._keep_tunnels()
        if self._stages() != before:
            self._on_change()

    def _stages(self) -> dict[str, Stage]:
        with self._lock:
            return {name: each.stage for name, each in self._clusters.items()}

    def _in(self, stage: Stage) -> list[_Cluster]:
        with self._lock:
            return [each for each in self._clusters.values() if each.stage is stage]

    def _has_unseen(self) -> bool:
        return any(not each.is_seen for each in self._in(Stage.UP))

    def _look_at_launches(self) -> None:
        # What is being ended is cancelled: that it failed of that is no news.
        launching = [
            each for each in self._in(Stage.LAUNCHING) if each.failure is None and not each.is_ending
        ]
        if not launching:
            return
        requests = self._sky.call("api_status", request_ids=[each.request for each in launching])
        statuses = {request["request_id"]: request["status"] for request in requests}
        for cluster in launching:
            status = statuses.get(str(cluster.request))
            if status in UNDER_WAY:
                cluster.is_seen = True
            elif status in {"SUCCEEDED", None}:
                # A request that nobody knows any more: whether there is a cluster is then for the cloud to say.
                cluster.stage, cluster.is_seen = Stage.UP, False
            else:
                self._fail(cluster, self._why(cluster))

    def _why(self, cluster: _Cluster) -> TandemnError:
        try:
            self._sky.call("get", request_id=cluster.request)
        except TandemnError as exc:
            return exc
        return Broken("the launch failed without saying why", code="launch_failed")

    def _fail(self, cluster: _Cluster, failure: TandemnError) -> None:
        """What a failed launch has left behind is ended before it counts as gone."""
        _log.info("launch failed", cluster=cluster.name, code=failure.code, reason=failure.message)
        cluster.failure, cluster.is_ending, cluster.is_seen = failure, True, True

    def _look_at_clusters(self) -> None:
        up = self._in(Stage.UP)
        if not up:
            return
        names = [each.name for each in up]
        force = member("StatusRefreshMode", "FORCE")
        records = {
            record["name"]: record
            for record in self._sky.call("status", cluster_names=names, refresh=force, all_users=True)
        }
        for cluster in up:
            cluster.is_seen = True
            cluster.record = record = records.get(cluster.name, cluster.record)
            if record is not None:
                cluster.nodes = record.get("nodes") or cluster.nodes
            if cluster.name not in records:
                cluster.stage = Stage.GONE
            elif not cluster.runs and not cluster.is_ending:
                self._look_at_command(cluster)

    def _look_at_command(self, cluster: _Cluster) -> None:
        """Until a cluster's command has begun, nobody but SkyPilot can tell what is wrong with it."""
        try:
            statuses = self._sky.call("job_status", cluster_name=cluster.name)
        except NotFound:
            return  # the next look will say so
        except Retryable as exc:
            _log.info("command not looked at", cluster=cluster.name, error=exc.message)
            return
        status = next(iter(statuses.values()), None)
        if status in COMMAND_FAILED:
            self._fail(cluster, self._quoted(cluster, str(status)))
        elif status in {"RUNNING", "SUCCEEDED"}:
            cluster.runs = True

    def _quoted(self, cluster: _Cluster, status: str) -> TandemnError:
        try:
            text = self._sky.read(
                "tail_logs",
                "output_stream",
                cluster_name=cluster.name,
                job_id=None,
                follow=False,
                tail=QUOTED_LINES,
            )
        except TandemnError as exc:
            text = f"its log cannot be read: {exc.message}"
        return Broken(
            f"the machine could not be set up ({status}): {' | '.join(text.split(chr(10))).strip(' |')}",
            code="cluster_setup_failed",
        )

    def _end_what_should(self, now: float) -> None:
        with self._lock:
            due = [
                each
                for each in self._clusters.values()
                if each.is_ending and not each.under_end and each.stage is not Stage.GONE
                if now >= each.ends_again_at
            ]
            for each in due:
                each.under_end = True
        for each in due:
            self._pool.submit(self._end, each)

    def _end(self, cluster: _Cluster) -> None:
        try:
            if cluster.stage is Stage.LAUNCHING and cluster.failure is None:
                self._sky.call("api_cancel", request_ids=[cluster.request], silent=True)
            elif cluster.stage is Stage.UP:
                self._keep_log(cluster.name)
            self._sky.call("down", within_s=DOWN_S, cluster_name=cluster.name)
        except NotFound:
            pass  # that is what was wanted
        except TandemnError as exc:
            _log.warning("cluster not ended", cluster=cluster.name, code=exc.code, error=str(exc))
            cluster.ends_again_at = time.monotonic() + AGAIN_S
            return
        finally:
            cluster.under_end = False
        cluster.stage = Stage.GONE
        self._on_change()

    def _keep_tunnels(self) -> None:
        wanted: dict[str, tuple[int, int]] = {}
        if needs_tunnel(self.server_url):
            server_port = int(self.server_url.rstrip("/").rpartition(":")[2])
            for cluster in self._in(Stage.UP):
                if cluster.is_seen and not cluster.is_ending:
                    port = port_of(cluster.name.partition("-")[2])
                    wanted |= dict.fromkeys(node_names(cluster.name, cluster.nodes), (server_port, port))
        self._tunnels.keep(wanted)


def _sighting(cluster: _Cluster) -> Sighting:
    if cluster.stage is Stage.GONE:
        return Sighting(presence=Presence.GONE, failure=cluster.failure)
    presence = Presence.THERE if cluster.is_seen else Presence.UNKNOWN
    handle = (cluster.record or {}).get("handle")
    return Sighting(
        presence=presence,
        place=place_of(cluster.record),
        instance_type=handle.get("instance_type") if isinstance(handle, dict) else None,
    )


def place_of(record: dict[str, Any] | None) -> str | None:
    """Name where a cluster is, as SkyPilot's record tells it."""
    if record is None:
        return None
    handle = record.get("handle") if isinstance(record.get("handle"), dict) else None
    parts: Sequence[Any] = (
        (handle.get("cloud"), handle.get("region"), handle.get("zone"))
        if handle
        else (record.get("cloud"), record.get("region"))
    )
    return "/".join(str(part).lower() for part in parts if part) or None
