"""Errors on their way out: every one as OpenAI's error body, with a status and a stable code."""

from __future__ import annotations

import copy
import math

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from tandemn.control.access.rules import Caller
from tandemn.errors import InvalidInput, NotFound, TandemnError, TooLarge, TooManyRequests, TooSlow
from tandemn.protocol.errors import to_body
from tandemn.protocol.keys import Role

_log = structlog.get_logger()

_WITHOUT_INTERNALS = {
    "database_unavailable": "the control plane's database does not answer",
    "queue_unavailable": "the control plane's queue does not answer",
    "store_unavailable": "the object store does not answer",
    "store_full": "the object store is full",
}


def install(app: FastAPI) -> None:
    """Answer every failure of a handler as an error body."""
    app.add_exception_handler(TandemnError, _tandemn)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def answer(error: TandemnError, status: int | None = None) -> JSONResponse:
    """Render an error; `status` where it is another than the error's own."""
    if error.code == "store_full":
        status = 507
    headers = None
    if isinstance(error, TooManyRequests):
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
    elif isinstance(error, TooLarge | TooSlow):
        headers = {"Connection": "close"}  # the rest of it is not waited for
    return JSONResponse(to_body(error).model_dump(), status_code=status or error.http_status, headers=headers)


async def _tandemn(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TandemnError)
    caller: Caller | None = getattr(request.state, "caller", None)
    if error.http_status < 500 or (caller is not None and caller.role is Role.ADMIN):
        return answer(error)
    _log.warning("request failed", path=request.url.path, code=error.code, error=error.message)
    return answer(without_internals(error))


def without_internals(error: TandemnError) -> TandemnError:
    """Leave out addresses, paths and what other systems said: an administrator finds them in the log."""
    if error.http_status < 500:
        return error
    told = copy.copy(error)
    told.message = _WITHOUT_INTERNALS.get(error.code, "the control plane cannot do this now")
    told.next_step = "try again; if it goes on, ask the administrator"
    return told


async def _validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path"})
    text = f"{where}: {first['msg']}" if where else first["msg"]
    return answer(InvalidInput(text, code="invalid_value", param=where or None))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return http_answer(request.scope, error)


def http_answer(scope: Scope, error: HTTPException) -> JSONResponse:
    """Render an error that HTTP alone knows."""
    if error.status_code == 404:
        return answer(NotFound(f"Unknown request URL: {scope['method']} {scope['path']}", code="unknown_url"))
    return answer(InvalidInput(str(error.detail), code="invalid_request"), error.status_code)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return answer(TandemnError("the control plane failed on this request; its log has the details"))
