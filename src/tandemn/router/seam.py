"""The seam of a continued stream: the continuation's events become events of the first answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from tandemn.router.sse import DONE_EVENT

if TYPE_CHECKING:
    from tandemn.router.progress import Progress
    from tandemn.router.resume import Continuation


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
                usage_event(self.progress.first or event, self._corrected(event.get("usage") or {}))
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
            shown = shaped(
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
        return {**usage, **usage_of(prompt, completion)}


def broken_events(reason: str) -> bytes:
    """How a stream ends that cannot go on: an error that clients raise, and `[DONE]`."""
    error = {
        "message": f"the backend was lost and the answer cannot be continued: {reason}",
        "type": "server_error",
        "param": None,
        "code": "stream_broken",
    }
    return as_event({"error": error}) + DONE_EVENT


def as_event(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % msgspec.json.encode(event)


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """A usage object."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def usage_event(first: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    """The event without choices that tells the whole answer's usage."""
    kept: dict[str, Any] = {
        name: first[name] for name in ("id", "object", "created", "model") if name in first
    }
    return {**kept, "choices": [], "usage": usage}


def shaped(
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
