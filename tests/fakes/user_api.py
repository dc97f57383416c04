"""A control plane that only speaks: protocol/jobs.py over real HTTP, its jobs scripted by the test."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import defaultdict
from typing import Any, Self

from aiohttp import BodyPartReader, web

from tandemn import __version__
from tandemn.errors import Conflict, NotAllowed, NotFound, TandemnError
from tandemn.protocol import deployments, handshake, jobs, keys, metrics, openai, plans
from tandemn.protocol import errors as wire


def job_status(job_id: str = "job-1", state: str = "running", **fields: Any) -> jobs.JobStatus:
    now = time.time()
    return jobs.JobStatus.model_validate(
        {
            "job_id": job_id,
            "state": state,
            "model": "demo/tiny",
            "deadline": now + 3630,
            "created_at": now - 10,
        }
        | fields
    )


def completed(job_id: str = "job-1", state: str = "completed", **fields: Any) -> jobs.JobStatus:
    now = time.time()
    return job_status(
        job_id,
        state,
        **{
            "requests": {"total": 3, "completed": 3},
            "started_at": now - 5,
            "ended_at": now,
            "output_file_id": "file-out",
        }
        | fields,
    )


def deployment_status(
    name: str = "chat", state: str = "ready", **fields: Any
) -> deployments.DeploymentStatus:
    now = time.time()
    backend = {
        "name": "serverless",
        "market": "serverless",
        "provider": "modal",
        "remote_name": f"tandemn-{name}",
        "state": "idle",
        "is_current": True,
    }
    return deployments.DeploymentStatus.model_validate(
        {
            "service_name": name,
            "state": state,
            "spec": {"service_name": name, "model": "demo/tiny", "gpu": "L4"},
            "endpoint": "http://127.0.0.1:8080",
            "backends": [backend],
            "router": {"host": "local", "remote_name": f"tandemn-{name}", "state": "ready"},
            "created_at": now - 10,
            "updated_at": now,
        }
        | fields
    )


def deployment_plan(
    name: str = "chat", price: str | None = "0.8", **fields: Any
) -> deployments.DeploymentPlan:
    return deployments.DeploymentPlan.model_validate(
        {
            "service_name": name,
            "spec": {"service_name": name, "model": "demo/tiny", "gpu": "L4", "serverless_provider": "modal"},
            "backends": [
                {
                    "name": "serverless",
                    "market": "serverless",
                    "provider": "modal",
                    "remote_name": f"tandemn-{name}",
                    "price_usd_per_hour": price,
                    "price_source": "modal.com, 2026-05",
                    "most_replicas": 3,
                    "reason": "it is the cheapest",
                }
            ],
            "router": {"host": "local", "remote_name": f"tandemn-{name}", "price_usd_per_hour": 0},
            "left_out": ["runpod: RUNPOD_API_KEY is not set"],
            "warnings": ["runpod ends a request after 330 s"],
        }
        | fields
    )


class FakeControlPlane:
    """Every look at a job gives the next of its statuses; the last one stays."""

    def __init__(self) -> None:
        self.url = ""
        self.jobs: dict[str, list[jobs.JobStatus]] = {}
        self.on_submit: list[jobs.JobStatus] = []
        self.outputs: dict[str, bytes] = {}
        self.error_files: dict[str, bytes] = {}
        self.logs: dict[str, bytes] = {}
        self.metrics: dict[str, list[metrics.JobMetrics]] = {}
        self.events: dict[str, list[jobs.EventView]] = {}
        self.files: dict[str, bytes] = {}
        self.refusals: dict[tuple[str, str], TandemnError] = {}
        self.answers: dict[tuple[str, str], Any] = {}
        self.deployments: dict[str, list[deployments.DeploymentStatus]] = {}
        self.plan: deployments.DeploymentPlan | None = None
        self.endpoint = ""
        self.cost: jobs.CostReport | None = None
        self.cloud = plans.CloudChoice(cloud="local", reason="no cloud is set up")
        self.job_plan: plans.PlanAnswer | None = None
        self.calls: list[tuple[str, str, Any]] = []
        self.keys: set[str | None] = set()
        #: The one that it takes; None: it asks for none.
        self.key: str | None = None
        self.version = __version__
        self.looks: dict[str, int] = defaultdict(int)
        self.upload_began = threading.Event()
        self.hold_upload = False
        self.breaks_output_at: int | None = None

    def called(self, method: str, path: str) -> list[Any]:
        return [body for verb, where, body in self.calls if (verb, where) == (method, path)]

    # -- the server, on a thread and loop of its own

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        runner = web.AppRunner(self.app(), shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._border], client_max_size=1 << 30)
        app.add_routes(
            [
                web.get("/api/server", self._server),
                web.get("/api/me", self._me),
                web.post("/v1/files", self._upload),
                web.delete("/v1/files/{id}", self._delete_file),
                web.post("/api/jobs", self._submit),
                web.post("/api/plans", self._plan_job),
                web.post("/api/plans/cloud", self._cloud),
                web.get("/api/jobs", self._list),
                web.get("/api/cost", self._cost),
                web.get("/api/jobs/{job}", self._job),
                web.get("/api/jobs/{job}/output", self._output),
                web.get("/api/jobs/{job}/errors", self._errors),
                web.get("/api/jobs/{job}/logs", self._logs),
                web.get("/api/jobs/{job}/metrics", self._metrics),
                web.get("/api/jobs/{job}/events", self._events),
                web.post("/api/jobs/{job}/cancel", self._end),
                web.post("/api/jobs/{job}/destroy", self._end),
                web.post("/api/jobs/{job}/{verb:add|kill|swap}", self._scripted),
                web.delete("/api/jobs/{job}/swap", self._end),
                web.post("/api/deployments/plan", self._plan_deployment),
                web.post("/api/deployments", self._deploy),
                web.get("/api/deployments", self._list_deployments),
                web.get("/api/deployments/{name}", self._deployment),
                web.delete("/api/deployments/{name}", self._deployment),
                web.get("/api/deployments/{name}/key", self._key),
                web.post("/api/deployments/{name}/key/rotate", self._key),
                web.get("/api/deployments/{name}/logs", self._deployment_logs),
                web.get("/v1/models", self._models),
            ]
        )

        async def tell_version(_request: web.Request, answer: web.StreamResponse) -> None:
            answer.headers[handshake.HEADER] = self.version

        app.on_response_prepare.append(tell_version)
        return app

    @web.middleware
    async def _border(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization"))
        is_json = request.content_type == "application/json" and request.can_read_body
        body = json.loads(await request.text()) if is_json else dict(request.query)
        self.calls.append((request.method, request.path, body))
        try:
            self._check_key(request.headers.get("Authorization"))
            refusal = self.refusals.get((request.method, request.path))
            if refusal:
                raise refusal
            answer: web.StreamResponse = await handler(request)
            return answer
        except TandemnError as error:
            return web.Response(
                status=error.http_status,
                text=wire.to_body(error).model_dump_json(),
                content_type="application/json",
            )

    def _check_key(self, shown: str | None) -> None:
        if self.key is not None and shown is None:
            raise NotAllowed("this control plane asks for a key", code="missing_api_key")
        if self.key is not None and shown != f"Bearer {self.key}":
            raise NotAllowed("this is no key of this control plane")

    async def _me(self, request: web.Request) -> web.Response:
        return _json(keys.Me(name="alice", role=keys.Role.USER))

    async def _server(self, request: web.Request) -> web.Response:
        return _json(jobs.ServerStatus(url=self.url, pid=os.getpid(), version=__version__))

    async def _upload(self, request: web.Request) -> web.Response:
        self.upload_began.set()
        content, name = b"", ""
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "file":
                name = part.filename or ""
                content = bytes(await part.read())
        while self.hold_upload:
            await asyncio.sleep(0.02)
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = content
        return _json(
            openai.FileObject(id=file_id, bytes=len(content), created_at=0, filename=name, purpose="batch")
        )

    async def _delete_file(self, request: web.Request) -> web.Response:
        self.files.pop(request.match_info["id"])
        return _json(openai.FileDeleted(id=request.match_info["id"]))

    async def _metrics(self, request: web.Request) -> web.Response:
        found = self.metrics[request.match_info["job"]]
        return _json(found.pop(0) if len(found) > 1 else found[0])

    async def _plan_job(self, _request: web.Request) -> web.Response:
        assert self.job_plan is not None
        return _json(self.job_plan)

    async def _cloud(self, _request: web.Request) -> web.Response:
        return _json(self.cloud)

    async def _submit(self, request: web.Request) -> web.Response:
        first, *later = self.on_submit
        self.jobs[first.job_id] = later or [first]
        return _json(first)

    async def _list(self, request: web.Request) -> web.Response:
        found = [statuses[-1] for statuses in reversed(self.jobs.values())]
        wanted = request.query.get("state")
        rows = [
            jobs.JobSummary.model_validate(status.model_dump(include=set(jobs.JobSummary.model_fields)))
            for status in found
            if wanted is None
            or wanted == status.state
            or (wanted in {"active", "live"} and not status.state.has_ended)
            or (wanted == "ended" and status.state.has_ended)
        ]
        start, limit = int(request.query.get("after", 0)), int(request.query["limit"])
        more = str(start + limit) if len(rows) > start + limit else None
        return _json(jobs.JobList(jobs=rows[start : start + limit], next_after=more))

    async def _cost(self, request: web.Request) -> web.Response:
        del request
        assert self.cost is not None, "script the cost first"
        return _json(self.cost)

    async def _job(self, request: web.Request) -> web.Response:
        statuses = self._statuses(request)
        self.looks[statuses[0].job_id] += 1
        return _json(statuses.pop(0) if len(statuses) > 1 else statuses[0])

    async def _output(self, request: web.Request) -> web.StreamResponse:
        status = self._statuses(request)[0]
        if not status.state.has_ended and "partial" not in request.query:
            raise Conflict(f"job {status.job_id} is {status.state}: it has no output yet", code="not_ended")
        content = self.outputs.get(status.job_id, b"")
        if self.breaks_output_at is None:
            return web.Response(body=content)
        answer = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await answer.prepare(request)
        await answer.write(content[: self.breaks_output_at])
        assert request.transport is not None
        request.transport.close()
        return answer

    async def _errors(self, request: web.Request) -> web.Response:
        return web.Response(body=self.error_files.get(self._statuses(request)[0].job_id, b""))

    async def _logs(self, request: web.Request) -> web.Response:
        return web.Response(body=self.logs.get(self._statuses(request)[0].job_id, b""))

    async def _events(self, request: web.Request) -> web.Response:
        found = self.events.get(self._statuses(request)[0].job_id, [])
        after, limit = int(request.query["after"]), int(request.query["limit"])
        page = [event for event in found if event.seq > after][:limit]
        return _json(jobs.EventList(events=page, next_after=page[-1].seq if len(page) == limit else None))

    async def _end(self, request: web.Request) -> web.Response:
        statuses = self._statuses(request)
        return _json(statuses[0])

    async def _scripted(self, request: web.Request) -> web.Response:
        self._statuses(request)
        return _json(self.answers[request.match_info["job"], request.match_info["verb"]])

    # -- deployments: every look at one gives the next of its statuses; the last one stays

    async def _plan_deployment(self, request: web.Request) -> web.Response:
        assert self.plan is not None, "script the plan first"
        return _json(self.plan)

    async def _deploy(self, request: web.Request) -> web.Response:
        return _json(self._seen((await request.json())["spec"]["service_name"]))

    async def _deployment(self, request: web.Request) -> web.Response:
        return _json(self._seen(request.match_info["name"]))

    def _seen(self, name: str) -> deployments.DeploymentStatus:
        if name not in self.deployments:
            raise NotFound(f"there is no deployment {name}", code="deployment_not_found")
        statuses = self.deployments[name]
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]

    async def _list_deployments(self, request: web.Request) -> web.Response:
        wanted = request.query.get("state")
        fields = {"service_name", "state", "reason", "endpoint", "created_at"}
        rows = [
            deployments.DeploymentSummary(
                model=each.spec.model, gpu=each.spec.gpu, **each.model_dump(include=fields)
            )
            for each in (statuses[-1] for statuses in self.deployments.values())
            if wanted in (None, "all", "active", each.state)
        ]
        return _json(deployments.DeploymentList(deployments=rows))

    async def _key(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        key = "sk-new" if request.method == "POST" else "sk-1"
        return _json(
            deployments.EndpointKey(service_name=name, endpoint=self.endpoint or self.url, api_key=key)
        )

    async def _deployment_logs(self, request: web.Request) -> web.Response:
        return web.Response(body=self.logs[request.match_info["name"]])

    async def _models(self, request: web.Request) -> web.Response:
        """The endpoint of the deployments, as it were."""
        return web.json_response({"data": []})

    def _statuses(self, request: web.Request) -> list[jobs.JobStatus]:
        prefix = request.match_info["job"]
        for job_id, statuses in self.jobs.items():
            if job_id.startswith(prefix):
                return statuses
        raise NotFound(f"no job {prefix}", code="job_not_found", next_step="`tandemn list` shows the jobs")


def _json(model: Any) -> web.Response:
    return web.Response(text=model.model_dump_json(), content_type="application/json")
