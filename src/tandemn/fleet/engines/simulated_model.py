"""What the simulated engine answers: a language model of one line. Pure.

A token is a byte, and the end; the next one depends on a hash of all before it, the seed and the model's
name. So the same prompt always has the same answer, whoever asks and however often an answer is cut and
continued. The hash is the prefix as a number modulo a prime: long prompts are read at the speed of C.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

END_TOKEN = 256
#: A prime below 2**61, so that products stay small integers for the interpreter.
MODULUS = (1 << 61) - 1
#: Odd constant that spreads neighbouring hashes (from the golden ratio).
SPREAD = 0x9E3779B97F4A7C15
FIRST_PRINTABLE, PRINTABLES = 0x20, 95
#: One token in this many ends an answer.
MEAN_LENGTH = 2000


class Text:
    """A prefix of known hash that can be continued."""

    __slots__ = ("_hash",)

    def __init__(self, seed: int, model: str, prefix: bytes) -> None:
        start = int.from_bytes(hashlib.blake2b(f"{seed} {model}".encode(), digest_size=7).digest())
        scale = pow(256, len(prefix), MODULUS)
        self._hash = (start * scale + int.from_bytes(prefix)) % MODULUS

    def tokens(self) -> Iterator[int]:
        """Yield the answer: printable ASCII, and once END_TOKEN."""
        state = self._hash
        while True:
            mixed = ((state * SPREAD) >> 17) & 0xFFFFFFFF
            if mixed % MEAN_LENGTH == 0:
                yield END_TOKEN
                return
            token = FIRST_PRINTABLE + (mixed >> 8) % PRINTABLES
            yield token
            state = (state * 256 + token) % MODULUS


def render_chat(messages: Sequence[Mapping[str, object]], *, continue_final_message: bool) -> bytes:
    """Return the prompt of a chat; the last message is left open where it is to be continued."""
    rendered = "".join(f"{message['role']}: {_text(message.get('content'))}\n" for message in messages)
    if continue_final_message:
        return rendered[:-1].encode(errors="replace")
    return f"{rendered}assistant: ".encode(errors="replace")


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def embedding(seed: int, model: str, prefix: bytes, dimensions: int) -> list[float]:
    """Return a vector of length 1 that depends on the text alone."""
    key = f"{seed} {model}".encode()[:64]
    digest = hashlib.shake_256(key + b"\0" + prefix).digest(dimensions)
    values = [byte - 127.5 for byte in digest]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]
