"""Why a replica ended, as one of a few codes: pure, from what the reconciler knows when it sees it gone.

The codes are what statistics and advisers count; the sentence beside them is what people read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tandemn.protocol.replicas import Market, ReasonCode, ReplicaState

#: Error codes of a launch that found nothing to rent: try another place, market or GPU.
NO_CAPACITY_CODES = frozenset({"no_capacity", "quota_exceeded", "offer_unavailable", "offer_unsupported"})
#: Error codes of a runner that lost its control plane, or a control plane that lost its runner.
_SILENCE_CODES = frozenset({"server_silent"})
#: What engines and the kernel print when memory does not suffice: CUDA and ROCm, vLLM's profiling run,
#: llama.cpp's allocators, C++ and Python. 137 is SIGKILL, which while loading is the kernel's OOM killer.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|std::bad_alloc|\bMemoryError\b|cannot allocate memory"
    r"|no available memory for the cache blocks|larger than the available KV cache memory"
    r"|less than desired GPU memory utilization|failed to allocate|status 137\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A replica that is gone, as far as it is known why."""

    state: ReplicaState
    """The ended state that it is given."""
    market: Market
    was_ready: bool
    """Whether its engine ever answered."""
    code: str | None = None
    """Stable code of the failure, by its last call or its launch."""
    text: str = ""
    """What it or its launch said, the end of the engine's log included."""
    condemned: ReasonCode | None = None
    """Why it was ended by force before, where it was."""


def reason_code(ending: Ending) -> ReasonCode | None:
    """Classify an ending; None where it is none to explain: finished, drained or swapped out as ordered."""
    match ending.state:
        case ReplicaState.KILLED:
            return ReasonCode.KILLED
        case ReplicaState.COMPLETED | ReplicaState.SWAPPED_OUT:
            return None
        case _ if ending.condemned is not None:
            return ending.condemned
        case ReplicaState.PREEMPTED:
            # A signal from outside looks like a notice; only spot instances are taken by their market.
            return ReasonCode.SPOT_PREEMPTION if ending.market is Market.SPOT else ReasonCode.KILLED
        case _:
            return _of_failure(ending)


def _of_failure(ending: Ending) -> ReasonCode:
    code = ending.code
    if code in NO_CAPACITY_CODES:
        return ReasonCode.LAUNCH_CAPACITY_EXHAUSTED
    if code in _SILENCE_CODES:
        return ReasonCode.HEARTBEAT_TIMEOUT
    if code == "replica_left":
        return ReasonCode.CLEAN_EXIT_PENDING_CHUNKS
    if code == "engine_start_timeout":
        return ReasonCode.MODEL_LOAD_TIMEOUT
    if code in {"launch_failed", "replica_lost", None} or ending.was_ready:
        return ReasonCode.UNKNOWN
    return ReasonCode.STARTUP_OOM if _OUT_OF_MEMORY.search(ending.text) else ReasonCode.STARTUP_CRASH
