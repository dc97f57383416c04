"""A real router process, and clients that keep to HTTP more or less: none of them disturbs the others.

Bytes are put together from HTTP's own pieces, bent, cut anywhere and sent at any pace. After each round the router
must answer an honest request at once, and its memory must stay below a bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil
from aiohttp import web
from tests.fakes.router_rig import KEY, Rig

#: Connections of one round.
AT_A_TIME = 16
#: A connection that the router neither answers nor closes for so long, once nothing more is sent, is a hang.
HANG_S = 30.0
#: Memory of the router; it begins at some 60 MB.
RSS_BYTES = 300_000_000
#: What is sent after a beginning that has no end, at most, and for how long: kept, it would show.
FLOOD_BYTES = 500_000_000
FLOOD_S = 3.0
#: An honest request is answered within this time, whatever the others do.
HONEST_S = 20.0

METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"PRI",
    b"get",
    b"",
    b"G\x00T",
    b"M-SEARCH",
]
TARGETS = [
    b"/v1/chat/completions",
    b"/",
    b"*",
    b"http://other/x",
    b"/%00",
    b"/\xff",
    b"//",
    b"/router/health",
    b"/metrics",
    b"/router/../x",
    b"/a b",
    b"x",
    b"",
    b"/?" + b"q" * 3000,
    b"host:80",
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b"HTTP/1.1 ", b"", b"ICY"]
NAMES = [
    b"Host",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Connection",
    b"Expect",
    b"Upgrade",
    b"Trailer",
    b"TE",
    b"Content-Type",
    b"X-A",
    b"Authorization",
    b"Content-Encoding",
    b"Cookie",
    b"Proxy-Connection",
    b"Keep-Alive",
    b"\xff",
    b"A B",
    b"",
    b":x",
]
VALUES = [
    b"x",
    b"0",
    b"5",
    b"05",
    b"+5",
    b"-1",
    b"5, 5",
    b"5,6",
    b"18446744073709551616",
    b"9" * 40,
    b"chunked",
    b"gzip, chunked",
    b"chunked, chunked",
    b"identity",
    b"xchunked",
    b" chunked",
    b"close",
    b"keep-alive, close",
    b"100-continue",
    b"websocket",
    b"h2c",
    b"application/json",
    b"Bearer " + KEY.encode(),
    b"",
    b"\x00",
    b"\xff" * 9,
    b"a\rb",
    b"v" * 5000,
    b"x\r\n y",
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\n\r\n", b"\n\r"]
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()
BODIES = [
    b"",
    CHAT,
    CHAT[:7],
    b"5\r\nhello\r\n0\r\n\r\n",
    b"%x\r\n" % len(CHAT) + CHAT + b"\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"-5\r\nhello\r\n",
    b"FFFFFFFFFFFFFFFF\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"x" * 3000,
    b"[" * 4000,
    b'{"a":' * 900,
    b"\x00\xff",
]


def request(pick: random.Random) -> bytes:
    """One request, honest in most of its parts."""

    def choose(options: list[bytes], usual: bytes) -> bytes:
        return usual if pick.random() < 0.75 else pick.choice(options)

    body = choose(BODIES, CHAT)
    lines = [
        b" ".join(
            (
                choose(METHODS, b"POST"),
                choose(TARGETS, b"/v1/chat/completions"),
                choose(VERSIONS, b"HTTP/1.1"),
            )
        )
    ]
    fields = [
        (b"Host", b"x"),
        (b"Authorization", b"Bearer " + KEY.encode()),
        (b"Content-Type", b"application/json"),
    ]
    fields.append(
        (b"Transfer-Encoding", b"chunked")
        if body[1:3] == b"\r\n" or pick.random() < 0.1
        else (b"Content-Length", b"%d" % len(body))
    )
    if pick.random() < 0.3:
        fields += [(pick.choice(NAMES), pick.choice(VALUES)) for _ in range(pick.choice([1, 1, 2, 3, 200]))]
    pick.shuffle(fields)
    separator = b": " if pick.random() < 0.9 else pick.choice([b":", b" : ", b"", b":\t"])
    lines += [name + separator + value for name, value in fields]
    end = choose(ENDS, b"\r\n")
    whole = end.join(lines) + end + end + body
    if pick.random() < 0.2:  # bent anywhere
        at = pick.randrange(len(whole) + 1)
        whole = (
            whole[:at]
            + pick.choice([b"", b"\x00", b"\r", b"\n", b"\xff", whole[:at][-30:], pick.randbytes(5)])
            + whole[at + pick.choice([0, 0, 1, 5]) :]
        )
    return whole


def endless(pick: random.Random) -> tuple[bytes, bytes]:
    """A beginning, and what is sent after it again and again."""
    auth = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
    chunked = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + auth + b"Transfer-Encoding: chunked\r\n\r\n"
    )
    return pick.choice(
        [
            (b"GET /", b"x" * 65536),
            (b"GET / HTTP/1.1\r\n", b"X-A: " + b"x" * 60000 + b"\r\n"),
            (b"GET / HTTP/1.1\r\nX: ", b"x" * 65536),
            (chunked + b"0\r\n", b"X-T: " + b"x" * 60000 + b"\r\n"),
            (chunked + b"0\r\nX-T: ", b"x" * 65536),
            (chunked + b"5;", b"x" * 65536),
            (chunked, b"1\r\nx\r\n" * 5000),
            (b"\r\n", b"\r\n" * 30000),
            (b"", b"GET /router/health HTTP/1.1\r\nHost: x\r\n" + auth + b"\r\n"),
        ]
    )


class Round:
    """Some connections beside each other."""

    def __init__(self, port: int, pick: random.Random) -> None:
        self._port = port
        self._pick = pick

    async def run(self) -> None:
        jobs = [self._client() for _ in range(AT_A_TIME)]
        if self._pick.random() < 0.3:
            jobs.append(self._flood())
        await asyncio.gather(*jobs)

    async def _client(self) -> None:
        pick = self._pick
        content = b"".join(request(pick) for _ in range(pick.choice([1, 1, 1, 2, 5])))
        cuts = sorted(pick.randrange(len(content) + 1) for _ in range(pick.choice([0, 0, 1, 3, 20])))
        await self._send([content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)])

    async def _send(self, pieces: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if self._pick.random() < 0.3:
                    await asyncio.sleep(0.001)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), HANG_S)
        except TimeoutError:
            raise Found("a connection hangs", b"".join(pieces)) from None
        except OSError:
            pass  # closed on us: as good an answer as any
        finally:
            writer.close()

    async def _flood(self) -> None:
        start, more = endless(self._pick)
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.timeout(FLOOD_S):
                writer.write(start)
                for _ in range(FLOOD_BYTES // len(more)):
                    writer.write(more)
                    await writer.drain()
        except (OSError, TimeoutError):
            pass  # refused, or not read any more: bounded either way
        finally:
            writer.close()


class Found(Exception):
    def __init__(self, what: str, content: bytes = b"") -> None:
        super().__init__(what)
        self.content = content


async def honest(port: int) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(CHAT)}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(HONEST_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + CHAT)
            said = await reader.read()
            writer.close()
    except (TimeoutError, OSError) as exc:
        raise Found(f"an honest request fails: {exc!r}") from exc
    if not said.startswith(b"HTTP/1.1 200"):
        raise Found(f"an honest request is answered {said[:200]!r}")


async def against_a_router(folder: Path, seconds: int, seed: int) -> dict[str, object]:
    """Put a router of its own in front of a backend that takes everything."""

    async def take(request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rig = Rig(folder)
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        router = await asyncio.to_thread(rig.router, {"name": "spot", "market": "spot", "url": url})
        return await fuzz(router.port, psutil.Process(router.popen.pid), seconds, seed)
    finally:
        rig.end()
        await runner.cleanup()


async def fuzz(port: int, process: psutil.Process, seconds: int, seed: int) -> dict[str, object]:
    end, rounds, highest = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        try:
            await Round(port, random.Random(seed + rounds)).run()
            await honest(port)
        except Found as found:
            print(f"seed {seed + rounds}: {found} {found.content!r}", file=sys.stderr)
            return _figures(seconds, rounds, 1, highest) | {"seed": seed + rounds}
        rounds += 1
        highest = max(highest, process.memory_info().rss)
        if highest > RSS_BYTES:
            print(f"seed {seed + rounds - 1}: the router takes {highest} bytes", file=sys.stderr)
            return _figures(seconds, rounds, 1, highest) | {"seed": seed + rounds - 1}
    return _figures(seconds, rounds, 0, highest)


def _figures(seconds: int, rounds: int, failures: int, rss: int) -> dict[str, object]:
    """A case is a connection."""
    return {
        "part": "requests",
        "seconds": seconds,
        "cases": rounds * AT_A_TIME,
        "failures": failures,
        "rss_mb": rss // 1_000_000,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.requests")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandemn-fuzz-") as folder:
        result = asyncio.run(against_a_router(Path(folder), options.seconds, options.seed))
    print(json.dumps(result))
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main())
