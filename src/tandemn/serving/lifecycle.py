"""The life of a backend and of its deployment: what to do next, and what an answer means. Pure.

    planned -> creating -> provisioning | idle | ready      as the provider says
    any     -> failed                                       the create cannot succeed as it is
    any     -> deleting -> deleted                          deleted only on the provider's word

Names are deterministic and every remote call may be repeated, so that whatever a crash left half done is the same
as something that has not been tried yet. What may exist is deleted by its name, whether or not its id is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from tandemn.errors import Conflict, NotFound, Retryable, TandemnError
from tandemn.protocol.deployments import BackendState, DeploymentState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.serving.providers.provider import BackendPlan, BackendStatus, Remote

#: Wait after the first failure, doubled by each further one, in seconds.
BACKOFF_S = 1.0
#: Longest wait between two tries, in seconds.
LONGEST_BACKOFF_S = 60.0
#: How often a backend that does well is looked at, in seconds: every look is a call that providers count.
LOOK_S = 30.0
#: The same while it is coming up or going away.
SOON_S = 3.0
#: Failed tries of a create in a row after which it counts as failed.
TRIES = 8

#: Looks in a row that find it failed, `SOON_S` apart, after which it is deleted so that it bills no more: workers
#: are unhealthy for a moment now and then.
FAILED_LOOKS = 20
#: Its code from then on.
STARTUP_FAILED = "startup_failed"

#: A request could be answered: an idle one starts for it.
SERVING = frozenset({BackendState.READY, BackendState.IDLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One backend's record."""

    name: str
    plan: BackendPlan
    state: BackendState = BackendState.PLANNED
    is_tried: bool = False
    """A create was intended, so that something of it may exist."""
    is_ensured: bool = False
    """The provider has taken this plan."""
    remote: Remote | None = None
    reason: str | None = None
    code: str | None = None
    failures: int = 0
    """In a row."""
    not_before: float = 0.0


class Action(StrEnum):
    NOTHING = "nothing"
    ENSURE = "ensure"
    LOOK = "look"
    DELETE = "delete"


def decide(backend: Backend, *, is_deleting: bool, now: float) -> Action:
    """Say what to do with a backend now."""
    if backend.state is BackendState.DELETED or now < backend.not_before:
        return Action.NOTHING
    if is_deleting or backend.code == STARTUP_FAILED:
        # What did not start may bill all the same.
        return Action.DELETE
    if backend.state is BackendState.FAILED and not backend.is_ensured:
        return Action.NOTHING
    return Action.LOOK if backend.is_ensured else Action.ENSURE


def intended(backend: Backend, action: Action) -> Backend:
    """Return what must be written down before the provider is called."""
    match action:
        case Action.ENSURE:
            state = BackendState.CREATING if backend.state is BackendState.PLANNED else backend.state
            return replace(backend, state=state, is_tried=True)
        case Action.DELETE if not backend.is_tried:
            return replace(backend, state=BackendState.DELETED, reason=None, code=None)
        case Action.DELETE:
            # Why it failed stays readable while it is deleted.
            return replace(backend, state=BackendState.DELETING)
        case Action.LOOK | Action.NOTHING:
            return backend
        case _:
            assert_never(action)


def ensured(backend: Backend, remote: Remote, now: float) -> Backend:
    """The provider took the plan."""
    state = backend.state if backend.state in SERVING else BackendState.PROVISIONING
    return replace(
        backend,
        state=state,
        is_ensured=True,
        remote=remote,
        reason=None,
        code=None,
        failures=0,
        not_before=now,
    )


def looked(backend: Backend, status: BackendStatus, now: float) -> Backend:
    """The provider said how it is."""
    if status.state is BackendState.DELETED:
        # Someone deleted it by hand: it is made again, as the record wants it.
        return replace(
            backend,
            state=BackendState.PLANNED,
            is_ensured=False,
            remote=None,
            reason="the provider does not have it any more",
            failures=0,
            not_before=now,
        )
    remote = backend.remote
    if remote is not None and status.url is not None:
        remote = replace(remote, url=status.url)
    failures = backend.failures + 1 if status.state is BackendState.FAILED else 0
    return replace(
        backend,
        state=status.state,
        remote=remote,
        reason=status.reason,
        code=STARTUP_FAILED if failures >= FAILED_LOOKS else None,
        failures=failures,
        not_before=now + (LOOK_S if status.state in SERVING else SOON_S),
    )


def deleted(backend: Backend, now: float, *, is_gone: bool) -> Backend:
    """The provider was asked to delete it, and said whether it is gone."""
    if not is_gone:
        return replace(backend, failures=0, not_before=now + SOON_S)
    return replace(
        backend, state=BackendState.DELETED, is_ensured=False, remote=None, failures=0, not_before=now
    )


def failed(backend: Backend, action: Action, error: TandemnError, now: float) -> Backend:
    """The provider refused. A delete is tried again for ever: what may exist may bill."""
    failures = backend.failures + 1
    wait = min(BACKOFF_S * 2 ** min(failures - 1, 10), LONGEST_BACKOFF_S)
    after = replace(backend, reason=str(error), code=error.code, failures=failures, not_before=now + wait)
    if action is not Action.ENSURE:
        # Not being able to look, or to delete, says nothing about the backend itself.
        return after
    is_passing = isinstance(error, (Retryable, Conflict, NotFound))
    if is_passing and failures < TRIES:
        return after
    return replace(after, state=BackendState.FAILED)


def replanned(backend: Backend, plan: BackendPlan) -> Backend:
    """Take a new plan in place, or try a failed one again; what serves goes on serving."""
    if plan == backend.plan and backend.state is not BackendState.FAILED:
        return backend
    state = BackendState.PLANNED if backend.state is BackendState.FAILED else backend.state
    return replace(
        backend,
        plan=plan,
        state=state,
        is_ensured=False,
        reason=None,
        code=None,
        failures=0,
        not_before=0.0,
    )


def deployment_state(backends: Sequence[Backend], *, is_deleting: bool) -> DeploymentState:
    """Fold the backends' states: the endpoint is usable as soon as one backend is."""
    states = [backend.state for backend in backends]
    if is_deleting:
        is_gone = all(state is BackendState.DELETED for state in states)
        return DeploymentState.DELETED if is_gone else DeploymentState.DELETING
    has_failed = any(_has_failed(backend) for backend in backends)
    if any(state in SERVING for state in states):
        return DeploymentState.DEGRADED if has_failed else DeploymentState.READY
    if has_failed and all(_has_failed(backend) for backend in backends):
        return DeploymentState.FAILED
    if all(state is BackendState.PLANNED for state in states):
        return DeploymentState.PLANNED
    if any(state is BackendState.PROVISIONING for state in states):
        return DeploymentState.PROVISIONING
    return DeploymentState.CREATING


def _has_failed(backend: Backend) -> bool:
    """Whether it failed, or is deleted because it did."""
    return backend.state in {BackendState.FAILED, BackendState.DELETING, BackendState.DELETED}
