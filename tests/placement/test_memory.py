import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.placement.catalog.gpus import gpu_named, gpus
from tandemn.placement.memory import check_fit, divides
from tandemn.placement.models import known_models, shape_of, with_precision


def fits(model, gpu, context, *, tp=1, pp=1, precision="auto"):
    shape = with_precision(shape_of(model), precision)
    return check_fit(shape, gpu_named(gpu), tp=tp, pp=pp, context=context)


REFUSED = [
    ("Llama-3.3-70B-Instruct", "A100-80GB", 4096, 1, 1),
    ("Llama-3.3-70B-Instruct", "H100", 4096, 1, 1),
    ("Llama-3.3-70B-Instruct", "H200", 8192, 1, 1),
    ("Llama-3.3-70B-Instruct", "A100", 16384, 4, 1),
    ("Llama-3.1-8B-Instruct", "T4", 32768, 1, 1),
    ("Llama-3.1-8B-Instruct", "T4", 4096, 1, 1),
    ("Llama-3.1-8B-Instruct", "L4", 131072, 1, 1),
    ("Llama-3.1-8B-Instruct", "A10G", 65536, 1, 1),
    ("Qwen3-32B", "L40S", 4096, 1, 1),
    ("Qwen3-32B", "L4", 4096, 2, 1),
    ("Qwen3-235B-A22B", "H100", 4096, 4, 1),
    ("Qwen3-235B-A22B-FP8", "H200", 4096, 1, 1),
    ("DeepSeek-V3", "H100", 8192, 8, 1),
    ("Llama-3.1-405B-Instruct", "H100", 4096, 8, 1),
    ("gpt-oss-120b", "L40S", 8192, 1, 1),
    ("gpt-oss-120b", "T4", 4096, 8, 1),
    ("Qwen3-14B", "L4", 8192, 1, 1),
    ("Llama-2-13b-chat-hf", "L4", 4096, 1, 1),
    ("Qwen2.5-72B-Instruct", "A100-80GB", 4096, 1, 1),
]

SERVED = [
    ("Llama-3.1-8B-Instruct", "L4", 8192, 1, 1),
    ("Llama-3.1-8B-Instruct", "A10G", 8192, 1, 1),
    ("Llama-3.1-8B-Instruct", "L40S", 32768, 1, 1),
    ("Llama-3.1-8B-Instruct", "A100", 131072, 1, 1),
    ("Llama-3.1-8B-Instruct", "H100", 131072, 1, 1),
    ("Llama-3.1-8B-Instruct", "T4", 8192, 2, 1),
    ("Llama-3.3-70B-Instruct", "A100-80GB", 8192, 4, 1),
    ("Llama-3.3-70B-Instruct", "A100-80GB", 8192, 2, 1),
    ("Llama-3.3-70B-Instruct", "H100", 8192, 2, 1),
    ("Llama-3.3-70B-Instruct", "H100", 131072, 4, 1),
    ("Llama-3.3-70B-Instruct", "L40S", 8192, 4, 1),
    ("Llama-3.3-70B-Instruct-FP8", "H200", 8192, 1, 1),
    ("Llama-3.3-70B-Instruct-FP8", "H100", 8192, 2, 1),
    ("Qwen3-32B", "H100", 8192, 1, 1),
    ("Qwen3-32B", "A100-80GB", 8192, 1, 1),
    ("Qwen3-32B", "L40S", 16384, 2, 1),
    ("Qwen3-32B", "L4", 16384, 8, 1),
    ("Qwen3-32B", "L4", 8192, 4, 1),
    ("Qwen3-32B", "L4", 8192, 2, 4),
    ("Qwen3-235B-A22B", "H200", 8192, 8, 1),
    ("Qwen3-235B-A22B", "L40S", 8192, 8, 2),
    ("Qwen3-235B-A22B-FP8", "H200", 8192, 2, 1),
    ("Qwen3-235B-A22B-FP8", "H200", 8192, 4, 1),
    ("DeepSeek-V3", "H200", 16384, 8, 1),
    ("DeepSeek-V3", "H100", 8192, 8, 2),
    ("gpt-oss-120b", "H100", 8192, 1, 1),
    ("gpt-oss-120b", "H100", 131072, 2, 1),
    ("gpt-oss-20b", "L4", 8192, 1, 1),
    ("Mixtral-8x7B-Instruct-v0.1", "A100-80GB", 8192, 2, 1),
    ("Qwen3-30B-A3B", "A100-80GB", 8192, 1, 1),
    ("Qwen2.5-7B-Instruct", "A10G", 8192, 1, 1),
    ("Qwen3-4B", "T4", 4096, 1, 1),
    ("Llama-3.2-3B-Instruct", "T4", 8192, 1, 1),
    ("bge-large-en-v1.5", "T4", 512, 1, 1),
]


@pytest.mark.parametrize(("model", "gpu", "context", "tp", "pp"), REFUSED)
def test_never_plans_what_vllm_refuses(model, gpu, context, tp, pp):
    assert not fits(model, gpu, context, tp=tp, pp=pp).fits


@pytest.mark.parametrize(("model", "gpu", "context", "tp", "pp"), SERVED)
def test_never_refuses_the_well_known_good(model, gpu, context, tp, pp):
    fit = fits(model, gpu, context, tp=tp, pp=pp)
    assert fit.fits, fit.reason


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
