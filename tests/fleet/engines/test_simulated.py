"""The simulated engine: what it says, and the faults that it can be told to have."""

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.errors import EngineFailed, InvalidInput
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.fleet.engines.simulated import Simulated
from tandemn.fleet.engines.simulated_model import END_TOKEN, Text, render_chat
from tandemn.fleet.engines.simulated_request import read_generation


def take(text: Text, count: int) -> bytes:
    tokens = text.tokens()
    return bytes(token for _, token in zip(range(count), tokens, strict=False) if token != END_TOKEN)


@given(prompt=st.binary(max_size=200), seed=st.integers(), cut=st.integers(0, 60))
def test_an_answer_cut_anywhere_continues_as_if_unbroken(prompt, seed, cut):
    whole = take(Text(seed, "m", prompt), 60)
    cut = min(cut, len(whole))
    assert whole[:cut] + take(Text(seed, "m", prompt + whole[:cut]), 60 - cut) == whole


def test_seed_model_and_prompt_each_make_another_answer():
    texts = {
        take(Text(seed, model, prompt), 32) for seed in (0, 1) for model in "ab" for prompt in (b"x", b"y")
    }
    assert len(texts) == 8
    assert all(0x20 <= byte < 0x7F for text in texts for byte in text)


def test_a_partial_answer_is_left_open_in_the_prompt():
    question = {"role": "user", "content": "Why?"}
    open_ended = render_chat([question], continue_final_message=False)
    partial = {"role": "assistant", "content": "Because"}
    assert render_chat([question, partial], continue_final_message=True) == open_ended + b"Because"


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["messages", "prompt", "max_tokens", "stream_options", "role", "content", "model"]
                ),
                inner,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
    st.booleans(),
)
def test_any_body_is_read_or_refused(body, is_chat):
    try:
        read_generation(body, is_chat=is_chat, model="m", context=4096)
    except InvalidInput as error:
        assert error.message  # noqa: PT017 - an answer is as good as an error


def process_of(folder: Path, *extra_args: str) -> EngineProcess:
    spec = EngineSpec(engine=EngineName.SIMULATED, model="m", extra_args=extra_args)
    return EngineProcess(Simulated(), spec, folder / "engine.log")


async def test_it_says_that_it_is_simulated_refuses_as_told_and_dies_as_told(tmp_path):
    process = process_of(tmp_path, "--refuse", "bad apple", "--crash-on", "boom", "--decode-step-s", "0.001")
    await process.start()
    try:
        await process.wait_ready(60)
        async with aiohttp.ClientSession(process.url) as session:
            body = {"prompt": [104, 105], "max_tokens": 5, "return_token_ids": True, "ignore_eos": True}
            async with session.post("/v1/completions", json=body) as response:
                assert response.headers["x-tandemn-simulated"] == "true"
                answer = await response.json()
            assert answer["system_fingerprint"] == "simulated"
            choice = answer["choices"][0]
            assert choice["prompt_token_ids"] == [104, 105]
            assert bytes(choice["token_ids"]).decode() == choice["text"]

            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
            async with session.post(
                "/v1/chat/completions", json=body | {"return_token_ids": True}
            ) as response:
                first, *rest = [line async for line in response.content if line.strip()]
            assert "prompt_token_ids" in json.loads(first.removeprefix(b"data: "))
            assert "token_ids" in json.loads(rest[0].removeprefix(b"data: "))["choices"][0]

            async with session.post("/v1/embeddings", json={"input": ["one", "two"]}) as response:
                assert [item["index"] for item in (await response.json())["data"]] == [0, 1]

            async with session.post("/v1/completions", json={"prompt": "a bad apple"}) as response:
                assert response.status == 400
                assert "refuse" in (await response.json())["error"]["message"]

            async with session.post("/v1/completions", json={"model": "other", "prompt": "x"}) as response:
                assert response.status == 404

            with pytest.raises(aiohttp.ClientError):
                await session.post("/v1/completions", json={"prompt": "then boom"})
        assert await asyncio.wait_for(process.wait_dead(), 20) == 128 + signal.SIGKILL
    finally:
        await process.stop()


async def test_it_fails_to_load_as_told(tmp_path):
    process = process_of(tmp_path, "--fail-load")
    await process.start()
    with pytest.raises(EngineFailed, match="--fail-load"):
        await process.wait_ready(60)


async def test_it_computes_nothing_while_it_is_held(tmp_path):
    (hold := tmp_path / "hold").touch()
    process = process_of(tmp_path, "--hold", str(hold))
    await process.start()
    try:
        await process.wait_ready(60)
        async with aiohttp.ClientSession(process.url) as session:
            asking = asyncio.create_task(session.post("/v1/completions", json={"prompt": "x"}))
            await asyncio.sleep(0.3)
            assert not asking.done()
            hold.unlink()
            async with asyncio.timeout(20):
                assert (await asking).status == 200
    finally:
        await process.stop()


async def test_no_more_requests_run_than_it_has_slots_and_the_rest_wait(tmp_path):
    process = process_of(tmp_path, "--slots", "2", "--decode-step-s", "0.1")
    await process.start()
    try:
        await process.wait_ready(60)
        async with aiohttp.ClientSession(process.url) as session:
            body = {"prompt": "x", "max_tokens": 50, "ignore_eos": True}
            requests = [asyncio.create_task(session.post("/v1/completions", json=body)) for _ in range(5)]
            for _ in range(200):
                async with session.get("/metrics") as response:
                    metrics = process.adapter.parse_metrics(await response.text())
                if metrics.running + metrics.waiting == 5:
                    break
                await asyncio.sleep(0.02)
            assert (metrics.running, metrics.waiting, metrics.kv_cache_use) == (2, 3, 1.0)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
    finally:
        await process.stop()
