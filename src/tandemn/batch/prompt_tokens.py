"""How many tokens an input's prompts have: the model's own tokenizer on a sample of them and on the longest.

Nothing is downloaded: the tokenizer is used where its file lies on this machine already and the package `tokenizers` is
installed. Elsewhere the placement estimates from characters. Memory is bounded: texts are kept of a sample and of one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandemn.hub.cache import cached_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

#: Prompts that are kept for the tokenizer, at most; half as many at least, where there are so many. Their mean is then within
#: some percent of all prompts'.
SAMPLE = 400
#: Characters of a sampled prompt that are kept: what follows has as many tokens a character.
_SAMPLED_CHARACTERS = 16_384
#: Characters of the longest prompt that are counted exactly, in a second or two; a longer one is scaled up.
_EXACT_CHARACTERS = 2_000_000
#: Largest tokenizer file that is read, in bytes; those of 260,000 words have some 35 million.
_FILE_LIMIT = 128 * 1024 * 1024
_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """What the model's tokenizer said."""

    per_character: float
    prompts: int
    """How many were counted."""
    longest: int
    """Of the prompt with the most characters, without the chat template."""


def can_count() -> bool:
    """Whether the package that reads tokenizers is installed."""
    return find_spec("tokenizers") is not None


def tokenizer_file(model: str, hub_cache: Path) -> Path | None:
    """Find the tokenizer of a model folder, or of a hub model that was downloaded before; None: it is not at hand."""
    folder = Path(model).expanduser()
    return _usable(folder / _FILE) if folder.is_dir() else cached_tokenizer(model, hub_cache)


def cached_tokenizer(model: str, hub_cache: Path) -> Path | None:
    """Find the tokenizer of a hub model that was downloaded before."""
    return _usable(cached_file(model, _FILE, hub_cache))


def _usable(file: Path | None) -> Path | None:
    try:
        return file if file is not None and file.is_file() and file.stat().st_size <= _FILE_LIMIT else None
    except OSError:
        return None


class PromptSample:
    """Prompts spread evenly over an input of unknown length, and its longest.

    Every `stride`-th is kept; where they become too many, every other one goes and the stride doubles.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.longest = ""
        self._longest_length = 0
        self._stride = 1
        self._seen = 0

    def add(self, bodies: Sequence[Any], lengths: NDArray[np.int64], text_of: Callable[[Any], str]) -> None:
        """Look at the bodies of one block.

        Args:
            bodies: the requests.
            lengths: characters of each one's prompt.
            text_of: returns a body's prompt; asked for few of them.
        """
        first = -self._seen % self._stride
        for position in range(first, len(bodies), self._stride):
            if (self._seen + position) % self._stride:
                continue  # the stride has doubled since
            if text := text_of(bodies[position])[:_SAMPLED_CHARACTERS]:
                self.texts.append(text)
            if len(self.texts) >= SAMPLE:
                self.texts = self.texts[::2]
                self._stride *= 2
        self._seen += len(bodies)
        longest = int(lengths.argmax())
        if lengths[longest] > self._longest_length:
            self._longest_length = int(lengths[longest])
            self.longest = text_of(bodies[longest])

    def count(self, file: Path) -> PromptTokens | None:
        """Count with the tokenizer in `file`; None where it cannot be read, or there is no text."""
        characters = sum(map(len, self.texts))
        count = _counter(file) if characters else None
        if count is None:
            return None
        tokens = sum(map(count, self.texts))
        exact = self.longest[:_EXACT_CHARACTERS]
        scale = len(self.longest) / len(exact) if exact else 0.0
        return PromptTokens(
            per_character=tokens / characters,
            prompts=len(self.texts),
            longest=round(count(exact) * scale),
        )


def _counter(file: Path) -> Callable[[str], int] | None:
    tokenizers = import_module("tokenizers")
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - the package raises nothing more exact, and an estimate does as well
        return None
    # A tokenizer's own settings may cut long texts or fill up short ones.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
