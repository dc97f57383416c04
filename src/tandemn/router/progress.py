"""How far a stream has come: the text and token ids of the events that went to the client. Pure.

A stream keeps its events as bytes and folds them into a `Progress` now and then, so that an event costs
nothing while all goes well. `Progress` also notices what makes an answer impossible to continue.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec

from tandemn.router.sse import data_of

#: Events whose place in the text is remembered for cutting back: more than a stop string may hold back.
REMEMBERED_EVENTS: Final = 256
#: What a retained token id and character cost in memory, roughly; for the limits on what is kept.
BYTES_PER_ID: Final = 8


class Progress:
    """What the client has been sent so far."""

    __slots__ = (
        "content_events",
        "finish_reason",
        "first",
        "has_ids",
        "has_usage",
        "ids",
        "is_done",
        "marks",
        "pieces",
        "prompt_ids",
        "role_sent",
        "template",
        "text_length",
        "why_not",
    )

    def __init__(self) -> None:
        self.first: dict[str, Any] | None = None
        """The first event: its id, `created` and model are kept to the end."""
        self.template: dict[str, Any] | None = None
        """The first event with text: later ones keep its shape."""
        self.pieces: list[str] = []
        self.text_length = 0
        self.ids: list[int] = []
        self.has_ids = True
        """Whether every event so far told its token ids."""
        self.prompt_ids: list[int] | None = None
        # (ids, characters) after each of the last events of one token that brought text: there, text and
        # tokens agree. The last of several tokens may be half a character whose text is still held back.
        self.marks: deque[tuple[int, int]] = deque(maxlen=REMEMBERED_EVENTS)

        self.content_events = 0
        self.role_sent = False
        self.finish_reason: str | None = None
        self.has_usage = False
        self.is_done = False
        self.why_not = ""

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    @property
    def size(self) -> int:
        """Bytes that keeping this costs, roughly."""
        return self.text_length + BYTES_PER_ID * len(self.ids)

    def fold(self, events: bytes) -> None:
        """Take in events that were sent, as they came from the backend."""
        for data in data_of(events):
            if data == b"[DONE]":
                self.is_done = True
                continue
            try:
                event = msgspec.json.decode(data)
                self._take(event)
            except (msgspec.DecodeError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
                self.why_not = "an event of the stream is not an OpenAI chunk"

    def _take(self, event: dict[str, Any]) -> None:
        if self.first is None:
            self.first = event
        if event.get("prompt_token_ids"):
            self.prompt_ids = event["prompt_token_ids"]
        if event.get("usage") and not event["choices"]:
            self.has_usage = True
        for choice in event["choices"]:
            if choice.get("index"):
                self.why_not = "more than one choice"
            if choice.get("prompt_token_ids"):
                self.prompt_ids = choice["prompt_token_ids"]
            self._take_choice(event, choice)

    def _take_choice(self, event: dict[str, Any], choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if delta is None:
            text = choice["text"]
        else:
            text = delta.get("content") or ""
            self.role_sent = self.role_sent or "role" in delta
            for field in (
                "tool_calls",
                "function_call",
                "reasoning_content",
                "reasoning",
                "refusal",
                "audio",
            ):
                if delta.get(field):
                    self.why_not = f"the answer has {field}"
        ids = choice.get("token_ids")
        if choice.get("finish_reason"):
            self.finish_reason = choice["finish_reason"]
        if ids:
            self.ids += ids
        elif text:
            self.has_ids = False
        if text:
            if self.template is None:
                self.template = event
            self.content_events += 1
            self.pieces.append(text)
            self.text_length += len(text)
            if len(ids or ()) == 1:
                self.marks.append((len(self.ids), self.text_length))
