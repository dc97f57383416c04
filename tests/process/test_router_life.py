"""The router among its backends: spot comes and goes, tables, counters and streams outlive what dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.certificates import self_signed
from tests.fakes.router_rig import (
    ADMIN,
    KEY,
    Events,
    Process,
    Rig,
    ask,
    backend,
    health,
    metrics,
    raw,
    text_of,
    wait_for,
)
from tests.fakes.scripted import OK, SSE, Scripted, chunk, replies
from tests.ports import free_port

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "tell me"}],
    "temperature": 0,
}


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    rig.end()


def seen(process) -> int:
    return len(json.loads(ask(process.port, path="/seen", method="GET")[2])["requests"])


def test_traffic_shifts_to_spot_when_it_comes_up_and_back_when_it_goes(rig):
    serverless, spot_port = rig.vllm(), free_port()
    spot_url = f"http://127.0.0.1:{spot_port}"
    router = rig.router(backend("spot", spot_url, "spot"), backend("modal", serverless.url))
    assert ask(router.port, {**CHAT, "max_tokens": 2})[0] == 200
    assert seen(serverless) == 1
    assert health(router.port)["backends"][0]["state"] == "cold"
    warming = Scripted(replies(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"))
    assert ask(router.port, None, path="/router/health", method="GET")[0] == 200
    warming.end()

    spot = rig.vllm(port=spot_port)
    up_at = time.monotonic()
    wait_for(lambda: health(router.port)["backends"][0]["state"] == "ready")
    shifted_s = time.monotonic() - up_at
    before = seen(serverless)
    for _ in range(20):
        assert ask(router.port, {**CHAT, "max_tokens": 2})[0] == 200
    assert seen(serverless) == before
    assert seen(spot) == 20
    assert shifted_s < 5, "the bound of one second is the benchmark's"

    spot.kill()
    for n in range(5):
        assert ask(router.port, {**CHAT, "max_tokens": 2})[0] == 200
        assert seen(serverless) == before + n + 1
    assert metrics(router.port)['tandemn_router_retries_total{backend="spot"}'] >= 1


def test_a_backend_that_only_warms_up_gets_nothing(rig):
    serverless = rig.vllm()
    warming = Scripted(replies(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"))
    router = rig.router(backend("spot", warming.url, "spot"), backend("modal", serverless.url))
    wait_for(lambda: health(router.port)["backends"][0]["state"] == "warming")
    for _ in range(5):
        assert ask(router.port, {**CHAT, "max_tokens": 2})[0] == 200
    assert all(request.startswith(b"GET /health ") for request in warming.requests)
    warming.end()


def test_serverless_is_never_probed(rig):
    asleep = Scripted(replies(OK))
    router = rig.router(backend("modal", asleep.url))
    time.sleep(1.2)
    assert health(router.port)["status"] == "ready"
    assert not asleep.peers
    asleep.end()


def test_a_draining_backend_ends_its_streams_and_gets_nothing_new(rig):
    first, second = rig.vllm(gap_ms=10), rig.vllm()
    router = rig.router(
        backend("a", first.url, price_usd_per_hour=0.0), backend("b", second.url, price_usd_per_hour=1.0)
    )
    events = iter(Events(router.port, {**CHAT, "max_tokens": 60, "min_tokens": 60}))
    next(events)
    table = [
        backend("a", first.url, price_usd_per_hour=0.0, draining=True),
        backend("b", second.url, price_usd_per_hour=1.0),
    ]
    status, _, _ = ask(
        router.port, {"version": 1, "backends": table}, path="/router/config", method="PUT", key=ADMIN
    )
    assert status == 200
    assert ask(router.port, {**CHAT, "max_tokens": 2})[0] == 200
    assert seen(second) == 1
    assert list(events)[-1] == "[DONE]"
    assert seen(first) == 1


def test_counters_survive_restarts_and_kills_and_are_never_counted_twice(rig):
    serverless = rig.vllm()
    router = rig.router(backend("modal", serverless.url))
    series = 'tandemn_router_requests_total{backend="modal"}'
    tokens = 'tandemn_router_tokens_total{backend="modal",kind="completion",source="usage"}'
    total = 0
    for round_ in range(3):
        for _ in range(4):
            ask(router.port, {**CHAT, "max_tokens": 3, "min_tokens": 3})
        total += 4
        assert metrics(router.port)[series] == total
        assert metrics(router.port)[tokens] == 3 * total
        if round_ < 2:
            assert router.stop() == 0
            router = rig.router()
    wait_for(lambda: f'"requests":{total}' in (rig.folder / "table.json.meter").read_text())
    router.kill()
    router = rig.router()
    assert metrics(router.port)[series] == total
    assert metrics(router.port)['tandemn_router_inflight{backend="modal"}'] == 0
    concurrency = 'tandemn_router_inflight_seconds_total{backend="modal",concurrency="1"}'
    assert 0 < metrics(router.port)[concurrency] < 30


def test_the_meter_is_read_from_where_a_reader_left_off_and_outlives_a_restart(rig):
    serverless = rig.vllm()
    router = rig.router(backend("modal", serverless.url))

    def meter(since=0, key=ADMIN):
        status, _, body = ask(router.port, path=f"/router/meter?since={since}", method="GET", key=key)
        return status, json.loads(body)

    before = time.time()
    for _ in range(3):
        ask(router.port, {**CHAT, "max_tokens": 3, "min_tokens": 3})
    _, page = meter()
    (busy,) = page["under_way"]
    assert (busy["backend"], busy["peak"], busy["requests"]) == ("modal", 1, 3)
    assert before - 1 < busy["start"] < busy["end"] < time.time() + 1
    assert page["backends"][0]["completion_tokens"] == 9
    assert router.stop() == 0
    router = rig.router()
    _, again = meter(page["next"])
    assert again["series"] == page["series"]
    assert again["started_at"] > page["started_at"]
    assert again["periods"] == [busy | {"number": again["next"] - 1}]
    assert meter(again["next"])[1]["periods"] == []
    assert meter(key="wrong")[0] == 401
    status, refused = meter("x")
    assert (status, refused["error"]["code"]) == (400, "invalid_since")


def test_two_routers_do_not_share_a_state_file(rig):
    rig.router(backend("modal", "http://127.0.0.1:9"))
    with pytest.raises(RuntimeError, match="ended with 2"):
        rig.router()


def test_a_pushed_table_outlives_the_router(rig):
    serverless = rig.vllm()
    router = rig.router(backend("gone", "http://127.0.0.1:9"))
    table = {
        "version": 1,
        "backends": [backend("modal", serverless.url, headers={"Authorization": "Bearer engine"})],
    }
    assert ask(router.port, table, path="/router/config", method="PUT", key=ADMIN)[0] == 200
    router.kill()
    router = rig.router()
    assert [b["name"] for b in health(router.port)["backends"]] == ["modal"]
    assert (rig.folder / "table.json").stat().st_mode & 0o077 == 0
    ask(router.port, {**CHAT, "max_tokens": 1})
    assert (
        json.loads(ask(serverless.port, path="/seen", method="GET")[2])["requests"][0]["authorization"]
        == "Bearer engine"
    )


def test_a_graceful_stop_finishes_streams_and_refuses_what_is_new(rig):
    serverless = rig.vllm(gap_ms=10)
    router = rig.router(backend("modal", serverless.url))
    events = iter(Events(router.port, {**CHAT, "max_tokens": 60, "min_tokens": 60}))
    next(events)
    codes = []
    stopper = threading.Thread(target=lambda: codes.append(router.stop(20)))
    stopper.start()

    def refuses():
        try:
            return ask(router.port, {**CHAT, "max_tokens": 1})[0] == 503
        except OSError:
            return True

    wait_for(refuses)
    rest = list(events)
    assert rest[-1] == "[DONE]"
    assert len(rest) == 61
    stopper.join()
    assert codes == [0]


def test_the_openai_client_sync_and_async_streaming_and_not(rig):
    backends = [rig.vllm(), rig.vllm()]
    router = rig.router(
        *(backend(f"b{i}", b.url, price_usd_per_hour=float(i)) for i, b in enumerate(backends))
    )
    url = f"http://127.0.0.1:{router.port}/v1"
    asked: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 150,
    }
    with openai.OpenAI(base_url=url, api_key=KEY) as client:
        whole = client.chat.completions.create(**asked, extra_body={"min_tokens": 150})
        text = whole.choices[0].message.content
        assert whole.usage.completion_tokens == 150
        got = ""
        with client.chat.completions.create(**asked, stream=True, extra_body={"min_tokens": 150}) as stream:
            for part in stream:
                got += part.choices[0].delta.content or ""
                if len(got) > 40 and backends[0].popen.poll() is None:
                    backends[0].kill()
        assert got == text
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong").completions.create(model="tiny", prompt="x")

    async def through_async():
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
            whole = await client.completions.create(model="tiny", prompt="hi", max_tokens=20, temperature=0)
            stream = await client.completions.create(
                model="tiny", prompt="hi", max_tokens=20, temperature=0, stream=True
            )
            told = [part.choices[0].text async for part in stream]
            assert "".join(told) == whole.choices[0].text

    asyncio.run(through_async())


def test_a_stream_that_cannot_go_on_raises_in_the_openai_client(rig):
    only = rig.vllm(gap_ms=10)
    router = rig.router(backend("a", only.url))
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True, "n": 2}

    def read_to_the_end(stream):
        for number, _ in enumerate(stream):
            if number == 5:
                only.kill()

    with openai.OpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(**asked, extra_body={"min_tokens": 99})
        with pytest.raises(openai.APIError, match="backend was lost"):
            read_to_the_end(stream)


def test_load_test_clients_shapes(rig):
    """What `vllm bench serve`, aiperf and guidellm send: streams with usage, ignore_eos, ids that they name."""
    only = rig.vllm()
    router = rig.router(backend("a", only.url))
    bench: Any = {
        "model": "tiny",
        "prompt": "x",
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 12,
        "min_tokens": 12,
    }
    bench |= {"logprobs": None, "stream_options": {"include_usage": True}, "ignore_eos": True}
    told = list(Events(router.port, bench, path="/v1/completions"))
    assert json.loads(told[-2])["usage"]["completion_tokens"] == 12
    continuous: Any = {
        **CHAT,
        "max_completion_tokens": 12,
        "min_tokens": 12,
        "stop": None,
        "ignore_eos": True,
    }
    continuous["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    told = [json.loads(data) for data in list(Events(router.port, continuous))[:-1]]
    assert [event["usage"]["completion_tokens"] for event in told[1:-1]] == list(range(1, 13))
    assert (
        metrics(router.port)['tandemn_router_tokens_total{backend="a",kind="completion",source="usage"}']
        == 24
    )


def test_tls_in_front_and_to_a_backend(rig, tmp_path):
    cert, key = self_signed(tmp_path)
    inner = rig.vllm()
    first = rig.router(backend("a", inner.url), extra=("--cert", str(cert), "--key", str(key)))
    second = Rig(tmp_path / "second")
    second.folder.mkdir()
    url = f"https://localhost:{first.port}"
    bearer = {"Authorization": f"Bearer {KEY}"}
    try:
        router = second.router(backend("tls", url, ca_file=str(cert), headers=bearer))
        assert ask(router.port, {**CHAT, "max_tokens": 3})[0] == 200
        told = list(Events(router.port, {**CHAT, "max_tokens": 20, "min_tokens": 20}))
        assert len("".join(map(text_of, told))) > 10
        assert told[-1] == "[DONE]"
        untrusted = backend("tls", url, headers=bearer)
        table = {"version": 1, "backends": [untrusted]}
        assert ask(router.port, table, path="/router/config", method="PUT", key=ADMIN)[0] == 200
        status, _, body = ask(router.port, {**CHAT, "max_tokens": 3})
        assert status == 502
        assert b"certificate" in body
    finally:
        second.end()


@pytest.mark.alone
def test_500_streams_and_half_of_the_backends_killed(rig):
    backends = [rig.vllm(gap_ms=100) for _ in range(4)]
    router = rig.router(*(backend(f"b{i}", b.url) for i, b in enumerate(backends)))
    body = {**CHAT, "max_tokens": 40, "min_tokens": 40}
    whole = json.loads(ask(backends[3].port, body)[2])["choices"][0]["message"]["content"]

    async def one():
        content = json.dumps({**body, "stream": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        got = await reader.read()
        writer.close()
        return got

    def has_begun_all():
        counted = metrics(router.port)
        return sum(counted[f'tandemn_router_streams_total{{backend="b{i}"}}'] for i in range(4)) == 500

    async def all_of_them():
        tasks = [asyncio.create_task(one()) for _ in range(500)]
        await asyncio.to_thread(wait_for, has_begun_all)
        for victim in backends[:2]:
            victim.kill()
        return await asyncio.gather(*tasks)

    for got in asyncio.run(all_of_them()):
        head, _, content = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert content.endswith(b"0\r\n\r\n"), "truncated"
        told = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
        assert told[-1] == "[DONE]"
        assert "".join(map(text_of, told)) == whole
    counted = metrics(router.port)
    assert counted['tandemn_router_resumes_total{backend="b0"}'] > 50
    assert counted['tandemn_router_resumes_total{backend="b1"}'] > 50


def test_it_refuses_to_be_open_to_others_by_accident(tmp_path):
    table = tmp_path / "table.json"
    table.write_text('{"version":1,"backends":[]}')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEMN_")}
    argv = [sys.executable, "-m", "tandemn.router", "--host", "0.0.0.0", "--port", "0", "--table", str(table)]
    done = subprocess.run(argv, capture_output=True, env=environment, timeout=20, check=False)
    assert done.returncode == 2
    assert b"TANDEMN_ROUTER_KEY" in done.stderr
    assert Path(table).exists()


def test_an_open_router_asks_for_no_key(rig):
    only = rig.vllm()
    router = rig.router(backend("a", only.url), key="")
    assert ask(router.port, {**CHAT, "max_tokens": 1}, key="whatever")[0] == 200
    assert (
        json.loads(ask(only.port, path="/seen", method="GET")[2])["requests"][0]["authorization"]
        == "Bearer whatever"
    )


def test_an_error_event_of_a_dying_engine_is_not_shown_but_resumed(rig):
    ids = b'data: {"id":"a","choices":[{"index":0,"text":"%b","token_ids":[%d],"prompt_token_ids":%b}]}\n\n'
    error = b'data: {"error":{"message":"EngineCore died","code":500}}\n\n'
    dying = Scripted(
        lambda sock, _: sock.sendall(
            SSE + chunk(ids % (b"a", 97, b"[1]")) + chunk(error) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        )
    )
    well = Scripted(
        lambda sock, _: sock.sendall(
            SSE + chunk(ids % (b"b", 98, b"null")) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        )
    )
    router = rig.router(
        backend("a", dying.url, price_usd_per_hour=0.0), backend("b", well.url, price_usd_per_hour=1.0)
    )
    told = list(Events(router.port, {"prompt": "x"}, path="/v1/completions"))
    assert [text_of(data) for data in told] == ["a", "b", ""]
    raw(router.port, b"GET /router/health HTTP/1.0\r\n\r\n")
    dying.end()
    well.end()


def test_processes_of_the_rig_end(rig):
    process = rig.vllm()
    assert isinstance(process, Process)
    process.kill()
    assert process.popen.poll() == -9
