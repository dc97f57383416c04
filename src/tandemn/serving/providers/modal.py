"""Modal: one App for each deployment, with one Server that runs vLLM's image as it is."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from tandemn.errors import NotFound, TandemnError
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.engine_arguments import PORT, VLLM_IMAGE, WEIGHTS_FOLDER, engine_arguments
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
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import DeploymentSpec

NAME = "modal"
#: What the Server is called in its App.
SERVER = "engine"
#: The Volume that keeps weights between containers, shared by all deployments.
WEIGHTS_VOLUME = "tandemn-weights"
#: Modal's own default is 30 s, in which no model is loaded.
STARTUP_S = 1800
#: A deployment builds its image first, which takes minutes where Modal has not seen it yet.
DEPLOY_S = 900.0

#: GPU names of modal.com/docs/guide/gpu, and most of them in one container, as of 2026-11.
LIMITS = Limits(
    provider=NAME,
    gpus={
        "T4": "T4",
        "L4": "L4",
        "A10": "A10",
        "A10G": "A10",
        "L40S": "L40S",
        "A100": "A100-40GB",
        "A100-80GB": "A100-80GB",
        "H100": "H100",
        "H200": "H200",
        "B200": "B200",
        "RTXPRO6000": "RTX-PRO-6000",
    },
    most_gpus={"A10": 4, "A10G": 4},
    idle_s=(2, 3600),
)


class Modal:
    """Adapter of Modal. Credentials are the SDK's own: `~/.modal.toml` or the environment.

    Args:
        sdk: the module `modal`.
        server_class: its mark for a Server whose image brings its own command.
        call_s: longest single call but a deploy, in seconds.
    """

    name = NAME
    market = Market.SERVERLESS

    def __init__(self, sdk: Any, server_class: type[Any], *, call_s: float = CALL_S) -> None:
        self._modal = sdk
        self._server_class = server_class
        self._call_s = call_s
        self._secrets: tuple[str, ...] = ()

    @classmethod
    def open(cls, *, project: str | None = None, region: str | None = None) -> Self:
        del project, region
        try:
            import modal  # noqa: PLC0415 - an optional SDK
            import modal.experimental  # noqa: PLC0415

            # Private, and what `modal server` itself uses: a Server whose image brings its own command.
            from modal._server import _DirectServerCls  # noqa: PLC0415
        except ImportError as exc:
            raise faults.missing_sdk(NAME, exc) from exc
        return cls(modal, _DirectServerCls)

    async def check(self) -> Account:
        async with self._call():
            client = await self._client()
            await client.hello.aio()
        return Account(provider=NAME, detail="the token of the SDK's own configuration")

    def offers(self) -> Sequence[Offer]:
        return LIMITS.offers()

    def plan(self, spec: DeploymentSpec) -> BackendPlan:
        gpu = LIMITS.gpu(spec)
        timeout, idle, concurrency, warnings = LIMITS.clamped(spec)
        price, source = LIMITS.price(spec)
        request: dict[str, Any] = {
            "gpu": f"{gpu}:{spec.gpu_count}",
            "image": VLLM_IMAGE,
            "command": list(engine_arguments(spec)),
            "min_containers": 0,
            "max_containers": SERVERLESS_REPLICAS,
            "scaledown_window": idle,
            "target_concurrency": concurrency,
            "exit_grace_period": min(timeout, 3600),
        }
        if spec.region is not None:
            request["compute_region"] = spec.region
        return BackendPlan(
            provider=NAME,
            market=Market.SERVERLESS,
            remote_name=remote_name(spec.service_name),
            request=request,
            usd_per_hour=price,
            price_source=source,
            concurrency=concurrency,
            most_replicas=SERVERLESS_REPLICAS,
            warnings=warnings,
        )

    async def ensure(self, plan: BackendPlan, secrets: Secrets) -> Remote:
        self._secrets = secrets.values()
        modal, wanted = self._modal, dict(plan.request)
        # Modal's own entry point is cleared: ours must be the whole command.
        image = modal.Image.from_registry(wanted.pop("image")).entrypoint(["vllm", "serve"])
        image = image.cmd(wanted.pop("command"))
        environment = {"VLLM_API_KEY": secrets.engine_api_key, "HF_HOME": WEIGHTS_FOLDER}
        if secrets.hf_token:
            environment["HF_TOKEN"] = secrets.hf_token
        app = modal.App(plan.remote_name)
        async with self._call(DEPLOY_S):
            app.server(
                name=SERVER,
                port=PORT,
                image=image,
                secrets=[modal.Secret.from_dict(environment)],
                volumes={
                    WEIGHTS_FOLDER: modal.Volume.from_name(WEIGHTS_VOLUME, create_if_missing=True),
                },
                startup_timeout=STARTUP_S,
                # The engine's own key guards it. Modal's proxy tokens are the workspace's, not ours to hand out.
                unauthenticated=True,
                include_source=False,
                **wanted,
            )(self._server_class)
            await app.deploy.aio(name=plan.remote_name, client=await self._client())
        found = await self.find(plan.remote_name)
        if not found:
            raise faults.unavailable(NAME, f"{plan.remote_name} was deployed and is not listed yet")
        return Remote(
            provider=NAME,
            remote_name=plan.remote_name,
            remote_id=found[0].remote_id,
            url=await self._url(plan.remote_name),
        )

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        return [
            Remote(provider=NAME, remote_name=app.name, remote_id=app.app_id, place=place)
            for app in await self._apps()
            if app.name == remote_name or (remote_name is None and app.name.startswith(REMOTE_PREFIX))
        ]

    async def status(self, remote: Remote) -> BackendStatus:
        app = next((app for app in await self._apps() if app.name == remote.remote_name), None)
        if app is None:
            return BackendStatus(state=BackendState.DELETED)
        try:
            url = await self._url(remote.remote_name)
        except NotFound:
            # Its App is there and its Server is not: a deploy was cut off between the two.
            return BackendStatus(state=BackendState.CREATING, reason="the app has no server yet")
        state = BackendState.READY if app.containers else BackendState.IDLE
        return BackendStatus(state=state, url=url, replicas=app.containers)

    async def scale(self, remote: Remote, min_replicas: int) -> None:
        async with self._call():
            server = self._modal.Server.from_name(remote.remote_name, SERVER, client=await self._client())
            await server.autoscaler.update.aio(min_containers=min_replicas)

    def auth(self, secrets: Secrets) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {secrets.engine_api_key}"}

    async def delete(self, remote_name: str, place: str = "") -> bool:
        for found in await self.find(remote_name, place):
            try:
                async with self._call():
                    app = await self._modal.App.lookup.aio(found.remote_name, client=await self._client())
                    await app.stop.aio(client=await self._client())
            except NotFound:
                continue
        return not await self.find(remote_name, place)

    async def usage(self, remote: Remote, since: float, until: float) -> Usage:
        start, end = datetime.fromtimestamp(since, UTC), datetime.fromtimestamp(until, UTC)
        async with self._call():
            workspace = self._modal.Workspace.from_context(client=await self._client())
            rows = await workspace.billing.report.aio(start=start, end=end, resolution="h")
        mine = [Decimal(row.cost) for row in rows if row.object_id == remote.remote_id]
        return Usage(usd=sum(mine, Decimal(0)), source="billed")

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        async with self._call():
            app = await self._modal.App.lookup.aio(remote.remote_name, client=await self._client())
            entries = [entry async for entry in app.logs.tail.aio(lines)]
        return [entry.message.rstrip("\n") for entry in entries]

    async def close(self) -> None:
        """Leave the client be: it is the SDK's own, one for the process."""

    async def _client(self) -> Any:
        return await self._modal.Client.from_env.aio()

    async def _apps(self) -> Sequence[Any]:
        async with self._call():
            listed: Sequence[Any] = await self._modal.experimental.list_deployed_apps.aio(
                client=await self._client()
            )
        return listed

    async def _url(self, name: str) -> str | None:
        async with self._call():
            server = self._modal.Server.from_name(name, SERVER, client=await self._client())
            url: str | None = await server.get_url.aio()
        return url

    def _call(self, limit_s: float | None = None) -> AbstractAsyncContextManager[None]:
        # ValueError: the SDK's own word for an answer that it cannot read.
        kinds = (self._modal.exception.Error, ValueError)
        return faults.translated(NAME, kinds, self._translate, limit_s=limit_s or self._call_s)

    def _translate(self, exc: Exception) -> TandemnError:
        kinds, detail = self._modal.exception, faults.shown(exc, self._secrets)
        match exc:
            case kinds.AuthError():
                return faults.credentials(NAME, detail)
            case kinds.PermissionDeniedError():
                return faults.permission(NAME, detail)
            case kinds.NotFoundError():
                return faults.not_found(NAME, detail)
            case kinds.ResourceExhaustedError():
                return faults.quota(NAME, detail)
            case kinds.ConflictError() | kinds.AlreadyExistsError():
                return faults.conflict(NAME, detail)
            case kinds.InvalidError() | kinds.RequestSizeError() | kinds.UnimplementedError():
                return faults.refused(NAME, detail)
            case kinds.ImageBuildError():
                return faults.startup_failed(NAME, detail)
            case _:
                return faults.unavailable(NAME, detail)
