"""The door of a local backend, in front of engines that misbehave on the wire."""

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tandemn.serving.local import front as front_module
from tandemn.serving.local.front import Door, Front, Refused

KEY = b"sk-engine"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Engine:
    """Answers the n-th request of all with the n-th script; a script ends in `cut` or keeps the connection."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.cut: list[bool] = []

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                self.requests.append(head + await reader.readexactly(length))
                script = self.scripts.pop(0) if self.scripts else [HELLO]
                for step in script:
                    if step == "cut":
                        writer.transport.abort()
                        return
                    if step == "close":
                        return
                    if isinstance(step, asyncio.Event):
                        await step.wait()
                        continue
                    writer.write(step)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut.append(True)
        finally:
            writer.close()


class Stub:
    """As much of a replica as the door needs."""

    def __init__(self, port):
        self.port = port
        self.key = "sk-replica"
        self.idle: list[Any] = []
        self.inflight = 0


class Gate:
    """Admits to one replica after the other."""

    def __init__(self, *replicas):
        self.replicas = list(replicas)
        self.admitted: list[Stub] = []
        self.arrivals = 0
        self.held: asyncio.Event | None = None
        self.refusal: Refused | None = None

    def is_ready(self):
        return bool(self.replicas)

    def arrived(self):
        self.arrivals += 1

    async def admit(self):
        if self.held is not None:
            await self.held.wait()
        if self.refusal is not None:
            raise self.refusal
        replica = self.replicas[len(self.admitted) % len(self.replicas)]
        self.admitted.append(replica)
        replica.inflight += 1
        return replica

    def release(self, replica):
        replica.inflight -= 1


class Scene:
    def __init__(self, gate, front):
        self.gate, self.front = gate, front

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.front.port)

    async def ask(self, body=b"", *, method=b"POST", path=b"/v1/chat/completions", key=KEY, streams=None):
        reader, writer = streams or await self.connect()
        writer.write(request(body, method=method, path=path, key=key))
        answer = await read_answer(reader, method)
        if streams is None:
            writer.close()
        return answer

    async def quiet(self):
        async with asyncio.timeout(10):
            while any(each.inflight for each in self.gate.replicas):
                await asyncio.sleep(0.005)


def request(body=b"", *, method=b"POST", path=b"/v1/chat/completions", key=KEY):
    head = b"%b %b HTTP/1.1\r\nHost: x\r\n" % (method, path)
    if key is not None:
        head += b"authorization: Bearer %b\r\n" % key
    return head + b"X-Kept: as it is\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def read_answer(reader, method=b"POST"):
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        if method == b"HEAD":
            return head, b""
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return head, await reader.readuntil(b"0\r\n\r\n")
        if b"content-length: " in lower:
            length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await reader.readexactly(length)
        return head, await reader.read()


@asynccontextmanager
async def scene(*engines, longest_s=None):
    servers = [await asyncio.start_server(engine.serve, "127.0.0.1", 0) for engine in engines]
    gate = Gate(*(Stub(server.sockets[0].getsockname()[1]) for server in servers))
    front = Front(Door(gate=gate, key=KEY, longest_s=longest_s))
    await front.open(0)
    yield Scene(gate, front)
    front.close()
    for replica in gate.replicas:
        for upstream in replica.idle:
            upstream.drop()
    for server in servers:
        server.close()


async def test_bytes_pass_unchanged_but_for_the_key():
    engine = Engine()
    async with scene(engine) as it:
        assert await it.ask(b"{}") == (HELLO[:-5], b"hello")
        await it.quiet()
    assert engine.requests == [
        request(b"{}", key=None).replace(b"X-Kept", b"Authorization: Bearer sk-replica\r\nX-Kept")
    ]


async def test_both_connections_are_used_again():
    engine = Engine()
    async with scene(engine) as it:
        streams = await it.connect()
        for _ in range(5):
            assert (await it.ask(b"{}", streams=streams))[1] == b"hello"
        streams[1].close()
    assert (engine.connections, len(engine.requests)) == (1, 5)


async def test_nobody_without_the_key_gets_in_or_counts_as_traffic():
    engine = Engine()
    async with scene(engine) as it:
        for key in (None, b"sk-other"):
            assert (await it.ask(key=key))[0].startswith(b"HTTP/1.1 401 ")
        assert it.gate.arrivals == 0
    assert engine.requests == []


async def test_health_is_the_doors_own_and_starts_nothing():
    async with scene(Engine()) as it:
        assert (await it.ask(method=b"GET", path=b"/health", key=None))[0].startswith(b"HTTP/1.1 200 ")
        replicas, it.gate.replicas = it.gate.replicas, []
        assert (await it.ask(method=b"GET", path=b"/health", key=None))[0].startswith(b"HTTP/1.1 503 ")
        it.gate.replicas = replicas
        assert it.gate.arrivals == 0


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", "close"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", HELLO],
    ],
    ids=["chunked", "until the end", "after a 100"],
)
async def test_every_framing_passes(answer):
    async with scene(Engine(answer)) as it:
        reader, writer = await it.connect()
        writer.write(request())
        async with asyncio.timeout(10):
            got = await reader.readexactly(sum(len(step) for step in answer if step != "close"))
        assert got == b"".join(step for step in answer if step != "close")
        await it.quiet()
        writer.close()


async def test_an_answer_to_head_has_no_body_and_the_connection_goes_on():
    engine = Engine([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], [HELLO])
    async with scene(engine) as it:
        assert (await it.ask(method=b"HEAD"))[0].startswith(b"HTTP/1.1 200")
        await it.quiet()
        assert (await it.ask())[1] == b"hello"


async def test_a_replica_that_dies_before_its_answer_is_passed_over():
    dead, alive = Engine(["cut"]), Engine()
    async with scene(dead, alive) as it:
        assert (await it.ask(b'{"a": 1}'))[1] == b"hello"
        await it.quiet()
        assert len(it.gate.admitted) == 2
    assert alive.requests[0].endswith(b'{"a": 1}')


async def test_one_that_dies_within_its_answer_is_seen_by_the_router():
    async with scene(Engine([HELLO[:-2], "cut"]), Engine()) as it:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await it.ask()
        await it.quiet()
        assert len(it.gate.admitted) == 1


async def test_after_as_many_tries_as_are_allowed_the_router_is_told():
    engine = Engine(*[["cut"]] * 10)
    async with scene(engine) as it:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await it.ask()
        await it.quiet()
    assert len(engine.requests) == front_module.MOST_TRIES


async def test_a_kept_connection_that_was_closed_costs_no_try():
    engine = Engine([HELLO], *[["cut"]] * (front_module.MOST_TRIES - 1), [HELLO])
    async with scene(engine) as it:
        streams = await it.connect()
        assert (await it.ask(streams=streams))[1] == b"hello"
        assert (await it.ask(streams=streams))[1] == b"hello"
        streams[1].close()


async def test_a_request_waits_for_whoever_is_to_take_it():
    async with scene(Engine()) as it:
        it.gate.held = asyncio.Event()
        waiting = asyncio.create_task(it.ask(b"x" * 100_000))
        async with asyncio.timeout(10):
            while not it.gate.arrivals:
                await asyncio.sleep(0.005)
        assert not waiting.done()
        it.gate.held.set()
        assert (await waiting)[1] == b"hello"


async def test_a_long_body_is_passed_on_as_it_comes_and_sent_once():
    body = b"y" * (4 * front_module.KEPT_BODY)
    engine = Engine([HELLO], ["cut"], [HELLO])
    async with scene(engine) as it:
        it.gate.held = asyncio.Event()
        waiting = asyncio.create_task(it.ask(body))
        await asyncio.sleep(0.05)
        it.gate.held.set()
        assert (await waiting)[1] == b"hello"
        assert engine.requests[0].endswith(body)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await it.ask(body)
    assert len(engine.requests) == 2


async def test_a_client_that_leaves_is_computed_for_no_longer():
    never = asyncio.Event()
    engine = Engine([HELLO[:-2], never])
    async with scene(engine) as it:
        reader, writer = await it.connect()
        writer.write(request())
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        await it.quiet()
        never.set()


async def test_a_client_that_leaves_while_it_waits_takes_no_place():
    async with scene(Engine()) as it:
        it.gate.held = asyncio.Event()
        _, writer = await it.connect()
        writer.write(request())
        async with asyncio.timeout(10):
            while not it.gate.arrivals:
                await asyncio.sleep(0.005)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        it.gate.held.set()
        assert (await it.ask())[1] == b"hello"
        assert len(it.gate.admitted) == 1


async def test_a_refusal_says_when_to_come_again():
    async with scene(Engine()) as it:
        it.gate.refusal = Refused(429, "every replica is full", code="overloaded", retry_after_s=1)
        head, body = await it.ask()
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in head
        assert b'"code":"overloaded"' in body


async def test_the_longest_request_is_ended():
    never = asyncio.Event()
    async with scene(Engine([never], [HELLO[:-2], never]), longest_s=0.1) as it:
        assert (await it.ask())[0].startswith(b"HTTP/1.1 504 ")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await it.ask()
        await it.quiet()
        never.set()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"POST / HTTP/1.1\r\nX: " + b"y" * (front_module.LONGEST_HEAD + 1),
        request() + request(),
    ],
    ids=["no http", "an endless head", "two at once"],
)
async def test_what_no_router_sends_is_cut_off(garbage):
    async with scene(Engine()) as it:
        reader, writer = await it.connect()
        writer.write(garbage)
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
