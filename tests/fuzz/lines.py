"""The reader of inputs: whatever the bytes, it reports, in one way however they are cut, and what it lets
through the runner can read.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.fuzz import target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODULES = ("tandemn.batch.input", "tandemn.batch.line_rules", "tandemn.batch.request_line")


def line(**changes: object) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    whole = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    return json.dumps(whole).encode() + b"\n"


SEEDS = [
    b"\x00" + line() + line(custom_id="b"),
    b"\x07" + line() + line(),
    b"\x01\xef\xbb\xbf" + line(url="/v1/completions", body={"prompt": ["x", "y"], "max_tokens": 1}),
    b"\x03" + line(url="/v1/embeddings", body={"input": [[1, 2], [3]]}) + b"\r\n \t\n",
    b"\x05"
    + line(
        body={"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    ),
    b"\x09" + line(method="GET") + b"nonsense\n\xff\xfe\n" + line(custom_id=1),
    b"\x11[[[[[[" + line(custom_id="\ud800") + b'{"custom_id": NaN}\n',
]


def check(data: bytes) -> None:
    from tandemn.batch.input import InputValidator

    if not data:
        return
    step, skip_invalid, content = data[0] // 2 + 1, bool(data[0] & 1), data[1:]

    def validated(pieces: list[bytes]) -> tuple[object, list[int], list[int]]:
        validator = InputValidator(skip_invalid=skip_invalid)
        for piece in pieces:
            validator.feed(piece)
        validator.end()
        if validator.needs_second_pass:
            for piece in pieces:
                validator.confirm(piece)
        report, index = validator.finish()
        # In no order: what is made of them is a sentence.
        report = replace(report, models=tuple(sorted(report.models)))
        return report, index.starts.tolist(), index.skipped.tolist()

    whole = validated([content])
    cut = [content[at : at + step] for at in range(0, len(content), step)]
    assert validated(cut) == whole, "it depends on how the input is cut"
    report, starts, skipped = whole
    if report.is_valid:  # type: ignore[attr-defined]
        asyncio.run(_readable(cut, len(starts), set(skipped)))


async def _readable(pieces: list[bytes], requests: int, skipped: set[int]) -> None:
    """See that the runner reads as many requests as were counted, each with an id of its own."""
    from tandemn.batch.request_line import iter_requests

    async def blocks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    ids = set()
    async for request in iter_requests(
        blocks(), byte_start=0, requests=requests, skipped=skipped, model="demo/tiny", max_output_tokens=7
    ):
        ids.add(request.custom_id)
        body = json.loads(request.body)
        assert body["model"] == "demo/tiny"
        assert b"\n" not in request.body, "a body is one line"
    assert len(ids) == requests


if __name__ == "__main__":
    target.run("lines", check, SEEDS, MODULES)
