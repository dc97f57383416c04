"""Modal's API over gRPC, in a thread with a loop of its own: the real SDK talks from another loop than the test's."""

import asyncio
import base64
import inspect
import json
import threading
import time
from typing import Any

import grpclib.server
from google.protobuf import empty_pb2
from grpclib import GRPCError, Status
from modal_proto import api_grpc, api_pb2
from tests.fakes.remote_faults import Fault, Faults, forever

TOKEN_ID, TOKEN_SECRET = "ak-fake", "as-fake-secret-that-must-not-be-shown"

STATUSES = {
    Fault.BROKEN: Status.UNAVAILABLE,
    Fault.CREDENTIALS: Status.UNAUTHENTICATED,
    Fault.PERMISSION: Status.PERMISSION_DENIED,
    Fault.QUOTA: Status.RESOURCE_EXHAUSTED,
    Fault.CONFLICT: Status.FAILED_PRECONDITION,
    Fault.NOT_FOUND: Status.NOT_FOUND,
    Fault.REFUSED: Status.INVALID_ARGUMENT,
}
EMPTY: Any = empty_pb2.Empty()
SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)


class ModalApi:
    def __init__(self) -> None:
        self.faults = Faults()
        self.apps: dict[str, dict[str, Any]] = {}
        self.slow_deletes = 0
        self._environment: dict[str, str] = {}
        self._next = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: Any = None

    def start(self) -> str:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            await self._server.wait_closed()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def reset(self) -> None:
        self.apps.clear()
        self.faults = Faults()
        self.slow_deletes = 0

    def left(self) -> list[str]:
        return sorted(app["name"] for app in self.apps.values() if app["state"] != "stopped")

    def environment_of(self, name: str) -> dict[str, str]:
        return next(app["environment"] for app in self.apps.values() if app["name"] == name)

    async def _listen(self) -> int:
        self._server = grpclib.server.Server([self._service()])
        await self._server.start("127.0.0.1", 0)
        port: int = self._server._server.sockets[0].getsockname()[1]
        return port

    def _service(self) -> Any:
        methods = {
            name: self._method(name)
            for name, each in inspect.getmembers(api_grpc.ModalClientBase)
            if getattr(each, "__isabstractmethod__", False)
        }
        return type("Service", (api_grpc.ModalClientBase,), methods)()

    def _method(self, name: str) -> Any:
        async def serve(_service: Any, stream: Any) -> None:
            request = await stream.recv_message()
            do = getattr(self, f"_do_{name}", None)
            if do is None:
                raise GRPCError(Status.UNIMPLEMENTED, name)
            # Heartbeats and farewells come whenever the SDK likes.
            background = name in {"AppHeartbeat", "AppClientDisconnect"}
            fault = None if background else await self.faults.meet(name)
            if fault in STATUSES:
                raise GRPCError(STATUSES[fault], f"{fault}: {request}")
            answer = do(request)
            if fault is Fault.LOST:
                await forever()
            await stream.send_message(answer)

        return serve

    def _do_ClientHello(self, _request: Any) -> Any:  # noqa: N802 - Modal's names, here and below
        return api_pb2.ClientHelloResponse()

    def _do_AuthTokenGet(self, _request: Any) -> Any:  # noqa: N802
        def part(value: dict[str, Any]) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        token = f"{part({'alg': 'none'})}.{part({'exp': int(time.time()) + 3600})}.x"
        return api_pb2.AuthTokenGetResponse(token=token)

    def _do_EnvironmentGetOrCreate(self, _request: Any) -> Any:  # noqa: N802
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def _do_AppGetByDeploymentName(self, request: Any) -> Any:  # noqa: N802
        app = self._deployed(request.name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app["id"] if app else "")

    def _do_AppCreate(self, request: Any) -> Any:  # noqa: N802
        self._next += 1
        made = f"ap-{self._next}"
        # Until it is published it runs nothing and costs nothing.
        self.apps[made] = {"id": made, "name": request.description, "state": "stopped", "server": None}
        return api_pb2.AppCreateResponse(app_id=made, app_page_url="http://fake")

    def _do_AppGetLayout(self, _request: Any) -> Any:  # noqa: N802
        return api_pb2.AppGetLayoutResponse()

    def _do_AppHeartbeat(self, _request: Any) -> Any:  # noqa: N802
        return EMPTY

    def _do_AppClientDisconnect(self, _request: Any) -> Any:  # noqa: N802
        return EMPTY

    def _do_ImageGetOrCreate(self, _request: Any) -> Any:  # noqa: N802
        return api_pb2.ImageGetOrCreateResponse(image_id="im-1", result=SUCCESS)

    def _do_ImageJoinStreaming(self, _request: Any) -> Any:  # noqa: N802
        metadata = api_pb2.ImageMetadata(image_builder_version="2025.06")
        return api_pb2.ImageJoinStreamingResponse(result=SUCCESS, eof=True, metadata=metadata)

    def _do_SecretGetOrCreate(self, request: Any) -> Any:  # noqa: N802
        self._environment = dict(request.env_dict)
        return api_pb2.SecretGetOrCreateResponse(secret_id="st-1")

    def _do_VolumeGetOrCreate(self, _request: Any) -> Any:  # noqa: N802
        return api_pb2.VolumeGetOrCreateResponse(volume_id="vo-1")

    def _do_FunctionPrecreate(self, _request: Any) -> Any:  # noqa: N802
        return api_pb2.FunctionPrecreateResponse(
            function_id="fu-1", handle_metadata=self._handle("precreated")
        )

    def _do_FunctionCreate(self, request: Any) -> Any:  # noqa: N802
        app = self.apps[request.app_id]
        assert request.function.http_config.startup_timeout > 30
        app["server"] = request.function
        assert app["server"].resources.gpu_config.gpu_type == "L4"
        app["environment"] = self._environment
        return api_pb2.FunctionCreateResponse(
            function_id="fu-1",
            handle_metadata=self._handle(app["name"]),
            function=request.function,
            function_data=ranked(request.function),
        )

    def _do_AppPublish(self, request: Any) -> Any:  # noqa: N802
        self.apps[request.app_id].update(name=request.name, state="deployed", running=0)
        return api_pb2.AppPublishResponse(url="http://fake")

    def _do_AppList(self, _request: Any) -> Any:  # noqa: N802
        for app in self.apps.values():
            if app["state"] == "deployed" and app.get("going") is not None:
                app["going"] -= 1
                if app["going"] < 0:
                    app["state"] = "stopped"
        items = [
            api_pb2.AppListResponse.AppListItem(
                app_id=app["id"],
                description=app["name"],
                state=api_pb2.APP_STATE_DEPLOYED,
                n_running_tasks=app["running"],
            )
            for app in self.apps.values()
            if app["state"] == "deployed"
        ]
        return api_pb2.AppListResponse(apps=items)

    def _do_AppGetOrCreate(self, request: Any) -> Any:  # noqa: N802
        return api_pb2.AppGetOrCreateResponse(app_id=self._named(request.app_name)["id"])

    def _do_AppStop(self, request: Any) -> Any:  # noqa: N802
        app = self.apps[request.app_id]
        if self.slow_deletes:
            app.setdefault("going", self.slow_deletes)
        else:
            app["state"] = "stopped"
        return EMPTY

    def _do_FunctionGet(self, request: Any) -> Any:  # noqa: N802
        app = self._named(request.app_name)
        return api_pb2.FunctionGetResponse(
            function_id="fu-1",
            handle_metadata=self._handle(app["name"]),
            function=ranked(app["server"]),
        )

    def _do_FunctionUpdateSchedulingParams(self, request: Any) -> Any:  # noqa: N802
        for app in self.apps.values():
            app["running"] = request.settings.min_containers
        return api_pb2.FunctionUpdateSchedulingParamsResponse()

    def _named(self, name: str) -> dict[str, Any]:
        app = self._deployed(name)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"no app {name}")
        return app

    def _deployed(self, name: str) -> dict[str, Any] | None:
        return next(
            (app for app in self.apps.values() if app["name"] == name and app["state"] == "deployed"), None
        )

    @staticmethod
    def _handle(name: str) -> Any:
        url = f"https://{name}--engine.us-east.modal.direct"
        return api_pb2.FunctionHandleMetadata(function_name="engine", _experimental_flash_urls=[url])


def ranked(function: Any) -> Any:
    only = api_pb2.FunctionData.RankedFunction(rank=0, function=function)
    return api_pb2.FunctionData(ranked_functions=[only])
