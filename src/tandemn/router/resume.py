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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

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
    is_chat = path == CHAT
    try:
        request = msgspec.json.decode(body)
        reason = progress.why_not or why_not(request, is_chat=is_chat)
    except (msgspec.DecodeError, RecursionError, AttributeError, TypeError):
        reason = "the request cannot be read"
    if reason:
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
        events.append(_shaped(progress.template, "", finish_reason, None, ids=None))
    wants_usage = (request.get("stream_options") or {}).get("include_usage")
    if wants_usage and not progress.has_usage and progress.first is not None and not progress.is_done:
        completion = len(progress.ids) if progress.has_ids else progress.content_events
        prompt = len(progress.prompt_ids or ())
        events.append(_usage_event(progress.first, _usage(prompt, completion)))
    return b"".join(as_event(event) for event in events) + (b"" if progress.is_done else DONE_EVENT)


def as_event(event: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(event)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _usage_event(first: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: first[name] for name in ("id", "object", "created", "model") if name in first
    }
    return {**kept, "choices": [], "usage": usage}


def _shaped(
    template: dict[str, Any], text: str, finish_reason: str | None, stop_reason: Any, *, ids: list[int] | None
) -> dict[str, Any]:
    """An event like the template, with this text."""
    choice = dict(template["choices"][0])
    if "delta" in choice:
        choice["delta"] = {"content": text}
    else:
        choice["text"] = text
    choice["finish_reason"] = finish_reason
    if "stop_reason" in choice or stop_reason is not None:
        choice["stop_reason"] = stop_reason
    if "token_ids" in choice:
        choice["token_ids"] = ids
    if "prompt_token_ids" in choice:
        choice["prompt_token_ids"] = None
    event = {
        name: value
        for name, value in template.items()
        if name not in {"usage", "timings", "prompt_token_ids"}
    }
    event["choices"] = [choice]
    return event


class SeamMismatch(Exception):
    """The continuation does not say again what the client already has."""


@dataclass(slots=True)
class Seam:
    """Turns a continuation's events into events of the first answer, and keeps `progress` going."""

    continuation: Continuation
    progress: Progress
    is_chat: bool
    """The shape that the client expects."""
    shows_ids: bool
    overlap: str = field(init=False)
    echo: str = field(init=False)
    used_before: int = field(init=False)
    prompt_tokens: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.overlap = self.continuation.overlap
        self.echo = self.continuation.echo
        self.used_before = self.continuation.used_tokens
        ids = self.progress.prompt_ids
        self.prompt_tokens = None if ids is None else len(ids)
        kept = self.continuation.kept_ids
        if kept:
            del self.progress.ids[kept:]
            while self.progress.marks and self.progress.marks[-1][0] > kept:
                self.progress.marks.pop()

    def translate(self, data: bytes) -> bytes:
        """The event that the client gets for one event of the continuation; empty where it gets none.

        Raises:
            SeamMismatch: what should be a repetition is none.
            ValueError: it is not an OpenAI chunk (msgspec's DecodeError included).
        """
        if data == b"[DONE]":
            if self.overlap:
                raise SeamMismatch("the continuation ended within the repetition")
            self.progress.is_done = True
            return DONE_EVENT
        event = msgspec.json.decode(data)
        try:
            return self._chunk(event)
        except (KeyError, TypeError, IndexError, AttributeError) as exc:
            raise ValueError(f"not an OpenAI chunk: {exc!r}") from exc

    def _chunk(self, event: dict[str, Any]) -> bytes:
        if event.get("prompt_token_ids") and self.progress.prompt_ids is None:
            self.progress.prompt_ids = event["prompt_token_ids"]
        choices = event["choices"]
        if not choices:
            self.progress.has_usage = True
            return as_event(
                _usage_event(self.progress.first or event, self._corrected(event.get("usage") or {}))
            )
        choice = choices[0]
        if choice.get("prompt_token_ids") and self.progress.prompt_ids is None:
            self.progress.prompt_ids = choice["prompt_token_ids"]
        delta = choice.get("delta")
        text = choice["text"] if delta is None else delta.get("content") or ""
        ids = choice.get("token_ids") or []
        finish_reason = choice.get("finish_reason")
        told = self._drop_overlap(text)
        self._note(told, ids, finish_reason, is_text=bool(text))
        shown = self._first_shape(event) if self.progress.template is None else None
        if shown is None:
            if not told and finish_reason is None and not (self.shows_ids and ids):
                return b""
            template = self.progress.template
            assert template is not None
            shown = _shaped(
                template, told, finish_reason, choice.get("stop_reason"), ids=ids if self.shows_ids else None
            )
        if event.get("usage"):
            shown["usage"] = self._corrected(event["usage"])
        return as_event(shown)

    def _first_shape(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Before the first text nothing has a shape yet: the event passes, under the first answer's name."""
        choice = dict(event["choices"][0])
        if self.progress.role_sent and "role" in choice.get("delta", ()):
            choice["delta"] = {name: value for name, value in choice["delta"].items() if name != "role"}
        if not self.shows_ids:
            for name in ("token_ids", "prompt_token_ids"):
                if name in choice:
                    choice[name] = None
        shown = {**event, "choices": [choice]}
        if not self.shows_ids and "prompt_token_ids" in shown:
            shown["prompt_token_ids"] = None
        for name in ("id", "created", "model"):
            if self.progress.first is not None and name in self.progress.first:
                shown[name] = self.progress.first[name]
        self.progress.first = self.progress.first or shown
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            self.progress.template = shown
        if "role" in (event["choices"][0].get("delta") or ()):
            self.progress.role_sent = True
        return shown

    def _drop_overlap(self, text: str) -> str:
        if not text:
            return text
        if self.echo:
            text = text.removeprefix(self.echo)
            self.echo = ""
        if not self.overlap:
            return text
        both = min(len(self.overlap), len(text))
        if text[:both] != self.overlap[:both]:
            raise SeamMismatch("the continuation does not repeat what was sent")
        self.overlap = self.overlap[both:]
        return text[both:]

    def _note(self, told: str, ids: list[int], finish_reason: str | None, *, is_text: bool) -> None:
        progress = self.progress
        progress.ids += ids
        if is_text and not ids:
            progress.has_ids = False
        if told:
            progress.pieces.append(told)
            progress.text_length += len(told)
            progress.content_events += 1
            if not self.overlap and len(ids) == 1:
                progress.marks.append((len(progress.ids), progress.text_length))
        if finish_reason is not None:
            progress.finish_reason = finish_reason

    def _corrected(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Usage as the unbroken answer would have told it."""
        if not self.used_before:
            return usage
        prompt = self.prompt_tokens
        if prompt is None:
            prompt = max(0, int(usage.get("prompt_tokens", 0)) - self.used_before)
        completion = self.used_before + int(usage.get("completion_tokens", 0))
        return {**usage, **_usage(prompt, completion)}


def broken_events(reason: str) -> bytes:
    """How a stream ends that cannot go on: an error that clients raise, and `[DONE]`."""
    error = {
        "message": f"the backend was lost and the answer cannot be continued: {reason}",
        "type": "server_error",
        "param": None,
        "code": "stream_broken",
    }
    return as_event({"error": error}) + DONE_EVENT
