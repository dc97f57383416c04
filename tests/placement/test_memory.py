import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.placement.catalog.gpus import gpu_named, gpus
from tandemn.placement.memory import check_fit, divides
from tandemn.placement.models import known_models, shape_of, with_precision


def fits(model, gpu, context, *, tp=1, pp=1, precision="auto"):
    shape = with_precision(shape_of(model), precision)
    return check_fit(shape, gpu_named(gpu), tp=tp, pp=pp, context=context)


#: Weights alone are more than 90% of the GPU's memory, or leave less than the cache of one request.
SIZE = "weights and cache by size"
VLLM = "vllm-project/vllm#"
CASES = [
    # model, precision, GPU, TP, PP, context, whether vLLM starts, and who says so
    ("Meta-Llama-3-70B-Instruct", "bf16", "A100-80GB", 1, 1, 4096, False, VLLM + "5711: at least two"),
    ("Llama-3.3-70B-Instruct", "bf16", "A100-80GB", 1, 1, 4096, False, VLLM + "5711"),
    ("Llama-3.3-70B-Instruct", "bf16", "H100", 1, 1, 4096, False, VLLM + "5711: as large"),
    ("Llama-3.3-70B-Instruct", "bf16", "H200", 1, 1, 8192, False, SIZE),
    ("Llama-3.3-70B-Instruct", "bf16", "A100", 4, 1, 16384, False, SIZE),
    ("Qwen2.5-72B-Instruct", "bf16", "A100-80GB", 1, 1, 4096, False, "QwenLM/Qwen3#67, Qwen1.5-72B"),
    (
        "Llama-3.3-70B-Instruct-FP8",
        "fp8",
        "H100",
        1,
        1,
        131072,
        False,
        "discussion 1 of cortecs/Llama-3.3-70B-Instruct-FP8-Dynamic",
    ),
    ("Meta-Llama-3-8B-Instruct", "fp16", "T4", 1, 1, 512, False, "meta-llama/llama3#95"),
    ("Meta-Llama-3-8B-Instruct", "fp16", "T4g", 1, 1, 512, False, VLLM + "4821: 16 GB are too few"),
    ("Llama-3.1-8B-Instruct", "bf16", "T4", 1, 1, 32768, False, "meta-llama/llama3#95"),
    ("Llama-3.1-8B-Instruct", "bf16", "T4", 1, 1, 4096, False, "meta-llama/llama3#95"),
    ("Llama-3.1-8B-Instruct", "bf16", "L4", 1, 1, 131072, False, SIZE),
    ("Llama-3.1-8B-Instruct", "bf16", "A10G", 1, 1, 65536, False, SIZE),
    ("Qwen3-32B", "bf16", "L40S", 1, 1, 4096, False, SIZE),
    ("Qwen3-32B", "bf16", "L4", 2, 1, 4096, False, SIZE),
    ("Qwen3-235B-A22B", "bf16", "H100", 4, 1, 4096, False, SIZE),
    ("Qwen3-235B-A22B-FP8", "fp8", "H200", 1, 1, 4096, False, SIZE),
    ("DeepSeek-V3", "fp8", "H100", 8, 1, 8192, False, SIZE + ": 671 GB of 640"),
    ("Llama-3.1-405B-Instruct", "bf16", "H100", 8, 1, 4096, False, SIZE),
    ("Kimi-K2-Instruct", "fp8", "H100", 8, 1, 8192, False, SIZE + ": its card asks for 16 GPUs"),
    ("gpt-oss-120b", "mxfp4", "L40S", 1, 1, 8192, False, SIZE),
    ("gpt-oss-120b", "mxfp4", "T4", 8, 1, 4096, False, "vLLM's table of quantisations and hardware"),
    ("Qwen3-4B", "fp8", "T4", 1, 1, 4096, False, "vLLM's table of quantisations and hardware"),
    ("Qwen3-14B", "bf16", "L4", 1, 1, 8192, False, SIZE),
    ("Llama-2-13b-chat-hf", "fp16", "L4", 1, 1, 4096, False, SIZE),
    ("Yi-34B", "bf16", "L40S", 1, 1, 4096, False, SIZE),
    ("Mixtral-8x7B-Instruct-v0.1", "bf16", "A100-80GB", 1, 1, 4096, False, SIZE),
    ("Llama-3.1-8B-Instruct", "bf16", "L4", 1, 1, 8192, True, SIZE),
    ("Llama-3.1-8B-Instruct", "bf16", "A10G", 1, 1, 8192, True, VLLM + "6829: fits comfortably"),
    ("Llama-3.1-8B-Instruct", "bf16", "RTX4090", 1, 1, 20000, True, VLLM + "10517, an RTX 3090 of 23.6 GiB"),
    ("Llama-3.1-8B-Instruct", "bf16", "RTX4090", 1, 1, 32000, True, VLLM + "10517: 35,000"),
    ("Llama-3.1-8B-Instruct", "bf16", "L40S", 1, 1, 32768, True, SIZE),
    ("Llama-3.1-8B-Instruct", "bf16", "A100", 1, 1, 131072, True, SIZE),
    ("Llama-3.1-8B-Instruct", "bf16", "H100", 1, 1, 131072, True, SIZE),
    ("Llama-3.1-8B-Instruct", "fp16", "T4", 2, 1, 8192, True, SIZE),
    ("Llama-3.1-8B-Instruct", "awq", "T4", 1, 1, 8192, True, "meta-llama/llama3#95: four bits"),
    ("Llama-2-7b-chat-hf", "fp16", "A10G", 1, 1, 4096, True, VLLM + "2140: 7B on an A10"),
    ("Mistral-7B-Instruct-v0.2", "bf16", "A10", 1, 1, 16384, True, VLLM + "2140"),
    ("Llama-3.3-70B-Instruct", "bf16", "A100-80GB", 4, 1, 8192, True, "vLLM's documentation: TP 4"),
    ("Llama-3.3-70B-Instruct", "bf16", "A100-80GB", 2, 1, 8192, True, VLLM + "5711"),
    ("Llama-3.3-70B-Instruct", "bf16", "H100", 2, 1, 8192, True, VLLM + "5711"),
    ("Llama-3.3-70B-Instruct", "bf16", "H100", 4, 1, 131072, True, SIZE),
    ("Llama-3.3-70B-Instruct", "bf16", "L40S", 4, 1, 8192, True, SIZE),
    ("Llama-3.3-70B-Instruct-FP8", "fp8", "H200", 1, 1, 8192, True, SIZE),
    ("Llama-3.3-70B-Instruct-FP8", "fp8", "H100", 2, 1, 8192, True, SIZE),
    ("Llama-3.3-70B-Instruct", "awq", "A100-80GB", 1, 1, 8192, True, VLLM + "5711: four bits on one"),
    ("Llama-2-70b-chat-hf", "awq", "A10G", 4, 1, 4096, True, VLLM + "2856"),
    ("Llama-3.1-405B-Instruct", "fp8", "H100", 8, 1, 8192, True, VLLM + "6746: 58 GB a GPU"),
    ("Qwen3-32B", "bf16", "H100", 1, 1, 8192, True, SIZE),
    ("Qwen3-32B", "bf16", "A100-80GB", 1, 1, 8192, True, SIZE),
    ("Qwen3-32B", "bf16", "L40S", 2, 1, 16384, True, "a measured point"),
    ("Qwen3-32B", "bf16", "L4", 8, 1, 16384, True, "a measured point"),
    ("Qwen3-32B", "bf16", "L4", 4, 1, 8192, True, "a measured point"),
    ("Qwen3-32B", "bf16", "L4", 2, 4, 8192, True, "a measured point"),
    ("Qwen3-235B-A22B", "bf16", "H200", 8, 1, 8192, True, "a measured point"),
    ("Qwen3-235B-A22B", "bf16", "L40S", 8, 2, 8192, True, SIZE),
    ("Qwen3-235B-A22B-FP8", "fp8", "H200", 2, 1, 8192, True, "a measured point"),
    ("Qwen3-235B-A22B-FP8", "fp8", "H200", 4, 1, 8192, True, "a measured point"),
    ("DeepSeek-V3", "fp8", "H200", 8, 1, 16384, True, "vLLM recipes: DeepSeek-V3 on 8 H200"),
    ("DeepSeek-R1", "fp8", "H100", 8, 2, 8192, True, SIZE),
    ("gpt-oss-120b", "mxfp4", "H100", 1, 1, 8192, True, "its model card: one GPU of 80 GB"),
    ("gpt-oss-120b", "mxfp4", "H100", 2, 1, 131072, True, "a measured point"),
    ("gpt-oss-20b", "mxfp4", "L4", 1, 1, 8192, True, "its model card: 16 GB"),
    ("Mixtral-8x7B-Instruct-v0.1", "bf16", "A100-80GB", 2, 1, 8192, True, SIZE),
    ("Qwen3-30B-A3B", "bf16", "A100-80GB", 1, 1, 8192, True, SIZE),
    ("Qwen2.5-7B-Instruct", "bf16", "A10G", 1, 1, 8192, True, "a measured point"),
    ("Qwen3-4B", "fp16", "T4", 1, 1, 4096, True, SIZE),
    ("Llama-3.2-3B-Instruct", "fp16", "T4", 1, 1, 8192, True, VLLM + "8185"),
    ("bge-large-en-v1.5", "fp16", "T4", 1, 1, 512, True, SIZE),
]


@pytest.mark.parametrize(
    ("model", "precision", "gpu", "tp", "pp", "context", "starts", "source"),
    [pytest.param(*case, id="-".join(map(str, case[:6]))) for case in CASES],
)
def test_plans_what_vllm_starts_and_nothing_else(model, precision, gpu, tp, pp, context, starts, source):
    fit = fits(model, gpu, context, tp=tp, pp=pp, precision=precision)
    assert fit.fits == starts, f"{fit.reason}, but: {source}"


def test_more_of_the_memory_is_what_a_tight_model_asks_for():
    """70B in fp8 on one H100: its card gives 95% of the memory and 9,000 tokens."""
    shape = shape_of("Llama-3.3-70B-Instruct-FP8")
    assert check_fit(shape, gpu_named("H100"), context=9000, utilisation=0.95).fits
    assert not check_fit(shape, gpu_named("H100"), context=32768, utilisation=0.95).fits


def test_quantised_weights_fit_where_plain_ones_do_not():
    assert not fits("Llama-3.3-70B-Instruct", "H100", 4096).fits
    assert fits("Llama-3.3-70B-Instruct", "H100", 4096, precision="awq").fits
    assert fits("Llama-3.1-8B-Instruct", "T4", 8192, precision="awq").fits


def test_reasons_name_the_cause():
    assert "weights" in fits("Llama-3.3-70B-Instruct", "A100-80GB", 4096).reason
    assert "cache" in fits("Llama-3.1-8B-Instruct", "L4", 131072).reason
    assert "does not run on V100" in fits("Qwen3-4B", "V100", 4096).reason
    assert "fp8" in fits("Qwen3-4B", "T4", 4096, precision="fp8").reason
    assert "context" in fits("Llama-2-7b-hf", "H100", 8192).reason
    assert divides(shape_of("Qwen2.5-7B"), 8) is not None


@given(
    model=st.sampled_from(sorted(known_models())),
    gpu=st.sampled_from(sorted(gpus())),
    tp=st.sampled_from([1, 2, 4, 8]),
    context=st.integers(512, 32_768),
)
def test_more_room_never_fits_less(model, gpu, tp, context):
    shape = known_models()[model]
    before = check_fit(shape, gpus()[gpu], tp=tp, context=context)
    assert check_fit(shape, gpus()[gpu], tp=tp, context=context, eager=True).cache_bytes >= before.cache_bytes
    if before.fits:
        assert check_fit(shape, gpus()[gpu], tp=tp, context=max(context // 2, 1)).fits
        assert check_fit(shape, gpus()[gpu], tp=tp, context=context, utilisation=0.95).fits
