from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.errors import Broken, InvalidInput, NoCapacity, Retryable
from tandemn.protocol.deployments import BackendState, DeploymentState
from tandemn.protocol.replicas import Market
from tandemn.serving import lifecycle
from tandemn.serving.lifecycle import Action, Part
from tandemn.serving.providers.provider import BackendPlan, BackendStatus, Remote
from tandemn.serving.router_host import RouterPlan

PLAN = BackendPlan(provider="runpod", market=Market.SERVERLESS, remote_name="tandemn-one", request={})
REMOTE = Remote(provider="runpod", remote_name="tandemn-one", remote_id="ep1", url="https://ep1")
NEW = Part(name="serverless", plan=PLAN)
ROUTER = Part(
    name="router", plan=RouterPlan(host="local", remote_name="tandemn-one"), state=BackendState.READY
)
PASSING = Retryable("no answer", code="provider_unavailable")
MADE = lifecycle.ensured(lifecycle.intended(NEW, Action.ENSURE), REMOTE, 0.0)
SERVES = lifecycle.looked(MADE, BackendStatus(state=BackendState.IDLE), 0.0)


def decide(backend, *, is_deleting=False, now=1e9):
    return lifecycle.decide(backend, is_deleting=is_deleting, now=now)


def test_a_plan_survives_json():
    assert BackendPlan.from_json(PLAN.as_json()) == PLAN


def test_the_way_up():
    assert decide(NEW) is Action.ENSURE
    tried = lifecycle.intended(NEW, Action.ENSURE)
    assert (tried.state, tried.is_tried) == (BackendState.CREATING, True)
    assert MADE.state is BackendState.PROVISIONING
    assert decide(MADE, now=0.0) is Action.LOOK
    assert SERVES.state is BackendState.IDLE
    assert decide(SERVES, now=1.0) is Action.NOTHING
    assert decide(SERVES, now=lifecycle.LOOK_S) is Action.LOOK


def test_a_crash_after_the_intent_is_the_same_as_not_having_tried():
    assert decide(lifecycle.intended(NEW, Action.ENSURE)) is Action.ENSURE


def test_destroy_before_anything_was_tried_is_done_at_once():
    assert decide(NEW, is_deleting=True) is Action.DELETE
    assert lifecycle.intended(NEW, Action.DELETE).state is BackendState.DELETED


def test_destroy_after_an_intent_asks_the_provider_although_no_id_is_known():
    tried = lifecycle.intended(NEW, Action.ENSURE)
    going = lifecycle.intended(tried, Action.DELETE)
    assert going.state is BackendState.DELETING
    assert lifecycle.deleted(going, 0.0, is_gone=False).state is BackendState.DELETING
    gone = lifecycle.deleted(going, 0.0, is_gone=True)
    assert gone.state is BackendState.DELETED
    assert decide(gone, is_deleting=True) is Action.NOTHING


def test_a_delete_that_fails_is_tried_again_for_ever_and_reported():
    backend = lifecycle.intended(SERVES, Action.DELETE)
    now = 0.0
    for _ in range(100):
        backend = lifecycle.failed(backend, Action.DELETE, PASSING, now)
        assert backend.state is BackendState.DELETING
        assert backend.reason == "no answer"
        assert decide(backend, is_deleting=True, now=now) is Action.NOTHING
        assert backend.not_before - now <= lifecycle.LONGEST_BACKOFF_S
        now = backend.not_before
        assert decide(backend, is_deleting=True, now=now) is Action.DELETE


@pytest.mark.parametrize(
    "error", [InvalidInput("x", code="provider_credentials"), NoCapacity("none"), Broken("x")]
)
def test_a_create_that_cannot_succeed_fails_at_once(error):
    backend = lifecycle.failed(lifecycle.intended(NEW, Action.ENSURE), Action.ENSURE, error, 0.0)
    assert (backend.state, backend.code) == (BackendState.FAILED, error.code)
    # What it left half made is removed, and then nothing is done any more.
    assert decide(backend) is Action.DELETE
    assert decide(backend, is_deleting=True) is Action.DELETE
    going = lifecycle.intended(backend, Action.DELETE)
    assert going.state is BackendState.DELETING
    gone = lifecycle.deleted(going, 0.0, is_gone=True)
    assert (gone.reason, gone.code, decide(gone)) == (str(error), error.code, Action.NOTHING)
    assert decide(replace(NEW, state=BackendState.FAILED)) is Action.NOTHING, (
        "of what was never tried nothing is left"
    )


def test_a_passing_fault_is_waited_out_a_bounded_number_of_times():
    backend = lifecycle.intended(NEW, Action.ENSURE)
    for _ in range(lifecycle.TRIES - 1):
        backend = lifecycle.failed(backend, Action.ENSURE, PASSING, 0.0)
        assert backend.state is BackendState.CREATING
    assert lifecycle.failed(backend, Action.ENSURE, PASSING, 0.0).state is BackendState.FAILED


def test_what_does_not_start_is_deleted_and_its_reason_kept():
    backend = MADE
    for _ in range(lifecycle.FAILED_LOOKS):
        assert decide(backend) is Action.LOOK
        status = BackendStatus(state=BackendState.FAILED, reason="no memory")
        backend = lifecycle.looked(backend, status, 0.0)
    assert decide(backend) is Action.DELETE
    going = lifecycle.intended(backend, Action.DELETE)
    gone = lifecycle.deleted(going, 0.0, is_gone=True)
    assert (gone.state, gone.reason) == (BackendState.DELETED, "no memory")
    assert lifecycle.deployment_state([gone], ROUTER, is_deleting=False) is DeploymentState.FAILED


def test_the_end_of_its_log_stays_with_what_did_not_start():
    backend = replace(MADE, state=BackendState.FAILED, reason="the workers are unhealthy")
    lines = [*(f"line {number}" for number in range(100)), "  CUDA out of memory  ", ""]
    told = lifecycle.with_last_words(backend, lines).reason
    assert (
        told == "the workers are unhealthy; its last words: line 97 | line 98 | line 99 | CUDA out of memory"
    )
    assert lifecycle.with_last_words(backend, []) == backend
    assert len(str(lifecycle.with_last_words(backend, ["x" * 10_000]).reason)) < 1000


def test_a_delete_of_what_did_not_start_is_repeated_whatever_it_fails_of():
    backend = replace(MADE, state=BackendState.FAILED, code=lifecycle.STARTUP_FAILED, reason="no memory")
    for error in (PASSING, InvalidInput("expired", code="provider_credentials")):
        backend = lifecycle.failed(lifecycle.intended(backend, Action.DELETE), Action.DELETE, error, 0.0)
        assert (backend.code, backend.reason) == (lifecycle.STARTUP_FAILED, str(error))
        assert decide(backend) is Action.DELETE
        assert decide(lifecycle.replanned(backend, PLAN)) is Action.ENSURE


def test_an_update_that_does_not_start_takes_nothing_from_what_serves():
    wanted = lifecycle.replanned(SERVES, replace(PLAN, request={"timeout": 5}))
    refused = lifecycle.failed(wanted, Action.ENSURE, Broken("no image", code=lifecycle.STARTUP_FAILED), 0.0)
    assert (refused.state, decide(refused)) == (BackendState.IDLE, Action.ENSURE)
    assert lifecycle.deployment_state([refused], ROUTER, is_deleting=False) is DeploymentState.DEGRADED
    again = lifecycle.replanned(refused, PLAN)
    assert (again.state, decide(again)) == (BackendState.IDLE, Action.ENSURE)


def test_a_look_that_fails_says_nothing_about_the_backend():
    assert lifecycle.failed(SERVES, Action.LOOK, PASSING, 0.0).state is BackendState.IDLE


def test_what_was_deleted_by_hand_is_made_again():
    backend = lifecycle.looked(SERVES, BackendStatus(state=BackendState.DELETED), 0.0)
    assert decide(backend) is Action.ENSURE


def test_a_new_plan_is_taken_in_place_without_an_outage():
    changed = replace(PLAN, request={"timeout": 5})
    backend = lifecycle.replanned(SERVES, changed)
    assert (backend.state, decide(backend)) == (BackendState.IDLE, Action.ENSURE)
    backend = lifecycle.ensured(lifecycle.intended(backend, Action.ENSURE), REMOTE, 0.0)
    assert backend.state is BackendState.IDLE
    assert lifecycle.replanned(SERVES, PLAN) is SERVES


def test_a_failed_one_is_tried_again_by_the_same_deploy():
    backend = lifecycle.failed(NEW, Action.ENSURE, NoCapacity("none"), 0.0)
    assert decide(lifecycle.replanned(backend, PLAN)) is Action.ENSURE


def test_the_url_is_the_latest_that_the_provider_told():
    status = BackendStatus(state=BackendState.READY, url="https://new")
    assert lifecycle.looked(SERVES, status, 0.0).remote == replace(REMOTE, url="https://new")


@pytest.mark.parametrize(
    ("states", "is_deleting", "expected"),
    [
        (["planned", "planned"], False, "planned"),
        (["creating", "planned"], False, "creating"),
        (["creating", "provisioning"], False, "provisioning"),
        (["idle", "provisioning"], False, "ready"),
        (["ready", "ready"], False, "ready"),
        (["ready", "failed"], False, "degraded"),
        (["failed", "provisioning"], False, "provisioning"),
        (["failed", "failed"], False, "failed"),
        (["ready", "deleting"], True, "deleting"),
        (["deleted", "failed"], True, "deleting"),
        (["deleted", "deleted"], True, "deleted"),
    ],
)
def test_a_deployment_is_the_fold_of_its_backends(states, is_deleting, expected):
    backends = [replace(NEW, state=BackendState(state)) for state in states]
    router = replace(ROUTER, state=BackendState.DELETED) if is_deleting else ROUTER
    assert lifecycle.deployment_state(backends, router, is_deleting=is_deleting) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("planned", "provisioning"),
        ("creating", "provisioning"),
        ("provisioning", "provisioning"),
        ("ready", "ready"),
        ("failed", "failed"),
    ],
)
def test_without_a_router_nobody_can_use_it(state, expected):
    router = replace(ROUTER, state=BackendState(state))
    assert lifecycle.deployment_state([SERVES], router, is_deleting=False) == expected


def test_it_is_gone_only_when_its_router_is():
    gone = replace(NEW, state=BackendState.DELETED)
    assert lifecycle.deployment_state([gone], ROUTER, is_deleting=True) is DeploymentState.DELETING


def test_an_update_that_is_refused_leaves_what_serves_and_is_tried_again():
    wanted = lifecycle.replanned(SERVES, replace(PLAN, request={"timeout": 5}))
    refused = lifecycle.failed(wanted, Action.ENSURE, InvalidInput("no", code="provider_refused"), 0.0)
    assert (refused.state, decide(refused)) == (BackendState.IDLE, Action.ENSURE)
    state = lifecycle.deployment_state([refused], ROUTER, is_deleting=False)
    assert (state, lifecycle.why([refused, ROUTER])) == ("degraded", ("serverless: no", "provider_refused"))
    taken = lifecycle.ensured(refused, REMOTE, 0.0)
    assert lifecycle.deployment_state([taken], ROUTER, is_deleting=False) is DeploymentState.READY


def test_what_has_failed_explains_a_deployment_before_what_is_waited_for():
    waits = replace(NEW, name="spot", state=BackendState.PROVISIONING, reason="no GPU is free")
    broken = replace(NEW, state=BackendState.FAILED, reason="no balance", code="provider_permission")
    assert lifecycle.why([waits, broken]) == ("serverless: no balance", "provider_permission")
    assert lifecycle.why([waits]) == ("spot: no GPU is free", None)
    assert lifecycle.why([SERVES, ROUTER]) == (None, None)


class Cloud:
    """A provider as the worst case allows: each call may fail before or after it took effect."""

    def __init__(self) -> None:
        self.has_it = False

    def call(self, action: Action, mishap: str) -> None:
        if mishap == "before":
            raise PASSING
        if action is Action.ENSURE:
            self.has_it = True
        if action is Action.DELETE:
            self.has_it = False
        if mishap == "after":
            raise PASSING


def one_step(backend, cloud, *, is_deleting, mishap, now):
    """What the reconciler does, with a crash or a failure where `mishap` says."""
    action = decide(backend, is_deleting=is_deleting, now=now)
    backend = lifecycle.intended(backend, action)
    if action is Action.NOTHING or backend.state is BackendState.DELETED or mishap == "crash before":
        return backend
    try:
        cloud.call(action, mishap)
    except Retryable as exc:
        return lifecycle.failed(backend, action, exc, now)
    if mishap == "crash after":
        return backend
    match action:
        case Action.ENSURE:
            return lifecycle.ensured(backend, REMOTE, now)
        case Action.DELETE:
            return lifecycle.deleted(backend, now, is_gone=not cloud.has_it)
        case _:
            state = BackendState.IDLE if cloud.has_it else BackendState.DELETED
            return lifecycle.looked(backend, BackendStatus(state=state), now)


MISHAPS = ["none", "before", "after", "crash before", "crash after"]


@given(st.lists(st.tuples(st.sampled_from(MISHAPS), st.booleans()), max_size=40), st.floats(0.1, 100))
def test_whatever_happens_destroy_ends_with_nothing_and_says_so_only_then(history, pace):
    backend, cloud, now = NEW, Cloud(), 0.0
    is_deleting = False
    for mishap, begins_destroy in history:
        is_deleting = is_deleting or begins_destroy
        backend = one_step(backend, cloud, is_deleting=is_deleting, mishap=mishap, now=now)
        assert not (backend.state is BackendState.DELETED and cloud.has_it)
        now += pace
    for _ in range(3):
        now += lifecycle.LONGEST_BACKOFF_S
        backend = one_step(backend, cloud, is_deleting=True, mishap="none", now=now)
    assert backend.state is BackendState.DELETED
    assert not cloud.has_it
