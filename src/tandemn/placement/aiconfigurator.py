"""NVIDIA's aiconfigurator as a second `Predictor`, where it is installed; what it cannot do goes to the first.

It looks kernels up in tables that NVIDIA measured, for the models and systems that it was made for. It is no
dependency, and plans do not ask it: 690 MB, seconds for each layout, and an error on measured points that is larger than the roofline's
(docs/placement.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tandemn.errors import MissingDependency
from tandemn.placement.models import canonical_name, known_models
from tandemn.placement.roofline import effective_batch
from tandemn.placement.throughput import Prediction, Predictor, RooflinePredictor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tandemn.placement.roofline import Case

#: Its names of our GPUs.
SYSTEMS: Mapping[str, str] = {
    "L4": "l4",
    "L40S": "l40s",
    "A100-80GB": "a100_sxm",
    "H100": "h100_sxm",
    "H200": "h200_sxm",
    "B200": "b200_sxm",
    "B300": "b300_sxm",
    "GB200": "gb200",
    "RTXPRO6000": "rtx_pro_6000_server",
}
#: Spread of its log error on vLLM points: it states none itself; 18% was measured with 0.12.
LOG_SD = 0.22
_FAILURES = (ValueError, KeyError, RuntimeError, OSError, AssertionError)


class AiconfiguratorPredictor:
    """Estimates with aiconfigurator; each prediction says which of the two made it."""

    name = "aiconfigurator"

    def __init__(
        self, estimate: Callable[..., Any] | None = None, otherwise: Predictor | None = None
    ) -> None:
        """Find aiconfigurator.

        Args:
            estimate: its `cli_estimate`, where the caller has it already.
            otherwise: predicts what it cannot; the roofline where none is given.

        Raises:
            MissingDependency: it is not installed.
        """
        self._estimate = estimate or _installed()
        self._failures: tuple[type[Exception], ...] = (*_FAILURES, *_download_failures())
        self._otherwise = otherwise or RooflinePredictor()

    def predict(self, cases: Sequence[Case]) -> list[Prediction]:
        """One prediction per case."""
        found = [self._one(case) for case in cases]
        missing = [case for case, prediction in zip(cases, found, strict=True) if prediction is None]
        others = iter(self._otherwise.predict(missing))
        return [next(others) if prediction is None else prediction for prediction in found]

    def _one(self, case: Case) -> Prediction | None:
        system = SYSTEMS.get(case.gpu.name)
        if system is None or case.output_tokens < 2 or case.dp != 1:
            return None
        batch = effective_batch(case)
        experts = {"moe_tp_size": case.tp, "moe_ep_size": 1} if case.shape.experts else {}
        try:
            answer = self._estimate(
                _hub_name(case.shape.name),
                system,
                backend_name="vllm",
                isl=round(case.input_tokens),
                osl=round(case.output_tokens),
                batch_size=max(round(batch / case.pp), 1),
                tp_size=case.tp,
                pp_size=case.pp,
                **experts,
            )
        except self._failures:
            # A model, system or layout without tables, or a model whose config is not on this machine.
            return None
        rate = float(answer.tokens_per_second)
        if not rate > 0:
            return None
        return Prediction(
            requests_per_s=rate / case.output_tokens,
            output_tokens_per_s=rate,
            log_sd=LOG_SD,
            batch=batch,
            source=self.name,
        )


def _hub_name(model: str) -> str:
    """The name under which it bundles a model's config, where people call the model by less."""
    known = None if "/" in model else known_models().get(canonical_name(model))
    return known.name if known is not None else model


def _download_failures() -> tuple[type[Exception], ...]:
    """Its one error that descends from nothing more exact than Exception: a config that is not bundled."""
    try:
        failure = getattr(import_module("aiconfigurator_core.sdk.utils"), "HuggingFaceDownloadError", None)
    except ImportError:
        return ()
    return (failure,) if isinstance(failure, type) and issubclass(failure, Exception) else ()


def _installed() -> Callable[..., Any]:
    try:
        module = import_module("aiconfigurator.cli.api")
    except ImportError as exc:
        raise MissingDependency(
            "the aiconfigurator predictor needs aiconfigurator", next_step="run `pip install aiconfigurator`"
        ) from exc
    estimate: Callable[..., Any] = module.cli_estimate
    return estimate
