"""Which engine serves a model, and the adapter of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.fleet.engines.engine import DEMO_MODEL, EngineAdapter, EngineName
from tandemn.fleet.engines.llamacpp import LlamaCpp
from tandemn.fleet.engines.simulated import Simulated
from tandemn.fleet.engines.vllm import Nodes, Vllm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.settings import Settings


def adapters(settings: Settings) -> Mapping[EngineName, EngineAdapter]:
    """Return the adapter of every engine."""
    return {
        EngineName.LLAMACPP: LlamaCpp(settings.home_path / "models"),
        EngineName.VLLM: Vllm(
            settings.vllm_command,
            nodes=Nodes(count=settings.nodes, rank=settings.node_rank, head=settings.head_address),
        ),
        EngineName.SIMULATED: Simulated(),
    }


def choose(model: str, requested: EngineName | None) -> EngineName:
    """Say which engine serves `model`: the one asked for, else by the model's form."""
    if requested is not None:
        return requested
    if model == DEMO_MODEL or model.lower().endswith(".gguf"):
        return EngineName.LLAMACPP
    return EngineName.VLLM
