"""The one tree of errors, split by what the caller can do.

    TandemnError
    ├── InvalidInput          fix the input                   (exit code 2, HTTP 400)
    │   ├── NotFound          name something that exists      (HTTP 404)
    │   ├── Conflict          the object is not in a state for it (HTTP 409)
    │   ├── NotAllowed        use a key that is one           (HTTP 401)
    │   │   └── Forbidden     use a key that may              (HTTP 403)
    │   ├── TooLarge          send less                       (HTTP 413)
    │   ├── TooSlow           send faster                     (HTTP 408)
    │   └── MissingDependency install what the message says
    ├── Infeasible            loosen the deadline or budget   (exit code 3, HTTP 422)
    ├── NextOffer             try the next offer
    │   ├── NoCapacity
    │   └── QuotaExceeded
    ├── Retryable             back off and try again          (HTTP 503)
    │   ├── TooManyRequests   wait for as long as it says     (HTTP 429)
    │   ├── QueueUnavailable
    │   ├── StoreUnavailable
    │   └── ServerUnavailable
    ├── Superseded            drop it: another won            (HTTP 409)
    │   ├── LeaseLost         the lease was taken away
    │   ├── QueueLost         the queue is of another epoch: rebuild it
    │   └── StaleRecord       the record moved on
    └── Broken                nothing to do but read the reason (exit code 1, HTTP 500)
        └── EngineFailed

Each has a stable `code`, a message that names the thing and the cause, and where there is one the
next step.
"""

from __future__ import annotations

from typing import ClassVar


class TandemnError(Exception):
    """Base of every error that Tandemn raises on purpose.

    Args:
        message: names the thing and the cause, in a sentence without a full stop.
        code: stable, lower-case, for programs; the class's own where none is given.
        next_step: what the reader can do now.
        param: the field or flag at fault, where there is one.
        object_id: the job, replica, file … that it is about.
    """

    default_code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        next_step: str | None = None,
        param: str | None = None,
        object_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.next_step = next_step
        self.param = param
        self.object_id = object_id

    def __str__(self) -> str:
        """Message and next step on one line."""
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class InvalidInput(TandemnError):
    """The request or file is wrong; the same again will fail again."""

    default_code = "invalid_input"
    exit_code = 2
    http_status = 400


class NotFound(InvalidInput):
    default_code = "not_found"
    http_status = 404


class Conflict(InvalidInput):
    """The object exists but is not in a state in which this can be done."""

    default_code = "conflict"
    http_status = 409


class NotAllowed(InvalidInput):
    default_code = "invalid_api_key"
    http_status = 401


class Forbidden(NotAllowed):
    """The key is one, but its role may not do this."""

    default_code = "forbidden"
    http_status = 403


class TooLarge(InvalidInput):
    default_code = "body_too_large"
    http_status = 413


class TooSlow(InvalidInput):
    default_code = "body_too_slow"
    http_status = 408


class MissingDependency(InvalidInput):
    default_code = "missing_dependency"


class Infeasible(TandemnError):
    """The deadline or budget cannot be met."""

    default_code = "infeasible"
    exit_code = 3
    http_status = 422


class NextOffer(TandemnError):
    """This offer cannot be had now; the next one may."""

    default_code = "offer_unavailable"


class NoCapacity(NextOffer):
    default_code = "no_capacity"


class QuotaExceeded(NextOffer):
    default_code = "quota_exceeded"


class Retryable(TandemnError):
    """A passing fault: nothing changed, the same call may succeed later."""

    default_code = "unavailable"
    http_status = 503


class TooManyRequests(Retryable):
    """The caller asks more than its share; `retry_after_s` says when there is room again."""

    default_code = "rate_limited"
    http_status = 429

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        code: str | None = None,
        next_step: str | None = None,
        param: str | None = None,
        object_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code, next_step=next_step, param=param, object_id=object_id)
        self.retry_after_s = retry_after_s


class QueueUnavailable(Retryable):
    default_code = "queue_unavailable"


class StoreUnavailable(Retryable):
    default_code = "store_unavailable"


class ServerUnavailable(Retryable):
    default_code = "server_unavailable"


class Superseded(TandemnError):
    """Another holder or writer won; drop what was being done."""

    default_code = "superseded"
    http_status = 409


class LeaseLost(Superseded):
    default_code = "lease_lost"


class QueueLost(Superseded):
    default_code = "queue_lost"


class StaleRecord(Superseded):
    default_code = "stale_record"


class Broken(TandemnError):
    """It failed, and trying again is not the answer."""

    default_code = "failed"


class EngineFailed(Broken):
    default_code = "engine_failed"
