"""How an error crosses a process border: OpenAI's error body, with our `next_step` beside it."""

from __future__ import annotations

from pydantic import BaseModel

from tandemn import errors


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str
    next_step: str | None = None
    object_id: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    507: "insufficient_storage_error",
}

#: Tried in order: the first class whose status is the answer's is raised again on the other side.
_BY_STATUS: dict[int, type[errors.TandemnError]] = {
    400: errors.InvalidInput,
    401: errors.NotAllowed,
    403: errors.Forbidden,
    404: errors.NotFound,
    408: errors.TooSlow,
    409: errors.Conflict,
    410: errors.NotFound,
    413: errors.TooLarge,
    422: errors.Infeasible,
    429: errors.TooManyRequests,
    502: errors.ServerUnavailable,
    503: errors.Retryable,
    504: errors.ServerUnavailable,
    507: errors.StoreUnavailable,
}
_BY_CODE: dict[str, type[errors.TandemnError]] = {
    cls.default_code: cls
    for cls in (
        errors.LeaseLost,
        errors.QueueLost,
        errors.StaleRecord,
        errors.QueueUnavailable,
        errors.StoreUnavailable,
        errors.MissingDependency,
    )
}


def to_body(error: errors.TandemnError) -> ErrorBody:
    """Render `error` for the wire."""
    return ErrorBody(
        error=ErrorDetail(
            message=error.message,
            type=_TYPES.get(error.http_status, "server_error"),
            param=error.param,
            code=error.code,
            next_step=error.next_step,
            object_id=error.object_id,
        )
    )


def from_body(status: int, body: ErrorBody) -> errors.TandemnError:
    """Make the error that the other side raised, or its nearest kin, from an answer."""
    detail = body.error
    kind = _BY_CODE.get(detail.code) or _BY_STATUS.get(status, errors.Broken)
    return kind(
        detail.message,
        code=detail.code,
        next_step=detail.next_step,
        param=detail.param,
        object_id=detail.object_id,
    )
