"""Cloud Run: one service with a GPU for each deployment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from tandemn.errors import InvalidInput, NotFound, TandemnError
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.engine_arguments import PORT, VLLM_IMAGE, engine_arguments
from tandemn.serving.providers import faults
from tandemn.serving.providers.limits import Limits
from tandemn.serving.providers.provider import (
    CALL_S,
    REMOTE_PREFIX,
    SERVERLESS_REPLICAS,
    Account,
    BackendPlan,
    BackendStatus,
    Remote,
    Secrets,
    Usage,
    remote_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import DeploymentSpec

NAME = "cloudrun"
#: Where services go that name no region.
DEFAULT_REGION = "us-central1"
#: An L4 needs at least 4 CPUs and 16 GiB; the list price is that of 8 and 32.
CPU, MEMORY = "8", "32Gi"
#: Startup probes: every 10 s, so often, until the model is loaded.
PROBE_S, PROBES = 10, 180

#: cloud.google.com/run/docs/configuring/services/gpu, as of 2026-11.
LIMITS = Limits(
    provider=NAME,
    gpus={"L4": "nvidia-l4", "RTXPRO6000": "nvidia-rtx-pro-6000"},
    most_gpus_default=1,
    regions=frozenset(
        {"asia-south1", "asia-southeast1", "europe-west1", "europe-west4", "us-central1", "us-east4"}
    ),
    longest_request_s=3600,
    concurrency=1000,
)


class CloudRun:
    """Adapter of Cloud Run. Credentials are Google's application default ones.

    Args:
        sdk: the module `google.cloud.run_v2`.
        client: its asynchronous client of services.
        project: where services go.
        region: where services go.
        call_s: longest single call, in seconds.
    """

    name = NAME
    market = Market.SERVERLESS

    def __init__(
        self,
        sdk: Any,
        client: Any,
        *,
        project: str,
        region: str = DEFAULT_REGION,
        call_s: float = CALL_S,
    ) -> None:
        self._run = sdk
        self._client = client
        self._project = project
        self._call_s = call_s
        self._region = LIMITS.region(region) or DEFAULT_REGION
        self._secrets: tuple[str, ...] = ()

    @classmethod
    def open(cls, *, project: str | None = None, region: str | None = None) -> Self:
        try:
            import google.auth  # noqa: PLC0415 - an optional SDK
            from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
            from google.cloud import run_v2  # noqa: PLC0415
        except ImportError as exc:
            raise faults.missing_sdk(NAME, exc) from exc
        try:
            found, default_project = google.auth.default()
        except GoogleAuthError as exc:
            raise faults.credentials(NAME, faults.shown(exc)) from exc
        project = project or default_project
        if not project:
            raise InvalidInput(
                "Cloud Run needs a project",
                code="wrong_usage",
                next_step="name one with --gcp-project",
                param="gcp_project",
            )
        client = run_v2.ServicesAsyncClient(credentials=found)
        return cls(run_v2, client, project=project, region=region or DEFAULT_REGION)

    async def check(self) -> Account:
        await self._ours(self._place(self._region))
        return Account(provider=NAME, detail=f"project {self._project}, region {self._region}")

    def offers(self) -> Sequence[Offer]:
        return LIMITS.offers()

    def plan(self, spec: DeploymentSpec) -> BackendPlan:
        region = LIMITS.region(spec.gcp_region) or self._region
        timeout, _, concurrency, warnings = LIMITS.clamped(spec)
        price, source = LIMITS.price(spec)
        warnings += ("Cloud Run itself decides when an idle instance ends, after up to 15 minutes",)
        return BackendPlan(
            provider=NAME,
            market=Market.SERVERLESS,
            remote_name=remote_name(spec.service_name),
            place=f"projects/{spec.gcp_project or self._project}/locations/{region}",
            request={
                "accelerator": LIMITS.gpu(spec),
                "image": VLLM_IMAGE,
                "args": list(engine_arguments(spec)),
                "limits": {"cpu": CPU, "memory": MEMORY, "nvidia.com/gpu": str(spec.gpu_count)},
                "concurrency": concurrency,
                "timeout_s": timeout,
                "min_instances": 0,
                "max_instances": SERVERLESS_REPLICAS,
            },
            usd_per_hour=price,
            price_source=source,
            concurrency=concurrency,
            most_replicas=SERVERLESS_REPLICAS,
            warnings=warnings,
        )

    async def ensure(self, plan: BackendPlan, secrets: Secrets) -> Remote:
        self._secrets = secrets.values()
        service = self._service(plan, secrets)
        name = _path(plan.place, plan.remote_name)
        is_new = not await self.find(plan.remote_name, plan.place)
        async with self._call():
            if is_new:
                await self._client.create_service(
                    parent=plan.place,
                    service=service,
                    service_id=plan.remote_name,
                    timeout=self._call_s,
                )
            else:
                service.name = name
                await self._client.update_service(service=service, timeout=self._call_s)
        # The URL comes with the first revision; `status` tells it.
        return Remote(provider=NAME, remote_name=plan.remote_name, remote_id=name, place=plan.place)

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        if remote_name is not None:
            place = place or self._place(self._region)
            try:
                return [_remote(await self._get(_path(place, remote_name)), place)]
            except NotFound:
                return []
        # Each region has its own list, and the API takes no wildcard.
        places = [place] if place else [self._place(region) for region in sorted(LIMITS.regions or ())]
        listed = await asyncio.gather(*(self._ours(each) for each in places))
        return [remote for remotes in listed for remote in remotes]

    async def status(self, remote: Remote) -> BackendStatus:
        try:
            service = await self._get(remote.remote_id)
        except NotFound:
            return BackendStatus(state=BackendState.DELETED)
        states = self._run.Condition.State
        condition = service.terminal_condition
        url, reason = service.uri or None, condition.message or None
        if service.delete_time:
            return BackendStatus(state=BackendState.DELETING, url=url)
        if condition.state == states.CONDITION_SUCCEEDED:
            # Whether an instance runs now only its metrics tell: asking the service would start one.
            return BackendStatus(state=BackendState.IDLE, url=url)
        if condition.state == states.CONDITION_FAILED:
            return BackendStatus(state=BackendState.FAILED, url=url, reason=reason)
        return BackendStatus(state=BackendState.PROVISIONING, url=url, reason=reason)

    async def scale(self, remote: Remote, min_replicas: int) -> None:
        service = await self._get(remote.remote_id)
        service.scaling.min_instance_count = min_replicas
        async with self._call():
            await self._client.update_service(
                service=service, update_mask={"paths": ["scaling"]}, timeout=self._call_s
            )

    def auth(self, secrets: Secrets) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {secrets.engine_api_key}"}

    async def delete(self, remote_name: str, place: str = "") -> bool:
        for found in await self.find(remote_name, place):
            try:
                async with self._call():
                    await self._client.delete_service(name=found.remote_id, timeout=self._call_s)
            except NotFound:
                continue
        return not await self.find(remote_name, place)

    async def usage(self, remote: Remote, since: float, until: float) -> Usage:
        """Say that it is not known: Google's bill is a BigQuery export, hours late."""
        del remote, since, until
        return Usage(usd=None, source="Cloud Run has no API that tells")

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        """Return nothing: logs are Cloud Logging's, whose SDK is not asked for."""
        del remote, lines
        return []

    async def close(self) -> None:
        await self._client.transport.close()

    def _place(self, region: str) -> str:
        return f"projects/{self._project}/locations/{region}"

    async def _ours(self, place: str) -> list[Remote]:
        async with self._call():
            listed = [service async for service in await self._client.list_services(parent=place)]
        remotes = [_remote(service, place) for service in listed]
        return [remote for remote in remotes if remote.remote_name.startswith(REMOTE_PREFIX)]

    async def _get(self, name: str) -> Any:
        async with self._call():
            return await self._client.get_service(name=name, timeout=self._call_s)

    def _service(self, plan: BackendPlan, secrets: Secrets) -> Any:
        run, wanted = self._run, plan.request
        variables = {"VLLM_API_KEY": secrets.engine_api_key}
        if secrets.hf_token:
            variables["HF_TOKEN"] = secrets.hf_token
        container = run.Container(
            image=wanted["image"],
            command=["vllm", "serve"],
            args=wanted["args"],
            ports=[run.ContainerPort(container_port=PORT)],
            env=[run.EnvVar(name=name, value=value) for name, value in variables.items()],
            resources=run.ResourceRequirements(
                limits=wanted["limits"], cpu_idle=False, startup_cpu_boost=True
            ),
            startup_probe=run.Probe(
                http_get=run.HTTPGetAction(path="/health", port=PORT),
                period_seconds=PROBE_S,
                failure_threshold=PROBES,
                timeout_seconds=5,
            ),
        )
        return run.Service(
            template=run.RevisionTemplate(
                containers=[container],
                node_selector=run.NodeSelector(accelerator=wanted["accelerator"]),
                gpu_zonal_redundancy_disabled=True,
                max_instance_request_concurrency=wanted["concurrency"],
                timeout={"seconds": wanted["timeout_s"]},
            ),
            scaling=run.ServiceScaling(
                min_instance_count=wanted["min_instances"], max_instance_count=wanted["max_instances"]
            ),
            # The engine's own key guards it: Google's identity tokens end within the hour.
            invoker_iam_disabled=True,
            ingress=run.IngressTraffic.INGRESS_TRAFFIC_ALL,
            labels={"managed-by": "tandemn"},
        )

    def _call(self) -> Any:
        from google.api_core.exceptions import GoogleAPIError  # noqa: PLC0415 - an optional SDK
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

        return faults.translated(
            NAME, (GoogleAPIError, GoogleAuthError), self._translate, limit_s=self._call_s
        )

    def _translate(self, exc: Exception) -> TandemnError:
        from google.api_core import exceptions as api  # noqa: PLC0415 - an optional SDK
        from google.auth.exceptions import GoogleAuthError, TransportError  # noqa: PLC0415

        detail = faults.shown(exc, self._secrets)
        if isinstance(exc, api.FailedPrecondition) and "capacity" in detail.lower():
            return faults.capacity(NAME, detail)
        kinds: Sequence[tuple[Any, Callable[[str, str], TandemnError]]] = (
            (TransportError, faults.unavailable),
            ((GoogleAuthError, api.Unauthenticated), faults.credentials),
            (api.Forbidden, faults.permission),
            (api.NotFound, faults.not_found),
            ((api.AlreadyExists, api.Aborted), faults.conflict),
            (api.TooManyRequests, faults.quota),
            (api.BadRequest, faults.refused),
        )
        return next((made for kind, made in kinds if isinstance(exc, kind)), faults.unavailable)(NAME, detail)


def _path(place: str, name: str) -> str:
    return f"{place}/services/{name}"


def _remote(service: Any, place: str) -> Remote:
    return Remote(
        provider=NAME,
        remote_name=service.name.rpartition("/")[2],
        remote_id=service.name,
        place=place,
        url=service.uri or None,
    )
