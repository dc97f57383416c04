"""Validate a job's input as it streams by, in bounded memory, and collect what planning and splitting need.

Eight bytes a request are kept for its position and eight for a hash of its `custom_id`. Equal hashes are
suspected, not believed: a second pass over the input compares them by another hash of the same ids, so that
128 bits stand between two ids and a false verdict. Nothing here reads a store; see `input_process.py`.
"""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tandemn.batch.line_rules import (
    DECODE,
    LINE_ERRORS,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    LineCode,
    LineError,
    Wrong,
    explain,
)
from tandemn.batch.prompt_tokens import PromptSample, PromptTokens
from tandemn.batch.request_line import (
    MAX_LINE_BYTES,
    UTF8_BOM,
    LineSplitter,
    is_blank,
)
from tandemn.batch.split import LineIndex

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: Errors that are told one by one; the rest is counted.
MAX_ERRORS = 1000
#: Distinct models that are told.
MAX_MODELS = 8
#: Buckets of the length histogram for each doubling: its quantiles are right within 5%.
_BUCKETS_PER_DOUBLING = 8
_BUCKETS = 64 * _BUCKETS_PER_DOUBLING
#: What a token id of a prompt counts for, so that all prompts are measured alike.
_CHARS_PER_TOKEN = 4
#: Output limits from here on are taken for mistakes.
_LIMIT_SANE = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLengths:
    """Length of the requests' prompts in characters; a token id counts as four."""

    mean: float
    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLimits:
    """`max_tokens` or `max_completion_tokens` as the requests give them."""

    given: int
    """Requests that give one."""
    mean: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """What an input is, and what is wrong with it."""

    requests: int
    bytes: int
    url: str | None
    """The endpoint that all requests name."""
    models: tuple[str, ...]
    """Models that they name, a few at most."""
    has_unnamed_model: bool
    """Whether some name none."""
    prompt_chars: PromptLengths
    messages_mean: float
    """Messages of a chat; 1 of other requests."""
    prompt_tokens: PromptTokens | None = None
    """What the model's tokenizer said, where it was at hand."""
    output_limits: OutputLimits
    has_images: bool
    skipped: int
    """Lines that are no requests, left out as asked."""
    errors: tuple[LineError, ...]
    """In the order of the lines, the first of them only."""
    error_count: int

    @property
    def is_valid(self) -> bool:
        """Whether a job may run on it."""
        return self.requests > 0 and (self.error_count == 0 or self.skipped > 0)


class InputValidator:
    """Feed it the blocks of an input, `end` it, and where `needs_second_pass` says so, all of them once more.

    Args:
        skip_invalid: leave bad lines out rather than refuse the input; they are reported all the same.
        max_errors: how many errors are told one by one.
        keeps_sample: keep some prompts, for a tokenizer that `finish` is given.
    """

    def __init__(
        self, *, skip_invalid: bool = False, max_errors: int = MAX_ERRORS, keeps_sample: bool = False
    ) -> None:
        self._skip_invalid = skip_invalid
        self._errors = _Errors(max_errors)
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._is_discarding = False
        self._position = 0
        self._line = 0
        self._url: str | None = None
        self._starts = array("Q")
        self._hashes = array("q")
        self._skipped = array("Q")
        self._facts = _Facts(PromptSample() if keeps_sample else None)
        self._bytes = 0
        self._repeats: _Repeats | None = None

    def feed(self, block: bytes) -> None:
        """Check the lines that end in the block."""
        self._bytes += len(block)
        if self._is_discarding:
            cut = block.find(b"\n")
            if cut < 0:
                self._position += len(block)
                return
            self._is_discarding = False
            self._position += cut + 1
            block = block[cut + 1 :]
        cut = block.rfind(b"\n")
        if cut >= 0:
            lines = b"".join((*self._rest, block[:cut]))
            self._rest, self._rest_bytes = [], 0
            self._check(lines)
        self._keep(block[cut + 1 :])

    def end(self) -> None:
        """Check the last line, and the file as a whole."""
        if self._rest_bytes:
            self._check(b"".join(self._rest))
            self._rest = []
        if not self._starts and not self._errors.count:
            self._errors.add(0, Wrong(LineCode.EMPTY_FILE, "the input holds no requests"))
        flagged = _suspects(self._hashes)
        if len(flagged):
            self._repeats = _Repeats(flagged, np.frombuffer(self._starts, np.uint64)[flagged])

    @property
    def needs_second_pass(self) -> bool:
        """Whether ids seem to repeat: feed all blocks to `confirm` then."""
        return self._repeats is not None

    def confirm(self, block: bytes) -> None:
        """Second pass: look again at the requests whose ids seem to repeat."""
        assert self._repeats is not None, "only where needs_second_pass says so"
        self._repeats.feed(block)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that the lines name, a few at most."""
        return tuple(self._facts.models)

    def finish(self, tokenizer: Path | None = None) -> tuple[InputReport, LineIndex]:
        """What was found, after `end` and the second pass; `tokenizer` counts the sample's tokens."""
        starts = np.frombuffer(self._starts, np.uint64)
        skipped = np.frombuffer(self._skipped, np.uint64)
        if self._repeats is not None:
            repeated = self._report_repeats(self._repeats, np.frombuffer(self._hashes, np.int64))
            self._repeats = None
            skipped = np.sort(np.concatenate([skipped, starts[repeated]]))
            starts = np.delete(starts, repeated)
        index = LineIndex(starts=starts, skipped=skipped, end=self._bytes)
        report = InputReport(
            requests=len(starts),
            bytes=self._bytes,
            url=self._url,
            models=self.models,
            has_unnamed_model=self._facts.has_unnamed_model,
            prompt_chars=self._facts.prompt_lengths(),
            messages_mean=self._facts.messages_mean(),
            prompt_tokens=self._facts.prompt_tokens(tokenizer),
            output_limits=self._facts.output_limits(),
            has_images=self._facts.has_images,
            skipped=len(skipped) if self._skip_invalid else 0,
            errors=self._errors.told(),
            error_count=self._errors.count,
        )
        return report, index

    def _keep(self, tail: bytes) -> None:
        """Hold the beginning of a line until its end comes, or forget it where it is too long."""
        self._rest.append(tail)
        self._rest_bytes += len(tail)
        if self._rest_bytes <= MAX_LINE_BYTES:
            return
        self._line += 1
        self._refuse(self._position, _too_long())
        self._position += self._rest_bytes
        self._rest, self._rest_bytes = [], 0
        self._is_discarding = True

    def _check(self, data: bytes) -> None:
        """Check whole lines, joined by LF."""
        if self._position == 0 and data.startswith(UTF8_BOM):
            data = data[len(UTF8_BOM) :]
            self._position = len(UTF8_BOM)
        is_utf8 = _is_utf8(data)
        lines = data.split(b"\n")
        del data
        if self._url is None:
            self._url = next((url for line in lines if (url := _endpoint_of(line))), None)
        parsed, positions = None, None
        if is_utf8 and self._url is not None and len(max(lines, key=len)) <= MAX_LINE_BYTES:
            with contextlib.suppress(*LINE_ERRORS):
                parsed = list(map(DECODE[self._url], lines))
                lengths = np.fromiter(map(len, lines), np.uint64, len(lines))
                positions = (
                    np.cumsum(lengths + np.uint64(1)) - lengths - np.uint64(1) + np.uint64(self._position)
                )
                self._line += len(lines)
                self._position += int(lengths.sum()) + len(lines)
        if parsed is None or positions is None:
            parsed, positions = self._sift(lines)
        self._starts.frombytes(positions.tobytes())
        self._hashes.extend([hash(line.custom_id) for line in parsed])
        self._facts.add([line.body for line in parsed])

    def _sift(self, lines: list[bytes]) -> tuple[list[Any], NDArray[np.uint64]]:
        """Judge the lines one by one: something is wrong with one of them, or it is blank."""
        good: list[Any] = []
        positions: list[int] = []
        for line in lines:
            self._line += 1
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise _too_long()
                if self._url is None or not _is_utf8(line):
                    raise explain(line, self._url)
                good.append(DECODE[self._url](line))
                positions.append(self._position)
            except Wrong as wrong:
                if not is_blank(line):
                    self._refuse(self._position, wrong)
            except LINE_ERRORS:
                if not is_blank(line):
                    self._refuse(self._position, explain(line, self._url))
            self._position += len(line) + 1
        return good, np.array(positions, np.uint64)

    def _refuse(self, position: int, wrong: Wrong) -> None:
        self._errors.add(self._line, wrong)
        self._skipped.append(position)

    def _report_repeats(self, repeats: _Repeats, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tell the repeated ids; return the positions of their requests among all."""
        again, first = repeats.pairs(hashes)
        for line, first_line in zip(
            repeats.lines[again].tolist(), repeats.lines[first].tolist(), strict=True
        ):
            message = f"`custom_id` is the same as in line {first_line}"
            self._errors.add(line, Wrong(LineCode.DUPLICATE_CUSTOM_ID, message, "custom_id"))
        return repeats.flagged[again]


class _Errors:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._told: list[LineError] = []
        self.count = 0

    def add(self, line: int, wrong: Wrong) -> None:
        self.count += 1
        if len(self._told) < self._limit:
            self._told.append(LineError(line=line, code=wrong.code, message=wrong.message, param=wrong.param))

    def told(self) -> tuple[LineError, ...]:
        return tuple(sorted(self._told, key=lambda error: error.line))


class _Facts:
    """What planning wants to know of the requests, folded into a few numbers block by block."""

    def __init__(self, sample: PromptSample | None) -> None:
        self.models: list[str] = []
        self.has_unnamed_model = False
        self.has_images = False
        self._sample = sample
        self._histogram = np.zeros(_BUCKETS, np.int64)
        self._length_sum = 0
        self._length_max = 0
        self._message_count = 0
        self._limit_count = 0
        self._limit_sum = 0
        self._limit_max = 0

    def add(self, bodies: list[Any]) -> None:
        """Fold in the bodies of one block, all of one endpoint."""
        if not bodies:
            return
        self._add_models({body.model for body in bodies})
        if isinstance(bodies[0], ChatBody):
            lengths = np.array([self._chat_length(body.messages) for body in bodies], np.int64)
            self._message_count += sum([len(body.messages) for body in bodies])
        else:
            texts = [body.prompt if isinstance(body, CompletionBody) else body.input for body in bodies]
            lengths = np.array(list(map(_text_length, texts)), np.int64)
            self._message_count += len(bodies)
        self._add_lengths(lengths)
        if self._sample is not None:
            self._sample.add(bodies, lengths, _prompt_text)
        if not isinstance(bodies[0], EmbeddingBody):
            limits = [
                body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
                for body in bodies
            ]
            # What is no sensible number is the engine's to refuse.
            self._add_limits([n for n in limits if type(n) is int and 0 <= n < _LIMIT_SANE])

    def prompt_lengths(self) -> PromptLengths:
        count = int(self._histogram.sum())
        if not count:
            return PromptLengths(mean=0.0, p50=0, p95=0, max=0)
        reached = np.cumsum(self._histogram)
        p50, p95 = (int(np.searchsorted(reached, count * share)) for share in (0.5, 0.95))
        return PromptLengths(
            mean=self._length_sum / count,
            p50=_bucket_middle(p50),
            p95=_bucket_middle(p95),
            max=self._length_max,
        )

    def messages_mean(self) -> float:
        count = int(self._histogram.sum())
        return self._message_count / count if count else 1.0

    def prompt_tokens(self, tokenizer: Path | None) -> PromptTokens | None:
        return self._sample.count(tokenizer) if self._sample is not None and tokenizer is not None else None

    def output_limits(self) -> OutputLimits:
        count = self._limit_count
        return OutputLimits(given=count, mean=self._limit_sum / count if count else 0.0, max=self._limit_max)

    def _add_models(self, models: set[Any]) -> None:
        self.has_unnamed_model |= msgspec.UNSET in models
        new = models.difference(self.models, (msgspec.UNSET,))
        self.models.extend(sorted(new)[: MAX_MODELS - len(self.models)])

    def _add_lengths(self, lengths: NDArray[np.int64]) -> None:
        buckets = (np.log2(lengths + 1) * _BUCKETS_PER_DOUBLING).astype(np.int64)
        self._histogram += np.bincount(buckets, minlength=_BUCKETS)
        self._length_sum += int(lengths.sum())
        self._length_max = max(self._length_max, int(lengths.max()))

    def _add_limits(self, limits: list[int]) -> None:
        if limits:
            self._limit_count += len(limits)
            self._limit_sum += sum(limits)
            self._limit_max = max(self._limit_max, *limits)

    def _chat_length(self, messages: list[Any]) -> int:
        if len(messages) == 1 and type(messages[0].content) is str:
            return len(messages[0].content)
        length = 0
        for message in messages:
            if isinstance(message.content, str):
                length += len(message.content)
            elif isinstance(message.content, list):
                length += self._parts_length(message.content)
        return length

    def _parts_length(self, parts: list[Any]) -> int:
        length = 0
        for part in parts:
            if isinstance(part, dict):
                text = part.get("text")
                length += len(text) if isinstance(text, str) else 0
                self.has_images |= "image" in str(part.get("type", ""))
        return length


class _Repeats:
    """The requests whose ids seem to repeat, looked at again."""

    def __init__(self, flagged: NDArray[np.int64], starts: NDArray[np.uint64]) -> None:
        self.flagged = flagged
        """Positions among all requests, ascending."""
        self.lines = np.zeros(len(flagged), np.int64)
        self._starts = starts
        self._second = np.zeros(len(flagged), np.int64)
        self._seen = 0
        self._line = 0
        self._splitter = LineSplitter()
        self._next = int(starts[0])

    def feed(self, block: bytes) -> None:
        for position, line in self._splitter.feed(block):
            self._look(position, line)

    def pairs(self, hashes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the flagged repeat an id, and which of them had it first; ascending."""
        for position, line in self._splitter.end():
            self._look(position, line)
        first_hashes = hashes[self.flagged]
        order = np.lexsort((self._second, first_hashes))  # stable: within a group in input order
        is_new = np.ones(len(order), bool)
        is_new[1:] = (first_hashes[order][1:] != first_hashes[order][:-1]) | (
            self._second[order][1:] != self._second[order][:-1]
        )
        leader = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
        again = order[~is_new]
        ascending = np.argsort(again)
        return again[ascending], leader[~is_new][ascending]

    def _look(self, position: int, line: bytes) -> None:
        self._line += 1
        if position != self._next or not line:
            return
        self.lines[self._seen] = self._line
        self._second[self._seen] = hash(_custom_id(line) + "\0")  # another string, so another hash
        self._seen += 1
        if self._seen < len(self._starts):
            self._next = int(self._starts[self._seen])


def _suspects(hashes: array[int]) -> NDArray[np.int64]:
    """Positions of the hashes that occur more than once, ascending."""
    given = np.frombuffer(hashes, np.int64)
    ordered = np.sort(given)
    if not np.any(ordered[1:] == ordered[:-1]):
        return np.empty(0, np.int64)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.flatnonzero(np.isin(given, repeated))


class _Id(msgspec.Struct, gc=False):
    custom_id: str


_ID = msgspec.json.Decoder(_Id)


def _custom_id(line: bytes) -> str:
    try:
        return _ID.decode(line).custom_id
    except LINE_ERRORS:
        return ""  # the input changed under us: whoever reads it next says so


def _endpoint_of(line: bytes) -> str | None:
    for url, decode in DECODE.items():
        with contextlib.suppress(*LINE_ERRORS):
            decode(line)
            return url
    return None


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _too_long() -> Wrong:
    return Wrong(LineCode.LINE_TOO_LONG, f"the line is longer than {MAX_LINE_BYTES:,} bytes")


def _prompt_text(body: Any) -> str:
    """All text of a request's prompt; token ids have none."""
    if isinstance(body, ChatBody):
        return "\n".join(filter(None, (_message_text(message.content) for message in body.messages)))
    text = body.prompt if isinstance(body, CompletionBody) else body.input
    return text if isinstance(text, str) else "\n".join(item for item in text if isinstance(item, str))


def _message_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _text_length(text: Any) -> int:
    if isinstance(text, str):
        return len(text)
    return sum(len(item) if isinstance(item, str) else _tokens_length(item) for item in text)


def _tokens_length(tokens: int | list[int]) -> int:
    return _CHARS_PER_TOKEN * (1 if isinstance(tokens, int) else len(tokens))


def _bucket_middle(bucket: int) -> int:
    return round(2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING) - 1)
