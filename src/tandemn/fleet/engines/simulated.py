"""The engine `simulated`: vLLM's HTTP API and metrics, with answers from a seed and time from a model.

It always says that it is simulated. Extra arguments: `--slots N` (requests at once, 64), `--ctx N`
(tokens of context, 4,096), `--seed N`, `--load-s S`, `--prefill-tokens-per-s R` (0: at once),
`--decode-step-s S` (one token of every running request), and faults: `--crash-on TEXT` (the process
kills itself while it computes a request with TEXT), `--refuse TEXT` (answers 400), `--fail-load`.
`--journal FILE` appends a line for every generation that was computed to its end, so that a test knows what
any number of engines, killed or not, really computed. `--hold FILE` computes nothing while FILE exists, so that
a test's work cannot be over before the test is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.fleet.engines.arguments import StrictParser, not_negative, positive
from tandemn.fleet.engines.engine import EngineMetrics, EngineName, EngineSpec
from tandemn.fleet.engines.vllm import Vllm
from tandemn.settings import python_executable

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_SLOTS = 64
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is simulated; times in seconds."""

    slots: int
    ctx: int | None
    seed: int
    load_s: float
    prefill_tokens_per_s: float
    """0: at once."""
    decode_step_s: float
    crash_on: str | None
    refuse: str | None
    fail_load: bool
    journal: str | None = None
    hold: str | None = None


class Simulated:
    """Adapter of the simulated engine."""

    name = EngineName.SIMULATED

    def check(self, spec: EngineSpec) -> None:
        """Raise where an argument is wrong; every model name will do."""
        parse_simulation(spec.extra_args)

    def command(self, spec: EngineSpec) -> list[str]:
        command = [python_executable(), "-m", "tandemn.fleet.engines.simulated_server"]
        command += ["--model", spec.model, "--host", spec.host, "--port", str(spec.port)]
        if spec.max_model_len is not None:
            command += ["--max-model-len", str(spec.max_model_len)]
        return [*command, "--", *spec.extra_args]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return {"TANDEMN_ENGINE_API_KEY": spec.api_key} if spec.api_key else {}

    def slots(self, spec: EngineSpec) -> int:
        return parse_simulation(spec.extra_args).slots

    def parse_metrics(self, text: str) -> EngineMetrics:
        """Read the page: it has vLLM's names."""
        return Vllm().parse_metrics(text)


def parse_simulation(extra_args: Sequence[str]) -> Simulation:
    """Read the extra arguments. Raises InvalidInput."""
    parser = StrictParser("simulated")
    parser.add_argument("--slots", type=positive, default=DEFAULT_SLOTS)
    parser.add_argument("--ctx", type=positive)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load-s", type=not_negative, default=0.0)
    parser.add_argument("--prefill-tokens-per-s", type=not_negative, default=0.0)
    parser.add_argument("--decode-step-s", type=not_negative, default=0.0)
    parser.add_argument("--crash-on")
    parser.add_argument("--refuse")
    parser.add_argument("--fail-load", action="store_true")
    parser.add_argument("--journal")
    parser.add_argument("--hold")
    return Simulation(**vars(parser.parse_args(list(extra_args))))
