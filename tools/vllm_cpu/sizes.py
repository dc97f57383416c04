"""What vLLM itself makes of models' configs: bytes of weights and of cache on one GPU; nothing is downloaded or computed.

    python sizes.py CASES.json > ANSWERS.json

CASES is a list of `{"name", "max_model_len", "config", "vllm": {"TP": ...}}`, and the answer is the same list with each `vllm` filled in.
A model is built on the meta device by vLLM's own classes, for rank 0 of ranks that do not exist; its layers say what cache they
need, and vLLM's own arithmetic says how much a request of the greatest length takes. Runs in the environment that setup.sh makes.
A CPU has no kernels for most quantised layers: the check for one is passed over, since no layer is ever called.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment, parallel_state
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.distributed.parallel_state import destroy_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.kernels import linear
from vllm.model_executor.layers.fused_moe import modular_kernel
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention.backends.utils import resolve_kv_cache_layout
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_layout import KVCacheLayout

#: Memory for the cache under which vLLM is asked how many requests fit.
CACHE_BYTES = 64 * 2**30
#: Ranks in the pretended world; every TP of a case divides it.
RANKS = 8


def pretend_to_have_kernels() -> None:
    linear.is_supported_and_can_implement_kernel = lambda *_, **__: (True, "")
    for kind in subclasses(modular_kernel.FusedMoEExperts):
        kind.is_supported_config = staticmethod(lambda *_, **__: (True, None))


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def pretend_to_be_one_of(ranks: int) -> None:
    """Make groups of ranks that nobody else is in; they are never used."""
    dist.init_process_group(backend="fake", store=FakeStore(), rank=0, world_size=ranks)
    real = dist.new_group
    dist.new_group = lambda *args, **kwargs: real(*args, **{**kwargs, "backend": "fake"})
    # What these ask the others is answered by whatever lies in memory, up to lengths that are then allocated.
    parallel_state.in_the_same_node_as = lambda *_, **__: [True] * ranks
    MessageQueue.create_from_process_group = lambda *_, **__: None
    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False  # noqa: SLF001 - nothing public says so


def sizes(folder: Path, *, max_model_len: int, tp: int) -> dict[str, object]:
    config = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        max_model_len=max_model_len,
        enforce_eager=True,
        dtype="bfloat16",
    ).create_engine_config()
    config.parallel_config.tensor_parallel_size = tp
    config.parallel_config.world_size = tp
    with set_current_vllm_config(config):
        if not dist.is_initialized():
            pretend_to_be_one_of(RANKS)
            init_distributed_environment(world_size=RANKS, rank=0, local_rank=0, backend="fake")
        # Anew for each model: mixtures of experts have a group more.
        destroy_model_parallel()
        ensure_model_parallel_initialized(tp, 1)
        with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
            model = initialize_model(vllm_config=config)
    parameters = {id(each): each for each in model.parameters()}.values()
    layers = config.compilation_config.static_forward_context
    specs = {
        name: spec
        for name, layer in layers.items()
        if hasattr(layer, "get_kv_cache_spec") and (spec := layer.get_kv_cache_spec(config)) is not None
    }
    answer: dict[str, object] = {
        "weight_bytes": sum(each.numel() * each.element_size() for each in parameters),
        "layers": Counter(f"{type(spec).__name__} {spec.page_size_bytes}" for spec in specs.values()),
    }
    if specs:
        names = [[layout.name for layout in KVCacheLayout]]
        resolve_kv_cache_layout(config, names, specs.values())
        [cache] = kv_cache_utils.get_kv_cache_configs(config, [specs], [CACHE_BYTES])
        concurrency = kv_cache_utils.get_max_concurrency_for_kv_cache_config(config, cache)
        answer |= {
            "request_bytes": kv_cache_utils.max_memory_usage_bytes(config, specs.values()),
            "blocks": cache.num_blocks,
            "requests": concurrency,
        }
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    arguments = parser.parse_args()
    pretend_to_have_kernels()
    cases = json.loads(arguments.cases.read_text())
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        # vLLM prints while it configures; the answer alone goes to stdout.
        for case in cases:
            folder = Path(scratch) / case["name"]
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(case["config"]))
            for tp in case["vllm"]:
                try:
                    case["vllm"][tp] = sizes(folder, max_model_len=case["max_model_len"], tp=int(tp))
                except Exception as exc:  # noqa: BLE001 - one model's refusal must not hide the others
                    case["vllm"][tp] = {"error": f"{type(exc).__name__}: {exc}"[:400]}
    sys.stdout.write(json.dumps(cases, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
