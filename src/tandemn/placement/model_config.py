"""Read a model's sizes from a transformers `config.json` or a GGUF header: local files, and text that the caller fetched."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tandemn.errors import InvalidInput, NotFound
from tandemn.hub.cache import beginning
from tandemn.placement.gguf_header import read_gguf
from tandemn.placement.model_shape import QUANTISED_BITS, ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DTYPE_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0, "float8_e4m3fn": 8.0}
#: How a quantiser's list of what it passes over names attention blocks, or the projections in them, and their layer.
_ATTENTION_NAME = re.compile(r"(?:\blayers\.(\d+)\b.*)?(?:self_attn|\.attn)(?:\.(?:q|k|v|o|qkv)_proj)?[.*]*$")
#: Characters of such a name that are looked at: a hub's config may be anybody's.
_NAME_LIMIT = 200
#: One layer in so many sees everything, in models whose configs may leave it to transformers' defaults.
_WINDOW_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4}
#: Of an element of a recurrent state, which vLLM keeps in float32.
_STATE_BYTES = 4
CONFIG, QUANTISATION, INDEX = "config.json", "hf_quant_config.json", "model.safetensors.index.json"
#: The files of a model that say how large it is, and how many bytes of each are read at most: real configs are a few
#: kilobytes; the index of a mixture of hundreds of experts is ten megabytes, but begins with what is wanted of it.
TEXT_LIMITS: Mapping[str, int] = {CONFIG: 4 << 20, QUANTISATION: 4 << 20, INDEX: 16 << 10}
_TOTAL_SIZE = re.compile(r'"metadata"\s*:\s*\{[^{}]*"total_size"\s*:\s*(\d{1,15})\b')


def shape_from_folder(folder: Path) -> ModelShape:
    """Read a model folder: its config.json and, where the index is there, the bytes of its weights."""
    if not (folder / CONFIG).is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            return shape_from_gguf(ggufs[0])
        raise NotFound(f"no config.json in {folder}", code="unknown_model", param="model")
    files = {folder / name: limit for name, limit in TEXT_LIMITS.items()}
    texts = {file.name: beginning(file, limit) if file.is_file() else None for file, limit in files.items()}
    if texts[INDEX] is None:
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        texts[INDEX] = json.dumps({"metadata": {"total_size": stored}})
    return shape_from_texts(texts, name=str(folder))


def shape_from_texts(texts: Mapping[str, str | None], *, name: str) -> ModelShape:
    """Read the files of a model that say how large it is.

    Args:
        texts: by the names of `TEXT_LIMITS`, cut there; None, or left out: the model has no such file. CONFIG must be
            there.
        name: of the model, for errors.

    Raises:
        InvalidInput: what is there cannot be read, or a needed size is absent or absurd.
    """
    config = parse_config(texts[CONFIG] or "", f"{CONFIG} of {name}")
    beside = texts.get(QUANTISATION)
    if "quantization_config" not in config and beside is not None:
        # ModelOpt's own file, where the config does not repeat it.
        config["quantization_config"] = parse_config(beside, f"{QUANTISATION} of {name}").get("quantization")
    return _with_stored(shape_from_config(config, name=name), config, _indexed_bytes(texts.get(INDEX) or ""))


def _with_stored(shape: ModelShape, config: Mapping[str, Any], stored_bytes: int | None) -> ModelShape:
    text = _text_config(config)
    is_cast = _dtype(config, text) == "float32" and shape.quantisation is None
    return replace(shape, stored_bytes=None if is_cast else stored_bytes)


def _indexed_bytes(index: str) -> int | None:
    found = _TOTAL_SIZE.search(index)
    return int(found[1]) or None if found else None


def parse_config(text: str, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidInput(f"{where} is not JSON: {exc}", code="bad_model_config", param="model") from exc
    if not isinstance(config, dict):
        raise InvalidInput(f"{where} is not a JSON object", code="bad_model_config", param="model")
    return config


class _Config:
    """A config whose numbers are checked when they are asked for."""

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        self.raw = raw
        self.name = name

    def number(self, *keys: str, default: int | None = None) -> int:
        for key in keys:
            value = self.raw.get(key)
            if isinstance(value, tuple) and value:
                value = max(value)  # a figure per layer: plan for the largest
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not 0 <= value < 1e12:
                    raise InvalidInput(
                        f"{key} of {self.name} is {value!r}", code="bad_model_config", param="model"
                    )
                return int(value)
        if default is None:
            raise InvalidInput(
                f"the config of {self.name} has no {keys[0]}", code="bad_model_config", param="model"
            )
        return default


def shape_from_config(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """Read the sizes of a transformers `config.json`.

    Raises:
        InvalidInput: a needed size is absent or absurd.
    """
    text = _text_config(config)
    c = _Config(text, name)
    pattern = _layer_kinds(c)
    layers = len(pattern) if pattern else c.number("num_hidden_layers", "n_layer")
    hidden, heads = c.number("hidden_size", "n_embd"), c.number("num_attention_heads", "n_head")
    if min(layers, hidden, heads) < 1:
        raise InvalidInput(f"the config of {name} has a size of 0", code="bad_model_config", param="model")
    ffn = c.number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    bits = _DTYPE_BITS.get(_dtype(config, text), 16.0)
    architectures = [str(a) for a in config.get("architectures") or []]
    is_gemma = str(text.get("model_type", "")).startswith("gemma")
    shape = ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=c.number("num_key_value_heads", default=heads) or heads,
        head_dim=c.number("head_dim", "attention_head_dim", default=hidden // heads) or hidden // heads,
        vocab=c.number("vocab_size"),
        ffn=ffn,
        gated=str(text.get("hidden_act", text.get("hidden_activation", "gelu")))
        in {"silu", "swish", "gelu_pytorch_tanh", "situ"},
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", is_gemma))),
        max_context=c.number("max_position_embeddings", "n_positions", "seq_length", default=4096),
        bits=min(bits, 16.0),  # vLLM casts float32 weights to 16 bits
        weight_bits=min(bits, 16.0),
        has_query_gate=text.get("attn_output_gate") is True,
        is_embedding=bool(architectures) and not any(_generates(a) for a in architectures),
    )
    shape = _with_recurrence(_with_attention(_with_experts(shape, c), c), c, pattern)
    return _with_quantisation(shape, config.get("quantization_config") or text.get("quantization_config"))


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model, in a config of one that sees or hears, too."""
    text = config.get("text_config") or config.get("llm_config")
    return text if isinstance(text, dict) else config


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    stated = (each.get(key) for each in (text, config) for key in ("torch_dtype", "dtype"))
    return str(next((each for each in stated if each), None))


def _generates(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _with_experts(shape: ModelShape, c: _Config) -> ModelShape:
    experts = c.number("num_local_experts", "num_experts", "n_routed_experts", default=0)
    if experts < 2:
        return shape
    step = c.number("interleave_moe_layer_step", default=0)
    if step:
        # Llama 4: every so many layers a mixture, whose shared expert is as wide as the others; the rest has its own width.
        dense = shape.layers - shape.layers // step
        wide = c.number("intermediate_size_mlp", default=shape.ffn)
        shape = replace(shape, ffn=wide, shared_ffn=shape.ffn, expert_ffn=shape.ffn, dense_layers=dense)
        per_token = max(c.number("num_experts_per_tok", default=1), 1)
        return replace(shape, experts=experts, experts_per_token=per_token)
    expert_ffn = c.number("moe_intermediate_size", default=shape.ffn) or shape.ffn
    shared = c.number("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=0)
    shared = shared or c.number("n_shared_experts", "num_shared_experts", default=0) * expert_ffn
    if c.raw.get("enable_moe_block") is True:
        shared = shape.ffn  # Gemma 4: each layer has its dense part besides
    return replace(
        shape,
        experts=experts,
        experts_per_token=max(
            c.number(
                "num_experts_per_tok",
                "experts_per_token",
                "num_experts_per_token",
                "top_k_experts",
                default=2,
            ),
            1,
        ),
        expert_ffn=expert_ffn,
        expert_hidden=c.number("moe_latent_size", "routed_expert_hidden_size", default=0),
        shared_ffn=shared,
        dense_layers=min(_dense_layers(c), shape.layers),
    )


def _dense_layers(c: _Config) -> int:
    flags = c.raw.get("moe_layer_freq")
    if isinstance(flags, list):
        return sum(flag == 0 for flag in flags)
    return c.number("first_k_dense_replace", default=0)


def _with_attention(shape: ModelShape, c: _Config) -> ModelShape:
    rank = c.number("kv_lora_rank", default=0)
    if rank:
        nope, rope = c.number("qk_nope_head_dim", default=128), c.number("qk_rope_head_dim", default=64)
        query = c.number("q_lora_rank", default=0)
        return replace(shape, mla_rank=rank + rope, query_rank=query, head_dim=nope + rope)
    if str(c.raw.get("model_type", "")).startswith("llama4"):
        return _with_chunks(shape, c)
    window = c.number("sliding_window", default=0)
    if not window or c.raw.get("use_sliding_window") is False:
        return shape
    kinds, flags = c.raw.get("layer_types"), c.raw.get("hybrid_layer_pattern")
    if isinstance(kinds, list):
        sliding = sum(kind == "sliding_attention" for kind in kinds)
    elif isinstance(flags, list):
        sliding = sum(flag == 1 for flag in flags)
    elif c.raw.get("compress_ratios"):
        sliding = 0  # windows and compressed caches at once: taken for a whole cache
    else:
        every = c.number(
            "sliding_window_pattern", default=_WINDOW_PATTERNS.get(str(c.raw.get("model_type")), 0)
        )
        sliding = shape.layers - shape.layers // every if every else shape.layers
    shape = replace(shape, sliding_window=window, sliding_layers=min(sliding, shape.layers))
    return _with_two_widths(shape, c)


def _with_chunks(shape: ModelShape, c: _Config) -> ModelShape:
    """Llama 4: layers with rotary positions see only their own chunk of the text, every fourth sees all of it."""
    chunk, rotary = c.number("attention_chunk_size", default=0), c.raw.get("no_rope_layers")
    if not chunk:
        return shape
    every = c.number("no_rope_layer_interval", default=4) or 4
    chunked = sum(rotary) if isinstance(rotary, list) and rotary else shape.layers - shape.layers // every
    return replace(shape, sliding_window=chunk, sliding_layers=min(chunked, shape.layers))


def _with_two_widths(shape: ModelShape, c: _Config) -> ModelShape:
    """Models whose windowed layers have other KV heads than those that see everything: MiMo, Gemma 4."""
    if "swa_num_key_value_heads" in c.raw:
        windowed = c.number("swa_num_key_value_heads") * (
            c.number("swa_head_dim", default=shape.head_dim)
            + c.number("swa_v_head_dim", default=shape.head_dim)
        )
        full = shape.kv_heads * (shape.head_dim + c.number("v_head_dim", default=shape.head_dim))
        return replace(shape, kv_width=windowed, full_kv_width=full)
    wide = c.number("global_head_dim", default=0)
    if wide:
        full = 2 * wide * (c.number("num_global_key_value_heads", default=0) or shape.kv_heads)
        return replace(shape, full_kv_width=full)
    return shape


#: Letters of a Nemotron-H pattern, one a layer.
_MAMBA, _ATTENTION, _MLP, _EXPERTS = "M", "*", "-", "E"
_BLOCK_LETTERS = {"mamba": _MAMBA, "attention": _ATTENTION, "mlp": _MLP, "moe": _EXPERTS}


def _layer_kinds(c: _Config) -> str:
    """The pattern of a hybrid whose layers are one thing each; empty: no such model."""
    pattern = c.raw.get("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        return pattern
    blocks = c.raw.get("layers_block_type")
    if isinstance(blocks, list) and "mlp" not in blocks and not {"mamba", "moe"} <= set(blocks):
        return ""  # each layer has its feed-forward part besides
    if isinstance(blocks, list) and all(block in _BLOCK_LETTERS for block in blocks):
        return "".join(_BLOCK_LETTERS[block] for block in blocks)
    return ""


def _with_recurrence(shape: ModelShape, c: _Config, pattern: str) -> ModelShape:
    """Count layers that keep a state instead of a cache: Mamba 2 and gated delta nets."""
    if pattern:
        mamba, moe = pattern.count(_MAMBA), pattern.count(_EXPERTS)
        shape = _with_mamba(shape, c, mamba)
        return replace(
            shape,
            mixers=mamba + pattern.count(_ATTENTION),
            ffn_layers=pattern.count(_MLP),
            dense_layers=shape.layers - moe if shape.experts else 0,
        )
    kinds = c.raw.get("layer_types")
    linear = sum(kind == "linear_attention" for kind in kinds) if isinstance(kinds, list) else 0
    every = c.number("full_attention_interval", default=0)
    if not linear and every and "linear_num_value_heads" in c.raw:
        linear = shape.layers - shape.layers // every
    return _with_delta_net(shape, c, linear) if linear else shape


def _with_delta_net(shape: ModelShape, c: _Config, layers: int) -> ModelShape:
    heads, wide = c.number("linear_num_value_heads"), c.number("linear_value_head_dim")
    key_dim = c.number("linear_key_head_dim")
    keys, values = c.number("linear_num_key_heads") * key_dim, heads * wide
    kernel = c.number("linear_conv_kernel_dim", default=4)
    projections = shape.hidden * (2 * keys + 2 * values + 2 * heads) + values * shape.hidden
    state = heads * key_dim * wide * _STATE_BYTES + (kernel - 1) * (2 * keys + values) * 2
    return replace(
        shape,
        recurrent_layers=layers,
        recurrent_params=projections + kernel * (2 * keys + values),
        state_bytes=state,
    )


def _with_mamba(shape: ModelShape, c: _Config, layers: int) -> ModelShape:
    heads = c.number("mamba_num_heads", default=0)
    inner = heads * c.number("mamba_head_dim", default=64)
    mixed = inner + 2 * c.number("n_groups", default=1) * c.number("ssm_state_size", default=128)
    kernel = c.number("conv_kernel", default=4)
    return replace(
        shape,
        recurrent_layers=layers,
        recurrent_params=shape.hidden * (inner + mixed + heads) + kernel * mixed + inner * shape.hidden,
        state_bytes=inner * c.number("ssm_state_size", default=128) * _STATE_BYTES + (kernel - 1) * mixed * 2,
        states=3,
    )


def _with_quantisation(shape: ModelShape, quantisation: object) -> ModelShape:
    if not isinstance(quantisation, dict):
        return shape
    method = str(quantisation.get("quant_method") or "").lower()
    if not method and not quantisation.get("quant_algo"):
        return shape  # vLLM takes such a model for one that is not quantised
    if not method or method.startswith("modelopt"):
        method = "modelopt"
    if method == "bitsandbytes" and quantisation.get("load_in_8bit"):
        method = "int8"
    bits = _weight_bits(shape, method, quantisation)
    left = _attention_left(shape, quantisation)
    if shape.experts:
        only_experts = method == "mxfp4" or left > 0.5
        return replace(shape, quantisation=method, weight_bits=bits, only_experts_quantised=only_experts)
    attention = left * shape.layers * shape.attention_params() / max(shape.dense_params(), 1)
    bits = attention * shape.bits + (1 - attention) * bits
    return replace(shape, quantisation=method, weight_bits=bits)


def _weight_bits(shape: ModelShape, method: str, quantisation: Mapping[str, Any]) -> float:
    bits = QUANTISED_BITS.get(method)
    if bits is None:
        raise InvalidInput(
            f"quantisation {method!r} of {shape.name} is not known",
            code="unknown_quantisation",
            next_step=f"known are {', '.join(sorted(QUANTISED_BITS))}",
            param="model",
        )
    stated = quantisation.get("bits")
    if isinstance(stated, (int, float)) and method in {"awq", "gptq", "auto-round"} and stated:
        return float(stated) + 0.16
    if method == "compressed-tensors":
        return _compressed_bits(quantisation)
    if method == "modelopt" and "FP4" in str(quantisation.get("quant_algo", "")).upper():
        return QUANTISED_BITS["nvfp4"]
    return bits


def _attention_left(shape: ModelShape, quantisation: Mapping[str, Any]) -> float:
    """Share of the layers whose attention is left as it was, by the names that a quantiser was told to pass over."""
    layers: set[str] = set()
    for key in ("ignore", "modules_to_not_convert", "exclude_modules"):
        names = quantisation.get(key)
        for name in names if isinstance(names, list) else ():
            if found := _ATTENTION_NAME.search(str(name)[-_NAME_LIMIT:]):
                if found[1] is None:  # a pattern: of all layers
                    return 1.0
                layers.add(found[1])
    return min(len(layers) / max(shape.attention_layers, 1), 1.0)


def _compressed_bits(quantisation: Mapping[str, Any]) -> float:
    groups = quantisation.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if isinstance(bits, (int, float)) and bits:
            return float(bits) + (0.16 if bits < 8 else 0.0)
    return QUANTISED_BITS["compressed-tensors"]


def shape_from_gguf(path: Path) -> ModelShape:
    """Read the sizes in a GGUF header; the weights' bytes are the tensors' own.

    Raises:
        NotFound: no such file.
        InvalidInput: it is not GGUF, or a needed size is absent.
    """
    if not path.is_file():
        raise NotFound(f"no GGUF file at {path}", code="unknown_model", param="model")
    header = read_gguf(path)
    arch = str(header.get("general.architecture", ""))
    c = _Config({key.removeprefix(f"{arch}."): value for key, value in header.items()}, str(path))
    hidden, heads = c.number("embedding_length"), c.number("attention.head_count")
    head_dim = c.number("attention.key_length", default=hidden // max(heads, 1))
    experts = c.number("expert_count", default=0)
    ffn = c.number("feed_forward_length", default=4 * hidden)
    layers = c.number("block_count")
    if min(layers, hidden, heads) < 1:
        raise InvalidInput(f"{path} has a size of 0", code="bad_model_config", param="model")
    window = c.number("attention.sliding_window", default=0)
    return ModelShape(
        name=str(path),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=c.number("attention.head_count_kv", default=heads) or heads,
        head_dim=head_dim,
        vocab=c.number("vocab_size", "tokenizer.ggml.tokens", default=32_000),
        ffn=ffn,
        max_context=c.number("context_length", default=4096),
        experts=experts,
        experts_per_token=c.number("expert_used_count", default=2 if experts else 0),
        expert_ffn=c.number("expert_feed_forward_length", default=ffn) if experts else 0,
        sliding_window=window,
        sliding_layers=layers if window else 0,
        quantisation="gguf",
        weight_bits=16.0,
        stored_bytes=path.stat().st_size,
        source="gguf",
    )
