"""RunPod's REST API v2 over HTTP: requests are held against the published shapes, names are not unique."""

import asyncio
import json
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tests.fakes.remote_faults import Fault, Faults, forever

KEY = "rpa_FAKE_KEY_THAT_MUST_NOT_BE_SHOWN"

ANSWERS = {
    Fault.BROKEN: (500, "internal error"),
    Fault.CREDENTIALS: (401, "invalid api key"),
    Fault.PERMISSION: (403, "key may not write endpoints"),
    Fault.QUOTA: (400, "worker quota exceeded for this account"),
    Fault.CAPACITY: (503, "no available capacity in pool"),
    Fault.CONFLICT: (409, "endpoint is being changed"),
    Fault.NOT_FOUND: (404, "no such endpoint"),
    Fault.REFUSED: (400, "image is required"),
}


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Gpu(Shape):
    pools: list[str] = Field(min_length=1)
    count: int = Field(ge=1)


class Workers(Shape):
    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=1)
    idleTimeout: int | None = Field(default=None, ge=1, le=3600)  # noqa: N815 - RunPod's name


class Scaling(Shape):
    type: Literal["REQUEST_COUNT", "QUEUE_DELAY"]
    requestCount: int = Field(ge=1)  # noqa: N815 - RunPod's name


class Change(Shape):
    image: str | None = None
    args: str | None = None
    disk: int | None = Field(default=None, ge=1)
    ports: list[str] | None = None
    env: dict[str, str] | None = None
    gpu: Gpu | None = None
    workers: Workers | None = None
    scaling: Scaling | None = None
    dataCenterIds: list[str] | None = None  # noqa: N815 - RunPod's name
    timeout: int | None = Field(default=None, ge=1)
    flashboot: Literal["OFF", "FLASHBOOT"] | None = None


class Creation(Change):
    name: str = Field(min_length=1)
    type: Literal["QUEUE", "LOAD_BALANCER"]
    image: str
    gpu: Gpu


class RunPodApi:
    def __init__(self) -> None:
        self.faults = Faults()
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.slow_deletes = 0
        self.unhealthy = 0
        """Workers of every endpoint that do not start."""
        """So many more lists show an endpoint that was deleted."""
        self._going: dict[str, int] = {}
        self._next = 0

    def left(self) -> list[str]:
        return sorted(each["name"] for each in self.endpoints.values())

    def environment_of(self, name: str) -> dict[str, str]:
        return next(each["env"] for each in self.endpoints.values() if each["name"] == name)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/v2/{path:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        words = path.split("/")
        call = f"{request.method} {'/'.join(['serverless', 'ID', *words[2:]]) if words[1:] and words[0] == 'serverless' else path}"
        body = await request.read()
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return problem(401, "invalid api key")
        fault = await self.faults.meet(call)
        if fault in ANSWERS:
            status, detail = ANSWERS[fault]
            return problem(status, f"{detail} {body.decode()}")
        answer = self._do(request.method, words, body)
        if fault is Fault.LOST:
            await forever()
        await asyncio.sleep(0)
        return answer

    def _do(self, method: str, words: list[str], body: bytes) -> web.Response:
        match method, words:
            case "GET", ["serverless"]:
                self._age()
                return web.json_response({"endpoints": list(self.endpoints.values())})
            case "POST", ["serverless"]:
                return self._create(body)
            case "GET", ["billing", "serverless"]:
                return web.json_response({"records": [{"amount": 1.25}, {"amount": 0.5}]})
            case _, ["serverless", found, *rest] if found in self.endpoints:
                return self._one(method, found, rest, body)
        return problem(404, "no such endpoint")

    def _create(self, body: bytes) -> web.Response:
        try:
            wanted = Creation.model_validate_json(body)
        except ValidationError as exc:
            return problem(400, str(exc))
        self._next += 1
        made = f"ep{self._next:06d}"
        self.endpoints[made] = wanted.model_dump(exclude_none=True) | {
            "id": made,
            "requestUrls": {"base": f"https://{made}.api.runpod.ai"},
        }
        return web.json_response(self.endpoints[made], status=201)

    def _one(self, method: str, found: str, rest: list[str], body: bytes) -> web.Response:
        endpoint = self.endpoints[found]
        if rest == ["workers"] and method == "GET":
            running = endpoint["workers"].get("min", 0)
            summary = {"running": running, "idle": 0, "initializing": 0, "throttled": 0}
            summary |= {"unhealthy": self.unhealthy}
            return web.json_response({"workers": [], "summary": summary | {"total": running}})
        if rest:
            return problem(404, "no such path")
        if method == "DELETE":
            self._going.setdefault(found, self.slow_deletes)
            self._age()
            return web.Response(status=204)
        if method == "PATCH":
            try:
                change = Change.model_validate_json(body).model_dump(exclude_none=True)
            except ValidationError as exc:
                return problem(400, str(exc))
            for key, value in change.items():
                endpoint[key] = endpoint[key] | value if key == "workers" else value
        return web.json_response(endpoint)

    def _age(self) -> None:
        for name, left in list(self._going.items()):
            self._going[name] = left - 1
            if left <= 0:
                del self._going[name], self.endpoints[name]


def problem(status: int, detail: str) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps({"title": "problem", "status": status, "detail": detail}).encode(),
        content_type="application/problem+json",
    )
