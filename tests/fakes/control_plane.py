"""A control plane on loopback that speaks the replicas' protocol and keeps everything in memory."""

import asyncio
import json
from collections import Counter
from typing import Any, Literal, Self, TypeVar

from aiohttp import web

from tandemn import errors
from tandemn.protocol import errors as wire
from tandemn.protocol import replicas

TOKEN = "replica-token"

Orders = Literal["go_on", "drain", "stop"]
Claim = TypeVar("Claim", replicas.ReleaseRequest, replicas.UploadRequest, replicas.CompleteRequest)


class ControlPlane:
    """One job, one replica. What happened is in its attributes; faults are switched on through them."""

    def __init__(self, lines: list[bytes], *, chunk_size: int = 10, **assignment: Any) -> None:
        self.objects: dict[str, bytes] = {}
        self.chunks = _split(lines, chunk_size)
        self.input = b"".join(line + b"\n" for line in lines)
        self.assignment = replicas.Assignment(
            **{
                "job_id": "job-1",
                "replica_id": "job-1-r0",
                "engine": "simulated",
                "model": "simulated/fast",
                "endpoint": "/v1/chat/completions",
                "heartbeat_s": 0.2,
                "flush_s": 0.2,
                "silence_s": 30,
                "engine_start_s": 60,
            }
            | assignment
        )
        self.pending = list(self.chunks)
        self.held: dict[int, str] = {}
        self.begun: set[int] = set()
        self.lost: set[int] = set()
        self.completed: dict[int, replicas.CompleteRequest] = {}
        self.strikes: dict[int, dict[int, int]] = {}
        self.deaths: list[replicas.EngineDeath] = []
        self.released: list[int] = []
        self.beats: list[replicas.Heartbeat] = []
        self.calls: Counter[str] = Counter()
        self.goodbye: Any = None
        self.orders: Orders = "go_on"
        self.is_full = False
        self.store_url = ""
        """Where objects are stored, if not here."""
        self.rejects = False
        self.token = TOKEN
        self.ended = asyncio.Event()
        self._sequence = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(middlewares=[_errors_to_answers], client_max_size=1 << 26)
        base = "/api/replicas/{replica}"
        for verb in ("hello", "heartbeat", "lease", "begin", "upload-target", "complete", "release"):
            app.router.add_post(f"{base}/{verb}", self._counted(verb))
        app.router.add_post(f"{base}/engine-death", self._counted("engine-death"))
        app.router.add_post(f"{base}/goodbye", self._counted("goodbye"))
        app.router.add_get("/input", self._input)
        app.router.add_route("*", "/objects/{name:.+}", self._object)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def take_away(self, chunk: int) -> None:
        """End the lease of a chunk, as if it had expired; nobody else gets it."""
        self.held.pop(chunk, None)
        self.lost.add(chunk)

    @property
    def is_done(self) -> bool:
        return not self.pending and not self.held

    def output(self) -> list[Any]:
        """Every answer line in chunk order, as assembly would read it."""
        return _lines(self.objects, "answers", self.completed)

    def error_lines(self) -> list[Any]:
        return _lines(self.objects, "errors", self.completed)

    def stored_parts(self, chunk: int) -> dict[str, bytes]:
        return {name: raw for name, raw in self.objects.items() if name.startswith(f"parts/{chunk}/")}

    def _counted(self, verb: str) -> Any:
        method = getattr(self, "_" + verb.replace("-", "_"))

        async def handle(request: web.Request) -> web.Response:
            self.calls[verb] += 1
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                raise errors.NotAllowed("not the replica's token", code="invalid_token")
            if self.rejects:
                raise errors.NotFound("the replica has ended", code="replica_ended")
            raw = await request.read()
            answer = await method(raw)
            return web.json_response(text=answer.model_dump_json() if answer else "{}")

        return handle

    async def _hello(self, raw: bytes) -> replicas.Assignment:
        return self.assignment

    async def _heartbeat(self, raw: bytes) -> replicas.HeartbeatReply:
        beat = replicas.Heartbeat.model_validate_json(raw)
        self.beats.append(beat)
        lost = [c.chunk for c in beat.chunks if self.held.get(c.chunk) != c.token]
        return replicas.HeartbeatReply(lost=lost, orders=self._order())

    async def _lease(self, raw: bytes) -> replicas.LeaseReply:
        request = replicas.LeaseRequest.model_validate_json(raw)
        for _ in range(int(min(request.wait_s, 2) / 0.02)):
            if self.pending or self._order() != "go_on":
                break
            await asyncio.sleep(0.02)
        leases = [self._grant() for _ in range(min(request.limit, len(self.pending)))]
        return replicas.LeaseReply(leases=leases, orders=self._order())

    def _grant(self) -> replicas.ChunkLease:
        number = self.pending.pop(0)
        self._sequence += 1
        token = f"1-{self._sequence}"
        self.held[number] = token
        start, end, first, requests = self.chunks[number]
        parts = [
            replicas.PartRef(name=name, url=f"/objects/{name}", size=len(raw))
            for name, raw in self.stored_parts(number).items()
        ]
        return replicas.ChunkLease(
            chunk=number,
            token=token,
            input_url="/input",
            byte_start=start,
            byte_end=end,
            first_request=first,
            requests=requests,
            parts=parts,
            strikes=self.strikes.get(number, {}),
        )

    def _order(self) -> Orders:
        return "stop" if self.is_done and not self.lost else self.orders

    def _check(self, raw: bytes, kind: type[Claim]) -> Claim:
        body = kind.model_validate_json(raw)
        if self.held.get(body.chunk) != body.token:
            raise errors.LeaseLost(f"chunk {body.chunk} is not yours")
        return body

    async def _begin(self, raw: bytes) -> None:
        self.begun.add(self._check(raw, replicas.ReleaseRequest).chunk)

    def _target(self, name: str) -> replicas.UploadTarget:
        return replicas.UploadTarget(name=name, url=f"{self.store_url}/objects/{name}")

    async def _upload_target(self, raw: bytes) -> replicas.UploadReply:
        body = self._check(raw, replicas.UploadRequest)
        if body.part is not None:
            name = f"parts/{body.chunk}/{body.token}-{body.part}"
            return replicas.UploadReply(answers=self._target(name))
        name = f"chunks/{body.chunk}/{body.token}"
        return replicas.UploadReply(
            answers=self._target(f"{name}.answers"), errors=self._target(f"{name}.errors")
        )

    async def _complete(self, raw: bytes) -> None:
        body = self._check(raw, replicas.CompleteRequest)
        self.completed[body.chunk] = body
        del self.held[body.chunk]

    async def _release(self, raw: bytes) -> None:
        body = self._check(raw, replicas.ReleaseRequest)
        del self.held[body.chunk]
        self.pending.insert(0, body.chunk)
        self.released.append(body.chunk)

    async def _engine_death(self, raw: bytes) -> replicas.EngineDeathReply:
        death = replicas.EngineDeath.model_validate_json(raw)
        self.deaths.append(death)
        for chunk, indexes in death.in_flight.items():
            for index in indexes:
                counts = self.strikes.setdefault(chunk, {})
                counts[index] = counts.get(index, 0) + 1
        return replicas.EngineDeathReply(strikes={c: self.strikes[c] for c in death.in_flight})

    async def _goodbye(self, raw: bytes) -> None:
        self.goodbye = replicas.Goodbye.model_validate_json(raw)
        self.ended.set()

    async def _input(self, request: web.Request) -> web.Response:
        span = request.http_range
        self.calls["input"] += 1
        return web.Response(status=206, body=self.input[span.start : span.stop])

    async def _object(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if request.method == "PUT":
            if self.is_full:
                raise errors.StoreUnavailable("no space left", code="store_full")
            self.objects[name] = await request.read()
            return web.Response()
        span = request.http_range
        return web.Response(status=206, body=self.objects[name][span.start : span.stop])


def _split(lines: list[bytes], size: int) -> dict[int, tuple[int, int, int, int]]:
    chunks: dict[int, tuple[int, int, int, int]] = {}
    position = 0
    for number, first in enumerate(range(0, len(lines), size)):
        own = lines[first : first + size]
        length = sum(len(line) + 1 for line in own)
        chunks[number] = (position, position + length, first, sum(1 for line in own if line.strip()))
        position += length
    return chunks


def _lines(objects: dict[str, bytes], kind: str, completed: dict[int, replicas.CompleteRequest]) -> list[Any]:
    found: list[Any] = []
    for chunk in sorted(completed):
        name = f"chunks/{chunk}/{completed[chunk].token}.{kind}"
        found += [json.loads(line) for line in objects.get(name, b"").splitlines()]
    return found


@web.middleware
async def _errors_to_answers(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except errors.TandemnError as exc:
        status = 507 if exc.code == "store_full" else exc.http_status
        return web.json_response(text=wire.to_body(exc).model_dump_json(), status=status)
