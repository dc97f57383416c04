"""Real vLLM on a CPU: what Tandemn relies on beyond the contract of every engine (`make vllm-cpu`)."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tandemn import settings
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.process import EngineProcess
from tandemn.fleet.engines.vllm import Vllm

MODEL = Path(__file__).parents[3] / ".cache" / "vllm-cpu" / "model"

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    spec = EngineSpec(
        engine=EngineName.VLLM,
        model=str(MODEL),
        api_key="k",
        max_model_len=1024,
        extra_args=("--enforce-eager",),
    )
    process = EngineProcess(
        Vllm(settings.load().vllm_command), spec, tmp_path_factory.mktemp("vllm") / "engine.log"
    )
    await process.start()
    try:
        await process.wait_ready(300)
        yield process
    finally:
        await process.stop()


async def stream(engine: EngineProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"model": engine.spec.model, "temperature": 0, "stream": True, "ignore_eos": True} | body
    async with (
        aiohttp.ClientSession(engine.url, headers=engine.headers) as session,
        session.post(path, json=body) as response,
    ):
        assert response.status == 200, await response.text()
        lines = [line async for line in response.content if line.strip()]
    assert lines[-1].strip() == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def ids_of(chunks: list[dict[str, Any]]) -> list[int]:
    return [
        token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids") or []
    ]


QUESTION = {"role": "user", "content": "Which way is it to the sea?"}
CHAT = {"messages": [QUESTION], "return_token_ids": True}


async def test_a_stream_cut_after_any_token_continues_from_its_token_ids(engine):
    chunks = await stream(engine, "/v1/chat/completions", CHAT | {"max_tokens": 32})
    prompt, answer = chunks[0]["prompt_token_ids"], ids_of(chunks)
    assert len(answer) == 32
    for cut in (1, 7, 20, 31):
        body = {"prompt": prompt + answer[:cut], "max_tokens": 32 - cut, "return_token_ids": True}
        assert ids_of(await stream(engine, "/v1/completions", body)) == answer[cut:]


async def test_prompt_ids_of_a_text_completion_stand_in_its_first_choice(engine):
    chunks = await stream(
        engine, "/v1/completions", {"prompt": "sea", "max_tokens": 3, "return_token_ids": True}
    )
    assert len(chunks[0]["choices"][0]["prompt_token_ids"]) == 3
    assert chunks[1]["choices"][0]["prompt_token_ids"] is None


async def test_a_final_message_is_continued_and_not_repeated(engine):
    partial = {"role": "assistant", "content": "To the"}
    body = CHAT | {
        "messages": [QUESTION, partial],
        "max_tokens": 4,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    chunks = await stream(engine, "/v1/chat/completions", body)
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert not text.startswith("To the")
    assert len(ids_of(chunks)) == 4


async def test_a_negative_temperature_is_refused_with_the_field(engine):
    body = {"model": engine.spec.model, **CHAT, "temperature": -1}
    async with (
        aiohttp.ClientSession(engine.url, headers=engine.headers) as session,
        session.post("/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "temperature"
