"""The rules that one line of a job's input must keep, and which of them a bad line breaks.

A good line passes one typed decode; only where that fails is the line read again, slowly, to say why.
What a field means is the engine's business: only the containers that every endpoint needs are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from tandemn.batch.request_line import CHAT_URL, COMPLETIONS_URL, EMBEDDINGS_URL, REQUEST_URLS

if TYPE_CHECKING:
    from collections.abc import Callable


class LineCode(StrEnum):
    """Stable codes of what may be wrong with a line, or with the file."""

    EMPTY_FILE = "empty_file"
    LINE_TOO_LONG = "line_too_long"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NESTING_TOO_DEEP = "nesting_too_deep"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_CUSTOM_ID = "missing_custom_id"
    INVALID_CUSTOM_ID = "invalid_custom_id"
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    INVALID_METHOD = "invalid_method"
    INVALID_URL = "invalid_url"
    MIXED_URLS = "mixed_urls"
    MISSING_BODY = "missing_body"
    INVALID_BODY = "invalid_body"
    INVALID_MODEL = "invalid_model"
    MISSING_MESSAGES = "missing_messages"
    INVALID_MESSAGES = "invalid_messages"
    MISSING_PROMPT = "missing_prompt"
    INVALID_PROMPT = "invalid_prompt"
    MISSING_INPUT = "missing_input"
    INVALID_INPUT = "invalid_input"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    line: int
    """Physical line of the file, from 1; 0 where the file as a whole is meant."""
    code: LineCode
    message: str
    param: str | None = None


class ChatMessage(msgspec.Struct, gc=False):
    content: Any = None


#: `prompt` and `input`: text, texts, tokens, or lists of tokens.
Text = str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1)]
_UNSET_MODEL = str | msgspec.UnsetType


class ChatBody(msgspec.Struct, gc=False):
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    model: _UNSET_MODEL = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None


class CompletionBody(msgspec.Struct, gc=False):
    prompt: Text
    model: _UNSET_MODEL = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None


class EmbeddingBody(msgspec.Struct, gc=False):
    input: Text
    model: _UNSET_MODEL = msgspec.UNSET


_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class ChatLine(msgspec.Struct, gc=False):
    custom_id: _NonEmpty
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: ChatBody


class CompletionLine(msgspec.Struct, gc=False):
    custom_id: _NonEmpty
    method: Literal["POST"]
    url: Literal["/v1/completions"]
    body: CompletionBody


class EmbeddingLine(msgspec.Struct, gc=False):
    custom_id: _NonEmpty
    method: Literal["POST"]
    url: Literal["/v1/embeddings"]
    body: EmbeddingBody


Line = ChatLine | CompletionLine | EmbeddingLine
#: What a decode may raise: surrogates in strings and deep nesting are not msgspec's own errors.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)

_REQUIRED = {CHAT_URL: "messages", COMPLETIONS_URL: "prompt", EMBEDDINGS_URL: "input"}
_SHAPES = {
    "messages": "a list of at least one object",
    "prompt": "a string, or a list of strings, of integers or of lists of integers",
    "input": "a string, or a list of strings, of integers or of lists of integers",
}


class Wrong(Exception):
    """Why a line is no request."""

    def __init__(self, code: LineCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


_CHAT = msgspec.json.Decoder(ChatLine).decode
_COMPLETION = msgspec.json.Decoder(CompletionLine).decode
_EMBEDDING = msgspec.json.Decoder(EmbeddingLine).decode


def _completion(line: bytes) -> CompletionLine:
    parsed = _COMPLETION(line)
    if type(parsed.body.prompt) is not str:
        _check_uniform("prompt", parsed.body.prompt)
    return parsed


def _embedding(line: bytes) -> EmbeddingLine:
    parsed = _EMBEDDING(line)
    if type(parsed.body.input) is not str:
        _check_uniform("input", parsed.body.input)
    return parsed


#: How a line of each endpoint is read; a line that is none raises one of `LINE_ERRORS`.
DECODE: dict[str, Callable[[bytes], Line]] = {
    CHAT_URL: _CHAT,
    COMPLETIONS_URL: _completion,
    EMBEDDINGS_URL: _embedding,
}
#: Surrogates in strings and deep nesting are not msgspec's own errors.
LINE_ERRORS = (Wrong, *_DECODE_ERRORS)


def explain(line: bytes, url: str | None) -> Wrong:
    """Say which rule a line breaks; `url` is the endpoint of the lines before it.

    The first broken rule is named, in the order in which a reader would mend them.
    """
    try:
        fields = _parsed(line)
        _check_envelope(fields, url)
        _check_body(fields["body"], fields["url"])
    except Wrong as wrong:
        return wrong
    return Wrong(LineCode.INVALID_JSON, "the line cannot be read: a number or string in it is out of range")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        line.decode()
    except UnicodeDecodeError as exc:
        raise Wrong(
            LineCode.INVALID_UTF8, f"byte {exc.start + 1} of the line is not valid UTF-8 ({exc.reason})"
        ) from None
    try:
        parsed = msgspec.json.decode(line)
    except RecursionError:
        raise Wrong(LineCode.NESTING_TOO_DEEP, "the JSON is nested too deeply") from None
    except _DECODE_ERRORS as exc:
        raise Wrong(LineCode.INVALID_JSON, f"the line is not valid JSON: {exc}") from None
    if not isinstance(parsed, dict):
        raise Wrong(LineCode.NOT_AN_OBJECT, "the line is valid JSON but not an object")
    return parsed


def _check_envelope(fields: dict[str, Any], url: str | None) -> None:
    if fields.get("custom_id") is None:
        raise Wrong(LineCode.MISSING_CUSTOM_ID, "`custom_id` is missing", "custom_id")
    if not isinstance(fields["custom_id"], str) or not fields["custom_id"]:
        raise Wrong(LineCode.INVALID_CUSTOM_ID, "`custom_id` must be a non-empty string", "custom_id")
    if fields.get("method") != "POST":
        raise Wrong(LineCode.INVALID_METHOD, "`method` must be POST", "method")
    given = fields.get("url")
    if given not in REQUEST_URLS:
        raise Wrong(LineCode.INVALID_URL, f"`url` must be one of {', '.join(REQUEST_URLS)}", "url")
    if url is not None and given != url:
        raise Wrong(LineCode.MIXED_URLS, f"`url` is {given} where the lines before it have {url}", "url")
    if fields.get("body") is None:
        raise Wrong(LineCode.MISSING_BODY, "`body` is missing", "body")
    if not isinstance(fields["body"], dict):
        raise Wrong(LineCode.INVALID_BODY, "`body` must be an object", "body")


def _check_body(body: dict[str, Any], url: str) -> None:
    name = _REQUIRED[url]
    param = f"body.{name}"
    if body.get(name) is None:
        raise Wrong(LineCode(f"missing_{name}"), f"`{param}` is missing", param)
    if not _has_shape(name, body[name]):
        raise _misshapen(name)
    if not isinstance(body.get("model", ""), str):
        raise Wrong(LineCode.INVALID_MODEL, "`body.model` must be a string", "body.model")


def _has_shape(name: str, value: Any) -> bool:
    wanted: Any = Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)] if name == "messages" else Text
    try:
        converted = msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        return False
    if name != "messages" and not isinstance(converted, str):
        _check_uniform(name, converted)
    return True


def _check_uniform(name: str, items: Any) -> None:
    if len(set(map(type, items))) != 1:
        raise _misshapen(name)


def _misshapen(name: str) -> Wrong:
    return Wrong(LineCode(f"invalid_{name}"), f"`body.{name}` must be {_SHAPES[name]}", f"body.{name}")
