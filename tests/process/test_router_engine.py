"""Resume on a real engine: llama.cpp, which tells no token ids, with demo/tiny."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fakes.router_rig import Events, Rig, ask, backend, health, metrics, text_of, wait_for
from tests.ports import free_port

#: Long enough that most of it is still to come when the engine is killed.
LENGTH = 1200

ASKED: dict[str, Any] = {
    "model": "demo/tiny",
    "temperature": 0,
    "max_tokens": LENGTH,
    "logit_bias": [[2, False]],
    "ignore_eos": True,
}
CASES: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "tell me more"}]},
    "/v1/completions": {"prompt": "tell me more"},
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("router"))
    rig.other, rig.port = rig.engine(), free_port()
    table = [
        backend("a", f"http://127.0.0.1:{rig.port}", engine="llamacpp", price_usd_per_hour=0.0),
        backend("b", rig.other.url, engine="llamacpp", price_usd_per_hour=1.0),
    ]
    rig.front = rig.router(*table)
    yield rig
    rig.end()


@pytest.mark.parametrize("kill_after", [1, 23, 150])
@pytest.mark.parametrize("path", list(CASES))
def test_the_text_equals_the_unbroken_one(rig, path, kill_after):
    series = 'tandemn_router_resumes_total{backend="a"}'
    before = metrics(rig.front.port)[series]
    body = {**ASKED, **CASES[path], "stream_options": {"include_usage": True}}
    choice = json.loads(ask(rig.other.port, body, path=path)[2])["choices"][0]
    whole = choice["message"]["content"] if "message" in choice else choice["text"]
    victim = rig.engine(rig.port)
    wait_for(
        lambda: (
            ask(rig.front.port, body | {"max_tokens": 1})
            and health(rig.front.port)["backends"][0]["state"] == "ready"
        )
    )
    events = Events(rig.front.port, body, path=path)
    seen = []
    for data in events:
        seen.append(data)
        if len(seen) == kill_after + 1:
            victim.kill()
    assert "".join(map(text_of, seen)) == whole
    assert len(whole) == LENGTH
    assert seen[-1] == "[DONE]"
    assert metrics(rig.front.port)[series] == before + 1
    told = [json.loads(data) for data in seen[:-1]]
    assert len({event["id"] for event in told}) == 1
    usage = next(event["usage"] for event in told if event.get("usage"))
    assert usage["completion_tokens"] == LENGTH
