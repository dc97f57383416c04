"""demo/tiny: made alike everywhere, and the same text however an answer is cut."""

import asyncio
import hashlib
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tandemn.fleet.engines.demo_model import ensure_demo_model
from tandemn.fleet.engines.engine import DEMO_MODEL, EngineName, EngineSpec
from tandemn.fleet.engines.llamacpp import LlamaCpp
from tandemn.fleet.engines.process import EngineProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = "Which way is it to the sea?"
PROMPT = f"user: {QUESTION}\nassistant: "
LENGTH = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    spec = EngineSpec(engine=EngineName.LLAMACPP, model=DEMO_MODEL)
    engine = EngineProcess(LlamaCpp(folder / "models"), spec, folder / "engine.log")
    await engine.start()
    try:
        await engine.wait_ready(60)
        # The server closes connections that idle for some seconds; a client must let go of them first.
        connector = aiohttp.TCPConnector(limit=32, keepalive_timeout=2)
        async with aiohttp.ClientSession(engine.url, connector=connector) as session:
            yield session
    finally:
        await engine.stop()


async def complete(
    session: aiohttp.ClientSession, prompt: str | list[int], tokens: int, **options: Any
) -> str:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | options
    async with session.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["text"])


async def converse(
    session: aiohttp.ClientSession, messages: list[dict[str, str]], tokens: int, **options: Any
) -> str:
    body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | options
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])


async def test_two_builds_have_the_same_bytes(tmp_path):
    first, second = (ensure_demo_model(tmp_path / name) for name in "ab")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


async def test_many_processes_may_build_it_at_once(tmp_path):
    program = (
        "import sys; from pathlib import Path; from tandemn.fleet.engines.demo_model import ensure_demo_model;"
        "print(ensure_demo_model(Path(sys.argv[1])))"
    )
    builders = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    paths = {builder.communicate(timeout=60)[0] for builder in builders}
    assert len(paths) == 1
    assert [path.name for path in tmp_path.iterdir()] == [ensure_demo_model(tmp_path).name]


async def test_its_bytes_do_not_depend_on_the_machine(tmp_path):
    # A changed recipe changes this line; a changed library must not.
    digest = hashlib.sha256(ensure_demo_model(tmp_path).read_bytes()).hexdigest()
    assert digest == "319be31d29bd7f427b817aadb3d2e02d6b03663354bc4ed06e0c27b7c575c682"


async def test_a_chat_is_its_template_as_plain_text(session):
    messages = [{"role": "user", "content": QUESTION}]
    assert await converse(session, messages, LENGTH) == await complete(session, PROMPT, LENGTH)


async def test_text_and_token_ids_are_the_same_prompt(session):
    prompt = "Grüße, 世界! \x00\x07\t\r\n " + '"\\'
    assert await complete(session, prompt, 40) == await complete(session, list(prompt.encode()), 40)


async def test_an_answer_cut_anywhere_continues_as_if_unbroken(session):
    whole = await complete(session, PROMPT, LENGTH)
    assert len(whole) == LENGTH
    question = {"role": "user", "content": QUESTION}

    async def resume(cut: int) -> None:
        begun, left = whole[:cut], LENGTH - cut
        ids = list((PROMPT + begun).encode())
        messages = [question, {"role": "assistant", "content": begun}]
        assert begun + await complete(session, ids, left) == whole
        # llama.cpp's answer to a chat that ends in an assistant's message begins with that message.
        assert await converse(session, messages, left) == whole

    await asyncio.gather(*(resume(cut) for cut in range(1, LENGTH, 3)))


async def test_greedy_answers_are_the_same_alone_and_in_a_batch(session):
    prompts = [f"{number} is a number {'and so on ' * (number % 9)}: " for number in range(48)]
    alone = [await complete(session, prompt, 48) for prompt in prompts]
    together = await asyncio.gather(*(complete(session, prompt, 48) for prompt in prompts))
    assert alone == list(together)
    assert len(set(alone)) > 40


async def test_nothing_but_printable_ascii_is_ever_said_however_hot(session):
    hot = {"temperature": 100, "top_k": 0, "top_p": 1, "min_p": 0}
    texts = await asyncio.gather(*(complete(session, PROMPT, 300, seed=seed, **hot) for seed in range(16)))
    said = set("".join(texts))
    assert said == {chr(code) for code in range(0x20, 0x7F)}


async def test_answers_are_mostly_long_and_do_end(session):
    questions = [[{"role": "user", "content": f"Question {number}"}] for number in range(16)]
    answers = await asyncio.gather(
        *(converse(session, messages, 1000, ignore_eos=False) for messages in questions)
    )
    lengths = sorted(len(answer) for answer in answers)
    assert lengths[len(lengths) // 4] > 64
    assert lengths[0] < 1000


async def test_answers_do_not_run_into_a_loop(session):
    text = await complete(session, PROMPT, 1000)
    assert len({text[start : start + 20] for start in range(980)}) > 940
