"""A deployment from the command line, all of it real: control plane, router, fleet process, engines."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import openai
import psutil
import pytest
from tests.process.conftest import built

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.house import House


LOCAL = ("deploy", "--model", "demo/tiny", "--gpu", "cpu", "--cloud", "local", "--service-name", "chat")


@pytest.fixture(scope="module")
def town() -> Iterator[House]:
    with built() as house:
        yield house
        done = house.run("destroy", "--all", "--yes")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def chat(town: House) -> dict[str, str]:
    done = town.run(*LOCAL, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def status(town: House) -> dict[str, Any]:
    found: dict[str, Any] = town.json("status", "--service-name", "chat")
    return found


def ask(chat: dict[str, str], key: str | None = None) -> str:
    client = openai.OpenAI(
        base_url=f"{chat['endpoint']}/v1", api_key=key or chat["api_key"], max_retries=0, timeout=60
    )
    with client:
        answer = client.chat.completions.create(
            model="demo/tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0
        )
    return answer.choices[0].message.content or ""


class Load:
    """Asks all the time, but leaves the machine room, from a thread of its own; every answer but 200 is kept."""

    def __init__(self, chat: dict[str, str]) -> None:
        self.chat = chat
        self.answered = 0
        self.failed: list[str] = []
        self._is_over = False
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._running = self._pool.submit(lambda: asyncio.run(self._run()))
        while not self.answered and not self.failed and not self._running.done():
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._running.result(timeout=60)
        self._pool.shutdown()

    async def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self.chat['api_key']}"}
        body = {"model": "demo/tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        async with aiohttp.ClientSession(headers=headers) as session:
            while not self._is_over:
                try:
                    async with session.post(
                        f"{self.chat['endpoint']}/v1/chat/completions", json=body
                    ) as answer:
                        text = await answer.text()
                        if answer.status == 200:
                            self.answered += 1
                        else:
                            self.failed.append(f"{answer.status}: {text}")
                except aiohttp.ClientError as exc:
                    self.failed.append(repr(exc))
                await asyncio.sleep(0.1)


def test_the_endpoint_answers_when_deploy_returns(town, chat):
    assert set(chat) == {"service_name", "endpoint", "api_key"}
    assert ask(chat)
    with pytest.raises(openai.AuthenticationError):
        ask(chat, key="sk-wrong")
    now = status(town)
    assert now["state"] == "ready"
    assert {each["name"]: each["provider"] for each in now["backends"]} == {
        "serverless": "local",
        "spot": "local-spot",
    }
    assert psutil.pid_exists(now["router"]["pid"])
    assert [each["service_name"] for each in town.json("list")["deployments"]] == ["chat"]
    done = town.run("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert town.json("gc")["strays"] == []
    assert "router " in town.run("logs", "--service-name", "chat").stdout


def test_the_same_deploy_again_changes_nothing(town, chat):
    before = status(town)["router"]["pid"]
    done = town.run(*LOCAL, "--json")
    assert json.loads(done.stdout) == chat
    assert status(town)["router"]["pid"] == before
    done = town.run(*LOCAL, "--concurrency", "3")
    assert (done.returncode, "name_taken" in done.stderr) == (2, True)


def test_an_update_and_a_new_key_refuse_nobody(town, chat):
    with Load(chat) as load:
        done = town.run("deploy", "--service-name", "chat", "--update", "--concurrency", "5", "--json")
        assert done.returncode == 0, done.stderr
        rotated = town.json("endpoint", "--service-name", "chat", "--rotate-key", "--keep-old", "1h")
        town.wait_for(lambda: _takes(chat, rotated["api_key"]))
        answered = load.answered
        town.wait_for(lambda: load.answered > answered)
    assert load.failed == []
    assert rotated["api_key"] != chat["api_key"]
    assert status(town)["spec"]["scaling"]["serverless"]["concurrency"] == 5
    # With no time for the old key, it is refused as soon as the router knows.
    last = town.json("endpoint", "--service-name", "chat", "--rotate-key", "--keep-old", "0s")
    town.wait_for(lambda: _takes(chat, last["api_key"]))
    town.wait_for(lambda: not _takes(chat, rotated["api_key"]))
    chat["api_key"] = last["api_key"]


def _takes(chat: dict[str, str], key: str) -> bool:
    try:
        ask(chat, key)
    except openai.AuthenticationError:
        return False
    return True


def test_it_works_on_when_the_control_plane_is_gone_and_is_adopted_by_the_next(town, chat):
    before = status(town)
    with Load(chat) as load:
        psutil.Process(town.server_pid()).send_signal(signal.SIGKILL)
        answered = load.answered
        town.wait_for(lambda: load.answered > answered + 5)
        after = status(town)  # starts another one
        town.wait_for(lambda: status(town)["state"] == "ready")
        assert town.run("server", "stop").returncode == 0
        answered = load.answered
        town.wait_for(lambda: load.answered > answered + 5)
    assert load.failed == []
    assert after["router"]["pid"] == before["router"]["pid"]
    assert after["endpoint"] == chat["endpoint"]


def test_a_router_that_is_killed_comes_back_under_the_same_address(town, chat):
    dead = status(town)["router"]["pid"]
    psutil.Process(dead).send_signal(signal.SIGKILL)

    def answers() -> bool:
        try:
            return bool(ask(chat))
        except openai.APIConnectionError:
            return False

    town.wait_for(answers)
    town.wait_for(lambda: status(town)["router"]["pid"] not in {dead, None})


def test_destroy_leaves_no_process_and_no_key(town, chat):
    done = town.run("destroy", "--service-name", "chat", "--json")
    assert done.returncode == 0, done.stderr
    assert [each["state"] for each in json.loads(done.stdout)["deployments"]] == ["deleted"]
    mine = [each for each in town.processes() if "serving" in " ".join(each.cmdline())]
    assert mine == []
    assert list((town.home / "keys").iterdir()) == []
    assert town.json("list")["deployments"] == []
    kinds = [
        json.loads(line)["kind"]
        for line in town.run("events", "--service-name", "chat", "--json").stdout.splitlines()
    ]
    assert kinds[0] == "deployment_submitted"
    assert {"table_pushed", "key_rotated", "deployment_updated"} <= set(kinds)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_deploy_goes_on_and_the_next_command_finishes_or_removes_it(town, number):
    process = town.start(*LOCAL)
    assert process.stdout is not None
    for line in process.stdout:
        if "router: " in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number is signal.SIGINT:
        assert process.returncode == 130, out + err
        assert "`tandemn destroy --service-name chat` removes it" in err
        done = town.run(*LOCAL, "--json")
        assert done.returncode == 0, done.stderr
        assert ask(json.loads(done.stdout))
    done = town.run("destroy", "--service-name", "chat")
    assert done.returncode == 0, done.stderr
    assert [each for each in town.processes() if "serving" in " ".join(each.cmdline())] == []
