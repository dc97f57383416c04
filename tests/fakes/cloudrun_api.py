"""Cloud Run's services over gRPC: bytes in, bytes out, as the real client sends them."""

from datetime import UTC, datetime
from typing import Any

import grpc
from google.cloud import run_v2
from google.longrunning import operations_pb2
from tests.fakes.remote_faults import Fault, Faults, forever

CODES = {
    Fault.BROKEN: grpc.StatusCode.INTERNAL,
    Fault.CREDENTIALS: grpc.StatusCode.UNAUTHENTICATED,
    Fault.PERMISSION: grpc.StatusCode.PERMISSION_DENIED,
    Fault.QUOTA: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.CAPACITY: grpc.StatusCode.FAILED_PRECONDITION,
    Fault.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Fault.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Fault.REFUSED: grpc.StatusCode.INVALID_ARGUMENT,
}


class CloudRunApi:
    def __init__(self) -> None:
        self.faults = Faults()
        self.services: dict[str, Any] = {}
        self.slow_deletes = 0
        self._going: dict[str, int] = {}
        self._server: Any = None

    def left(self) -> list[str]:
        return sorted(name.rpartition("/")[2] for name in self.services)

    def environment_of(self, name: str) -> dict[str, str]:
        service = next(each for path, each in self.services.items() if path.endswith(f"/{name}"))
        return {variable.name: variable.value for variable in service.template.containers[0].env}

    async def start(self) -> str:
        methods = {
            "CreateService": (run_v2.CreateServiceRequest, self._create),
            "UpdateService": (run_v2.UpdateServiceRequest, self._update),
            "GetService": (run_v2.GetServiceRequest, self._get),
            "ListServices": (run_v2.ListServicesRequest, self._list),
            "DeleteService": (run_v2.DeleteServiceRequest, self._delete),
        }
        handlers = {name: self._handler(name, kind, do) for name, (kind, do) in methods.items()}
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("google.cloud.run.v2.Services", handlers),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self._server.stop(0)

    def _handler(self, name: str, kind: Any, do: Any) -> Any:
        async def serve(content: bytes, context: Any) -> bytes:
            fault = await self.faults.meet(name)
            if fault in CODES:
                await context.abort(CODES[fault], f"{fault}: no GPU capacity, asked {content!r}")
            try:
                answer: bytes = do(kind.deserialize(content))
            except KeyError as exc:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(exc))
            except FileExistsError as exc:
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(exc))
            if fault is Fault.LOST:
                await forever()
            return answer

        return grpc.unary_unary_rpc_method_handler(serve)

    def _create(self, request: Any) -> bytes:
        name = f"{request.parent}/services/{request.service_id}"
        if name in self.services:
            raise FileExistsError(name)
        assert request.service.template.node_selector.accelerator == "nvidia-l4"
        self._put(name, request.service)
        return operation()

    def _update(self, request: Any) -> bytes:
        self._put(request.service.name, request.service)
        return operation()

    def _put(self, name: str, service: Any) -> None:
        service.name = name
        service.uri = f"https://{name.rpartition('/')[2]}-abc-uc.a.run.app"
        service.terminal_condition = run_v2.Condition(
            type_="Ready", state=run_v2.Condition.State.CONDITION_SUCCEEDED
        )
        self.services[name] = service

    def _get(self, request: Any) -> bytes:
        self._age()
        found: bytes = run_v2.Service.serialize(self.services[request.name])
        return found

    def _list(self, request: Any) -> bytes:
        self._age()
        mine = [each for name, each in self.services.items() if name.startswith(f"{request.parent}/")]
        page: bytes = run_v2.ListServicesResponse.serialize(run_v2.ListServicesResponse(services=mine))
        return page

    def _delete(self, request: Any) -> bytes:
        self.services[request.name].delete_time = datetime(2026, 1, 1, tzinfo=UTC)
        self._going.setdefault(request.name, self.slow_deletes)
        self._age()
        return operation()

    def _age(self) -> None:
        for name, left in list(self._going.items()):
            self._going[name] = left - 1
            if left <= 0:
                del self._going[name], self.services[name]


def operation() -> bytes:
    content: bytes = operations_pb2.Operation(name="operations/1", done=False).SerializeToString()
    return content
