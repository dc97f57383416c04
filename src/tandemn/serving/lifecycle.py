"""The life of a deployment and of its parts, which are its backends and its router. Pure.

What to do next with a part, and what an answer means:

    planned -> creating -> provisioning | idle | ready      as the provider says
    any     -> failed -> deleting                           the create cannot succeed as it is; what it left is removed
    any     -> deleting -> deleted                          deleted only on the provider's word

Names are deterministic and every remote call may be repeated, so that whatever a crash left half done is the same
as something that has not been tried yet. What may exist is deleted by its name, whether or not its id is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar, assert_never

from tandemn.errors import Conflict, NotFound, Retryable, TandemnError
from tandemn.protocol.deployments import BackendState, DeploymentState
from tandemn.serving.providers.provider import BackendPlan, BackendStatus, ReplicaSeen
from tandemn.serving.router_host import RouterPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.serving.providers.provider import Remote

PlanT = TypeVar("PlanT", BackendPlan, RouterPlan)

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

#: Lines of its log that are kept of what did not start, and characters of them.
LAST_WORDS, LAST_CHARACTERS = 5, 600

#: What an update can change in place, by field of the spec; the rest makes it another deployment.
CHANGEABLE = frozenset({"budget_usd", "scaling", "max_model_len", "workers_max", "spot_ttft_limit"})

#: How long the backends of a deployment over its budget stay for the requests under way, in seconds.
DRAIN_S = 30.0

#: A request could be answered: an idle one starts for it.
SERVING = frozenset({BackendState.READY, BackendState.IDLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[PlanT]):
    """The record of one thing that is made somewhere else for a deployment: a backend, or its router."""

    name: str
    plan: PlanT
    state: BackendState = BackendState.PLANNED
    is_tried: bool = False
    """A create was intended, so that something of it may exist."""
    is_ensured: bool = False
    """The provider has taken this plan."""
    remote: Remote | None = None
    replicas: int | None = None
    """Ready at the last look; None: the provider does not tell."""
    seen: tuple[ReplicaSeen, ...] = ()
    reason: str | None = None
    code: str | None = None
    failures: int = 0
    """In a row."""
    not_before: float = 0.0


Backend = Part[BackendPlan]
Router = Part[RouterPlan]


class Action(StrEnum):
    NOTHING = "nothing"
    ENSURE = "ensure"
    LOOK = "look"
    DELETE = "delete"


def decide(part: Part[PlanT], *, is_deleting: bool, now: float) -> Action:
    """Say what to do with a part now."""
    if part.state is BackendState.DELETED or now < part.not_before:
        return Action.NOTHING
    if is_deleting or part.state is BackendState.DELETING or _has_not_started(part):
        # What did not start may bill all the same.
        return Action.DELETE
    if part.state is BackendState.FAILED and not part.is_ensured:
        # So may what a create left that was refused, or not answered, in the end.
        return Action.DELETE if part.is_tried else Action.NOTHING
    return Action.LOOK if part.is_ensured else Action.ENSURE


def _has_not_started(part: Part[PlanT]) -> bool:
    """Whether it is over because it did not start. An update that does not start is refused: what was there before serves on."""
    return part.code == STARTUP_FAILED and part.state not in SERVING


def intended(part: Part[PlanT], action: Action) -> Part[PlanT]:
    """Return what must be written down before the provider is called."""
    match action:
        case Action.ENSURE:
            state = BackendState.CREATING if part.state is BackendState.PLANNED else part.state
            return replace(part, state=state, is_tried=True)
        case Action.DELETE if not part.is_tried:
            return replace(part, state=BackendState.DELETED, reason=None, code=None)
        case Action.DELETE:
            # Why it failed stays readable while it is deleted.
            return replace(part, state=BackendState.DELETING)
        case Action.LOOK | Action.NOTHING:
            return part
        case _:
            assert_never(action)


def ensured(part: Part[PlanT], remote: Remote, now: float) -> Part[PlanT]:
    """The provider took the plan."""
    state = part.state if part.state in SERVING else BackendState.PROVISIONING
    before = part.remote
    if remote.url is None and before is not None and before.remote_id == remote.remote_id:
        # A create tells no URL yet; the one of an update stays, or the router would drop what serves.
        remote = replace(remote, url=before.url)
    return replace(
        part,
        state=state,
        is_ensured=True,
        remote=remote,
        reason=None,
        code=None,
        failures=0,
        not_before=now,
    )


def looked(part: Part[PlanT], status: BackendStatus, now: float) -> Part[PlanT]:
    """The provider said how it is."""
    if status.state is BackendState.DELETED:
        # Someone deleted it by hand: it is made again, as the record wants it.
        return replace(
            part,
            state=BackendState.PLANNED,
            is_ensured=False,
            remote=None,
            replicas=None,
            seen=(),
            reason="the provider does not have it any more",
            failures=0,
            not_before=now,
        )
    remote = part.remote
    if remote is not None and status.url is not None:
        remote = replace(remote, url=status.url)
    failures = part.failures + 1 if status.state is BackendState.FAILED else 0
    wait = LOOK_S if status.state in SERVING else SOON_S
    if status.look_s is not None and status.state is not BackendState.FAILED:
        wait = status.look_s
    return replace(
        part,
        state=status.state,
        remote=remote,
        replicas=status.replicas,
        seen=status.seen,
        reason=status.reason,
        code=STARTUP_FAILED if failures >= FAILED_LOOKS else None,
        failures=failures,
        not_before=now + wait,
    )


def with_last_words(part: Part[PlanT], lines: Sequence[str]) -> Part[PlanT]:
    """Keep the end of its log with the reason why it did not start."""
    words = " | ".join(line.strip() for line in lines[-LAST_WORDS:] if line.strip())[-LAST_CHARACTERS:]
    if not words:
        return part
    return replace(part, reason=f"{part.reason or 'it did not start'}; its last words: {words}")


def is_news(before: Part[PlanT], after: Part[PlanT]) -> bool:
    """Whether a look's outcome is worth a record: while all is well, words and times change all the time."""
    same = replace(before, not_before=after.not_before)
    if after.state in SERVING and after.code is None:
        same = replace(same, reason=after.reason)
    return after != same


def deleted(part: Part[PlanT], now: float, *, is_gone: bool) -> Part[PlanT]:
    """The provider was asked to delete it, and said whether it is gone."""
    if not is_gone:
        return replace(part, failures=0, not_before=now + SOON_S)
    return replace(
        part,
        state=BackendState.DELETED,
        is_ensured=False,
        remote=None,
        replicas=None,
        seen=(),
        failures=0,
        not_before=now,
    )


def failed(part: Part[PlanT], action: Action, error: TandemnError, now: float) -> Part[PlanT]:
    """The provider refused. A delete is tried again for ever: what may exist may bill."""
    failures = part.failures + 1
    wait = min(BACKOFF_S * 2 ** min(failures - 1, 10), LONGEST_BACKOFF_S)
    # What it failed of says more of it than why it cannot be deleted yet.
    code = STARTUP_FAILED if action is Action.DELETE and part.code == STARTUP_FAILED else error.code
    after = replace(part, reason=str(error), code=code, failures=failures, not_before=now + wait)
    if action is not Action.ENSURE:
        # Not being able to look, or to delete, says nothing about the part itself.
        return after
    if part.state in SERVING:
        # An update was refused; what was there before serves on, and the update is tried again.
        return after
    is_passing = isinstance(error, (Retryable, Conflict, NotFound))
    if is_passing and failures < TRIES:
        return after
    return replace(after, state=BackendState.FAILED)


def replanned(part: Part[PlanT], plan: PlanT) -> Part[PlanT]:
    """Take a new plan in place, or try a failed one again; what serves goes on serving."""
    is_over = _has_not_started(part) or part.state in {
        BackendState.FAILED,
        BackendState.DELETING,
        BackendState.DELETED,
    }
    if plan == part.plan and not is_over:
        return part
    return replace(
        part,
        plan=plan,
        state=BackendState.PLANNED if is_over else part.state,
        is_ensured=False,
        reason=None,
        code=None,
        failures=0,
        not_before=0.0,
    )


def deployment_state(
    backends: Sequence[Backend],
    router: Router | None,
    *,
    is_deleting: bool,
    is_over_budget: bool = False,
) -> DeploymentState:
    """Fold the parts' states: the endpoint is usable as soon as its router and one backend are."""
    parts: list[Backend | Router] = [*backends, *([router] if router is not None else [])]
    if is_deleting:
        is_gone = all(part.state is BackendState.DELETED for part in parts)
        ended = DeploymentState.OVER_BUDGET if is_over_budget else DeploymentState.DELETED
        return ended if is_gone else DeploymentState.DELETING
    if _has_failed(router) or all(_has_failed(backend) for backend in backends):
        return DeploymentState.FAILED
    if any(backend.state in SERVING for backend in backends) and (router is None or router.state in SERVING):
        is_whole = not any(_has_failed(part) or _is_refused(part) for part in parts)
        return DeploymentState.READY if is_whole else DeploymentState.DEGRADED
    states = {backend.state for backend in backends}
    if states == {BackendState.PLANNED}:
        return DeploymentState.PLANNED
    if states & {BackendState.PROVISIONING, *SERVING}:
        return DeploymentState.PROVISIONING
    return DeploymentState.CREATING


def why(parts: Sequence[Backend | Router]) -> tuple[str | None, str | None]:
    """Return reason and code of what is not as it should be: of what has failed, else of what is waited for."""
    told = [part for part in parts if part.reason and (part.state not in SERVING or part.code is not None)]
    if not told:
        return None, None
    worst = min(told, key=lambda part: (not _has_failed(part), part.code is None))
    return f"{worst.name}: {worst.reason}", worst.code


def _has_failed(part: Backend | Router | None) -> bool:
    """Whether it failed, or is deleted because it did."""
    gone = {BackendState.FAILED, BackendState.DELETING, BackendState.DELETED}
    return part is not None and part.state in gone


def _is_refused(part: Backend | Router) -> bool:
    """Whether its provider has not taken what is wanted now, while what was there before serves on."""
    return part.code is not None and not part.is_ensured
