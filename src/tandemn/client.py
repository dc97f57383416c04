"""Typed HTTP client of the control plane: `UserClient` for the command line, `ReplicaClient` for the runner.

Errors come back as the ones that the control plane raised (see `protocol/errors.py`); a server that does
not answer is `ServerUnavailable`. Nothing is tried again here: the caller knows whether it may be.
"""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ValidationError

from tandemn import __version__
from tandemn.errors import InvalidInput, NotAllowed, ServerUnavailable, TandemnError
from tandemn.protocol import deployments, handshake, jobs, keys, metrics, openai, plans, replicas, upkeep
from tandemn.protocol import errors as wire
from tandemn.protocol.cost import DeploymentCostView

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

_Model = TypeVar("_Model", bound=BaseModel)

_log = logging.getLogger(__name__)

#: Bytes read from a file, and passed on, at a time.
BLOCK_BYTES = 1 << 20
#: A call that is neither an upload nor a download nor a long poll is answered within this time.
CALL_S = 60.0
CONNECT_S = 5.0
#: Planning reads the whole input first, and asks AWS for quotas.
PLAN_S = 600.0
#: Between two blocks of a download or upload.
STALL_S = 120.0
#: How long a replica calls no server that is not its control plane. Not often: a control plane makes wait who shows it wrong
#: tokens again and again, and those who call from the same address.
STRANGER_S = 10.0


class _Http:
    """One session: base URL, key, and the mapping of failures to errors.

    Args:
        url: of the control plane.
        key: sent with every request to it.
        on_other_version: told, once, the version of a control plane that is not of ours.
    """

    def __init__(
        self, url: str, key: str | None = None, *, on_other_version: Callable[[str], None] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self._on_other_version = on_other_version
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": f"tandemn/{__version__}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            read_bufsize=BLOCK_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, *, timeout: aiohttp.ClientTimeout | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; an answer that is an error raises it."""
        assert self._session is not None, "enter the client before calling it"
        absolute = path.startswith(("http://", "https://"))
        server = self.url
        url = path if absolute else self.url + path
        headers = dict(options.pop("headers", None) or {})
        if not absolute:
            self._check_server(server)
            headers[handshake.HEADER] = __version__
            # A presigned URL carries its own permission; a key sent along would be refused, and leaked.
            if self.key:
                headers["Authorization"] = f"Bearer {self.key}"
        timeout = timeout or aiohttp.ClientTimeout(total=CALL_S, sock_connect=CONNECT_S)
        began = time.monotonic()
        try:
            async with self._session.request(
                method, url, timeout=timeout, headers=headers, **options
            ) as answer:
                # The path only: a presigned URL's query is a permission.
                _log.debug(
                    "%s %s: %d in %.3f s", method, answer.url.path, answer.status, time.monotonic() - began
                )
                self._compare_version(answer.headers.get(handshake.HEADER))
                if answer.status >= 400:
                    error = await _error_of(answer)
                    raise error if absolute else self._understood(error, server)
                yield answer
        except aiohttp.ClientSSLError as exc:
            raise ServerUnavailable(
                f"the certificate of {self.url} cannot be trusted ({exc})",
                code="certificate_not_trusted",
                next_step="set SSL_CERT_FILE to the authority that signed it",
            ) from exc
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            if not absolute:
                self._try_another(server)
            raise ServerUnavailable(
                f"no answer from {server}: {type(exc).__name__}{f' ({exc})' if str(exc) else ''}",
                next_step="is the control plane running? `tandemn server status` tells",
            ) from exc

    def _try_another(self, silent: str) -> None:
        """Called where the control plane did not answer."""

    def _check_server(self, server: str) -> None:
        """Called before each request. Raises ServerUnavailable where none should go there now."""

    def _understood(self, error: TandemnError, server: str) -> TandemnError:
        """Called with an error that a control plane answered; returns what it means."""
        del server
        return error

    def _compare_version(self, theirs: str | None) -> None:
        if theirs and theirs != __version__ and self._on_other_version is not None:
            tell, self._on_other_version = self._on_other_version, None
            tell(theirs)

    async def _call(
        self,
        method: str,
        path: str,
        answer_type: type[_Model],
        body: BaseModel | None = None,
        *,
        params: dict[str, str] | None = None,
        total_s: float = CALL_S,
    ) -> _Model:
        content = body.model_dump_json().encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if content is not None else None
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S)
        async with self._open(
            method, path, data=content, headers=headers, params=params, timeout=timeout
        ) as answer:
            raw = await answer.read()
        return self._parse(raw, answer_type, f"{method} {path}")

    def _parse(self, raw: bytes, answer_type: type[_Model], call: str) -> _Model:
        try:
            return answer_type.model_validate_json(raw)
        except ValidationError as exc:
            raise ServerUnavailable(
                f"{self.url} answered {call} with something else than expected",
                next_step="is it a Tandemn control plane of this version?",
            ) from exc

    async def _download(
        self, path: str, params: dict[str, str] | None = None, *, stall_s: float | None = STALL_S
    ) -> AsyncIterator[bytes]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=stall_s)
        async with self._open("GET", path, params=params, timeout=timeout) as answer:
            async for block in answer.content.iter_chunked(BLOCK_BYTES):
                yield block


def _deployment(service_name: str) -> str:
    """The path of a deployment; a name that is none is looked up as what it is, and not found."""
    return f"/api/deployments/{quote(service_name, safe='')}"


async def _error_of(answer: aiohttp.ClientResponse) -> TandemnError:
    raw = await answer.read()
    try:
        return wire.from_body(answer.status, wire.ErrorBody.model_validate_json(raw))
    except ValidationError:
        text = raw[:300].decode(errors="replace").strip()
        detail = wire.ErrorDetail(
            message=f"HTTP {answer.status} from {answer.method} {answer.url.path}: {text}",
            type="server_error",
            code="unexpected_answer",
        )
        return wire.from_body(answer.status, wire.ErrorBody(error=detail))


class UserClient(_Http):
    """What a user may ask of a control plane."""

    async def server(self) -> jobs.ServerStatus:
        return await self._call("GET", "/api/server", jobs.ServerStatus)

    async def me(self) -> keys.Me:
        """Ask whom the key makes its bearer."""
        return await self._call("GET", "/api/me", keys.Me)

    async def create_key(self, request: keys.CreateKey) -> keys.KeyMade:
        """Give a name its first key, which is told in this answer and never again."""
        return await self._call("POST", "/api/keys", keys.KeyMade, request)

    async def list_keys(self) -> keys.KeyList:
        return await self._call("GET", "/api/keys", keys.KeyList)

    async def replace_key(self, name: str) -> keys.KeyMade:
        """Give a name another key; the one before is void at once."""
        return await self._call("POST", f"/api/keys/{quote(name, safe='')}/rotate", keys.KeyMade)

    async def revoke_key(self, name: str) -> keys.KeyView:
        return await self._call("POST", f"/api/keys/{quote(name, safe='')}/revoke", keys.KeyView)

    async def upload(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> openai.FileObject:
        """Stream a file up in bounded memory; `on_bytes` is told the size of each block as it is sent."""

        async def blocks() -> AsyncIterator[bytes]:
            with path.open("rb") as source:
                while block := source.read(BLOCK_BYTES):
                    yield block
                    if on_bytes:
                        on_bytes(len(block))

        with aiohttp.MultipartWriter("form-data") as form:
            form.append("batch").set_content_disposition("form-data", name="purpose")
            part = form.append_payload(
                aiohttp.AsyncIterablePayload(blocks(), content_type="application/jsonl")
            )
            # A name that is not UTF-8 is legal on Linux and not in a header.
            name = path.name.encode(errors="replace").decode()
            part.set_content_disposition("form-data", name="file", filename=name)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            async with self._open("POST", "/v1/files", data=form, timeout=timeout) as answer:
                return self._parse(await answer.read(), openai.FileObject, "POST /v1/files")

    async def delete_file(self, file_id: str) -> openai.FileDeleted:
        return await self._call("DELETE", f"/v1/files/{file_id}", openai.FileDeleted)

    async def submit(self, spec: jobs.JobSpec) -> jobs.JobStatus:
        return await self._call("POST", "/api/jobs", jobs.JobStatus, spec)

    async def plan(self, spec: jobs.JobSpec) -> plans.PlanAnswer:
        """Plan a job without submitting it. Raises Infeasible with what would make it feasible."""
        return await self._call("POST", "/api/plans", plans.PlanAnswer, spec, total_s=PLAN_S)

    async def cloud_of(self, spec: jobs.JobSpec) -> plans.CloudChoice:
        """Ask where a job would run. The first one that has to ask SkyPilot starts its server, which takes a while."""
        return await self._call("POST", "/api/plans/cloud", plans.CloudChoice, spec, total_s=PLAN_S)

    async def quota(self, regions: list[str]) -> plans.QuotaAnswer:
        """Read AWS's vCPU quotas, minus what is in use; no region means the catalog's."""
        params = {"region": ",".join(regions)} if regions else None
        return await self._call("GET", "/api/quota", plans.QuotaAnswer, params=params, total_s=PLAN_S)

    async def job(
        self, job_id: str, *, wait_s: float = 0.0, state: jobs.JobState | None = None
    ) -> jobs.JobStatus:
        """Look at a job; with `state`, as soon as it is in another one, at the latest after `wait_s`."""
        params = {"wait_s": f"{wait_s:g}", "state": state.value} if state is not None else None
        return await self._call("GET", f"/api/jobs/{job_id}", jobs.JobStatus, params=params)

    async def list_jobs(
        self, *, limit: int = 100, after: str | None = None, state: str | None = None
    ) -> jobs.JobList:
        """List newest first; `state` is a JobState, or `active`, `ended`, or `live` (active, or ended with
        replicas that still run).
        """
        params = {"limit": str(limit)}
        params |= {"after": after} if after else {}
        params |= {"state": state} if state else {}
        return await self._call("GET", "/api/jobs", jobs.JobList, params=params)

    async def cost(self, *, limit: int = 50) -> jobs.CostReport:
        """Say what the newest `limit` jobs cost, and all together."""
        return await self._call("GET", "/api/cost", jobs.CostReport, params={"limit": str(limit)})

    async def cancel(self, job_id: str) -> jobs.JobStatus:
        return await self._call("POST", f"/api/jobs/{job_id}/cancel", jobs.JobStatus)

    async def destroy(self, job_id: str) -> jobs.JobStatus:
        """End the job if it runs, and every replica of it, persisting ones too."""
        return await self._call("POST", f"/api/jobs/{job_id}/destroy", jobs.JobStatus)

    async def add(self, job_id: str, request: jobs.AddRequest) -> jobs.AddAnswer:
        return await self._call("POST", f"/api/jobs/{job_id}/add", jobs.AddAnswer, request)

    async def kill(self, job_id: str, request: jobs.KillRequest) -> jobs.KillAnswer:
        return await self._call("POST", f"/api/jobs/{job_id}/kill", jobs.KillAnswer, request)

    async def swap(self, job_id: str, request: jobs.SwapRequest) -> jobs.SwapAnswer:
        return await self._call("POST", f"/api/jobs/{job_id}/swap", jobs.SwapAnswer, request)

    async def cancel_swap(self, job_id: str) -> jobs.JobStatus:
        return await self._call("DELETE", f"/api/jobs/{job_id}/swap", jobs.JobStatus)

    async def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> jobs.EventList:
        params = {"after": str(after), "limit": str(limit)}
        return await self._call("GET", f"/api/jobs/{job_id}/events", jobs.EventList, params=params)

    async def metrics(
        self, job_id: str, *, replica: str | None = None, series: bool = False
    ) -> metrics.JobMetrics:
        params = {"series": "true"} if series else {}
        params |= {"replica": replica} if replica else {}
        return await self._call("GET", f"/api/jobs/{job_id}/metrics", metrics.JobMetrics, params=params)

    async def server_events(
        self, *, after: int = 0, limit: int = 1000, actor: str | None = None
    ) -> jobs.EventList:
        """Read what happened on the whole control plane, or what `actor` brought about there."""
        params = {"after": str(after), "limit": str(limit)}
        params |= {"actor": actor} if actor else {}
        return await self._call("GET", "/api/events", jobs.EventList, params=params)

    def output(self, job_id: str, *, partial: bool = False) -> AsyncIterator[bytes]:
        """Stream the answers; `partial` gives those of finished chunks while the job still runs."""
        params = {"partial": "true"} if partial else None
        return self._download(f"/api/jobs/{job_id}/output", params)

    def error_lines(self, job_id: str) -> AsyncIterator[bytes]:
        """Stream the error lines of an ended job; empty where there are none."""
        return self._download(f"/api/jobs/{job_id}/errors")

    def logs(
        self, job_id: str, *, replica: str | None = None, tail: int = 200, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Stream the replicas' logs, each line led by its replica's id and a space; `follow` goes on until
        the job has ended.
        """
        params = {"tail": str(tail), "follow": str(follow).lower()}
        params |= {"replica": replica} if replica else {}
        # A replica may have nothing to say for hours.
        return self._download(f"/api/jobs/{job_id}/logs", params, stall_s=None if follow else STALL_S)

    async def plan_deployment(self, request: deployments.DeploymentRequest) -> deployments.DeploymentPlan:
        """Plan a deployment without making it. Raises Infeasible where the model does not fit."""
        return await self._call(
            "POST", "/api/deployments/plan", deployments.DeploymentPlan, request, total_s=PLAN_S
        )

    async def deploy(self, request: deployments.DeploymentRequest) -> deployments.DeploymentStatus:
        """Record a deployment, or its update. Raises Conflict where the name is taken."""
        return await self._call(
            "POST", "/api/deployments", deployments.DeploymentStatus, request, total_s=PLAN_S
        )

    async def deployment(
        self, service_name: str, *, since: float | None = None, wait_s: float = 0.0
    ) -> deployments.DeploymentStatus:
        """Look at a deployment; with `since`, when it was changed after that, at the latest after `wait_s`."""
        params = {"wait_s": f"{wait_s:g}", "since": repr(since)} if since is not None else None
        return await self._call(
            "GET", f"{_deployment(service_name)}", deployments.DeploymentStatus, params=params
        )

    async def deployment_cost(self, service_name: str) -> DeploymentCostView:
        """Say what a deployment has cost so far, and what it saved."""
        return await self._call("GET", f"/api/deployments/{service_name}/cost", DeploymentCostView)

    async def list_deployments(self, *, state: str | None = None) -> deployments.DeploymentList:
        """List newest first; `state` is a DeploymentState, `active` (the default), `ended` or `all`."""
        params = {"state": state} if state else None
        return await self._call("GET", "/api/deployments", deployments.DeploymentList, params=params)

    async def destroy_deployment(self, service_name: str) -> deployments.DeploymentStatus:
        """Ask for its end; it is gone when its state is `deleted`."""
        return await self._call("DELETE", f"{_deployment(service_name)}", deployments.DeploymentStatus)

    async def endpoint_key(self, service_name: str) -> deployments.EndpointKey:
        return await self._call("GET", f"{_deployment(service_name)}/key", deployments.EndpointKey)

    async def rotate_key(
        self, service_name: str, request: deployments.RotateRequest
    ) -> deployments.EndpointKey:
        return await self._call(
            "POST", f"{_deployment(service_name)}/key/rotate", deployments.EndpointKey, request
        )

    async def deployment_events(
        self, service_name: str, *, after: int = 0, limit: int = 1000
    ) -> jobs.EventList:
        params = {"after": str(after), "limit": str(limit)}
        return await self._call("GET", f"{_deployment(service_name)}/events", jobs.EventList, params=params)

    def deployment_logs(
        self, service_name: str, *, part: str | None = None, tail: int = 200, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Stream the end of each part's log, each line led by the part's name; `follow` goes on until it is gone."""
        params = {"tail": str(tail), "follow": str(follow).lower()} | ({"part": part} if part else {})
        return self._download(
            f"{_deployment(service_name)}/logs", params, stall_s=None if follow else STALL_S
        )

    async def check(self, provider: str | None = None) -> upkeep.CheckReport:
        """Ask whether everything that the control plane needs answers; with `provider`, that one only."""
        params = {"provider": provider} if provider else None
        return await self._call("GET", "/api/check", upkeep.CheckReport, params=params, total_s=PLAN_S)

    async def strays(self) -> upkeep.StrayReport:
        """List what providers have under our names and no record knows."""
        return await self._call("GET", "/api/strays", upkeep.StrayReport, total_s=PLAN_S)

    async def collect(self, request: upkeep.CollectRequest) -> upkeep.StrayReport:
        """Delete strays by name; each says whether it is gone."""
        return await self._call("POST", "/api/strays/collect", upkeep.StrayReport, request, total_s=PLAN_S)


class ReplicaClient(_Http):
    """What one replica may ask of its control plane; the key is its own token.

    Where there are several control planes, the next call after one without an answer goes to another. What does not know
    this replica's token is none of them: the port of one that died may be another's by now. One of them says
    `replica_ended`, once it has ended.

    Args:
        url: the control plane that is called first.
        replica_id: whose calls these are.
        token: its key.
        others: further control planes.
        look: asked for control planes that nobody told of, once no known one answered.
    """

    def __init__(
        self,
        url: str,
        replica_id: str,
        token: str,
        *,
        others: Sequence[str] = (),
        look: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        super().__init__(url, token)
        self._base = f"/api/replicas/{replica_id}"
        self._servers = [self.url, *others]
        self._look = look
        self._strangers: dict[str, float] = {}

    def know_servers(self, urls: Sequence[str]) -> None:
        """Learn which control planes there are now; none named: as before."""
        if urls:
            self._servers = [url.rstrip("/") for url in urls]

    def _try_another(self, silent: str) -> None:
        # Of several calls under way at once, each of which fails, only the first moves on.
        if silent != self.url:
            return
        here = self._servers.index(self.url) if self.url in self._servers else -1
        if here == len(self._servers) - 1 and self._look is not None:
            self._servers += [url for url in self._look() if url not in self._servers]
        self.url = self._servers[(here + 1) % len(self._servers)]

    def _check_server(self, server: str) -> None:
        if self._strangers.get(server, 0.0) > time.monotonic():
            self._try_another(server)
            raise ServerUnavailable(f"what answers at {server} is not the control plane of this replica")

    def _understood(self, error: TandemnError, server: str) -> TandemnError:
        is_wrong_token = isinstance(error, NotAllowed) and error.code == "invalid_token"
        is_no_answer_of_ours = isinstance(error, InvalidInput) and error.code == "unexpected_answer"
        if not is_wrong_token and not is_no_answer_of_ours:
            return error
        self._strangers[server] = time.monotonic() + STRANGER_S
        self._try_another(server)
        return ServerUnavailable(
            f"what answers at {server} is not the control plane of this replica: {error.message}"
        )

    async def hello(self) -> replicas.Assignment:
        return await self._call("POST", f"{self._base}/hello", replicas.Assignment)

    async def heartbeat(self, beat: replicas.Heartbeat) -> replicas.HeartbeatReply:
        return await self._call("POST", f"{self._base}/heartbeat", replicas.HeartbeatReply, beat, total_s=10)

    async def lease(self, request: replicas.LeaseRequest) -> replicas.LeaseReply:
        return await self._call(
            "POST", f"{self._base}/lease", replicas.LeaseReply, request, total_s=request.wait_s + 15
        )

    async def begin(self, chunk: replicas.ReleaseRequest) -> None:
        """Say that work on a leased chunk begins. Raises LeaseLost where it was stolen or reclaimed."""
        await self._tell("begin", chunk)

    async def upload_target(self, request: replicas.UploadRequest) -> replicas.UploadReply:
        """Ask where an object goes. Raises LeaseLost where the lease is gone."""
        return await self._call("POST", f"{self._base}/upload-target", replicas.UploadReply, request)

    async def put(self, url: str, content: bytes | AsyncIterator[bytes], size: int) -> None:
        """Store one object at an `UploadTarget`'s URL."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        async with self._open("PUT", url, data=content, headers=headers, timeout=timeout):
            pass

    async def get_range(self, url: str, start: int, end: int) -> bytes:
        """Read bytes [start, end) of an input or a part."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        async with self._open("GET", url, headers=headers) as answer:
            return await answer.read()

    async def complete(self, request: replicas.CompleteRequest) -> None:
        """Raises LeaseLost where another holder has, or had, the chunk."""
        await self._tell("complete", request)

    async def release(self, request: replicas.ReleaseRequest) -> None:
        await self._tell("release", request)

    async def engine_death(self, death: replicas.EngineDeath) -> replicas.EngineDeathReply:
        return await self._call("POST", f"{self._base}/engine-death", replicas.EngineDeathReply, death)

    async def goodbye(self, goodbye: replicas.Goodbye) -> None:
        await self._tell("goodbye", goodbye)

    async def _tell(self, verb: str, body: BaseModel) -> None:
        headers = {"Content-Type": "application/json"}
        content = body.model_dump_json().encode()
        async with self._open("POST", f"{self._base}/{verb}", data=content, headers=headers):
            pass
