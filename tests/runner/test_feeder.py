"""The feeder against a small HTTP server of the test's own, where each answer can be shaped byte by byte."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from tandemn.runner import outcome
from tandemn.runner.engine_connection import ConnectionLost, EngineConnection
from tandemn.runner.feeder import Address, Feeder, Request, Result
from tandemn.runner.outcome import Judgement

OK = b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}'

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Owner:
    is_dropped: bool = False


@contextlib.asynccontextmanager
async def engine(respond: Respond) -> AsyncIterator[Address]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await respond(await reader.readexactly(length), writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Address(host="127.0.0.1", port=port, path="/v1/completions", api_key="k")
    finally:
        server.close()


def answer(body: bytes, status: int = 200, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def requests(*bodies: bytes, owner: Owner | None = None) -> list[Request]:
    shared = owner or Owner()
    return [Request(owner=shared, index=n, custom_id=f"r-{n}", body=b) for n, b in enumerate(bodies)]


class Fed:
    """A feeder and what came of its requests."""

    def __init__(self, *, died: bool = False) -> None:
        self.results: dict[int, Result] = {}
        self.feeder = Feeder(self._keep, has_died=self._has_died)
        self._died = died
        self._came = asyncio.Event()

    def _keep(self, request: Request, result: Result) -> None:
        self.results[request.index] = result
        self._came.set()

    async def _has_died(self) -> bool:
        return self._died

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.results) < count:
                self._came.clear()
                await self._came.wait()


@pytest.fixture
def no_backoff(monkeypatch):
    monkeypatch.setattr(outcome, "_FIRST_BACKOFF_S", 0.001)


async def test_answers_in_any_http_shape_are_read():
    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        shapes = {
            b"plain": answer(OK),
            b"chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n"
            + OK[:3]
            + b"\r\n%x\r\n" % (len(OK) - 3)
            + OK[3:]
            + b"\r\n0\r\n\r\n",
            b"interim": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(OK),
            b"close": answer(OK, headers=b"Connection: close\r\n"),
        }
        for byte in shapes[body]:
            writer.write(bytes([byte]))
        await writer.drain()

    async with engine(respond) as address:
        connection = EngineConnection(address.host, address.port, address.path, address.api_key)
        for shape in (b"plain", b"chunked", b"interim", b"close", b"plain"):
            assert await asyncio.wait_for(connection.post(shape), 5) == (200, OK)
        connection.abort()


async def test_an_idle_connection_that_was_closed_is_opened_again():
    opened = []

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        writer.write(answer(OK))
        await writer.drain()
        writer.close()

    async with engine(respond) as address:
        connection = EngineConnection(address.host, address.port, address.path, None)
        for _ in range(3):
            assert await asyncio.wait_for(connection.post(b"x"), 5) == (200, OK)
        assert len(set(opened)) == 3


async def test_half_an_answer_is_a_lost_connection():
    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(OK)[:-5])
        await writer.drain()
        writer.close()

    async with engine(respond) as address:
        connection = EngineConnection(address.host, address.port, address.path, None)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(connection.post(b"x"), 5)


async def test_passing_faults_are_tried_again_and_lasting_ones_given_up(no_backoff):
    tries: dict[bytes, int] = {}

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        tries[body] = tries.get(body, 0) + 1
        if body == b"flaky" and tries[body] < 3:
            writer.write(answer(b"busy", 503))
        elif body == b"broken":
            writer.write(answer(json.dumps({"error": {"message": "out of memory"}}).encode(), 500))
        elif body == b"refused":
            writer.write(answer(b'{"error":{"message":"no"}}', 400))
        else:
            writer.write(answer(OK))
        await writer.drain()

    async with engine(respond) as address:
        fed = Fed()
        fed.feeder.resize(2)
        fed.feeder.attach(address)
        fed.feeder.put(requests(b"flaky", b"broken", b"refused", b"fine"))
        await fed.wait(4)
        found = {index: result.judgement for index, result in fed.results.items()}
        assert found == {0: Judgement.ANSWER, 1: Judgement.AGAIN, 2: Judgement.REFUSED, 3: Judgement.ANSWER}
        assert b"out of memory" in fed.results[1].body
        assert tries == {b"flaky": 3, b"broken": outcome.MAX_TRIES, b"refused": 1, b"fine": 1}
        await fed.feeder.close()


async def test_a_suspect_is_computed_with_nothing_beside_it():
    at_once, most = 0, {b"s": 0, b"n": 0}

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once
        at_once += 1
        await asyncio.sleep(0.01)
        most[body] = max(most[body], at_once)
        at_once -= 1
        writer.write(answer(OK))
        await writer.drain()

    async with engine(respond) as address:
        fed = Fed()
        fed.feeder.resize(4)
        fed.feeder.attach(address)
        batch = requests(b"n", b"n", b"s", b"n", b"s", b"n", b"n")
        for request in batch:
            request.strikes = int(request.body == b"s")
        fed.feeder.put(batch)
        await fed.wait(7)
        assert most[b"s"] == 1
        assert most[b"n"] > 1
        await fed.feeder.close()


async def test_what_was_with_a_dead_engine_is_handed_back_and_computed_by_the_next():
    held = asyncio.Event()

    async def hang_up(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"last":
            held.set()
            await asyncio.sleep(0.05)
            writer.close()

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(OK))
        await writer.drain()

    fed = Fed(died=True)
    dropped = Owner()
    async with engine(hang_up) as address:
        fed.feeder.resize(4)
        fed.feeder.attach(address)
        fed.feeder.put(requests(b"a", b"b", b"last"))
        fed.feeder.put(requests(b"gone", owner=dropped))
        await held.wait()
        await asyncio.sleep(0.1)
        dropped.is_dropped = True
        taken = fed.feeder.detach()
    assert sorted(request.body for request in taken) == [b"a", b"b", b"last"]
    assert fed.results == {}
    async with engine(respond) as address:
        fed.feeder.attach(address)
        fed.feeder.put(taken)
        await fed.wait(3)
        assert fed.feeder.is_idle
        await fed.feeder.close()


async def test_workers_leave_and_return_as_the_limit_moves():
    at_once, most = 0, 0

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        writer.write(answer(OK))
        await writer.drain()

    async with engine(respond) as address:
        fed = Fed()
        fed.feeder.resize(8)
        fed.feeder.resize(2)
        fed.feeder.attach(address)
        fed.feeder.put(requests(*[b"x"] * 20))
        await fed.wait(20)
        assert most == 2
        fed.results.clear()
        fed.feeder.resize(6)
        fed.feeder.put(requests(*[b"x"] * 20))
        await fed.wait(20)
        assert 2 < most <= 6
        await fed.feeder.close()
