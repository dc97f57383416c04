"""What a model looks like to a planner: its sizes, read from a `config.json`, a GGUF header or the table.

It reads local files, and the hub only through a callable that it is given. It leaves to `memory` what
the sizes weigh on a GPU and to `throughput` how fast they go.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandemn.errors import InvalidInput, NotFound
from tandemn.placement.gguf_header import read_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Bits of one weight, by the name that `quantization_config.quant_method` (or GGUF) gives, where the
#: config does not say. Scales are counted in: fp8 has one fp32 per 128x128 block (negligible), awq and gptq
#: one fp16 scale and one 4-bit zero per 128 weights, mxfp4 one byte per 32 weights, nf4 one fp32 per 64.
QUANTISED_BITS: Mapping[str, float] = {
    "fp8": 8.0,
    "compressed-tensors": 8.0,
    "modelopt": 8.0,
    "awq": 4.16,
    "gptq": 4.16,
    "mxfp4": 4.25,
    "bitsandbytes": 4.5,
    "int8": 8.0,
}
_DTYPE_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0, "float8_e4m3fn": 8.0}
#: Largest config that is read, in bytes: real ones are a few kilobytes.
_CONFIG_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of one model; widths in elements, contexts in tokens."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn: int
    """Inner width of a dense feed-forward layer."""
    gated: bool = True
    """Whether the feed-forward layer has a third matrix (SwiGLU and its kin)."""
    tied: bool = False
    """Whether input and output embeddings are one matrix."""
    max_context: int = 4096
    bits: float = 16.0
    """Of a weight that is not quantised, and of an activation."""
    quantisation: str | None = None
    weight_bits: float = 16.0
    """Of a weight in a quantised layer, scales included."""
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    """Inner width of the experts that every token passes."""
    dense_layers: int = 0
    """Layers of a mixture-of-experts model that are dense."""
    only_experts_quantised: bool = False
    sliding_window: int = 0
    sliding_layers: int = 0
    """Layers whose attention sees only the last `sliding_window` tokens."""
    mla_rank: int = 0
    """Width of the compressed KV of one token and layer (latent attention), rotary part included; 0: none."""
    query_rank: int = 0
    is_embedding: bool = False
    stored_bytes: int | None = None
    """Bytes of the weights as stored, where a file says so."""
    source: str = "config"

    def attention_params(self) -> int:
        """Weights of one layer's attention."""
        if self.mla_rank:
            # The up-projections are about kv_lora_rank x heads x (qk_nope + v), as in DeepSeek-V2's paper.
            query = self.query_rank or self.hidden
            down = self.hidden * (self.mla_rank + (self.query_rank or 0))
            up = query * self.heads * self.head_dim + self.mla_rank * self.heads * 256
            return down + up + self.heads * 128 * self.hidden
        qo = 2 * self.hidden * self.heads * self.head_dim
        return qo + 2 * self.hidden * self.kv_heads * self.head_dim

    def _ffn_params(self, width: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    def dense_params(self) -> int:
        """Weights that every token passes, without the embeddings and the routed experts."""
        dense_ffn = (self.layers - self.moe_layers) * self._ffn_params(self.ffn)
        moe = self.moe_layers * (self._ffn_params(self.shared_ffn) + self.hidden * self.experts)
        return self.layers * self.attention_params() + dense_ffn + moe

    def expert_params(self) -> int:
        """Weights of all routed experts of all layers."""
        return self.moe_layers * self.experts * self._ffn_params(self.expert_ffn)

    def embedding_params(self) -> int:
        """Weights of the input and output embeddings."""
        return self.vocab * self.hidden * (1 if self.tied or self.is_embedding else 2)

    def params(self) -> int:
        """All weights."""
        return self.dense_params() + self.expert_params() + self.embedding_params()

    def active_params(self) -> int:
        """Weights that one token is multiplied with, the output embedding included."""
        routed = self.expert_params() * self.experts_per_token // self.experts if self.experts else 0
        head = 0 if self.is_embedding else self.vocab * self.hidden
        return self.dense_params() + routed + head

    def dense_bits(self) -> float:
        """Bits of a weight outside the experts and embeddings."""
        return self.bits if self.only_experts_quantised else self.weight_bits

    def weight_bytes(self) -> float:
        """Bytes of all weights on the GPUs."""
        if self.stored_bytes is not None:
            return float(self.stored_bytes)
        bits = (
            self.dense_params() * self.dense_bits()
            + self.expert_params() * self.weight_bits
            + self.embedding_params() * self.bits
        )
        return bits / 8

    def kv_bytes_per_token_layer(self, kv_bits: float | None = None) -> float:
        """Bytes that one token leaves in one layer's cache, over all TP ranks without replication."""
        width = self.mla_rank or 2 * self.kv_heads * self.head_dim
        return width * (kv_bits or self.bits) / 8

    def kv_bytes(self, tokens: float, kv_bits: float | None = None) -> float:
        """Bytes of the cache of one sequence of `tokens`, all layers, sliding windows applied."""
        if self.is_embedding:
            return 0.0
        full = (self.layers - self.sliding_layers) * tokens
        windowed = self.sliding_layers * min(tokens, self.sliding_window or tokens)
        return (full + windowed) * self.kv_bytes_per_token_layer(kv_bits)


def shape_of(
    model: str, *, fetch: Callable[[str], str] | None = None, may_be_file: bool = True
) -> ModelShape:
    """Find the shape of `model`: a folder, a GGUF file, a name of the table, or a hub id.

    Args:
        model: as the user named it.
        may_be_file: whether it may name a file or folder of this machine's: not where another one's user named it.
        fetch: returns the text of a hub model's `config.json`; without it only local files and the table are read.

    Raises:
        NotFound: no such folder, and the table has no such name (near names are suggested).
        InvalidInput: the config or header cannot be read.
    """
    if may_be_file:
        path = Path(model).expanduser()
        if path.suffix.lower() == ".gguf":
            return shape_from_gguf(path)
        if path.is_dir():
            return shape_from_folder(path)
    known = known_models()
    found = _in_table(model)
    if found is not None:
        return replace(found, name=model)
    if fetch is not None and "/" in model:
        return shape_from_config(_parse_config(fetch(model), model), name=model)
    near = difflib.get_close_matches(_plain_name(model), known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(known[name].name for name in near)}?" if near else None
    raise NotFound(
        f"the sizes of model {model!r} are not known",
        code="unknown_model",
        next_step=hint or "give a folder with its config.json, or a GGUF file",
        param="model",
    )


#: Endings of names under which quantised copies of a model are published.
_SUFFIXES = {
    "-fp8": "fp8",
    "-fp8-dynamic": "fp8",
    "-awq": "awq",
    "-gptq": "gptq",
    "-gptq-int4": "gptq",
    "-int4": "awq",
    "-bnb-4bit": "bitsandbytes",
}


def _in_table(model: str) -> ModelShape | None:
    name = _plain_name(model)
    known = known_models()
    if name in known:
        return known[name]
    for suffix, precision in _SUFFIXES.items():
        base = known.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if base is not None:
            return with_precision(base, precision)
    return None


def shape_from_folder(folder: Path) -> ModelShape:
    """Read a model folder: its config.json and, where the index is there, the bytes of its weights."""
    config = folder / "config.json"
    if not config.is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            return shape_from_gguf(ggufs[0])
        raise NotFound(f"no config.json in {folder}", code="unknown_model", param="model")
    if config.stat().st_size > _CONFIG_LIMIT:
        raise InvalidInput(f"{config} is too large for a config", code="bad_model_config", param="model")
    shape = shape_from_config(
        _parse_config(config.read_text("utf-8", "replace"), str(config)), name=str(folder)
    )
    return replace(shape, stored_bytes=_indexed_bytes(folder))


def _indexed_bytes(folder: Path) -> int | None:
    index = folder / "model.safetensors.index.json"
    if index.is_file() and index.stat().st_size <= 16 * _CONFIG_LIMIT:
        try:
            size = json.loads(index.read_text("utf-8"))["metadata"]["total_size"]
        except (ValueError, KeyError, TypeError):
            return None
        return int(size) if isinstance(size, (int, float)) and size > 0 else None
    files = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return sum(files) or None


def _parse_config(text: str, where: str) -> dict[str, Any]:
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
    text = config.get("text_config") or config.get("llm_config") or config
    if not isinstance(text, dict):
        text = config
    c = _Config(text, name)
    layers, hidden = c.number("num_hidden_layers", "n_layer"), c.number("hidden_size", "n_embd")
    heads = c.number("num_attention_heads", "n_head")
    if min(layers, hidden, heads) < 1:
        raise InvalidInput(f"the config of {name} has a size of 0", code="bad_model_config", param="model")
    ffn = c.number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    bits = _DTYPE_BITS.get(
        str(text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype")), 16.0
    )
    architectures = [str(a) for a in config.get("architectures") or []]
    shape = ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=c.number("num_key_value_heads", default=heads) or heads,
        head_dim=c.number("head_dim", default=hidden // heads) or hidden // heads,
        vocab=c.number("vocab_size"),
        ffn=ffn,
        gated=str(text.get("hidden_act", text.get("hidden_activation", "gelu")))
        in {"silu", "swish", "gelu_pytorch_tanh"},
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        max_context=c.number("max_position_embeddings", "n_positions", "seq_length", default=4096),
        bits=min(bits, 16.0),  # vLLM casts float32 weights to 16 bits
        weight_bits=min(bits, 16.0),
        is_embedding=bool(architectures) and not any(_generates(a) for a in architectures),
    )
    return _with_quantisation(_with_attention(_with_experts(shape, c), c), config)


def _generates(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _with_experts(shape: ModelShape, c: _Config) -> ModelShape:
    experts = c.number("num_local_experts", "num_experts", "n_routed_experts", default=0)
    if experts < 2:
        return shape
    expert_ffn = c.number("moe_intermediate_size", default=shape.ffn) or shape.ffn
    shared = c.number("shared_expert_intermediate_size", default=0)
    shared = shared or c.number("n_shared_experts", default=0) * expert_ffn
    return replace(
        shape,
        experts=experts,
        experts_per_token=max(c.number("num_experts_per_tok", "experts_per_token", default=2), 1),
        expert_ffn=expert_ffn,
        shared_ffn=shared,
        dense_layers=min(c.number("first_k_dense_replace", default=0), shape.layers),
    )


def _with_attention(shape: ModelShape, c: _Config) -> ModelShape:
    rank = c.number("kv_lora_rank", default=0)
    if rank:
        nope, rope = c.number("qk_nope_head_dim", default=128), c.number("qk_rope_head_dim", default=64)
        query = c.number("q_lora_rank", default=0)
        return replace(shape, mla_rank=rank + rope, query_rank=query, head_dim=nope + rope)
    window = c.number("sliding_window", default=0)
    if not window or c.raw.get("use_sliding_window") is False:
        return shape
    kinds = c.raw.get("layer_types")
    if isinstance(kinds, list):
        sliding = sum(kind == "sliding_attention" for kind in kinds)
    else:
        pattern = c.number("sliding_window_pattern", default=0)
        sliding = shape.layers - shape.layers // pattern if pattern else shape.layers
    return replace(shape, sliding_window=window, sliding_layers=min(sliding, shape.layers))


def _with_quantisation(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict):
        return shape
    method = str(quantisation.get("quant_method", "")).lower()
    if method == "bitsandbytes" and quantisation.get("load_in_8bit"):
        method = "int8"
    bits = QUANTISED_BITS.get(method)
    if bits is None:
        raise InvalidInput(
            f"quantisation {method!r} of {shape.name} is not known",
            code="unknown_quantisation",
            next_step=f"known are {', '.join(sorted(QUANTISED_BITS))}",
            param="model",
        )
    stated = quantisation.get("bits")
    if isinstance(stated, (int, float)) and method in {"awq", "gptq"} and stated:
        bits = float(stated) + 0.16
    if method == "compressed-tensors":
        bits = _compressed_bits(quantisation)
    if method == "modelopt" and "FP4" in str(quantisation.get("quant_algo", "")).upper():
        bits = 4.5
    return replace(shape, quantisation=method, weight_bits=bits, only_experts_quantised=method == "mxfp4")


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


@cache
def known_models() -> Mapping[str, ModelShape]:
    """The table of well-known models, by plain lower-case name."""
    text = resources.files("tandemn.placement").joinpath("known_models.toml").read_text("utf-8")
    known: dict[str, ModelShape] = {}
    for row in tomllib.loads(text)["model"]:
        names = [row["name"], *row.pop("aliases", [])]
        bits = row.pop("bits", None) or 16.0
        quantised = row.get("quantisation")
        weight_bits = row.pop("weight_bits", None) or (QUANTISED_BITS[quantised] if quantised else bits)
        shape = ModelShape(**row, bits=bits, weight_bits=weight_bits, source="table")
        known |= {_plain_name(name): shape for name in names}
    return known


#: Names that people and benchmarks give a precision, and the quantisation each one means.
_PRECISIONS = {
    "fp8": "fp8",
    "w8a8": "fp8",
    "int8": "int8",
    "w8a16": "int8",
    "awq": "awq",
    "gptq": "gptq",
    "int4": "awq",
    "w4a16": "awq",
    "mxfp4": "mxfp4",
    "fp4": "mxfp4",
    "bitsandbytes": "bitsandbytes",
    "nf4": "bitsandbytes",
}
_PLAIN_PRECISIONS = {"", "auto", "none", "bf16", "bfloat16", "fp16", "float16", "half"}


def with_precision(shape: ModelShape, precision: str) -> ModelShape:
    """Return the shape as it is when served at `precision`; a shape that is quantised already keeps its own.

    Raises:
        InvalidInput: the precision is not known.
    """
    name = precision.strip().lower()
    if name in _PLAIN_PRECISIONS or shape.quantisation is not None:
        return shape
    quantisation = _PRECISIONS.get(name)
    if quantisation is None:
        raise InvalidInput(
            f"precision {precision!r} is not known",
            code="unknown_quantisation",
            next_step=f"known are {', '.join(sorted(_PRECISIONS))}",
            param="quantization",
        )
    bits = QUANTISED_BITS[quantisation]
    return replace(shape, quantisation=quantisation, weight_bits=bits, stored_bytes=None)


def canonical_name(model: str) -> str:
    """The name under which a model's measurements are kept: the table's, else the plain lower-case one."""
    known = known_models().get(_plain_name(model))
    return _plain_name(known.name) if known else _plain_name(model)


def _plain_name(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
