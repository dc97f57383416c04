"""The command line of the engine of a deployment in a provider's container. Pure; no secret is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.vllm import Vllm

if TYPE_CHECKING:
    from tandemn.protocol.deployments import DeploymentSpec

#: vLLM's own image; its entry point is `vllm serve`.
VLLM_IMAGE = "vllm/vllm-openai:v0.32.0"
#: Where the engine listens inside its container.
PORT = 8000
#: Where weights are cached, where the provider has a disk that outlives a container.
WEIGHTS_FOLDER = "/weights"


def engine_arguments(spec: DeploymentSpec) -> tuple[str, ...]:
    """What stands after `vllm serve`.

    Raises:
        InvalidInput: the GPUs of a replica cannot be split as asked.
    """
    copies, rest = divmod(spec.gpu_count, spec.tp_size)
    if rest:
        raise InvalidInput(
            f"--gpu-count {spec.gpu_count} is not a multiple of --tp-size {spec.tp_size}",
            code="wrong_usage",
            next_step=f"--tp-size {spec.gpu_count} uses all of them",
            param="tp_size",
        )
    extra = []
    if copies > 1:
        extra += ["--data-parallel-size", str(copies)]
    if spec.quantization is not None:
        extra += ["--quantization", spec.quantization]
    if spec.cold_start_mode == "fast_boot":
        # No compilation and no CUDA graphs: minutes less at every cold start, some speed less after it.
        extra += ["--enforce-eager"]
    engine = EngineSpec(
        engine=EngineName.VLLM,
        model=spec.model,
        host="0.0.0.0",  # noqa: S104 - inside the container, behind the provider's own door
        port=PORT,
        tp=spec.tp_size,
        max_model_len=spec.max_model_len,
        extra_args=(*extra, *spec.engine_args),
    )
    return tuple(Vllm("vllm").command(engine)[2:])
