"""Why a replica ended, by table: every row is something that the reconciler has seen or been told."""

from __future__ import annotations

import pytest
from tests.fleet.test_reconcile import NOW, pending, replica

from tandemn.fleet.reasons import NO_CAPACITY_CODES, Ending, reason_code
from tandemn.fleet.reconcile import HELLO_S, SILENT_S, End, Fleet, Presence, Swap, Terminate, decide
from tandemn.protocol.replicas import Goodbye, Market, ReasonCode, ReplicaState

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
STARTING = ReplicaState.STARTING


def failed(code, reason=None):
    return Goodbye(outcome="failed", code=code, reason=reason)


GONE = {"presence": Presence.GONE}
#: What is known of a replica that is gone -> its state and why.
GONE_REPLICAS = [
    # A market takes away what is its own.
    ("spot, gone", GONE, "preempted", "spot_preemption"),
    ("spot, gone before its first call", GONE | {"state": STARTING}, "preempted", "spot_preemption"),
    ("spot, with notice", GONE | {"goodbye": Goodbye(outcome="preempted")}, "preempted", "spot_preemption"),
    ("on-demand, gone", GONE | {"market": ON_DEMAND}, "failed", "unknown"),
    (
        "on-demand, a signal from outside",
        GONE | {"market": ON_DEMAND, "goodbye": Goodbye(outcome="preempted")},
        "preempted",
        "killed",
    ),
    # Silence.
    ("spot, ended for its silence", GONE | {"condemned": ReasonCode.HEARTBEAT_TIMEOUT}, "preempted", "heartbeat_timeout"),
    (
        "on-demand, ended for its silence",
        GONE | {"market": ON_DEMAND, "condemned": ReasonCode.HEARTBEAT_TIMEOUT},
        "failed",
        "heartbeat_timeout",
    ),
    ("its control plane was silent", GONE | {"goodbye": failed("server_silent")}, "failed", "heartbeat_timeout"),
    # Starting.
    (
        "not loaded in time",
        GONE | {"state": STARTING, "goodbye": failed("engine_start_timeout", "not ready: CUDA out of memory")},
        "failed",
        "model_load_timeout",
    ),
    *(
        (
            f"out of memory: {text}",
            GONE | {"state": STARTING, "goodbye": failed("engine_start_failed", f"while loading:\n{text}\n")},
            "failed",
            "startup_oom",
        )
        for text in (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "KV cache is needed, which is larger than the available KV cache memory (1.2 GiB).",
            "ValueError: Free memory on device (6.9/8.0 GiB) on startup is less than desired GPU memory utilization",
            "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
            "llama_kv_cache_init: failed to allocate buffer for kv cache",
            "terminate called after throwing an instance of 'std::bad_alloc'",
            "RuntimeError: [enforce fail at alloc_cpu.cpp:75] Cannot allocate memory",
            "engine vllm for m ended with status 137 while loading",
        )
    ),
    (
        "a crash while loading",
        GONE | {"state": STARTING, "goodbye": failed("engine_start_failed", "ended with status 1: no such layer")},
        "failed",
        "startup_crash",
    ),
    ("no such model", GONE | {"state": STARTING, "goodbye": failed("model_not_found")}, "failed", "startup_crash"),
    # Working.
    ("the engine dies again and again", GONE | {"goodbye": failed("engine_died", "status 137")}, "failed", "unknown"),
    ("its disk", GONE | {"goodbye": failed("replica_disk")}, "failed", "unknown"),
    ("it does not say", GONE | {"goodbye": failed(None)}, "failed", "unknown"),
    ("it left in order, unasked", GONE | {"goodbye": Goodbye(outcome="completed")}, "failed", "clean_exit_pending_chunks"),
    # By intent.
    ("killed", GONE | {"kill_requested": True, "orders": "stop"}, "killed", "killed"),
    ("drained", GONE | {"orders": "drain"}, "completed", None),
    (
        "killed, and failed first",
        GONE | {"kill_requested": True, "goodbye": failed("engine_died")},
        "failed",
        "unknown",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("known", "state", "reason"), [row[1:] for row in GONE_REPLICAS], ids=[row[0] for row in GONE_REPLICAS])  # fmt: skip
def test_of_a_replica_that_is_gone(known, state, reason):
    [end] = decide(Fleet(wanted=(0,), replicas=(replica(**known),)), NOW)
    assert isinstance(end, End)
    assert (end.state, end.reason_code) == (state, reason)


def test_of_swaps():
    old, new = replica("r0", **GONE), replica("r1", group=1, **GONE)
    for state, wanted, ended in (("draining", (0, 1), old), ("failed", (1, 0), new)):
        swap = Swap(state=state, new_group=1, threshold=1)
        # A second swapped-out one keeps the swap from being over.
        fleet = Fleet(wanted=wanted, replicas=(ended, replica("r2")), swap=swap)
        end = next(action for action in decide(fleet, NOW) if isinstance(action, End))
        assert end.reason_code == (None if state == "draining" else ReasonCode.KILLED)


def test_of_a_job_that_needs_none_any_more():
    for left in (replica(**GONE), replica(goodbye=Goodbye(outcome="completed"), **GONE), pending()):
        [end] = decide(Fleet(wanted=(0,), replicas=(left,), needs_replicas=False), NOW)
        assert isinstance(end, End)
        assert (end.state, end.reason_code) == (ReplicaState.COMPLETED, None)


def test_silence_is_recorded_before_it_is_acted_on_and_disobedience_is_none():
    silent = replica(last_seen=NOW - SILENT_S - 1)
    unheard = replica(
        state=ReplicaState.LAUNCHING, said_hello=False, last_seen=None, launched_at=NOW - HELLO_S - 1
    )
    slow = replica(orders="stop", stopping_at=0.0, state=ReplicaState.DRAINING)
    codes = [
        action.reason_code
        for each in (silent, unheard, slow)
        for action in decide(Fleet(wanted=(1,), replicas=(each,)), NOW)
        if isinstance(action, Terminate)
    ]
    assert codes == [ReasonCode.HEARTBEAT_TIMEOUT, ReasonCode.HEARTBEAT_TIMEOUT, None]


def test_of_launches():
    def why(code):
        return reason_code(Ending(state=ReplicaState.FAILED, market=SPOT, was_ready=False, code=code))

    assert {why(code) for code in NO_CAPACITY_CODES} == {ReasonCode.LAUNCH_CAPACITY_EXHAUSTED}
    assert why("launch_failed") is ReasonCode.UNKNOWN


def test_every_code_but_none_other_is_given_somewhere():
    given = {row[3] for row in GONE_REPLICAS} | {"launch_capacity_exhausted"}
    assert given == {code.value for code in ReasonCode} | {None}
