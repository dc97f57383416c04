"""The least that anyone could have paid who knew the trace: dynamic programming backwards from the deadline.

A lower bound: work and changeovers are rounded down to whole ticks and the deadline up, so that every real schedule
of one worker has one here that costs no more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tandemn.simulate.run import Job
    from tandemn.simulate.traces import Traces

    Costs = NDArray[np.float64]


#: Jobs shorter than this many ticks are bounded on thirds of a tick: rounding a start-up down would cost them percents.
FINE_WORK_TICKS = 150


def least_usd(traces: Traces, start: int, job: Job) -> float:
    """The bound for a job that starts at tick `start`; infinite where no schedule is in time."""
    parts = 3 if job.work < FINE_WORK_TICKS * traces.tick_s else 1
    tick = traces.tick_s / parts
    work, ticks = int(job.work // tick), math.ceil(job.whole / tick)
    warm = int(job.changeover // tick)
    spot, dear = job.spot_usd * tick / 3600, job.on_demand_usd * tick / 3600
    zones = traces.available[:, start : start + -(-ticks // parts)].repeat(parts, axis=1)
    never = np.full(work + 1, np.inf)
    never[0] = 0.0
    # cost[m][r][w]: least cost from here, in mode m with r ticks of start-up left and w of work; the last mode is
    # on-demand. `rest` is the best from nothing rented, which is open to every mode.
    count = len(zones) + 1
    cost = np.tile(never, (count, warm + 1, 1))
    rest = never
    for t in range(ticks - 1, -1, -1):
        is_open = np.append(zones[:, t], True) if t < zones.shape[1] else _only_on_demand(count)
        stay = np.full_like(cost, np.inf)
        price = np.full(int(is_open.sum()), spot)
        price[-1] = dear
        stay[is_open, 1:] = price[:, None, None] + cost[is_open, :-1]
        stay[is_open, 0, 1:] = price[:, None] + cost[is_open, 0, :-1]
        stay[:, :, 0] = 0.0
        rest = np.minimum(rest, stay[:, warm].min(axis=0))
        cost = np.minimum(stay, rest)
    return float(rest[work])


def _only_on_demand(count: int) -> NDArray[np.bool_]:
    is_open = np.zeros(count, dtype=bool)
    is_open[-1] = True
    return is_open
