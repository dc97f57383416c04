"""The model `demo/tiny`: a four-layer llama with fixed random weights, written as GGUF on first use.

It speaks gibberish, really computed, and is made for tests that compare answers byte by byte:

- one token per byte and no merges, so text tokenises alike before and after a cut at any place;
- only printable ASCII and the end token are ever picked. Channel 0 of the residual stream is a positive
  constant that no layer writes to; through it the output layer gives every other token a hopeless score;
- the same prefix gives the same scores to the last bit, alone, in a batch and after a cut. Inner
  dimensions are no multiple of a vector register's width, which keeps llama.cpp off the matrix kernels
  that add in another order when several rows are computed at a time; and the attention scores are so
  steep that softmax gives one position all the weight, where the order of addition does not matter;
- answers do not run into a loop: each layer looks back by about its own number of tokens, which makes
  the whole a shift register with feedback.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from tandemn.fleet.engines.engine import DEMO_MODEL

if TYPE_CHECKING:
    import numpy.typing as npt

    Weights = npt.NDArray[np.float32]

#: Tokens of one request, prompt and answer together.
CONTEXT = 4096

#: The ids 0 to 255 are the bytes; this one ends an answer.
END_TOKEN = 256
#: Not spelled in ASCII, so that no answer can ever spell it.
END_TEXT = "«end»"
#: What chats are rendered with; it adds no special tokens, so a partial answer continues as plain text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

#: How many tokens each layer looks back, about; what the tokens are shifts it a little.
LOOK_BACK = (5, 17, 61, 211)
#: These three are two more than a multiple of 16: see above.
WIDTH = 66
HEAD = 34
FEED_FORWARD = 130
VOCABULARY = 257
PRINTABLE = range(0x20, 0x7F)

SEED = "tandemn demo/tiny"
#: Of the queries: next to never are the two best scores within 100 nats. Above 65,504 float16 ends.
STEEPNESS = 5_000.0
#: How much of a key is of its token; the rest is of its position.
KEY_CONTENT = 0.1
#: Lower than usual, so that one token more or less of distance makes a difference.
ROPE_BASE = 100.0
#: How far below the others a forbidden token scores, before the last normalisation.
FORBIDDEN = -1e6
#: The same for the end token: answers of some hundred tokens.
END_RELUCTANCE = -10.0


def ensure_demo_model(folder: Path) -> Path:
    """Return the model's file in `folder`, written now where it is not there yet.

    The file is named by a hash of this module, so that a changed recipe never meets an old file. Two
    processes may build at once: each renames a whole file of the same bytes into place.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = folder / f"demo-tiny-{recipe}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".demo-tiny-", suffix=".gguf", dir=folder)
    os.close(handle)
    try:
        write_demo_model(Path(name))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def write_demo_model(path: Path) -> None:
    """Write the model to `path`; the bytes are the same on every machine."""
    writer = gguf.GGUFWriter(path, "llama")
    _write_shape(writer)
    _write_vocabulary(writer)
    for name, weights in _tensors().items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_name(DEMO_MODEL)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(len(LOOK_BACK))
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _write_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([_byte_text(byte) for byte in range(256)] + [END_TEXT])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
    # llama.cpp wants a list of merges; this one is of characters that no byte is written as.
    writer.add_token_merges(["☃ ☃"])
    writer.add_eos_token_id(END_TOKEN)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _byte_text(byte: int) -> str:
    """Return the character that GPT-2's vocabulary writes `byte` as."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in plain:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in plain].index(byte))


def _tensors() -> dict[str, Weights]:
    tensors = {
        "token_embd.weight": _with_constant_channel(_random("embedding", VOCABULARY, WIDTH)),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": _output(),
    }
    for layer, look_back in enumerate(LOOK_BACK):
        tensors |= {f"blk.{layer}.{name}": weights for name, weights in _layer(layer, look_back).items()}
    return tensors


def _layer(layer: int, look_back: int) -> dict[str, Weights]:
    def weights(name: str, rows: int, columns: int) -> Weights:
        return _random(f"{layer} {name}", rows, columns) / np.float32(math.sqrt(columns))

    # Every query is the same, every key nearly: that query turned by the distance at which they agree.
    query = _random(f"{layer} query", HEAD, 1)[:, 0]
    queries = np.zeros((HEAD, WIDTH), np.float32)
    queries[:, 0] = query * np.float32(STEEPNESS)
    keys = weights("keys", HEAD, WIDTH) * np.float32(KEY_CONTENT)
    keys[:, 0] = _turned(query, look_back)
    return {
        "attn_norm.weight": np.ones(WIDTH, np.float32),
        "attn_q.weight": queries,
        "attn_k.weight": keys,
        "attn_v.weight": weights("values", HEAD, WIDTH),
        "attn_output.weight": _silent_in_channel_0(weights("attention", WIDTH, HEAD) * np.float32(2)),
        "ffn_norm.weight": np.ones(WIDTH, np.float32),
        "ffn_gate.weight": weights("gate", FEED_FORWARD, WIDTH),
        "ffn_up.weight": weights("up", FEED_FORWARD, WIDTH),
        "ffn_down.weight": _silent_in_channel_0(weights("down", WIDTH, FEED_FORWARD) * np.float32(2)),
    }


def _turned(vector: Weights, distance: int) -> Weights:
    """Turn `vector` as the rotary embedding turns it over `distance` positions (pairs of neighbours)."""
    angles = distance * ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    pairs = (vector[0::2] + 1j * vector[1::2]) * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], axis=1).reshape(-1).astype(np.float32)


def _output() -> Weights:
    rows = _random("output", VOCABULARY, WIDTH) * np.float32(3 / math.sqrt(WIDTH))
    rows[:, 0] = FORBIDDEN
    rows[PRINTABLE, 0] = 0
    rows[END_TOKEN, 0] = END_RELUCTANCE
    return rows


def _with_constant_channel(embedding: Weights) -> Weights:
    embedding[:, 0] = 1
    return embedding


def _silent_in_channel_0(weights: Weights) -> Weights:
    weights[0, :] = 0
    return weights


def _random(name: str, rows: int, columns: int) -> Weights:
    """Fixed numbers, even, of mean 0 and variance 1.

    From a hash and not from a generator of numpy, whose stream may change with its version.
    """
    digest = hashlib.shake_256(f"{SEED} {name}".encode()).digest(4 * rows * columns)
    even = np.frombuffer(digest, "<u4").astype(np.float64) / 2**32 - 0.5
    return (even * math.sqrt(12)).astype(np.float32).reshape(rows, columns)
