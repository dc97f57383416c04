"""Continue a broken stream on another backend: which ones, by what request, and how the seam is closed. Pure.

`read_ask` looks at a request before it is sent: is it a stream, can it be resumed, must token ids be asked for.
When the stream breaks, `continue_stream` decides from what the client has (`Progress`): go on by token ids where
they are known (exact), by text elsewhere, finish here where nothing is left, or refuse with a reason. A `Seam`
then turns the continuation's events into events of the first answer.

Two sources of truth meet at the seam: the client's text and the engine's tokens. Text may lag behind tokens
(held-back UTF-8, stop strings). A continuation therefore starts at a token whose text the client surely has in
full, and what is generated again (`overlap`) is compared with what was sent, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tandemn.router.seam import as_event, shaped, usage_event, usage_of
from tandemn.router.sse import DONE_EVENT
from tandemn.router.table import Engine

if TYPE_CHECKING:
    from tandemn.router.progress import Progress

CHAT: Final = b"/v1/chat/completions"
TEXT: Final = b"/v1/completions"

#: What an absent `max_tokens` means at `/v1/completions` (OpenAI's API, and vLLM).
TEXT_DEFAULT_MAX_TOKENS: Final = 16

#: Characters that a repetition must have to be recognised: a shorter one may be the answer going on.
MIN_ECHO: Final = 16

#: Fields that make an answer impossible to continue, where they have a value that says something.
_NEVER: Final = {
    "tools": "tools",
    "functions": "functions",
    "echo": "echo",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
    "prompt_logprobs": "logprobs",
    "response_format": "structured output",
    "structured_outputs": "structured output",
    "guided_json": "structured output",
    "guided_regex": "structured output",
    "guided_choice": "structured output",
    "guided_grammar": "structured output",
    "grammar": "structured output",
    "json_schema": "structured output",
    "presence_penalty": "penalties",
    "frequency_penalty": "penalties",
    "repetition_penalty": "penalties",
    "repeat_penalty": "penalties",
    "suffix": "suffix",
    "prompt_embeds": "prompt_embeds",
    "use_beam_search": "beam search",
    "truncate_prompt_tokens": "truncate_prompt_tokens",
    "logits_processors": "logits_processors",
    "audio": "audio",
}
#: Values with which those fields say nothing.
_NEUTRAL: Final = {
    "response_format": ({"type": "text"},),
    "repetition_penalty": (1, 1.0),
    "repeat_penalty": (1, 1.0),
    "top_logprobs": (),
}


class _Peek(msgspec.Struct):
    """The few fields that decide before a request is sent; the rest is not even parsed."""

    stream: bool = False
    n: int | None = None
    best_of: int | None = None
    return_token_ids: bool | msgspec.UnsetType | None = msgspec.UNSET
    # Raw cannot be part of a union: absent is empty.
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    echo: msgspec.Raw = msgspec.Raw()
    logprobs: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()


_peek = msgspec.json.Decoder(_Peek).decode
_SAYS_NOTHING: Final = frozenset({b"", b"null", b"false", b"[]"})


@dataclass(frozen=True, slots=True)
class Ask:
    """A streaming request, before it is sent."""

    is_chat: bool
    is_resumable: bool
    """As far as a glance tells; `continue_stream` looks closely."""
    wants_ids: bool
    """The client itself asked for token ids."""
    names_ids: bool
    """The field is there already, whatever it says."""

    @property
    def wants_injection(self) -> bool:
        """Whether the router asks for token ids, for itself only."""
        return self.is_resumable and not self.names_ids


def read_ask(path: bytes, body: bytes) -> Ask | None:
    """What kind of stream the request asks for; None where it is no completion that streams."""
    if (path not in (CHAT, TEXT)) or b'"stream"' not in body:
        return None
    try:
        peek = _peek(body)
    except (msgspec.DecodeError, RecursionError):
        return None  # the backend will say what is wrong with it
    if not peek.stream:
        return None
    plain = (
        (peek.n or 1) == 1
        and (peek.best_of or 1) == 1
        and bytes(peek.tools) in _SAYS_NOTHING
        and bytes(peek.functions) in _SAYS_NOTHING
        and bytes(peek.echo) in _SAYS_NOTHING
        and bytes(peek.logprobs) in _SAYS_NOTHING
        and b"json" not in bytes(peek.response_format)
    )
    ids = peek.return_token_ids
    return Ask(
        is_chat=path == CHAT, is_resumable=plain, wants_ids=ids is True, names_ids=ids is not msgspec.UNSET
    )


def ask_for_ids(body: bytes) -> bytes:
    """The request body with `return_token_ids` put in front, everything else byte for byte."""
    start = body.index(b"{") + 1
    return b'%b"return_token_ids":true,%b' % (body[:start], body[start:])


def why_not(body: dict[str, Any], *, is_chat: bool) -> str:
    """Why a stream of this request can never be continued; empty where it can."""
    for name, reason in _NEVER.items():
        value = body.get(name)
        if value and value not in _NEUTRAL.get(name, ()):
            return f"the request has {reason}"
    for name in ("n", "best_of"):
        if (body.get(name) or 1) != 1:
            return f"the request has {name} > 1"
    if is_chat:
        for message in body.get("messages") or ():
            content = message.get("content")
            if isinstance(content, list) and any(part.get("type") != "text" for part in content):
                return "the request is multimodal"
        return ""
    prompt = body.get("prompt")
    is_one = isinstance(prompt, str) or (
        isinstance(prompt, list) and all(type(token) is int for token in prompt)
    )
    return "" if is_one else "the request has several prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """The request that goes on where the stream broke."""

    path: bytes
    body: bytes
    is_chat: bool
    """Which shape its events have."""
    kept_ids: int
    """Token ids of the broken answer that remain; the rest is generated again."""
    used_tokens: int
    """Tokens of the answer so far, for usage."""
    overlap: str
    """What it will say first although the client has it: to be compared and dropped."""
    echo: str = ""
    """What it may say first, all at once, although the client has it: to be dropped if it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Nothing was left to generate: these events end the answer."""

    events: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    reason: str


def continue_stream(
    path: bytes, body: bytes, progress: Progress, engine: Engine, max_model_len: int | None
) -> Continuation | Finish | Refusal:
    """Decide how a broken stream goes on at a backend of this engine."""
    try:
        return _continue_stream(path, body, progress, engine, max_model_len)
    except (
        msgspec.DecodeError,
        RecursionError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ):
        # A backend may take what the API does not document, and what then has other shapes than are looked for.
        return Refusal(reason="the request cannot be read")


def _continue_stream(
    path: bytes, body: bytes, progress: Progress, engine: Engine, max_model_len: int | None
) -> Continuation | Finish | Refusal:
    request: dict[str, Any] = msgspec.json.decode(body)
    is_chat = path == CHAT
    if reason := progress.why_not or why_not(request, is_chat=is_chat):
        return Refusal(reason=reason)
    if progress.is_done or progress.finish_reason is not None:
        return Finish(events=closing_events(request, progress, None))
    if not progress.text_length and not progress.ids:
        return _from_the_start(path, body, request, engine, is_chat=is_chat)
    stops = _stop_strings(request)
    kept, characters = _aligned(progress, stops)
    # A sampled answer would not say again what was sent, so it can only go on where nothing is to be repeated.
    is_repeatable = characters == progress.text_length or request.get("temperature") == 0
    by_ids = engine is Engine.VLLM and kept > 0 and progress.prompt_ids is not None and is_repeatable
    used = kept or progress.content_events
    left, limit_field = _tokens_left(request, progress, used, max_model_len, is_chat=is_chat)
    if left is not None and left <= 0:
        return Finish(events=closing_events(request, progress, "length"))
    if by_ids:
        return _by_ids(request, progress, kept, characters, left)
    return _by_text(request, progress, engine, used=used, left=left, limit_field=limit_field, is_chat=is_chat)


def _from_the_start(
    path: bytes, body: bytes, request: dict[str, Any], engine: Engine, *, is_chat: bool
) -> Continuation:
    """Nothing was said yet: the same request again."""
    if engine is Engine.VLLM and "return_token_ids" not in request:
        body = ask_for_ids(body)
    return Continuation(path=path, body=body, is_chat=is_chat, kept_ids=0, used_tokens=0, overlap="")


def _stop_strings(request: dict[str, Any]) -> list[str]:
    stop = request.get("stop")
    if isinstance(stop, str):
        return [stop] if stop else []
    return [text for text in stop if isinstance(text, str) and text] if isinstance(stop, list) else []


def _aligned(progress: Progress, stops: list[str]) -> tuple[int, int]:
    """The last place where text and tokens surely agree: (ids, characters), (0, 0) where there is none.

    An engine with stop strings holds back as many characters as could begin one, so the tokens of an event
    reach that much further than its text.
    """
    if progress.has_ids:
        held_back = max((len(text) for text in stops), default=1) - 1
        for ids, characters in reversed(progress.marks):
            if characters + held_back <= progress.text_length:
                return ids, characters + held_back
    return 0, 0


def _tokens_left(
    request: dict[str, Any], progress: Progress, used: int, max_model_len: int | None, *, is_chat: bool
) -> tuple[int | None, str]:
    """Tokens that the request still allows (None: as many as the context holds), and the field that says so."""
    limit_field = (
        "max_completion_tokens" if is_chat and request.get("max_completion_tokens") else "max_tokens"
    )
    given = request.get(limit_field)
    if given is None and not is_chat and "max_tokens" not in request:
        given = TEXT_DEFAULT_MAX_TOKENS
    left = None if given is None else int(given) - used
    if max_model_len is not None and progress.prompt_ids is not None:
        room = max_model_len - len(progress.prompt_ids) - used
        left = room if left is None else min(left, room)
    return left, limit_field


#: Fields of a chat request that `/v1/completions` does not know, or that a continuation sets anew.
_CHAT_ONLY: Final = frozenset(
    {
        "messages",
        "max_completion_tokens",
        "chat_template",
        "chat_template_kwargs",
        "add_generation_prompt",
        "continue_final_message",
        "documents",
        "reasoning_effort",
        "include_reasoning",
        "tool_choice",
        "tools",
        "parallel_tool_calls",
        "functions",
        "logprobs",
        "top_logprobs",
        "response_format",
        "modalities",
        "store",
        "metadata",
    }
)


def _by_ids(
    request: dict[str, Any], progress: Progress, kept: int, characters: int, left: int | None
) -> Continuation:
    """Exact: prompt and answer so far as token ids, whatever the tokenizer would make of the text."""
    assert progress.prompt_ids is not None
    body = {name: value for name, value in request.items() if name not in _CHAT_ONLY}
    # null, not absent: /v1/completions takes 16 for absent, and what the context holds for null.
    body |= {
        "prompt": progress.prompt_ids + progress.ids[:kept],
        "max_tokens": left,
        "return_token_ids": True,
    }
    _lessen_min_tokens(body, kept)
    return Continuation(
        path=TEXT,
        body=msgspec.json.encode(body),
        is_chat=False,
        kept_ids=kept,
        used_tokens=kept,
        overlap=progress.text[characters:],
    )


def _by_text(
    request: dict[str, Any],
    progress: Progress,
    engine: Engine,
    *,
    used: int,
    left: int | None,
    limit_field: str,
    is_chat: bool,
) -> Continuation | Refusal:
    """By the partial answer's text: the seam is exact, the tokens after it may be cut differently."""
    body = dict(request)
    echo = ""
    if is_chat:
        if "<think>" in progress.text:
            return Refusal(reason="the template may rewrite the partial answer: it has reasoning")
        body["messages"] = _with_partial(request, progress.text)
        if engine is not Engine.LLAMACPP:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        else:
            # llama.cpp continues a final assistant message by itself. Whole answers of it begin with that
            # message; streams of the version at hand do not, others may.
            echo = body["messages"][-1]["content"]
    else:
        prompt = request["prompt"]
        if isinstance(prompt, str):
            body["prompt"] = prompt + progress.text
        elif engine is Engine.LLAMACPP:
            body["prompt"] = [*prompt, progress.text]
        else:
            return Refusal(reason="the prompt is token ids and the answer's are not known")
    if left is not None:
        body[limit_field] = left
    if engine is Engine.VLLM and "return_token_ids" not in body:
        body["return_token_ids"] = True
    _lessen_min_tokens(body, used)
    return Continuation(
        path=CHAT if is_chat else TEXT,
        body=msgspec.json.encode(body),
        is_chat=is_chat,
        kept_ids=0,
        used_tokens=used,
        overlap="",
        echo=echo if len(echo) >= MIN_ECHO else "",
    )


def _with_partial(request: dict[str, Any], text: str) -> list[dict[str, Any]]:
    messages = list(request["messages"])
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and request.get("continue_final_message"):
        before = last.get("content") or ""
        if not isinstance(before, str):
            before = "".join(part["text"] for part in before)
        return [*messages[:-1], {**last, "content": before + text}]
    return [*messages, {"role": "assistant", "content": text}]


def _lessen_min_tokens(body: dict[str, Any], used: int) -> None:
    if body.get("min_tokens"):
        body["min_tokens"] = max(0, int(body["min_tokens"]) - used)


def closing_events(request: dict[str, Any], progress: Progress, finish_reason: str | None) -> bytes:
    """What still lacks to the end of an answer that has nothing left to say."""
    events = []
    if finish_reason is not None and progress.template is not None:
        events.append(shaped(progress.template, "", finish_reason, None, ids=None))
    wants_usage = (request.get("stream_options") or {}).get("include_usage")
    if wants_usage and not progress.has_usage and progress.first is not None and not progress.is_done:
        completion = len(progress.ids) if progress.has_ids else progress.content_events
        prompt = len(progress.prompt_ids or ())
        events.append(usage_event(progress.first, usage_of(prompt, completion)))
    return b"".join(as_event(event) for event in events) + (b"" if progress.is_done else DONE_EVENT)
