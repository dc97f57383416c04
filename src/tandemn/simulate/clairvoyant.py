"""The least that anyone could have paid who knew the trace: dynamic programming backwards from the deadline.

A lower bound: work and changeovers are rounded down to whole ticks and the deadline up, so that every real schedule
of one worker has one here that costs no more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tandemn.simulate.run import Job
    from tandemn.simulate.traces import Traces

    Costs = NDArray[np.float64]


#: Jobs shorter than this many ticks are bounded on thirds of a tick: rounding a start-up down would cost them percents.
FINE_WORK_TICKS = 150


def least_usd(traces: Traces, starts: Sequence[int], job: Job) -> Costs:
    """The bound for a job that starts at each of these ticks; infinite where no schedule is in time."""
    parts = 3 if job.work < FINE_WORK_TICKS * traces.tick_s else 1
    tick = traces.tick_s / parts
    work, ticks = int(job.work // tick), math.ceil(job.whole / tick)
    warm = int(job.changeover // tick)
    closed = _closed(traces, starts, -(-ticks // parts))
    modes = closed.shape[1]
    price = np.full((modes, 1, 1), job.spot_usd * tick / 3600)
    price[-1] = job.on_demand_usd * tick / 3600
    # cost[s][m][r][w]: least cost from here for start s, in mode m with r ticks of start-up left and w of work; the
    # last mode is on-demand. `rest` is the best from nothing rented, which is open to every mode.
    cost = np.full((len(starts), modes, warm + 1, work + 1), np.inf)
    cost[..., 0] = 0.0
    rest = cost[:, 0, 0].copy()
    stay = cost.copy()
    for t in range(ticks - 1, -1, -1):
        stay[:, :, 1:] = cost[:, :, :-1]
        stay[:, :, 0, 1:] = cost[:, :, 0, :-1]
        stay += price
        stay += closed[:, :, t // parts, None, None]
        stay[..., 0] = 0.0
        np.minimum(rest, stay[:, :, warm].min(axis=1), out=rest)
        np.minimum(stay, rest[:, None, None], out=cost)
    result: Costs = rest[:, work]
    return result


def _closed(traces: Traces, starts: Sequence[int], ticks: int) -> Costs:
    """Starts x modes x ticks: 0 where the mode can run, infinite where it cannot. Past its end a trace has no spot."""
    closed = np.full((len(starts), len(traces.zones) + 1, ticks), np.inf)
    closed[:, -1] = 0.0
    for row, start in enumerate(starts):
        there = traces.available[:, start : start + ticks]
        closed[row, :-1, : there.shape[1]][there] = 0.0
    return closed
