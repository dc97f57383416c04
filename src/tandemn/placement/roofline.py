"""The physics of a forward pass: seconds from sizes, with a few dozen efficiencies that calibration fits.

A replica in steady state advances `b` requests together. One round of their whole lives costs
weights read once per pass, cache read per decoded token, arithmetic per token, all-reduces, and the
host's overhead; the rate is `b` over that. Everything is an array over points, so that the same lines serve one
prediction and a fit over hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tandemn.placement.memory import check_fit
from tandemn.placement.model_shape import FOUR_BIT_FLOATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tandemn.placement.catalog.gpus import Gpu
    from tandemn.placement.model_shape import ModelShape

    Array = NDArray[np.float64]
    Mask = NDArray[np.bool_]

#: Tokens of one prefill pass (`max_num_batched_tokens`).
PREFILL_TOKENS = 8192
#: Quantisations whose products are still 16-bit: the weights are widened on the way in.
WEIGHT_ONLY = {"awq", "gptq", "bitsandbytes", "gguf"}
#: Share of the tensor cores' peak that warp-level instructions, those of Ampere, reach on newer architectures: 62% was
#: measured on Hopper ("Dissecting the NVIDIA Hopper Architecture", 2024); Blackwell doubled only the new ones' rate.
MMA_SHARE = {"Hopper": 0.62, "Blackwell": 0.31}
#: Compute capability (times ten) from which four-bit floating-point numbers are multiplied as they are.
FOUR_BIT_SM = 100
#: vLLM schedules the next pass while this one runs since 0.14, so that less of the host's time shows.
ASYNC_SINCE = (0, 14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One fitted quantity: where it starts, how far (log standard deviation) it may move, and why there."""

    name: str
    mean: float
    log_sd: float
    why: str


#: Starting points are what kernels are known to reach; the fit moves them as far as the points insist.
PARAMETERS: tuple[Parameter, ...] = (
    Parameter(name="compute", mean=0.55, log_sd=0.2, why="share of dense peak that large 16-bit GEMMs reach"),
    Parameter(
        name="compute_fp8", mean=0.9, log_sd=0.1, why="fp8 GEMMs, relative to 16-bit ones, of their peak"
    ),
    Parameter(name="compute_attention", mean=0.4, log_sd=0.3, why="FlashAttention prefill, of 16-bit peak"),
    Parameter(
        name="compute_moe", mean=0.5, log_sd=0.4, why="grouped 16-bit GEMM of experts, relative to dense"
    ),
    Parameter(name="compute_moe_fp8", mean=0.35, log_sd=0.4, why="block-fp8 Triton experts, untuned shapes"),
    Parameter(
        name="compute_moe_mxfp4",
        mean=0.5,
        log_sd=0.3,
        why="four-bit experts, of the peak that they are multiplied at",
    ),
    Parameter(name="memory", mean=0.75, log_sd=0.1, why="share of peak bandwidth while weights stream"),
    Parameter(name="memory_moe", mean=0.7, log_sd=0.3, why="16-bit expert weights"),
    Parameter(name="memory_moe_fp8", mean=0.5, log_sd=0.3, why="block-fp8 expert weights (64-row tiles)"),
    Parameter(
        name="memory_moe_mxfp4", mean=0.75, log_sd=0.15, why="mxfp4 expert weights stream like dense ones"
    ),
    Parameter(name="memory_cache", mean=0.7, log_sd=0.2, why="paged KV cache"),
    Parameter(name="touch", mean=1.0, log_sd=0.05, why="experts touched, relative to uniform routing"),
    Parameter(name="touch_fp8", mean=1.5, log_sd=0.4, why="the same where tiles are padded"),
    Parameter(name="nvlink", mean=0.6, log_sd=0.3, why="bus share of an all-reduce over NVLink"),
    Parameter(name="nvlink_latency_s", mean=10e-6, log_sd=0.4, why="one small all-reduce"),
    Parameter(name="pcie_bytes_s", mean=4e9, log_sd=0.4, why="all-reduce through host memory, up to 4 GPUs"),
    Parameter(name="pcie_across", mean=0.7, log_sd=0.3, why="the same over 8 GPUs, two sockets"),
    Parameter(name="pcie_latency_s", mean=40e-6, log_sd=0.6, why="one small all-reduce per doubling"),
    Parameter(name="layer_graph_s", mean=30e-6, log_sd=0.5, why="a layer's small kernels under CUDA graphs"),
    Parameter(name="layer_eager_s", mean=120e-6, log_sd=0.4, why="a dozen kernel launches of 10 us"),
    Parameter(name="layer_moe_s", mean=35e-6, log_sd=0.5, why="routing, permutation and their launches"),
    Parameter(
        name="sequence_s", mean=40e-6, log_sd=0.8, why="sampling and bookkeeping per sequence and pass"
    ),
    Parameter(name="pass_s", mean=1.5e-3, log_sd=0.7, why="scheduler and process hops per pass"),
    Parameter(
        name="host_async", mean=0.5, log_sd=0.4, why="what is left of them with asynchronous scheduling"
    ),
    Parameter(name="bubble", mean=0.1, log_sd=0.8, why="time lost per further pipeline stage"),
)
INDEX = {parameter.name: index for index, parameter in enumerate(PARAMETERS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to predict: a model on a layout under a load."""

    shape: ModelShape
    gpu: Gpu
    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Attention replicas that share the experts; `concurrency` and rates are per attention replica."""
    input_tokens: float
    output_tokens: float
    """0 for embeddings."""
    concurrency: float
    eager: bool = False
    utilisation: float = 0.9
    is_async: bool = True
    """Whether the engine schedules asynchronously (vLLM 0.14 and later)."""


_FIELDS = (
    "batch",
    "micro",
    "passes",
    "decoded",
    "tokens",
    "prompt",
    "layers",
    "moe_layers",
    "dense_bytes",
    "expert_bytes",
    "touched",
    "cache_bytes",
    "bandwidth",
    "dense_flops",
    "expert_flops",
    "attention_flops",
    "peak",
    "peak16",
    "peak_expert",
    "is_moe",
    "is_fp8",
    "is_fp4",
    "is_nvlink",
    "link",
    "reduce_bytes",
    "reduces",
    "tp",
    "pp",
    "eager",
    "is_async",
)


def features(cases: Sequence[Case]) -> dict[str, Array]:
    """Turn cases into one array per physical quantity; bytes and FLOPs are per GPU and per token or pass."""
    rows = [_features(case) for case in cases]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in _FIELDS}


def _features(case: Case) -> dict[str, float]:
    shape, gpu, tp, pp = case.shape, case.gpu, case.tp, case.pp
    length = case.input_tokens + case.output_tokens / 2
    batch = effective_batch(case)
    micro = max(batch / pp, 1.0)
    shards = tp * case.dp
    copies = tp if shape.mla_rank else max(1.0, tp / shape.kv_heads)
    routed = shape.expert_params() * shape.experts_per_token / shape.experts if shape.experts else 0.0
    head_bytes = 0.0 if shape.is_embedding else shape.vocab * shape.hidden * shape.bits / 8
    is_fp8 = shape.dense_bits() <= 8 and _product_bits(shape, gpu) <= 8
    is_fp4 = shape.quantisation in FOUR_BIT_FLOATS and shape.weight_bits < 8
    passes = max(case.output_tokens, micro * case.input_tokens / PREFILL_TOKENS)
    per_pass = micro * case.dp if case.output_tokens else PREFILL_TOKENS
    return {
        "batch": batch,
        "micro": micro,
        "passes": passes,
        "decoded": micro * case.output_tokens,
        "tokens": micro * (case.input_tokens + case.output_tokens),
        "prompt": micro * case.input_tokens,
        "layers": shape.layers,
        "moe_layers": shape.moe_layers,
        "dense_bytes": (shape.dense_params() * shape.dense_bits() / 8 + head_bytes) / tp,
        "expert_bytes": shape.expert_params() * shape.weight_bits / 8 / shards,
        "touched": np.log1p(-shape.experts_per_token / shape.experts) * per_pass
        if shape.experts > shape.experts_per_token
        else -50.0,
        "cache_bytes": shape.kv_bytes(length) * copies / tp,
        "bandwidth": gpu.bandwidth_gb_s * 1e9,
        "dense_flops": 2 * (shape.active_params() - routed) / tp,
        "expert_flops": 2 * routed * case.dp / shards,
        "attention_flops": 2 * shape.heads * shape.head_dim * shape.attention_layers * case.input_tokens / tp,
        "peak": gpu.tflops(_product_bits(shape, gpu) if is_fp8 else 16) * 1e12,
        "peak16": gpu.bf16_tflops * 1e12,
        "peak_expert": _expert_tflops(shape, gpu) * 1e12,
        "is_moe": shape.experts > 0,
        "is_fp8": is_fp8,
        "is_fp4": is_fp4,
        "is_nvlink": gpu.nvlink_gb_s > 0,
        "link": gpu.nvlink_gb_s * 1e9 / 2,
        "reduce_bytes": 2 * shape.layers * shape.hidden * 2 * 2 * (tp - 1) / tp,
        "reduces": 2 * shape.layers * (tp > 1),
        "tp": tp,
        "pp": pp,
        "eager": case.eager,
        "is_async": case.is_async,
    }


def _product_bits(shape: ModelShape, gpu: Gpu) -> int:
    """Bits of the wider operand of a quantised layer's products."""
    if shape.quantisation is None or _is_weight_only(shape):
        return 16
    if shape.weight_bits >= 8:
        return 8
    if shape.quantisation not in FOUR_BIT_FLOATS or gpu.sm < FOUR_BIT_SM:
        return 16
    # mxfp4 weights meet mxfp8 activations there.
    return 8 if shape.quantisation == "mxfp4" else 4


def _expert_tflops(shape: ModelShape, gpu: Gpu) -> float:
    peak = gpu.tflops(_product_bits(shape, gpu))
    # Experts whose weights are widened on the way in have kernels of the Ampere kind (Marlin) everywhere.
    return peak * MMA_SHARE.get(gpu.arch, 1.0) if _is_weight_only(shape) else peak


def _is_weight_only(shape: ModelShape) -> bool:
    """Whether a quantised model's weights are widened to 16 bits before they are multiplied."""
    is_int4 = shape.quantisation == "compressed-tensors" and shape.weight_bits < 8
    return shape.quantisation in WEIGHT_ONLY or is_int4


def effective_batch(case: Case) -> float:
    """Requests that run together: what is offered, as far as the cache holds them."""
    length = case.input_tokens + case.output_tokens / 2
    fit = check_fit(
        case.shape,
        case.gpu,
        tp=case.tp,
        pp=case.pp,
        context=int(max(length, 1)),
        utilisation=case.utilisation,
        eager=case.eager,
        expert_shards=case.tp * case.dp,
    )
    return float(min(case.concurrency, max(fit.sequences(length), 1.0)))


def log_requests_per_s(theta: Array, x: dict[str, Array], compute: Array, memory: Array) -> Array:
    """Log of each case's requests per second.

    Args:
        theta: log of each of `PARAMETERS`.
        x: what `features` returned.
        compute: log correction of the GPU's arithmetic, one per case.
        memory: the same of its bandwidth.
    """
    p = {name: np.exp(theta[index]) for name, index in INDEX.items()}
    # Since vLLM schedules asynchronously, block-fp8 experts have kernels of their own on the newer GPUs, too (DeepGEMM,
    # TRT-LLM): the padded tiles of the Triton ones went with them.
    fp8, fp4 = x["is_fp8"] > 0, x["is_fp4"] > 0
    padded = fp8 & (x["is_async"] == 0)
    seconds = (
        _memory_s(p, x, np.exp(memory), padded, fp4)
        + _compute_s(p, x, np.exp(compute), fp8=fp8, padded=padded, fp4=fp4)
        + _reduce_s(p, x)
        + _host_s(p, x)
    )
    result: Array = np.log(x["batch"]) - np.log(seconds * (1 + p["bubble"] * (x["pp"] - 1)))
    return result


def _memory_s(p: dict[str, float], x: dict[str, Array], scale: Array, padded: Mask, fp4: Mask) -> Array:
    bandwidth = x["bandwidth"] * scale
    touched = 1 - np.exp(x["touched"] * np.where(padded, p["touch_fp8"], p["touch"]))
    expert = np.where(fp4, p["memory_moe_mxfp4"], np.where(padded, p["memory_moe_fp8"], p["memory_moe"]))
    weights = x["dense_bytes"] / p["memory"] + x["expert_bytes"] * touched / expert
    total: Array = (x["passes"] * weights + x["decoded"] * x["cache_bytes"] / p["memory_cache"]) / bandwidth
    return total


def _compute_s(
    p: dict[str, float], x: dict[str, Array], scale: Array, *, fp8: Mask, padded: Mask, fp4: Mask
) -> Array:
    base = p["compute"] * scale
    dense = x["peak"] * base * np.where(fp8, p["compute_fp8"], 1.0)
    kernel = np.where(fp4, p["compute_moe_mxfp4"], np.where(padded, p["compute_moe_fp8"], p["compute_moe"]))
    expert = x["peak_expert"] * base * kernel * np.where(fp8 & ~fp4, p["compute_fp8"], 1.0)
    attention = x["peak16"] * scale * p["compute_attention"]
    total: Array = (
        x["tokens"] * (x["dense_flops"] / dense + x["expert_flops"] / expert)
        + x["prompt"] * x["attention_flops"] / attention
    )
    return total


def _reduce_s(p: dict[str, float], x: dict[str, Array]) -> Array:
    nvlink = x["is_nvlink"] > 0
    across = np.where(x["tp"] > 4, p["pcie_across"], 1.0)
    speed = np.where(nvlink, np.maximum(x["link"], 1.0) * p["nvlink"], p["pcie_bytes_s"] * across)
    latency = np.where(nvlink, p["nvlink_latency_s"], p["pcie_latency_s"] * np.log2(np.maximum(x["tp"], 1)))
    total: Array = x["tokens"] * x["reduce_bytes"] / speed + x["passes"] * x["reduces"] * latency
    return total


def _host_s(p: dict[str, float], x: dict[str, Array]) -> Array:
    host = np.where(x["is_async"] > 0, p["host_async"], 1.0)
    layer = np.where(x["eager"] > 0, p["layer_eager_s"], p["layer_graph_s"])
    device = x["layers"] * layer + x["moe_layers"] * p["layer_moe_s"]
    total: Array = x["passes"] * (device + host * (p["pass_s"] + x["micro"] * p["sequence_s"]))
    return total
