"""What SkyPilot's errors mean: each by what the caller can do. Pure; docs/skypilot.md has the table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tandemn.errors import (
    Broken,
    Conflict,
    InvalidInput,
    NextOffer,
    NoCapacity,
    NotAllowed,
    NotFound,
    QuotaExceeded,
    Retryable,
    TandemnError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Longest piece of SkyPilot's words that is passed on, in characters.
LONGEST = 600
#: Entries of a failover history that are told.
TOLD = 20

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_QUOTA = re.compile(
    r"quota|vcpu ?limit|limit ?exceeded|LimitExceeded|MaxSpotInstanceCount|RESOURCE_EXHAUSTED: Quota",
    re.IGNORECASE,
)
#: What was asked for, which it repeats with every place.
_ASKED_FOR = re.compile(r" for \{.*\}\.?", re.DOTALL)
_CHECK = "run `sky check` and follow what it says"


def shown(text: object, *, secrets: tuple[str, ...] = ()) -> str:
    """SkyPilot's words on one line: without colours, secrets and excess."""
    line = " ".join(_ESCAPES.sub("", str(text)).split())
    for secret in secrets:
        line = line.replace(secret, "[secret]")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def translated(error: Mapping[str, Any]) -> TandemnError:
    """Translate an error as the worker describes it."""
    kinds = [str(each) for each in error.get("kinds") or [error.get("type", "")]]
    make = next((MEANINGS[kind] for kind in kinds if kind in MEANINGS), _unknown)
    return make(error)


def tried(error: Mapping[str, Any]) -> list[str]:
    """Say what was tried, where and why each failed, as far as SkyPilot tells."""
    told = [
        shown(_ASKED_FOR.sub("", str(each.get("message") or each.get("type"))))
        for each in error.get("history") or []
    ]
    return list(dict.fromkeys(told))[:TOLD]


def _words(error: Mapping[str, Any]) -> str:
    words = shown(error.get("message") or error.get("type") or "no reason given")
    detail = shown(error.get("detail") or "")
    return words if not detail or detail in words else shown(f"{words} ({detail})")


def _unavailable(error: Mapping[str, Any]) -> TandemnError:
    history = tried(error)
    words = "; ".join(history) if history else _words(error)
    if not history:
        # The optimizer found nothing that fits: no cloud was asked.
        return NextOffer(f"SkyPilot knows of nothing that fits: {words}", code="offer_unavailable")
    if all(_QUOTA.search(each) for each in history):
        return QuotaExceeded(
            f"a quota is used up wherever it was tried: {words}",
            next_step="ask the cloud for more, or name another region or GPU",
        )
    return NoCapacity(f"none could be had: {words}")


def _credentials(error: Mapping[str, Any]) -> TandemnError:
    return InvalidInput(
        f"no cloud lets SkyPilot in: {_words(error)}", code="cloud_credentials", next_step=_CHECK
    )


def _owner(error: Mapping[str, Any]) -> TandemnError:
    return NotAllowed(
        f"the cluster belongs to another identity of the cloud: {_words(error)}",
        code="cluster_owner",
        next_step="sign in to the cloud as who launched it",
    )


def _mismatch(error: Mapping[str, Any]) -> TandemnError:
    return Conflict(
        f"a cluster of that name is there with other resources: {_words(error)}",
        code="cluster_mismatch",
        next_step="`sky down` it, or give it another name",
    )


def _unsupported(error: Mapping[str, Any]) -> TandemnError:
    return NextOffer(f"the cloud cannot do what is asked: {_words(error)}", code="offer_unsupported")


def _setup(error: Mapping[str, Any]) -> TandemnError:
    return Broken(f"setting the cluster up failed: {_words(error)}", code="cluster_setup_failed")


def _missing(error: Mapping[str, Any]) -> TandemnError:
    return NotFound(f"SkyPilot has no such cluster: {_words(error)}", code="cluster_not_found")


def _passing(error: Mapping[str, Any]) -> TandemnError:
    return Retryable(f"SkyPilot: {_words(error)}", code="skypilot_unavailable")


def _refused(error: Mapping[str, Any]) -> TandemnError:
    return InvalidInput(f"SkyPilot refuses it: {_words(error)}", code="skypilot_refused")


def _access(error: Mapping[str, Any]) -> TandemnError:
    return NotAllowed(
        f"SkyPilot's API server does not let Tandemn in: {_words(error)}",
        code="skypilot_access",
        next_step="`sky api login`, with the Python that TANDEMN_SKYPILOT_PYTHON names",
    )


def _version(error: Mapping[str, Any]) -> TandemnError:
    return Conflict(
        f"SkyPilot's API server is of another version: {_words(error)}",
        code="skypilot_version",
        next_step="`sky api stop; sky api start` once nothing is being launched",
    )


def _cancelled(error: Mapping[str, Any]) -> TandemnError:
    return Retryable(f"the request was cancelled in SkyPilot: {_words(error)}", code="request_cancelled")


def _unknown(error: Mapping[str, Any]) -> TandemnError:
    # Providers' SDKs and SkyPilot itself raise plain RuntimeErrors for what passes as well as for what does not: it is
    # tried again, and the limit on failures in a row ends what does not pass.
    return Retryable(f"SkyPilot failed: {error.get('type')}: {_words(error)}", code="skypilot_failed")


#: SkyPilot's class of an error -> what it means. The first of an error's classes that stands here counts, its own first.
MEANINGS: dict[str, Callable[[Mapping[str, Any]], TandemnError]] = {
    "ResourcesUnavailableError": _unavailable,
    "KubeAPIUnreachableError": _passing,
    "NoClusterLaunchedError": _unavailable,
    "ProvisionPrechecksError": _refused,
    "ProvisionUnsupportedError": _unsupported,
    "NotSupportedError": _unsupported,
    "NoCloudAccessError": _credentials,
    "InvalidCloudConfigs": _credentials,
    "InvalidCloudCredentials": _credentials,
    "CloudUserIdentityError": _credentials,
    "ClusterOwnerIdentityMismatchError": _owner,
    "PermissionDeniedError": _access,
    "ApiServerAuthenticationError": _access,
    "ResourcesMismatchError": _mismatch,
    "CommandFailureException": _setup,
    "ClusterSetUpError": _setup,
    "ClusterDoesNotExist": _missing,
    "CachedClusterUnavailable": _missing,
    "ClusterNotUpError": _passing,
    "ClusterStatusFetchingError": _passing,
    "FetchClusterInfoError": _passing,
    "NetworkError": _passing,
    "CloudError": _passing,
    "AWSAzFetchingError": _passing,
    "StorageError": _passing,
    "ExecutionRetryableError": _passing,
    "ExecutionPoolFullError": _passing,
    "ApiServerConnectionError": _passing,
    "ServerTemporarilyUnavailableError": _passing,
    "ConcurrentWorkerExhaustedError": _passing,
    "SkyletInternalError": _passing,
    "SkyletUnavailableError": _passing,
    "RequestInterruptedError": _passing,
    "RequestCancelled": _cancelled,
    "APIVersionMismatchError": _version,
    "APINotSupportedError": _version,
    "InconsistentHighAvailabilityError": _refused,
    "InvalidClusterNameError": _refused,
    "InvalidWorkspaceNameError": _refused,
    "KubernetesValidationError": _refused,
    "RestfulPolicyError": _refused,
    "WorkspaceAmbiguousError": _refused,
    "InvalidSkyPilotConfigError": _refused,
    "UserRequestRejectedByPolicy": _refused,
    "ValueError": _refused,
    "TypeError": _refused,
}
