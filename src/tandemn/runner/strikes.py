"""PURE: what becomes of requests that were being computed when the engine died, and of the engine.

A request that was in flight when the engine died gets a strike (the control plane keeps count). One with
a strike is computed with nothing else in flight, so that its next death accuses nobody else; with
`MAX_STRIKES` it becomes an error line.
"""

from __future__ import annotations

from enum import Enum

#: A request that was in flight in so many engine deaths is not tried again (invariant I5).
MAX_STRIKES = 3

#: Engine deaths in a row without one request computed, after which the engine itself is held to be broken.
#: Above MAX_STRIKES: one fatal request alone must be convicted before the engine is.
MAX_DEATHS_IN_A_ROW = 6


class Treatment(Enum):
    TOGETHER = "together"
    ALONE = "alone"
    CONVICTED = "convicted"


def treatment(strikes: int) -> Treatment:
    """Say how a request with so many strikes is computed."""
    if strikes >= MAX_STRIKES:
        return Treatment.CONVICTED
    return Treatment.ALONE if strikes else Treatment.TOGETHER


def engine_is_broken(deaths_in_a_row: int) -> bool:
    """Say whether to give up; deaths are counted since a request was last computed."""
    return deaths_in_a_row >= MAX_DEATHS_IN_A_ROW
