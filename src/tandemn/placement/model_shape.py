"""The sizes of a model, and what follows from them: weights, caches and states, in parameters and bytes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Bits of one weight, by the name that `quantization_config.quant_method` (or GGUF) gives, where the
#: config does not say. Scales are counted in: fp8 has one fp32 per 128x128 block (negligible), awq and gptq
#: one fp16 scale and one 4-bit zero per 128 weights, mxfp4 one byte per 32 weights, nvfp4 one per 16, nf4 one fp32 per 64.
QUANTISED_BITS: Mapping[str, float] = {
    "fp8": 8.0,
    "fbgemm_fp8": 8.0,
    "ptpc_fp8": 8.0,
    "compressed-tensors": 8.0,
    "modelopt": 8.0,
    "awq": 4.16,
    "gptq": 4.16,
    "auto-round": 4.16,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "bitsandbytes": 4.5,
    "int8": 8.0,
}
#: Four-bit formats that are floating-point numbers; the others are integers.
FOUR_BIT_FLOATS = frozenset({"mxfp4", "nvfp4", "modelopt"})


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
    expert_hidden: int = 0
    """Width on which the routed experts work, where it is not the model's: each layer projects to it and back."""
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
    kv_width: int = 0
    """Elements that one token leaves in one layer's cache; 0: keys and values of `kv_heads` heads of `head_dim`."""
    full_kv_width: int = 0
    """The same of a layer whose attention sees everything, in a model with windows; 0: as the others."""
    has_query_gate: bool = False
    """Whether the query's projection makes a gate of its own width, too."""
    mixers: int | None = None
    """Layers that have an attention or a recurrence; None: all. In some hybrids a layer is one or a feed-forward one."""
    recurrent_layers: int = 0
    """Mixers that keep a state of fixed size instead of a cache (linear attention, Mamba)."""
    recurrent_params: int = 0
    """Weights of one such layer's mixer."""
    state_bytes: int = 0
    """Of one such layer and sequence."""
    states: int = 2
    """States that a sequence has in such a layer: vLLM keeps one more to share prefixes, and of Mamba 2 another in prefill."""
    ffn_layers: int | None = None
    """Layers with a dense feed-forward part; None: all that are no mixture of experts."""
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
        query = self.hidden * self.heads * self.head_dim
        kv = self.hidden * (self.kv_width or 2 * self.kv_heads * self.head_dim)
        return (3 if self.has_query_gate else 2) * query + kv

    def _ffn_params(self, width: int) -> int:
        return self._matrices * self.hidden * width

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_layers(self) -> int:
        """Layers that have a cache."""
        return (self.layers if self.mixers is None else self.mixers) - self.recurrent_layers

    def dense_params(self) -> int:
        """Weights that every token passes, without the embeddings and the routed experts."""
        dense = self.layers - self.moe_layers if self.ffn_layers is None else self.ffn_layers
        router = self.hidden * (self.experts + 2 * self.expert_hidden)
        moe = self.moe_layers * (self._ffn_params(self.shared_ffn) + router)
        mixers = (
            self.attention_layers * self.attention_params() + self.recurrent_layers * self.recurrent_params
        )
        return mixers + dense * self._ffn_params(self.ffn) + moe

    def expert_params(self) -> int:
        """Weights of all routed experts of all layers."""
        width = self.expert_hidden or self.hidden
        return self.moe_layers * self.experts * self._matrices * width * self.expert_ffn

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
            padding = self.expert_bytes() - self.expert_params() * self.weight_bits / 8
            return self.stored_bytes + padding
        dense = self.dense_params() * self.dense_bits() + self.embedding_params() * self.bits
        return dense / 8 + self.expert_bytes()

    def expert_bytes(self, shards: int = 1) -> float:
        """Bytes of all routed experts together, as the kernels lay them out where each is split over so many GPUs."""
        padded = 1.0
        if self.quantisation == "mxfp4" and self.expert_ffn:
            # vLLM's mxfp4 kernels (Marlin, TRT-LLM) round a matrix's sides up to 256 and 128.
            width = -(-self.expert_ffn // shards)
            padded = _up(self.hidden, 256) / self.hidden * _up(width, 128) * shards / self.expert_ffn
        return self.expert_params() * self.weight_bits / 8 * padded

    def kv_bytes(self, tokens: float, kv_bits: float | None = None, *, ahead: float = 0.0) -> float:
        """Bytes of the cache and states of one sequence of `tokens`, all layers, over all TP ranks without replication.

        Args:
            tokens: of the sequence.
            kv_bits: of a cached element; None: as the activations.
            ahead: tokens that a window keeps beyond itself, while a prompt is read in pieces of so many.
        """
        if self.is_embedding:
            return 0.0
        width = self.mla_rank or self.kv_width or 2 * self.kv_heads * self.head_dim
        full = (self.attention_layers - self.sliding_layers) * (self.full_kv_width or width) * tokens
        windowed = self.sliding_layers * width * min(tokens, (self.sliding_window or tokens) + ahead)
        return (full + windowed) * (
            kv_bits or self.bits
        ) / 8 + self.recurrent_layers * self.states * self.state_bytes


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
