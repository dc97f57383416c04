"""Read a request to the simulated engine: strict where engines are. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from tandemn.errors import InvalidInput
from tandemn.fleet.engines.simulated_model import render_chat

#: What /v1/completions generates where the request does not say.
COMPLETION_MAX_TOKENS = 16
#: Bounds of numbers that engines check.
NUMBERS = {"temperature": (0.0, float("inf")), "top_p": (0.0, 1.0), "max_tokens": (1, float("inf"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One prompt to be continued."""

    is_chat: bool
    prompt: bytes
    max_tokens: int
    ignore_end: bool
    stream: bool
    include_usage: bool
    return_token_ids: bool


def read_generation(body: bytes, *, is_chat: bool, model: str, context: int) -> Generation:
    """Read a chat or text completion. Raises InvalidInput with the field in `param`."""
    fields = read_fields(body, model=model)
    for name, (least, most) in NUMBERS.items():
        _check_number(fields, name, least, most)
    prompt = _chat_prompt(fields) if is_chat else read_prompt(fields, "prompt")
    room = context - len(prompt)
    if room < 1:
        raise _wrong("prompt", f"{len(prompt)} tokens exceed the context of {context} tokens")
    asked = fields.get("max_completion_tokens") or fields.get("max_tokens")
    if asked is None:
        asked = room if is_chat else min(room, COMPLETION_MAX_TOKENS)
    if asked > room:
        raise _wrong("max_tokens", f"max_tokens={asked} and {len(prompt)} of the prompt exceed {context}")
    options = fields.get("stream_options")
    return Generation(
        is_chat=is_chat,
        prompt=prompt,
        max_tokens=int(asked),
        ignore_end=bool(fields.get("ignore_eos")),
        stream=bool(fields.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        return_token_ids=bool(fields.get("return_token_ids")),
    )


def read_fields(body: bytes, *, model: str) -> dict[str, Any]:
    """Read any request's object, and check that it names this model or none."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}", code="json_invalid") from error
    if not isinstance(fields, dict):
        raise InvalidInput("the body is not a JSON object", code="json_invalid")
    named = fields.get("model", model)
    if named != model:
        raise InvalidInput(f"the model {named!r} does not exist", code="model_not_found", param="model")
    return fields


def read_prompt(fields: dict[str, Any], name: str) -> bytes:
    """Read one prompt: text, or token ids (bytes)."""
    match fields.get(name):
        case str() as text:
            return text.encode(errors="replace")
        case [str() as text]:
            return text.encode(errors="replace")
        case [int(), *_] as ids:
            if all(type(token) is int and 0 <= token < 256 for token in ids):
                return bytes(ids)
            raise _wrong(name, f"{name} has token ids out of the vocabulary")
        case None:
            raise _wrong(name, f"{name}: field required")
        case _:
            raise _wrong(name, f"{name} must be a text or a list of token ids")


def _chat_prompt(fields: dict[str, Any]) -> bytes:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _wrong("messages", "each message must be an object with a role")
        if not isinstance(message.get("content", ""), str | list | None):
            raise _wrong("messages", "content must be a text or a list of parts")
    return render_chat(messages, continue_final_message=bool(fields.get("continue_final_message")))


def _check_number(fields: dict[str, Any], name: str, least: float, most: float) -> None:
    value = fields.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(name, f"{name} must be a number from {least:g} to {most:g}, got {value!r}")


def _wrong(param: str, message: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_value", param=param)
