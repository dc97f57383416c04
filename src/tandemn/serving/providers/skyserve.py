"""SkyServe as a provider: the spot fleet of a deployment on every cloud that SkyPilot has.

Requests go through SkyServe's own balancer, not past it: what it forwards is all that its autoscaler scales by, and it finds
its replicas without us. What it lacks (no queue, no retry after the first byte, no drain) the router in front of it has;
docs/skypilot.md has the figures behind that choice.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from tandemn import settings
from tandemn.errors import Conflict, InvalidInput, Retryable
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.catalog.skypilot import CATALOGS, find_machine, load_offers
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.providers import faults
from tandemn.serving.providers.provider import (
    REMOTE_PREFIX,
    SKYSERVE,
    Account,
    BackendPlan,
    BackendStatus,
    Remote,
    ReplicaSeen,
    Secrets,
    Usage,
    remote_name,
)
from tandemn.serving.providers.sky_calls import REQUESTS_READ, SkyCalls
from tandemn.serving.providers.skyserve_service import service_task, spare_replicas
from tandemn.skypilot.clouds import enabled_clouds
from tandemn.skypilot.environment import SkyPilot, member, task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import DeploymentSpec

#: Requests a second that SkyServe's balancer passes on, on one core (docs/skypilot.md).
BALANCER_RPS = 300
#: What SkyServe's controllers are called: one a user, for all services.
CONTROLLER_PREFIX = "sky-serve-controller"
#: Digits of a share of its price, in USD an hour.
SHARE_DIGITS = 6

#: A service's status -> ours; what else there is, is on its way.
_STATES: Final = {
    "READY": BackendState.READY,
    "CONTROLLER_FAILED": BackendState.FAILED,
    "FAILED": BackendState.FAILED,
    "FAILED_CLEANUP": BackendState.FAILED,
    "SHUTTING_DOWN": BackendState.DELETING,
}
#: A replica in one of these has no machine any more.
_ENDED: Final = frozenset(
    {"PREEMPTED", "FAILED", "FAILED_INITIAL_DELAY", "FAILED_PROBING", "FAILED_PROVISION", "UNKNOWN"}
)
#: A replica in one of these may become ready.
_COMING: Final = frozenset({"PENDING", "PROVISIONING", "STARTING", "NOT_READY"})


class SkyServe:
    """Adapter of SkyServe.

    Args:
        sky: SkyPilot's environment.
        offers: what can be rented, for prices.
        is_shared: whether somebody else closes `sky`.
    """

    name = SKYSERVE
    market = Market.SPOT

    def __init__(
        self, sky: SkyPilot, offers: Sequence[Offer] | None = None, *, is_shared: bool = False
    ) -> None:
        self._sky = sky
        self._calls = SkyCalls(sky, is_shared=is_shared)
        self._offers = offers

    @classmethod
    def open(cls, *, project: str | None = None, region: str | None = None) -> Self:
        """Open SkyPilot as the settings name it; its worker starts with the first call."""
        del project, region
        loaded = settings.load()
        return cls(SkyPilot(loaded.skypilot_python, loaded.home_path / "logs" / "skyserve.log"))

    @classmethod
    def over(cls, sky: SkyPilot) -> Self:
        """Share an environment that somebody else closes."""
        return cls(sky, is_shared=True)

    async def check(self) -> Account:
        clouds = await asyncio.to_thread(enabled_clouds, self._sky)
        if not clouds:
            raise faults.credentials(self.name, "no cloud lets SkyPilot in")
        return Account(provider=self.name, detail=f"SkyPilot on {', '.join(clouds)}")

    def offers(self) -> Sequence[Offer]:
        """The clouds' own offers are in the catalog."""
        return ()

    def plan(self, spec: DeploymentSpec) -> BackendPlan:
        spot, on_demand = self._cheapest(spec, Market.SPOT), self._cheapest(spec, Market.ON_DEMAND)
        scaling, spare = spec.scaling.spot, spare_replicas(spec.scaling.spot)
        warnings = []
        if scaling.max_replicas * scaling.target_qps > BALANCER_RPS:
            warnings.append(
                f"SkyServe's balancer passes on about {BALANCER_RPS} requests a second: beyond that they go serverless"
            )
        if spare:
            warnings.append(
                f"SkyServe keeps {spare} spot replica more than the load needs, for the next preemption: "
                f"{scaling.min_replicas + spare} at least, {scaling.max_replicas + spare} at most"
            )
        return BackendPlan(
            provider=self.name,
            market=self.market,
            remote_name=remote_name(spec.service_name),
            request=service_task(spec),
            usd_per_hour=None if spot is None else spot.usd_per_hour,
            price_source=""
            if spot is None
            else f"{spot.source}, {spot.instance_type} in {spot.place} ({spot.as_of})",
            on_demand_usd_per_hour=None if on_demand is None else on_demand.usd_per_hour,
            concurrency=spec.scaling.serverless.concurrency,
            most_replicas=scaling.max_replicas + spare,
            warnings=tuple(warnings),
        )

    async def ensure(self, plan: BackendPlan, secrets: Secrets) -> Remote:
        name = plan.remote_name
        config = dict(plan.request)
        config["secrets"] = {"VLLM_API_KEY": secrets.engine_api_key, "HF_TOKEN": secrets.hf_token or ""}
        record = await self._record(name)
        if record is not None:
            if record["status"] in {"SHUTTING_DOWN", "CONTROLLER_FAILED", "FAILED_CLEANUP"}:
                raise faults.conflict(self.name, f"the service {name} is {record['status']}")
            # A change of the policy alone leaves replicas running; SkyServe rolls anything else.
            mode = member("serve.serve_utils.UpdateMode", "ROLLING")
            await self._calls.do("serve.update", task=task(config), service_name=name, mode=mode)
            return self._remote(name, record)
        if not await self._pending(name):
            await self._calls.do("serve.up", answer="request", task=task(config), service_name=name)
        return self._remote(name, None)

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        del place
        found = {str(each["name"]): each for each in await self._records()}
        for request in await self._requests():
            found.setdefault(request, {})
        return [
            self._remote(name, record or None)
            for name, record in sorted(found.items())
            if name.startswith(REMOTE_PREFIX) and remote_name in (None, name)
        ]

    async def status(self, remote: Remote) -> BackendStatus:
        records = await self._records()
        record = next((each for each in records if each["name"] == remote.remote_name), None)
        if record is None:
            return await self._absent(remote.remote_name)
        replicas = record.get("replica_info") or []
        states = [str(each["status"]) for each in replicas]
        state = _STATES.get(str(record["status"]), BackendState.PROVISIONING)
        if record["status"] == "NO_REPLICA":
            # At zero by its policy: the router's pokes are the demand that starts one.
            state = BackendState.IDLE
        elif state is BackendState.FAILED and any(each in _COMING for each in states):
            state = BackendState.PROVISIONING
        return BackendStatus(
            state=state,
            url=record.get("endpoint"),
            replicas=sum(each == "READY" for each in states),
            seen=(
                *(_seen(each) for each in replicas if each["status"] not in _ENDED),
                *await self._controller(sum(_is_ours(each) for each in records)),
            ),
            reason=None if state in {BackendState.READY, BackendState.IDLE} else _reason(record, states),
        )

    async def scale(self, remote: Remote, min_replicas: int) -> None:
        """Refuse: SkyServe scales by the service's policy, which an update of the deployment changes.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(
            f"SkyServe keeps {remote.remote_name} by its policy, not at {min_replicas} replicas",
            code="provider_refused",
            next_step="change spot.min_replicas of the scaling policy and deploy with --update",
        )

    def auth(self, secrets: Secrets) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {secrets.engine_api_key}"}

    async def delete(self, remote_name: str, place: str = "") -> bool:
        del place
        if requests := await self._pending(remote_name):
            # What has come of it until now is found as a service the next time.
            await self._calls.do("api_cancel", request_ids=requests, silent=True)
        record = await self._record(remote_name)
        if record is None:
            return not requests
        if record["status"] == "FAILED_CLEANUP":
            raise Conflict(
                f"SkyServe could not end every machine of {remote_name}: some may be billed",
                code="provider_conflict",
                next_step=f"end them in the cloud's console, then `sky serve down --purge {remote_name}`",
            )
        if record["status"] != "SHUTTING_DOWN":
            await self._calls.do("serve.down", service_names=[remote_name])
        return await self._record(remote_name) is None

    async def usage(self, remote: Remote, since: float, until: float) -> Usage:
        """Say that it is not known: clouds' bills are not SkyPilot's."""
        del remote, since, until
        return Usage(usd=None, source="the cloud's bill is not read")

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        text = await self._calls.read(
            "serve.tail_logs",
            service_name=remote.remote_name,
            target="controller",
            follow=False,
            tail=lines,
        )
        return text.splitlines()

    async def close(self) -> None:
        await self._calls.close()

    # --- what SkyPilot knows ---

    async def _record(self, name: str) -> dict[str, Any] | None:
        return next((each for each in await self._records([name]) if each["name"] == name), None)

    async def _records(self, names: list[str] | None = None) -> list[dict[str, Any]]:
        """Read the services; without a controller that runs there are none."""
        try:
            found: list[dict[str, Any]] = await self._calls.do("serve.status", service_names=names)
        except Retryable as exc:
            if exc.code == "skypilot_unavailable" and await self._has_no_controller():
                return []
            raise
        return found

    async def _has_no_controller(self) -> bool:
        """Whether no controller exists, or it sleeps, as it does only when it has no service left."""
        clusters = await self._calls.do("status", refresh=member("StatusRefreshMode", "FORCE"))
        controllers = [each for each in clusters if str(each["name"]).startswith(CONTROLLER_PREFIX)]
        return all(each["status"] == "STOPPED" for each in controllers)

    async def _controller(self, services: int) -> list[ReplicaSeen]:
        """Look at the machine of the controller; each of our services pays its share of it."""
        clusters = await self._calls.do("status")
        up = (each for each in clusters if str(each["name"]).startswith(CONTROLLER_PREFIX))
        found = next((each for each in up if each["status"] != "STOPPED"), None)
        if found is None:
            return []
        handle = found["handle"] if isinstance(found.get("handle"), dict) else {}
        price = await asyncio.to_thread(self._price_of, handle)
        return [
            ReplicaSeen(
                # How many share it is part of the name: a share of another size costs anew.
                replica_id=f"controller 1/{services}" if services > 1 else "controller",
                state=str(found["status"]).lower(),
                usd_per_hour=None if price is None else round(price / services, SHARE_DIGITS),
                is_controller=True,
            )
        ]

    def _price_of(self, handle: Mapping[str, Any]) -> Decimal | None:
        """What a cluster's machine costs; None where the catalog does not tell."""
        if not handle.get("instance_type") or not handle.get("cloud") or handle.get("use_spot"):
            return None
        machine = find_machine(
            self._sky.home / CATALOGS,
            provider=str(handle["cloud"]),
            instance_type=str(handle["instance_type"]),
            region=handle.get("region"),
        )
        return None if machine is None else machine.usd_per_hour

    async def _pending(self, name: str) -> list[str]:
        """Requests under way that make this service: it is in no list until its controller has it."""
        return (await self._requests()).get(name, [])

    async def _requests(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for request in await self._calls.do("api_status"):
            if _is_up(request) and (name := _service_of(request)):
                found.setdefault(name, []).append(request["request_id"])
        return found

    async def _absent(self, name: str) -> BackendStatus:
        """Tell a service that is on its way, or did not come up, from one that is not there."""
        if await self._pending(name):
            return BackendStatus(state=BackendState.PROVISIONING, reason="SkyPilot starts its controller")
        requests = await self._calls.do("api_status", all_status=True, limit=REQUESTS_READ)
        made = (each for each in requests if _is_up(each) and _service_of(each) == name)
        failure = await self._calls.why_failed(made)
        if failure is not None:
            return BackendStatus(state=BackendState.FAILED, reason=str(failure))
        return BackendStatus(state=BackendState.DELETED)

    # --- planning ---

    def _cheapest(self, spec: DeploymentSpec, market: Market) -> Offer | None:
        """The cheapest machine of the GPU: SkyServe looks for the cheapest place, too."""
        if self._offers is None:
            self._offers = load_offers(self._sky.home / CATALOGS)
        gpu = gpu_named(spec.gpu).name
        fitting = [
            offer
            for offer in self._offers
            if offer.provider == spec.spots_cloud
            and (offer.gpu, offer.gpus, offer.market) == (gpu, spec.gpu_count, market)
            and spec.region in (None, offer.region)
            and offer.usd_per_hour is not None
        ]
        return min(fitting, key=lambda offer: (offer.usd_per_hour, offer.place), default=None)

    def _remote(self, name: str, record: Mapping[str, Any] | None) -> Remote:
        url = None if record is None else record.get("endpoint")
        return Remote(provider=self.name, remote_name=name, remote_id=name, url=url)


def _is_ours(record: Mapping[str, Any]) -> bool:
    return str(record["name"]).startswith(REMOTE_PREFIX)


def _is_up(request: Mapping[str, Any]) -> bool:
    return str(request["name"]).endswith("serve.up")


def _service_of(request: Mapping[str, Any]) -> str | None:
    """Read which service a request is about."""
    with suppress(ValueError, TypeError, AttributeError):
        name = json.loads(request.get("request_body") or "{}").get("service_name")
        return None if name is None else str(name)
    return None


def _seen(replica: Mapping[str, Any]) -> ReplicaSeen:
    began = replica.get("launched_at")
    return ReplicaSeen(
        replica_id=str(replica["name"]),
        state=str(replica["status"]).lower(),
        began=None if began is None else float(began),
    )


def _reason(record: Mapping[str, Any], states: Sequence[str]) -> str:
    counts = ", ".join(f"{states.count(each)} {each.lower()}" for each in sorted(set(states)))
    return f"SkyServe says {record['status']}" + (f" ({counts})" if counts else "")
