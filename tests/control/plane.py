"""The control plane's application, served on loopback in the test's own loop: real HTTP, database and Redis."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import uvicorn
from tests import postgres_server
from tests.redis_server import redis_server

from tandemn.control import tokens
from tandemn.control.access.rules import Caller
from tandemn.control.app import create_app, open_services
from tandemn.control.connections import Connections, guarded
from tandemn.control.store import deployments, files, jobs, keys, replicas
from tandemn.control.store.records import FileRecord
from tandemn.protocol.deployments import DeploymentSpec
from tandemn.protocol.jobs import JobSpec, JobState, ReplicaConfig
from tandemn.protocol.keys import Role
from tandemn.protocol.replicas import ReplicaState
from tandemn.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tandemn.control.embedded_redis import EmbeddedRedis
    from tandemn.control.services import Services


@dataclass
class Plane:
    """One served application, and the means to put objects into it that belong to somebody."""

    url: str
    services: Services
    session: aiohttp.ClientSession
    redis: EmbeddedRedis
    keys: dict[str, str] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def call(
        self, method: str, path: str, *, key: str | None = None, **options: Any
    ) -> tuple[int, Any]:
        """Call once; return the status, and the JSON or the bytes of the answer."""
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        async with self.session.request(method, self.url + path, headers=headers, **options) as answer:
            if answer.content_type == "application/json":
                return answer.status, await answer.json()
            return answer.status, await answer.read()

    async def new_key(self, name: str, role: Role) -> str:
        new = tokens.new_key()
        await self.services.database.run(
            keys.create, name, role, new, now=self.services.clock.now(), actor="test"
        )
        self.keys[name] = new.key
        return new.key

    async def new_file(self, owner: str, content: bytes = b"{}\n") -> str:
        file_id = f"file-{secrets.token_hex(6)}"
        await self.services.objects.put(f"files/{file_id}", content)
        record = FileRecord(
            file_id=file_id,
            filename="in.jsonl",
            purpose="batch",
            bytes=len(content),
            object=f"files/{file_id}",
            created_at=self.services.clock.now(),
            job_id=None,
            owner=owner,
        )
        await self.services.database.run(files.add, record)
        return file_id

    async def new_job(self, owner: str, state: JobState = JobState.RUNNING) -> str:
        job_id = f"job-{secrets.token_hex(6)}"
        spec = JobSpec(model="demo/tiny", input_file_id=await self.new_file(owner), slo_s=60)

        def add(connection: Any) -> None:
            now = self.services.clock.now()
            jobs.add(
                connection,
                job_id=job_id,
                spec=spec,
                now=now,
                input_object=f"files/{spec.input_file_id}",
                cloud="local",
                owner=owner,
            )
            groups = [{"config": ReplicaConfig().model_dump(mode="json"), "wanted": 1}]
            jobs.change(
                connection,
                job_id,
                state=state.value,
                groups=groups,
                engine="llamacpp",
                endpoint="/v1/chat/completions",
            )

        await self.services.database.run(add)
        return job_id

    async def new_replica(self, job_id: str) -> tuple[str, str]:
        """Return its id and its token."""
        token = tokens.new_token()

        def add(connection: Any) -> str:
            [replica_id] = replicas.request(
                connection,
                job_id,
                group=0,
                config=ReplicaConfig(),
                launcher="local",
                count=1,
                now=self.services.clock.now(),
                reason="test",
            )
            replicas.change(
                connection,
                replica_id,
                state=ReplicaState.RUNNING.value,
                token_hash=tokens.token_hash(token),
            )
            return replica_id

        return await self.services.database.run(add), token

    async def new_deployment(self, owner: str) -> str:
        name = f"service-{next(self._numbers)}"
        spec = DeploymentSpec(service_name=name, model="demo/tiny", gpu="cpu")
        await self.services.database.run(
            deployments.submit,
            spec,
            deployments.Plans(backends={}, router=None),
            now=self.services.clock.now(),
            caller=Caller(name=owner, role=Role.USER),
        )
        return name


@asynccontextmanager
async def served(home: Path, connections: Connections | None = None, **settings: Any) -> AsyncIterator[Plane]:
    """Serve an application over a fresh state; no reconciler runs."""
    with redis_server() as (redis_process, redis):
        if postgres_server.IS_WANTED:
            settings.setdefault("database_url", postgres_server.fresh_database())
        chosen = Settings(home=home, redis_url=redis.url, **settings)
        async with open_services(chosen, server_url="http://127.0.0.1:0") as services:
            config = uvicorn.Config(
                create_app(services),
                port=0,
                http=guarded(connections or Connections()),
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            host, port = server.servers[0].sockets[0].getsockname()
            try:
                async with aiohttp.ClientSession() as session:
                    yield Plane(f"http://{host}:{port}", services, session, redis_process)
            finally:
                server.should_exit = True
                await serving
