import json
import struct

import pytest
from tests.fakes.hub import LLAMA_8B as LLAMA

from tandemn.errors import InvalidInput, NotFound
from tandemn.placement.model_config import shape_from_config
from tandemn.placement.models import canonical_name, is_on_hub, known_models, shape_of, with_precision


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen/Qwen3-32B", 32.8, 32.0),
        ("Qwen/Qwen3-235B-A22B", 235.1, 21.6),
        ("Qwen/Qwen3-30B-A3B", 30.5, 3.0),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03, 7.5),
        ("meta-llama/Llama-3.3-70B-Instruct", 70.6, 69.5),
        ("openai/gpt-oss-120b", 116.8, 5.1),
        ("openai/gpt-oss-20b", 20.9, 3.6),
        ("deepseek-ai/DeepSeek-V3", 671.0, 37.0),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7, 12.7),
        ("google/gemma-3-27b-it", 27.0, 27.0),
        ("google/gemma-3-12b-it", 11.8, 11.8),
        ("google/gemma-2-9b-it", 9.24, 9.24),
        ("google/gemma-2-27b-it", 27.2, 27.2),
        ("Qwen/Qwen2.5-3B-Instruct", 3.09, 3.09),
        ("mistralai/Mistral-Nemo-Instruct-2407", 12.25, 11.6),
        ("microsoft/Phi-3-mini-4k-instruct", 3.82, 3.72),
        ("01-ai/Yi-34B", 34.4, 33.9),
        ("meta-llama/Llama-2-70b-chat-hf", 69.0, 68.7),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 107.8, 16.1),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480.0, 35.0),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.7, 2.5),
        ("moonshotai/Kimi-K2-Instruct", 1026.0, 32.0),
        ("MiniMaxAI/MiniMax-M2", 229.0, 10.2),
        ("zai-org/GLM-4.5-Air", 106.8, 12.5),
    ],
)
def test_table_totals_are_the_published_ones(name, total, active):
    shape = shape_of(name)
    assert shape.params() / 1e9 == pytest.approx(total, rel=0.015)
    assert shape.active_params() / 1e9 == pytest.approx(active, rel=0.03)


def test_every_known_model_is_plausible():
    for shape in known_models().values():
        assert shape.heads % shape.kv_heads == 0 or shape.mla_rank
        assert shape.weight_bytes() > 0
        assert 0 < shape.active_params() <= shape.params()


def test_config_equals_table():
    read, table = shape_from_config(LLAMA, name="x"), shape_of("Llama-3.1-8B")
    assert read.params() == table.params()
    assert read.kv_bytes(1000) == table.kv_bytes(1000) == 1000 * 32 * 2 * 8 * 128 * 2


def test_folder_takes_bytes_from_the_index(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 123}}))
    assert shape_of(str(tmp_path)).weight_bytes() == 123


def test_nested_text_config_of_a_multimodal_model():
    shape = shape_from_config(
        {"architectures": ["GemmaForConditionalGeneration"], "text_config": LLAMA}, name="x"
    )
    assert shape.layers == 32
    assert not shape.is_embedding


def test_mixture_of_experts():
    moe = LLAMA | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536}
    shape = shape_from_config(moe, name="x")
    assert (shape.experts, shape.experts_per_token, shape.expert_ffn) == (128, 8, 1536)
    assert shape.active_params() < shape.params() / 10


def test_latent_attention_caches_its_rank_only():
    mla = LLAMA | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "q_lora_rank": 1536}
    shape = shape_from_config(mla, name="x")
    assert shape.kv_bytes(100) == 100 * shape.layers * 576 * 2


@pytest.mark.parametrize(
    ("extra", "sliding"),
    [
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16}, 16),
        ({"sliding_window": 1024, "sliding_window_pattern": 6}, 27),
        ({"sliding_window": 4096}, 32),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0),
        ({"sliding_window": None}, 0),
    ],
)
def test_sliding_window(extra, sliding):
    shape = shape_from_config(LLAMA | extra, name="x")
    assert shape.sliding_layers == sliding
    full = shape_from_config(LLAMA, name="x").kv_bytes(100_000)
    assert (shape.kv_bytes(100_000) < full) == (sliding > 0)


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "awq", "bits": 4}, 4.16),
        ({"quant_method": "gptq", "bits": 8}, 8.16),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8.0),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}}, 4.16),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
    ],
)
def test_quantised(quantisation, bits):
    moe = LLAMA | {"num_local_experts": 8}
    shape = shape_from_config(moe | {"quantization_config": quantisation}, name="x")
    assert shape.weight_bits == pytest.approx(bits)
    assert shape.weight_bytes() < shape_from_config(moe, name="x").weight_bytes()


def test_embedding_model_has_no_cache():
    bert = LLAMA | {"architectures": ["BertModel"], "hidden_act": "gelu"}
    shape = shape_from_config(bert, name="x")
    assert shape.is_embedding
    assert shape.kv_bytes(512) == 0


@pytest.mark.parametrize(
    "broken",
    [
        {key: value for key, value in LLAMA.items() if key != "vocab_size"},
        LLAMA | {"num_hidden_layers": 0},
        LLAMA | {"hidden_size": -1},
        LLAMA | {"hidden_size": 1e300},
        LLAMA | {"quantization_config": {"quant_method": "magic"}},
        {},
    ],
)
def test_broken_config_is_an_input_error(broken):
    with pytest.raises(InvalidInput):
        shape_from_config(broken, name="x")


def test_config_that_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InvalidInput):
        shape_of(str(tmp_path))


def test_unknown_model_suggests_near_names():
    with pytest.raises(NotFound, match="Qwen3-32B"):
        shape_of("Qwen/Qwen3-32")


def test_files_of_the_hub_s_are_believed_before_a_name_is_but_not_before_the_table():
    texts = {"config.json": json.dumps(LLAMA)}
    assert is_on_hub("someone/finetune")
    assert shape_of("someone/finetune", texts=texts).layers == 32
    assert is_on_hub("someone/Qwen3-32B-GPTQ")
    assert shape_of("someone/Qwen3-32B-GPTQ", texts=texts).layers == 32
    assert shape_of("someone/Qwen3-32B-GPTQ").layers == 64
    assert not is_on_hub("Qwen/Qwen3-32B")
    assert shape_of("Qwen/Qwen3-32B", texts=texts).layers == 64


def test_weights_stored_in_more_bits_than_they_are_served_in_are_not_taken_as_stored():
    texts = {"model.safetensors.index.json": json.dumps({"metadata": {"total_size": 32e9}})}
    whole = shape_of("a/b", texts=texts | {"config.json": json.dumps(LLAMA | {"torch_dtype": "float32"})})
    assert whole.weight_bytes() == pytest.approx(16.06e9, rel=0.01)
    half = shape_of("a/b", texts=texts | {"config.json": json.dumps(LLAMA)})
    assert half.weight_bytes() == 32e9
    for odd in ("Infinity", "-1", "NaN", '"many"', "[]"):
        texts = {
            "config.json": json.dumps(LLAMA),
            "model.safetensors.index.json": f'{{"metadata": {{"total_size": {odd}}}}}',
        }
        assert shape_of("a/b", texts=texts).weight_bytes() == pytest.approx(16.06e9, rel=0.01)


def gguf_bytes(keys):
    def string(text):
        return struct.pack("<Q", len(text)) + text.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys))
    for key, value in keys.items():
        out += string(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + string(value)
        elif isinstance(value, tuple):
            out += struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
        elif isinstance(value, list):
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(string(v) for v in value)
        else:
            out += struct.pack("<II", 4, value)
    return out


GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": 256,
    "llama.context_length": 4096,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "llama.vocab_size": 3,
}


def test_gguf_header(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes(GGUF) + b"\0" * 1000)
    shape = shape_of(str(file))
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.vocab) == (2, 128, 2, 3)
    assert shape.weight_bytes() == file.stat().st_size


def test_gguf_with_a_figure_per_layer(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes(GGUF | {"llama.attention.head_count_kv": (0, 4)}))
    assert shape_of(str(file)).kv_heads == 4


@pytest.mark.parametrize("cut", [0, 3, 10, 40, 90])
def test_cut_gguf_is_an_input_error(tmp_path, cut):
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes(GGUF)[:cut])
    with pytest.raises(InvalidInput):
        shape_of(str(file))


def test_precision_of_a_plain_model():
    plain = shape_of("Qwen3-32B")
    assert with_precision(plain, "bf16") is plain
    assert with_precision(plain, "fp8").weight_bytes() < 0.6 * plain.weight_bytes()
    with pytest.raises(InvalidInput):
        with_precision(plain, "fp7")


def test_quantised_copies_of_known_models():
    assert shape_of("RedHatAI/Qwen3-14B-FP8").weight_bits == 8.0
    assert shape_of("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ").quantisation == "awq"


def test_aliases_share_measurements():
    assert canonical_name("meta-llama/Llama-3.1-8B") == canonical_name("Llama-3.1-8B-Instruct")
