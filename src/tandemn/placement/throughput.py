"""How fast a model goes on a layout, with an uncertainty: the `Predictor` seam and its calibrated roofline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tandemn.placement import calibration
from tandemn.placement.models import canonical_name
from tandemn.placement.roofline import Case, effective_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.placement.calibration import Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one replica does in steady state."""

    requests_per_s: float
    output_tokens_per_s: float
    log_sd: float
    """Standard deviation of the log of the rate: 0.1 is about 10%."""
    batch: float
    """Requests that run together."""
    source: str

    def slow_requests_per_s(self, deviations: float) -> float:
        """The rate that is beaten unless it comes out `deviations` standard deviations low."""
        return self.requests_per_s * float(np.exp(-deviations * self.log_sd))


class Predictor(Protocol):
    """Predicts rates; several exist, and a plan says which one it used."""

    name: str

    def predict(self, cases: Sequence[Case]) -> list[Prediction]:
        """One prediction per case. A case that does not fit in memory still gets one: fitting is `memory`'s business."""
        ...


class RooflinePredictor:
    """The package's own predictor: `roofline` with the constants that `calibration` fitted."""

    name = "roofline"

    def __init__(self, constants: Calibration | None = None) -> None:
        self._constants = constants or shipped_calibration()

    def predict(self, cases: Sequence[Case]) -> list[Prediction]:
        """One prediction per case."""
        if not cases:
            return []
        models = [canonical_name(case.shape.name) for case in cases]
        rates = np.exp(self._constants.log_rate(cases, models))
        return [
            Prediction(
                requests_per_s=float(rate) * case.dp,
                output_tokens_per_s=float(rate) * case.dp * case.output_tokens,
                log_sd=self._log_sd(case, model),
                batch=effective_batch(case),
                source=self.name,
            )
            for case, model, rate in zip(cases, models, rates, strict=True)
        ]

    def _log_sd(self, case: Case, model: str) -> float:
        spread = self._constants.spread
        seen = spread["seen"] ** 2
        variance = seen
        if model not in self._constants.models:
            variance += max(spread["model"] ** 2 - seen, 0.0)
        # A model that strays far from the physics casts doubt on its measurements as much as on the physics.
        variance += (self._constants.models.get(model, 0.0) / 2) ** 2
        if case.gpu.name not in self._constants.compute:
            variance += max(spread["gpu"] ** 2, seen)
        return float(np.sqrt(variance))


@cache
def shipped_calibration() -> Calibration:
    """The constants that came with the package."""
    text = resources.files("tandemn.placement").joinpath("calibrated.json").read_text("utf-8")
    return calibration.read(text)
