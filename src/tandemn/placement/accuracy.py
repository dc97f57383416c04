"""How good predictions are: relative error, order, and what a wrong choice of layout costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.placement.calibration import Point
    from tandemn.placement.roofline import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Figures of one set of points; all but `points`, `choices` are ratios."""

    points: int
    mape: float
    median_error: float
    bias: float
    """Mean of the log of predicted over measured: 0.1 is 10% too fast."""
    spearman: float | None
    """None where one point or equal points have no order."""
    mean_cost_regret: float | None
    """How much dearer than the best measured layout the one predicted to be best was, mean over workloads."""
    worst_cost_regret: float | None
    choices: int


def measure(points: Sequence[Point], log_requests_per_s: Array) -> Accuracy:
    """Compare predictions (log requests per second) with what was measured.

    A choice is among the layouts that were measured for one model, GPU, workload and load; its cost is GPU seconds
    per token, so that prices cancel. Where the load is not the experimenter's (each layout ran what it could hold),
    layouts are compared at their own.
    """
    output = np.array([point.case.output_tokens for point in points])
    predicted = log_requests_per_s + np.log(output)
    measured = np.log([point.output_tokens_s for point in points])
    error = np.abs(np.expm1(predicted - measured))
    regrets = _regrets(points, predicted, measured)
    return Accuracy(
        points=len(points),
        mape=float(error.mean()),
        median_error=float(np.median(error)),
        bias=float((predicted - measured).mean()),
        spearman=_spearman(predicted, measured),
        mean_cost_regret=float(np.mean(regrets)) if regrets else None,
        worst_cost_regret=float(np.max(regrets)) if regrets else None,
        choices=len(regrets),
    )


def _spearman(a: Array, b: Array) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    """Ranks from 0; ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: Array = (ends - (counts + 1) / 2)[inverse]
    return result


def _regrets(points: Sequence[Point], predicted: Array, measured: Array) -> list[float]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, point in enumerate(points):
        groups.setdefault(_choice(point), []).append(index)
    regrets = []
    for members in groups.values():
        layouts = {(points[i].case.tp, points[i].case.pp, points[i].case.dp) for i in members}
        if len(layouts) < 2:
            continue
        cost = np.array([_gpus(points[i]) / np.exp(measured[i]) for i in members])
        expected = np.array([_gpus(points[i]) / np.exp(predicted[i]) for i in members])
        regrets.append(float(cost[np.argmin(expected)] / cost.min() - 1))
    return regrets


def _choice(point: Point) -> tuple[object, ...]:
    load = None if point.is_saturated else point.case.concurrency
    return (point.model, point.precision, point.case.gpu.name, point.workload, load)


def _gpus(point: Point) -> int:
    # A point's rate is of one attention replica, which pays for its share of the GPUs.
    return point.case.tp * point.case.pp
