"""Hybrids, latent experts and windows of two widths, read from their configs and held to published sizes and vLLM's own."""

import json
from typing import Any

import pytest

from tandemn.placement.model_config import shape_from_config
from tandemn.placement.models import shape_of

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen/Qwen3.5-27B", 27, 27),
        ("Qwen/Qwen3.5-35B-A3B", 35, 3.4),
        ("Qwen/Qwen3.5-122B-A10B", 122, 10),
        ("Qwen/Qwen3.5-397B-A17B", 397, 17),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 80, 3.9),
        ("moonshotai/Kimi-K2.5", 1026, 32),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, 3.6),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 401, 17),
        ("google/gemma-4-26B-A4B-it", 25.2, 3.8),
        ("zai-org/GLM-4.5", 355, 32),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 23.6, 23.6),
        ("google/gemma-2-2b-it", 2.61, 2.61),
        ("microsoft/Phi-3-medium-4k-instruct", 13.96, 13.96),
    ],
)
def test_totals_are_the_published_ones(name, total, active):
    shape = shape_of(name)
    assert shape.params() / 1e9 == pytest.approx(total, rel=0.015)
    # Names and model cards count the input embedding, which nothing is multiplied with.
    embedding = 0 if shape.tied else shape.vocab * shape.hidden
    assert (shape.active_params() + embedding) / 1e9 == pytest.approx(active, rel=0.055)


@pytest.mark.parametrize(
    ("name", "tokens", "vllm_bytes"),
    [
        # `max_memory_usage_bytes` of vLLM 0.32 for one request of so many tokens.
        ("Qwen3.5-27B", 8192, 844_759_040),
        ("Qwen3.5-35B-A3B", 8192, 296_550_400),
        ("Llama-4-Scout-17B-16E-Instruct", 8192, 1_610_612_736),
    ],
)
def test_a_request_takes_what_vllm_says(name, tokens, vllm_bytes):
    assert shape_of(name).kv_bytes(tokens) == vllm_bytes


DELTA_NET: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "vocab_size": 248320,
}
LAYERS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 16
NEMOTRON: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "conv_kernel": 4,
    "head_dim": 128,
    "hidden_size": 4096,
    "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 2688,
    "mamba_head_dim": 64,
    "mamba_num_heads": 128,
    "max_position_embeddings": 262144,
    "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 2688,
    "moe_latent_size": 1024,
    "moe_shared_expert_intermediate_size": 5376,
    "n_groups": 8,
    "n_routed_experts": 512,
    "n_shared_experts": 1,
    "num_attention_heads": 32,
    "num_experts_per_tok": 22,
    "num_hidden_layers": 88,
    "num_key_value_heads": 2,
    "ssm_state_size": 128,
    "vocab_size": 131072,
}
#: 39 windowed layers with 8 KV heads, 9 others with 4; keys of 192, values of 128.
MIMO: dict[str, Any] = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "head_dim": 192,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "hybrid_layer_pattern": [0] + [1, 1, 1, 1, 1, 0] * 7 + [1, 1, 1, 1, 0],
    "intermediate_size": 16384,
    "max_position_embeddings": 262144,
    "num_attention_heads": 64,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "sliding_window": 128,
    "swa_head_dim": 192,
    "swa_num_key_value_heads": 8,
    "swa_v_head_dim": 128,
    "v_head_dim": 128,
    "vocab_size": 152576,
}
LLAMA_4: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "text_config": {
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 1048576,
        "model_type": "llama4_text",
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "vocab_size": 202048,
    },
}
GEMMA_4: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "enable_moe_block": True,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 704,
    "num_attention_heads": 16,
    "num_experts": 128,
    "num_global_key_value_heads": 2,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "sliding_window": 1024,
    "tie_word_embeddings": True,
    "top_k_experts": 8,
    "vocab_size": 262144,
}


@pytest.mark.parametrize("kinds", [{}, {"layer_types": LAYERS}])
def test_delta_nets_keep_a_state_instead_of_a_cache(kinds):
    shape = shape_from_config(DELTA_NET | kinds, name="x")
    table = shape_of("Qwen3.5-27B")
    assert (shape.recurrent_layers, shape.attention_layers) == (48, 16)
    assert shape.params() == table.params()
    assert shape.kv_bytes(8192) == table.kv_bytes(8192)
    # 16 layers grow by 4 KiB a token; the rest stays.
    assert shape.kv_bytes(8193) - shape.kv_bytes(8192) == 16 * 4096


def test_layers_of_one_kind_each_and_experts_of_a_narrower_width():
    shape = shape_from_config(NEMOTRON, name="x")
    assert (shape.layers, shape.recurrent_layers, shape.attention_layers, shape.moe_layers) == (88, 40, 8, 40)
    assert shape.params() / 1e9 == pytest.approx(120.6, rel=0.01)
    assert shape.active_params() / 1e9 == pytest.approx(12.2, rel=0.02)
    named = {"M": "mamba", "*": "attention", "E": "moe"}
    pattern = NEMOTRON["hybrid_override_pattern"]
    spelt = NEMOTRON | {
        "hybrid_override_pattern": None,
        "layers_block_type": [named[each] for each in pattern],
    }
    assert shape_from_config(spelt, name="x") == shape


def test_windowed_layers_with_heads_of_their_own():
    shape = shape_from_config(MIMO, name="x")
    assert shape.sliding_layers == 39
    # vLLM's pages of 16 tokens: 81,920 bytes of a windowed layer, 40,960 of the others.
    tokens = 32_768
    assert shape.kv_bytes(tokens) == 9 * tokens * 40_960 / 16 + 39 * 128 * 81_920 / 16


def test_chunked_attention_sees_its_chunk_only():
    shape = shape_from_config(LLAMA_4, name="x")
    assert shape.params() == shape_of("Llama-4-Maverick").params()
    token = 2 * 8 * 128 * 2
    assert shape.kv_bytes(1_000_000) == (12 * 1_000_000 + 36 * 8192) * token
    whole = LLAMA_4["text_config"] | {"attention_chunk_size": None}
    assert shape_from_config(whole, name="x").kv_bytes(1_000_000) == 48 * 1_000_000 * token
    rotary = LLAMA_4["text_config"] | {"no_rope_layers": [1] * 40 + [0] * 8}
    assert shape_from_config(rotary, name="x").sliding_layers == 40


def test_a_dense_part_beside_the_experts():
    shape = shape_from_config(GEMMA_4, name="x")
    assert shape.params() == shape_of("gemma-4-26B-A4B").params()
    assert (shape.sliding_layers, shape.full_kv_width) == (25, 2048)


def test_modelopt_keeps_its_settings_in_a_file_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DELTA_NET))
    plain = shape_of(str(tmp_path))
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    shape = shape_of(str(tmp_path))
    assert (shape.quantisation, shape.weight_bits) == ("modelopt", 4.5)
    assert shape.weight_bytes() < 0.5 * plain.weight_bytes()


@pytest.mark.parametrize("key", ["ignore", "modules_to_not_convert", "exclude_modules"])
@pytest.mark.parametrize("name", ["model.layers.0.self_attn", "re:.*self_attn.*", "*.attn*"])
def test_attention_that_a_quantiser_passed_over(key, name):
    dense = DELTA_NET | {
        "full_attention_interval": None,
        "quantization_config": {"quant_method": "fp8", key: [name]},
    }
    plain = DELTA_NET | {"full_attention_interval": None}
    everything = plain | {"quantization_config": {"quant_method": "fp8"}}
    sizes = [shape_from_config(each, name="x").weight_bytes() for each in (everything, dense, plain)]
    assert sizes[0] < sizes[1] < sizes[2]
    only_head = plain | {"quantization_config": {"quant_method": "fp8", key: ["lm_head"]}}
    assert shape_from_config(only_head, name="x").weight_bytes() == sizes[0]


@pytest.mark.parametrize("ending", ["", ".q_proj", ".o_proj"])
def test_attention_is_counted_by_the_layers_that_were_passed_over(ending):
    """Some quantisers list every projection of every layer."""
    plain = DELTA_NET | {"full_attention_interval": None}
    whole = shape_from_config(plain, name="x")

    def size(layers):
        names = [f"model.layers.{number}.self_attn{ending}" for number in range(layers)]
        quantised = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head", *names]}
        return shape_from_config(plain | {"quantization_config": quantised}, name="x").weight_bytes()

    attention = whole.layers * whole.attention_params()
    assert size(whole.layers // 2) - size(0) == pytest.approx(attention / 2, rel=1e-6)
    assert size(whole.layers) - size(0) == pytest.approx(attention, rel=1e-6)


def test_a_hybrid_has_attention_in_some_layers_only():
    """All of its attention is passed over where that of those layers is."""
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 12
    names = [f"model.layers.{number}.self_attn" for number in range(3, 48, 4)]
    listed = {"quant_method": "fp8", "modules_to_not_convert": names}
    experts = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    hybrid = {"layer_types": kinds, "num_hidden_layers": 48}
    mixture = DELTA_NET | hybrid | experts | {"quantization_config": listed}
    assert shape_from_config(mixture, name="x").only_experts_quantised
