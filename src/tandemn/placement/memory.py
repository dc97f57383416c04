"""Whether a model fits on a layout, and how many tokens of cache are left: what vLLM works out at start-up.

vLLM takes `gpu_memory_utilization` of what CUDA reports, subtracts the weights, the peak of a profiling run and
its CUDA graphs, and refuses to start where the rest cannot hold one request of `max_model_len`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandemn.placement.catalog.gpus import Gpu
    from tandemn.placement.model_shape import ModelShape

GIB = 2**30
#: vLLM's default share of the GPU's memory.
MEMORY_UTILISATION = 0.9
#: CUDA context, NCCL buffers and the allocator's slack, per GPU: 0.6-1.2 GiB in vLLM's start-up logs.
RUNTIME_BYTES = 0.9 * GIB
#: CUDA graphs and torch.compile's workspace, per GPU, not with eager mode.
GRAPH_BYTES = 0.6 * GIB
#: Most tokens of one forward pass while vLLM profiles its peak (`max_num_batched_tokens`): its server's defaults on
#: GPUs of 70 GiB and more that are no A100, and on the others.
LARGE_PROFILE_TOKENS, PROFILE_TOKENS = 8192, 2048
LARGE_GPU_GIB = 70.0
#: Sequences whose logits the profiling run holds at once (`max_num_seqs`, V1 default on 80 GB and less).
PROFILE_SEQUENCES = 256
#: Tokens of one cache block; a request occupies whole blocks.
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a model sits on one GPU of a layout; bytes per GPU, the fullest one."""

    fits: bool
    reason: str
    weight_bytes: float
    activation_bytes: float
    cache_bytes: float
    """Left for the KV cache; negative where the weights alone are too much."""
    cache_tokens: int
    """Tokens that the whole replica can hold, of sequences of the asked length."""

    def sequences(self, tokens: float) -> float:
        """How many requests of `tokens` the cache holds at once."""
        return self.cache_tokens / max(tokens, 1.0)


def divides(shape: ModelShape, tp: int) -> str | None:
    """Say why the model cannot be split `tp` ways; None where it can."""
    if shape.heads % tp:
        return f"{shape.heads} attention heads do not divide by {tp}"
    if shape.kv_heads % tp and tp % shape.kv_heads and not shape.mla_rank:
        return f"{shape.kv_heads} KV heads and TP {tp} do not divide"
    return None


def weight_bytes_per_gpu(shape: ModelShape, tp: int, pp: int, expert_shards: int | None = None) -> float:
    """Bytes of weights on the fullest GPU: the stages differ by a layer, and one has the output embedding."""
    embedding = shape.embedding_params() * shape.bits / 8
    total = shape.weight_bytes()
    if shape.stored_bytes is not None:
        embedding = min(embedding, total / 2)
    body = total - embedding
    experts = min(shape.expert_bytes(), body) if shape.experts else 0.0
    stage = -(-shape.layers // pp) / shape.layers
    dense = (body - experts) * stage / tp
    padding = shape.expert_bytes(tp) / shape.expert_bytes() if experts else 1.0
    share = experts * padding * stage / (expert_shards or tp)
    head = embedding / (tp if pp == 1 or shape.tied else 2 * tp)
    return dense + share + head + _repeated_bytes(shape, tp) * stage


def _repeated_bytes(shape: ModelShape, tp: int) -> float:
    """Of keys' and values' projections, where there are more ranks than KV heads: each rank has a whole head."""
    if shape.mla_rank or tp <= shape.kv_heads:
        return 0.0
    width = shape.kv_width or 2 * shape.kv_heads * shape.head_dim
    whole = shape.attention_layers * shape.hidden * width * shape.dense_bits() / 8
    return whole * (1 / shape.kv_heads - 1 / tp)


def check_fit(
    shape: ModelShape,
    gpu: Gpu,
    *,
    tp: int = 1,
    pp: int = 1,
    context: int,
    utilisation: float = MEMORY_UTILISATION,
    eager: bool = False,
    kv_bits: float | None = None,
    expert_shards: int | None = None,
) -> Fit:
    """Work out whether vLLM would start `shape` on `tp` x `pp` of these GPUs with `context` tokens a request."""
    weights = weight_bytes_per_gpu(shape, tp, pp, expert_shards)
    activation = _activation_bytes(shape, gpu, tp)
    overhead = RUNTIME_BYTES + (0.0 if eager else GRAPH_BYTES)
    cache = utilisation * gpu.memory_gib * GIB - weights - activation - overhead
    per_token = cache_bytes_per_gpu(shape, context, tp=tp, pp=pp, kv_bits=kv_bits) / max(context, 1)
    tokens = int(cache / per_token) if per_token and cache > 0 else (10**9 if cache > 0 else 0)
    request = cache_bytes_per_gpu(
        shape, context + BLOCK_TOKENS, tp=tp, pp=pp, kv_bits=kv_bits, ahead=_profile_tokens(gpu)
    )
    reason = _refusal(shape, gpu, tp=tp, context=context, cache=cache, request=request, weights=weights)
    return Fit(
        fits=reason is None,
        reason=reason or f"{weights / GIB:.1f} GiB of weights and {tokens:,} tokens of cache",
        weight_bytes=weights,
        activation_bytes=activation,
        cache_bytes=cache,
        cache_tokens=max(tokens, 0),
    )


def _profile_tokens(gpu: Gpu) -> int:
    is_large = gpu.memory_gib >= LARGE_GPU_GIB and gpu.arch != "Ampere"
    return LARGE_PROFILE_TOKENS if is_large else PROFILE_TOKENS


def _activation_bytes(shape: ModelShape, gpu: Gpu, tp: int) -> float:
    tokens = _profile_tokens(gpu)
    # Residual, normalised input and one layer's widest product are alive together; logits are float32.
    width = max(shape.ffn, shape.expert_ffn * shape.experts_per_token) * (2 if shape.gated else 1)
    layer = tokens * (4 * shape.hidden + (width + 2 * shape.heads * shape.head_dim) / tp) * shape.bits / 8
    logits = 0.0 if shape.is_embedding else PROFILE_SEQUENCES * shape.vocab * 4 * 2 / tp
    return layer + logits


def cache_bytes_per_gpu(
    shape: ModelShape,
    tokens: float,
    *,
    tp: int = 1,
    pp: int = 1,
    kv_bits: float | None = None,
    ahead: float = 0.0,
) -> float:
    """Bytes that a sequence of `tokens` takes on one GPU; KV heads fewer than TP ranks are replicated.

    Args:
        shape: the model.
        tokens: of the sequence.
        tp: ranks that share a layer.
        pp: stages.
        kv_bits: of a cached element; None: as the activations.
        ahead: tokens that a window keeps beyond itself while a prompt is read; vLLM asks for so much at its start.
    """
    if shape.is_embedding:
        return 0.0
    copies = tp if shape.mla_rank else max(1.0, tp / shape.kv_heads)
    stage = -(-shape.layers // pp) / shape.layers
    return shape.kv_bytes(tokens, kv_bits, ahead=ahead) * copies / tp * stage


def _refusal(
    shape: ModelShape, gpu: Gpu, *, tp: int, context: int, cache: float, request: float, weights: float
) -> str | None:
    if not gpu.is_supported:
        return f"vLLM does not run on {gpu.name} (compute capability {gpu.sm / 10})"
    split = divides(shape, tp)
    if split is not None:
        return split
    if context > shape.max_context:
        return f"the model's context is {shape.max_context:,} tokens, {context:,} are asked for"
    if cache <= 0:
        return f"{weights / GIB:.1f} GiB of weights a GPU do not fit in {gpu.name}'s {gpu.memory_gib:.1f} GiB"
    if request > cache:
        return f"{cache / GIB:.2f} GiB are left for the cache, one request of {context:,} tokens takes {request / GIB:.2f}"
    return _unsupported_quantisation(shape, gpu)


def _unsupported_quantisation(shape: ModelShape, gpu: Gpu) -> str | None:
    # vLLM's supported-hardware table: fp8 runs as weight-only on Ampere (Marlin), mxfp4 and awq-marlin need 8.0;
    # plain awq and gptq kernels run from 7.5.
    if shape.quantisation in {"fp8", "compressed-tensors", "modelopt", "mxfp4"} and gpu.sm < 80:
        return f"{shape.quantisation} weights do not run on {gpu.name} (compute capability {gpu.sm / 10})"
    return None
