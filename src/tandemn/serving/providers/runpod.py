"""RunPod: one load-balancing serverless endpoint for each deployment, through its REST API v2."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from tandemn import settings
from tandemn.errors import NotFound, TandemnError
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
    from collections.abc import Mapping, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import DeploymentSpec

NAME = "runpod"
#: REST v1 was switched off on 2026-11-15.
URL = "https://api.runpod.io/v2"
#: Container disk, in GB: the image and the weights of a model that fits one GPU.
DISK_GB = 100
#: Longest answer that is read, in bytes.
LONGEST_ANSWER = 16 << 20

#: Pools of docs.runpod.io/flash/configuration/gpu-types, as of 2026-11.
LIMITS = Limits(
    provider=NAME,
    gpus={
        "A5000": "AMPERE_24",
        "L4": "ADA_24",
        "RTX4090": "ADA_24",
        "A40": "AMPERE_48",
        "A6000": "AMPERE_48",
        "L40": "ADA_48_PRO",
        "L40S": "ADA_48_PRO",
        "A100-80GB": "AMPERE_80",
        "H100": "ADA_80_PRO",
        "H200": "HOPPER_141",
        "B200": "BLACKWELL_180",
        "RTXPRO6000": "BLACKWELL_96",
    },
    # A load-balancing endpoint ends a request after five and a half minutes.
    longest_request_s=330,
    idle_s=(1, 3600),
)


class RunPod:
    """Adapter of RunPod.

    Args:
        api_key: guards the endpoint too: RunPod's gateway asks for it, so that the engine needs none.
        url: of the API.
        call_s: longest single call, in seconds.
    """

    name = NAME
    market = Market.SERVERLESS

    def __init__(self, api_key: str, url: str = URL, *, call_s: float = CALL_S) -> None:
        self._api_key = api_key
        self._url = url
        self._call_s = call_s
        self._secrets: tuple[str, ...] = (api_key,)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def open(cls, *, project: str | None = None, region: str | None = None) -> Self:
        del project, region
        key = settings.runpod_api_key()
        if key is None:
            raise faults.credentials(NAME, "RUNPOD_API_KEY is not set")
        return cls(key.get_secret_value())

    async def check(self) -> Account:
        await self._ask("GET", "/serverless")
        return Account(provider=NAME, detail="the key in RUNPOD_API_KEY")

    def offers(self) -> Sequence[Offer]:
        return LIMITS.offers()

    def plan(self, spec: DeploymentSpec) -> BackendPlan:
        pool = LIMITS.gpu(spec)
        timeout, idle, concurrency, warnings = LIMITS.clamped(spec)
        price, source = LIMITS.price(spec)
        others = sorted(name for name, its in LIMITS.gpus.items() if its == pool and name != spec.gpu)
        if others:
            warnings += (f"RunPod's pool {pool} also has {', '.join(others)}: it may give one of those",)
        request: dict[str, Any] = {
            "name": remote_name(spec.service_name),
            "type": "LOAD_BALANCER",
            "image": VLLM_IMAGE,
            "args": shlex.join(engine_arguments(spec)),
            "disk": DISK_GB,
            "ports": [f"{PORT}/http"],
            "env": {"PORT": str(PORT), "HEALTH_CHECK_PATH": "/health"},
            "gpu": {"pools": [pool], "count": spec.gpu_count},
            "workers": {"min": 0, "max": spec.workers_max or SERVERLESS_REPLICAS, "idleTimeout": idle},
            "scaling": {"type": "REQUEST_COUNT", "requestCount": concurrency},
            "timeout": timeout * 1000,
            "flashboot": "FLASHBOOT" if spec.cold_start_mode == "fast_boot" else "OFF",
        }
        if spec.region is not None:
            request["dataCenterIds"] = [spec.region]
        return BackendPlan(
            provider=NAME,
            market=Market.SERVERLESS,
            remote_name=remote_name(spec.service_name),
            request=request,
            usd_per_hour=price,
            price_source=source,
            concurrency=concurrency,
            most_replicas=spec.workers_max or SERVERLESS_REPLICAS,
            warnings=warnings,
        )

    async def ensure(self, plan: BackendPlan, secrets: Secrets) -> Remote:
        self._secrets = (self._api_key, *secrets.values())
        body = dict(plan.request)
        if secrets.hf_token:
            body["env"] = {**body["env"], "HF_TOKEN": secrets.hf_token}
        # Names are not unique here: one that an interrupted call left is taken over, never doubled.
        found = await self.find(plan.remote_name)
        if not found:
            return _remote(await self._ask("POST", "/serverless", body))
        kept, *doubles = found
        for double in doubles:
            await self._delete(double.remote_id)
        changes = {key: value for key, value in body.items() if key not in {"name", "type"}}
        return _remote(await self._ask("PATCH", f"/serverless/{kept.remote_id}", changes))

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        del place
        listed = (await self._ask("GET", "/serverless")).get("endpoints") or []
        return sorted(
            (
                _remote(each)
                for each in listed
                if each.get("name") == remote_name
                or (remote_name is None and str(each.get("name")).startswith(REMOTE_PREFIX))
            ),
            key=lambda remote: (remote.remote_name, remote.remote_id),
        )

    async def status(self, remote: Remote) -> BackendStatus:
        try:
            endpoint = await self._ask("GET", f"/serverless/{remote.remote_id}")
            workers = await self._ask("GET", f"/serverless/{remote.remote_id}/workers")
        except NotFound:
            return BackendStatus(state=BackendState.DELETED)
        count = workers.get("summary") or {}
        # A worker that is throttled or starting answers nobody; `/health` of an endpoint says 200 all the same.
        ready = int(count.get("running") or 0) + int(count.get("idle") or 0)
        state, reason = BackendState.READY if ready else BackendState.IDLE, None
        if not ready and count.get("unhealthy"):
            state, reason = BackendState.FAILED, f"{count['unhealthy']} workers are unhealthy"
        elif not ready and count.get("throttled"):
            state, reason = BackendState.PROVISIONING, "workers wait for a free GPU"
        elif not ready and count.get("initializing"):
            state = BackendState.PROVISIONING
        return BackendStatus(state=state, url=_remote(endpoint).url, replicas=ready, reason=reason)

    async def scale(self, remote: Remote, min_replicas: int) -> None:
        await self._ask("PATCH", f"/serverless/{remote.remote_id}", {"workers": {"min": min_replicas}})

    def auth(self, secrets: Secrets) -> Mapping[str, str]:
        del secrets
        return {"Authorization": f"Bearer {self._api_key}"}

    async def delete(self, remote_name: str, place: str = "") -> bool:
        for found in await self.find(remote_name, place):
            await self._delete(found.remote_id)
        return not await self.find(remote_name, place)

    async def usage(self, remote: Remote, since: float, until: float) -> Usage:
        query = {
            "endpointId": remote.remote_id,
            "startTime": datetime.fromtimestamp(since, UTC).isoformat(),
            "endTime": datetime.fromtimestamp(until, UTC).isoformat(),
        }
        rows = (await self._ask("GET", "/billing/serverless", query=query)).get("records") or []
        try:
            total = sum((Decimal(str(row["amount"])) for row in rows), Decimal(0))
        except (KeyError, TypeError, InvalidOperation):
            return Usage(usd=None, source="RunPod's bill could not be read")
        return Usage(usd=total, source="billed")

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        """Return nothing: the API has no logs, its console has."""
        del remote, lines
        return []

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _delete(self, remote_id: str) -> None:
        try:
            await self._ask("DELETE", f"/serverless/{remote_id}")
        except NotFound:
            return

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._api_key}"})
        async with (
            faults.translated(NAME, (aiohttp.ClientError, ValueError), self._translate, limit_s=self._call_s),
            self._session.request(method, self._url + path, json=body, params=query) as answer,
        ):
            content = await answer.content.read(LONGEST_ANSWER)
            if answer.status >= 400:
                raise self._refusal(answer.status, content)
            return _json_object(content)

    def _refusal(self, status: int, content: bytes) -> TandemnError:
        detail = self._detail(status, content)
        lower = detail.lower()
        if status == 401:
            return faults.credentials(NAME, detail)
        if status in {402, 403}:
            # 402: the account's balance is used up, which only its owner can mend.
            return faults.quota(NAME, detail) if "quota" in lower else faults.permission(NAME, detail)
        if status == 404:
            return faults.not_found(NAME, detail)
        if status == 409:
            return faults.conflict(NAME, detail)
        if status in {400, 422} and ("quota" in lower or "limit" in lower):
            return faults.quota(NAME, detail)
        if "capacity" in lower or "no available" in lower:
            return faults.capacity(NAME, detail)
        if status == 429 or status >= 500:
            return faults.unavailable(NAME, detail)
        return faults.refused(NAME, detail)

    def _detail(self, status: int, content: bytes) -> str:
        """Read an RFC 9457 problem; what is none is not shown: it may be a page of HTML."""
        try:
            problem = _json_object(content)
        except ValueError:
            return f"HTTP {status}"
        words = problem.get("detail") or problem.get("title") or "no reason given"
        return faults.shown(f"{words} (HTTP {status})", self._secrets)

    def _translate(self, exc: Exception) -> TandemnError:
        return faults.unavailable(NAME, faults.shown(exc, self._secrets))


def _remote(endpoint: Mapping[str, Any]) -> Remote:
    remote_id = endpoint.get("id")
    if not isinstance(remote_id, str):
        raise faults.unavailable(NAME, "an endpoint without an id")
    urls = endpoint.get("requestUrls")
    url = urls.get("base") if isinstance(urls, dict) else None
    return Remote(
        provider=NAME,
        remote_name=str(endpoint.get("name")),
        remote_id=remote_id,
        url=url or f"https://{remote_id}.api.runpod.ai",
    )


def _json_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object; ValueError where it is none, an empty body is an empty one."""
    value = json.loads(content) if content.strip() else {}
    if not isinstance(value, dict):
        raise ValueError("the answer is not a JSON object")  # noqa: TRY004 - callers catch ValueError, as of bad JSON
    return value
