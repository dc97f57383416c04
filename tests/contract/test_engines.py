"""What every engine does, whatever it is: the same suite on each adapter."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tandemn import settings
from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineMetrics, EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess

VLLM_MODEL = Path(__file__).parents[2] / ".cache" / "vllm-cpu" / "model"
KEY = "a-test-key"
#: Real vLLM needs most of a minute on two cores.
READY_S = 300.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


def spec_of(engine: EngineName) -> EngineSpec:
    model, extra_args = {
        EngineName.LLAMACPP: ("demo/tiny", ("--slots", "4")),
        EngineName.SIMULATED: ("any-model", ("--slots", "4", "--decode-step-s", "0.001")),
        EngineName.VLLM: (str(VLLM_MODEL), ("--enforce-eager", "--max-num-seqs", "16")),
    }[engine]
    return EngineSpec(engine=engine, model=model, api_key=KEY, max_model_len=1024, extra_args=extra_args)


def process_of(spec: EngineSpec, folder: Path) -> EngineProcess:
    return EngineProcess(adapters(settings.Settings(home=folder))[spec.engine], spec, folder / "engine.log")


@pytest.fixture(
    scope="module",
    params=[EngineName.LLAMACPP, EngineName.SIMULATED, pytest.param(EngineName.VLLM, marks=pytest.mark.vllm)],
)
def name(request):
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(name, tmp_path_factory):
    process = process_of(spec_of(name), tmp_path_factory.mktemp("engine"))
    await process.start()
    try:
        await process.wait_ready(READY_S)
        yield process
    finally:
        await process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def session(engine):
    async with aiohttp.ClientSession(engine.url, headers=engine.headers) as session:
        yield session


async def answer(session: aiohttp.ClientSession, path: str, body: object) -> tuple[int, dict[str, Any]]:
    async with session.post(path, json=body) as response:
        return response.status, await response.json()


def chat(text: str, **options) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0} | options


def named(engine: EngineProcess, **body) -> dict[str, Any]:
    return {"model": engine.spec.model} | body


async def events(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    lines = [line async for line in response.content if line.strip()]
    assert lines[-1].strip() == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


async def test_it_says_that_it_is_healthy_without_a_key(engine):
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/health") as response:
        assert response.status == 200


async def test_it_wants_its_key(engine):
    async with aiohttp.ClientSession() as session:
        status, _ = await answer(session, f"{engine.url}/v1/chat/completions", chat("hi"))
    assert status == 401


async def test_it_lists_its_model_by_the_name_that_users_gave_it(engine, session):
    async with session.get("/v1/models") as response:
        models = await response.json()
    assert [model["id"] for model in models["data"]] == [engine.spec.model]


async def test_a_chat_is_answered_with_usage(engine, session):
    status, body = await answer(
        session, "/v1/chat/completions", named(engine, **chat("Hello", ignore_eos=True))
    )
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 8


async def test_a_text_completion_takes_text_and_token_ids(engine, session):
    for prompt in ("Hello", [72, 105, 33]):
        body = named(engine, prompt=prompt, max_tokens=8, temperature=0, ignore_eos=True)
        status, completion = await answer(session, "/v1/completions", body)
        assert status == 200
        assert completion["object"] == "text_completion"
        assert completion["usage"]["completion_tokens"] == 8


async def test_the_same_greedy_request_has_the_same_answer_alone_and_among_others(engine, session):
    bodies = [
        named(engine, **chat(f"question {number}", max_tokens=24, ignore_eos=True)) for number in range(8)
    ]
    alone = [await answer(session, "/v1/chat/completions", body) for body in bodies]
    together = await asyncio.gather(*(answer(session, "/v1/chat/completions", body) for body in bodies))

    def text(pair: tuple[int, dict[str, Any]]) -> Any:
        return pair[1]["choices"][0]["message"]["content"]

    if engine.spec.engine is EngineName.VLLM:
        # Its kernels round differently in a batch; most of a short answer still agrees.
        assert [status for status, _ in together] == [200] * 8
    else:
        assert [text(pair) for pair in alone] == [text(pair) for pair in together]


async def test_a_stream_says_what_the_whole_answer_says_and_its_usage_when_asked(engine, session):
    body = named(engine, **chat("Tell me", max_tokens=16, ignore_eos=True))
    _, whole = await answer(session, "/v1/chat/completions", body)
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with session.post("/v1/chat/completions", json=streamed) as response:
        assert response.content_type == "text/event-stream"
        chunks = await events(response)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 16
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


async def test_an_unasked_stream_has_no_usage(engine, session):
    body = named(engine, **chat("Tell me", stream=True))
    async with session.post("/v1/chat/completions", json=body) as response:
        assert all("usage" not in chunk for chunk in await events(response))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": "many"},
        {"messages": [{"role": "user", "content": "long " * 1000}]},
    ],
    ids=[
        "no messages",
        "messages a text",
        "content a number",
        "max_tokens a text",
        "longer than the context",
    ],
)
async def test_a_wrong_request_is_refused_with_a_message(engine, session, wrong):
    status, body = await answer(session, "/v1/chat/completions", named(engine, **wrong))
    assert status == 400, body
    assert body["error"]["message"]


async def test_a_body_that_is_not_json_is_refused(engine, session):
    headers = {"Content-Type": "application/json"}
    async with session.post("/v1/chat/completions", data=b"{nonsense", headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"]


async def test_its_metrics_count_what_it_did(engine, session):
    async def metrics() -> EngineMetrics:
        async with session.get("/metrics") as response:
            read: EngineMetrics = engine.adapter.parse_metrics(await response.text())
            return read

    before = await metrics()
    await answer(session, "/v1/chat/completions", named(engine, **chat("Hello", ignore_eos=True)))
    after = await metrics()
    assert after.generated_tokens is not None
    assert before.generated_tokens is not None
    assert after.generated_tokens - before.generated_tokens == 8
    assert after.prompt_tokens is not None
    assert after.prompt_tokens > 0
    assert after.running == after.waiting == 0
    assert after.tpot_s is not None


async def gone(pids: list[int], timeout_s: float = 20.0) -> bool:
    """Whether all of them end in time; zombies have ended."""
    for _ in range(int(timeout_s / 0.05)):
        if not any(alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


async def test_stop_ends_it_and_all_its_processes_while_it_computes(name, tmp_path):
    process = process_of(spec_of(name), tmp_path)
    await process.start()
    await process.wait_ready(READY_S)
    assert process.pid is not None
    pids = family(process.pid)
    assert len(pids) >= 2
    async with aiohttp.ClientSession(process.url, headers=process.headers) as session:
        body = named(process, prompt="on and on", max_tokens=900, ignore_eos=True, stream=True)
        async with session.post("/v1/completions", json=body) as response:
            await response.content.readline()
            await process.stop()
    assert process.exit_status != 128 + signal.SIGKILL
    assert await process.wait_dead() == process.exit_status
    assert await gone(pids, 1.0)
    await process.stop()  # again does nothing


STARTER = """
import asyncio, json, sys
from pathlib import Path
from tandemn.fleet.engines.adapters import adapters
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.settings import Settings

async def main():
    fields = json.loads(sys.argv[1])
    spec = EngineSpec(**fields | {"engine": EngineName(fields["engine"])})
    folder = Path(sys.argv[2])
    process = EngineProcess(adapters(Settings(home=folder))[spec.engine], spec, folder / "engine.log")
    await process.start()
    await process.wait_ready(300)
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_it_ends_when_its_starter_is_killed(name, tmp_path):
    spec = spec_of(name)
    fields = {"engine": name, "model": spec.model, "extra_args": spec.extra_args}
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTER, json.dumps(fields), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert starter.stdout is not None
        pids = family(int(await starter.stdout.readline()))
        assert len(pids) >= 2
    finally:
        os.kill(starter.pid, signal.SIGKILL)
        await starter.wait()
    assert await gone(pids)
