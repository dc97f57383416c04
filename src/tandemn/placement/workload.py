"""What a job asks for: how many requests, and how long they and their answers are, in tokens.

Submit counts lines and characters anyway, and tokens of a sample where the model's tokenizer is at hand; this turns
those counts into token distributions, else by a stated ratio of characters to tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters of a token of English text in tokenizers of 100,000 words and more (Llama 3, Qwen, GPT-4o: 4.2-4.6);
#: lower than measured, because other languages and code have shorter tokens and too many tokens is the safe side.
CHARACTERS_PER_TOKEN = 3.8
#: Tokens that a chat template adds around one message's text.
TEMPLATE_TOKENS = 12
#: Share of `max_tokens` that answers use on average where nothing is known of them.
ANSWER_SHARE = 0.6
#: Answer length where a request states no limit, and the most that is planned for then.
DEFAULT_ANSWER, DEFAULT_ANSWER_LIMIT = 400, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of tokens per request."""

    mean: float
    p50: float
    p95: float
    largest: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Lengths:
        """Summarise `values`; all 0 where there are none."""
        ordered = sorted(values)
        if not ordered:
            return cls(mean=0.0, p50=0.0, p95=0.0, largest=0)
        return cls(
            mean=math.fsum(ordered) / len(ordered),
            p50=_quantile(ordered, 0.5),
            p95=_quantile(ordered, 0.95),
            largest=math.ceil(ordered[-1]),
        )

    def scaled(self, factor: float) -> Lengths:
        return Lengths(
            mean=self.mean * factor,
            p50=self.p50 * factor,
            p95=self.p95 * factor,
            largest=math.ceil(self.largest * factor),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A job's requests, in tokens."""

    requests: int
    input_tokens: Lengths
    output_tokens: Lengths
    """Expected answers; their largest is the largest that is allowed. All 0 for embeddings."""
    basis: str
    """How the tokens were counted, for people."""
    is_embedding: bool = False
    context_limit: int | None = None
    """The model's own, where some requests ask for more than that."""

    @property
    def context(self) -> int:
        """Tokens that the longest request that can be answered and its answer may take together."""
        asked = self.input_tokens.largest + self.output_tokens.largest
        return asked if self.context_limit is None else min(asked, self.context_limit)

    @property
    def total_tokens(self) -> float:
        return self.requests * (self.input_tokens.mean + self.output_tokens.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitCounts:
    """What submit counted while it read the file."""

    requests: int
    characters: Lengths
    """Of a request's prompt or messages."""
    answer_limits: Lengths
    """`max_tokens` of those requests that state it."""
    with_limit: int
    """How many state it."""
    messages_mean: float = 1.0
    tokens_per_character: float | None = None
    """By the model's own tokenizer on `counted` prompts; None: it is not at hand."""
    counted: int = 0
    longest_tokens: int | None = None
    """Of the prompt with the most characters, by the same."""
    is_embedding: bool = False


def workload_of(counts: SubmitCounts, *, max_output_tokens: int | None = None) -> Workload:
    """Turn counts into tokens.

    Args:
        counts: what submit counted.
        max_output_tokens: the user's limit on every answer.

    Raises:
        InvalidInput: there are no requests.
    """
    if counts.requests < 1:
        raise InvalidInput("the input has no requests", code="empty_input", param="input")
    ratio, basis = _tokens_per_character(counts)
    template = TEMPLATE_TOKENS * counts.messages_mean
    plain = counts.characters.scaled(ratio)
    input_tokens = Lengths(
        mean=plain.mean + template,
        p50=plain.p50 + template,
        p95=plain.p95 + template,
        largest=math.ceil((counts.longest_tokens or plain.largest) + template),
    )
    if counts.is_embedding:
        output, said = Lengths.of(()), "embeddings have no answer"
    else:
        output, said = _answers(counts, max_output_tokens)
    return Workload(
        requests=counts.requests,
        input_tokens=input_tokens,
        output_tokens=output,
        basis=f"{basis}; {said}",
        is_embedding=counts.is_embedding,
    )


def within_context(workload: Workload, max_context: int) -> tuple[Workload, str | None]:
    """Plan no longer context than the model has, and say so where some requests ask for more.

    Where even the usual prompt is too long, nothing is taken off: such a job is refused.
    """
    if workload.context <= max_context or workload.input_tokens.p50 >= max_context:
        return workload, None
    longest, answer = workload.input_tokens.largest, workload.output_tokens.largest
    told = (
        f"the longest prompt has about {longest:,} tokens and an answer may have {answer:,}, the model's context is "
        f"{max_context:,}: what does not fit becomes an error line"
    )
    return replace(workload, context_limit=max_context), told


def _tokens_per_character(counts: SubmitCounts) -> tuple[float, str]:
    if counts.tokens_per_character:
        return counts.tokens_per_character, f"the model's tokenizer on {counts.counted} prompts"
    return 1 / CHARACTERS_PER_TOKEN, f"{CHARACTERS_PER_TOKEN} characters a token (estimate)"


def _answers(counts: SubmitCounts, limit: int | None) -> tuple[Lengths, str]:
    share = counts.with_limit / counts.requests
    stated = counts.answer_limits.scaled(ANSWER_SHARE)
    mean = share * stated.mean + (1 - share) * DEFAULT_ANSWER
    largest = (
        counts.answer_limits.largest
        if share == 1
        else max(counts.answer_limits.largest, DEFAULT_ANSWER_LIMIT)
    )
    if limit is not None:
        mean, largest = min(mean, ANSWER_SHARE * limit), limit
    lengths = Lengths(
        mean=max(mean, 1.0),
        p50=max(min(mean, largest), 1.0),
        p95=float(min(stated.p95 / ANSWER_SHARE if share else DEFAULT_ANSWER_LIMIT, largest)),
        largest=max(largest, 1),
    )
    return lengths, f"answers of {lengths.mean:.0f} tokens (estimate)"


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]
