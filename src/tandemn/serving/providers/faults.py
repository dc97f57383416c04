"""What a provider's refusal means to the caller: one function for each row of the seam's table of errors."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tandemn.errors import (
    Broken,
    Conflict,
    InvalidInput,
    MissingDependency,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    Retryable,
    TandemnError,
)
from tandemn.serving.providers.provider import CALL_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

#: Longest piece of a vendor's message that is passed on, in characters.
LONGEST_DETAIL = 400

#: How to sign in, for each provider.
SIGN_IN = {
    "modal": "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
    "runpod": "set RUNPOD_API_KEY to a key that may write serverless endpoints",
    "skyserve": "run `sky check` and follow what it says",
    "cloudrun": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}


def credentials(provider: str, detail: str) -> TandemnError:
    return InvalidInput(
        f"{provider} does not accept the credentials: {detail}",
        code="provider_credentials",
        next_step=SIGN_IN.get(provider),
    )


def permission(provider: str, detail: str) -> TandemnError:
    return InvalidInput(f"{provider} does not allow it: {detail}", code="provider_permission")


def refused(provider: str, detail: str) -> TandemnError:
    return InvalidInput(f"{provider} refuses the request: {detail}", code="provider_refused")


def conflict(provider: str, detail: str) -> TandemnError:
    return Conflict(f"{provider}: {detail}", code="provider_conflict")


def not_found(provider: str, detail: str) -> TandemnError:
    return NotFound(f"{provider} has no such backend: {detail}", code="provider_not_found")


def quota(provider: str, detail: str) -> TandemnError:
    return QuotaExceeded(
        f"{provider}: a quota is used up: {detail}", next_step="ask for more, or name another provider"
    )


def capacity(provider: str, detail: str) -> TandemnError:
    return NoCapacity(f"{provider} has none free: {detail}", next_step="try another GPU, region or provider")


def unavailable(provider: str, detail: str) -> TandemnError:
    return Retryable(f"{provider} does not answer as it should: {detail}", code="provider_unavailable")


def startup_failed(provider: str, detail: str) -> TandemnError:
    return Broken(f"{provider}: the backend did not start: {detail}", code="startup_failed")


def missing_sdk(provider: str, exc: ImportError) -> TandemnError:
    return MissingDependency(
        f"provider {provider} needs its SDK: {exc}", next_step=f"pip install 'tandemn[{provider}]'"
    )


def shown(text: object, secrets: Iterable[str] = ()) -> str:
    """A vendor's words, on one line, cut, and with every secret taken out."""
    line = " ".join(str(text).split()) or type(text).__name__
    for secret in secrets:
        line = line.replace(secret, "[secret]")
    return line[:LONGEST_DETAIL]


@asynccontextmanager
async def translated(
    provider: str,
    kinds: tuple[type[Exception], ...],
    translate: Callable[[Exception], TandemnError],
    *,
    limit_s: float = CALL_S,
) -> AsyncIterator[None]:
    """Bound a call to a provider in time, and raise its errors as ours."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TandemnError:
        raise
    except TimeoutError as exc:
        raise unavailable(provider, f"no answer within {limit_s:g} s") from exc
    except kinds as exc:
        raise translate(exc) from exc
    except OSError as exc:
        raise unavailable(provider, shown(exc)) from exc
