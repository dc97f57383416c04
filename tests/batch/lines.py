"""Request lines for tests."""

from __future__ import annotations

import json

from tandemn.batch.input import InputValidator
from tandemn.batch.split import ChunkRange, split

CHAT = "/v1/chat/completions"
REQUIRED: dict[str, dict[str, object]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/embeddings": {"input": "hello"},
}


def line(custom_id: object = "a", /, *, url: object = CHAT, body: object = None, **more: object) -> bytes:
    """One request; a field given as `...` is left out."""
    fields = {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}
    if body is None:
        fields["body"] = REQUIRED[str(url)]
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


def validated(data: bytes, chunk_requests: int) -> list[ChunkRange]:
    """The chunks of an input, bad lines left out."""
    validator = InputValidator(skip_invalid=True)
    validator.feed(data)
    validator.end()
    if validator.needs_second_pass:
        validator.confirm(data)
    return split(validator.finish()[1], chunk_requests)
