"""One connection to Redis that many tasks share: what they ask in one turn of the loop goes out as one write.

Measured on two cores, 32 callers, `appendfsync always`, lease+complete: shared, 8,500-10,600 pairs/s at 51-56 µs
of this process's time each; a connection for each caller, 7,200-7,800 at 128-136 µs. Nothing is ever sent twice by
itself, except where the server says that it did not run it (NOSCRIPT).
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from tandemn.errors import QueueUnavailable

#: How long the server may take to answer, in seconds: a sync of a slow disk, or a million chunks at once.
TIMEOUT_S = 10.0
#: How long a connection may take to open, in seconds.
CONNECT_S = 5.0
#: Commands in one write: bounds what a reply that does not come leaves uncertain.
BATCH = 256
#: Calls that may wait for the connection; more means that the server stands still.
WAITING = 20_000

#: What to do, by a word of the error's class or text: some servers and redis-py move the code between the two.
_NEXT_STEPS = (
    ("maxmemory", "raise the server's maxmemory, or drop ended jobs"),
    ("misconf", "free space on the disk of the Redis server"),
    ("readonly", "point TANDEMN_REDIS_URL at the primary, not at a replica"),
    ("loading", "wait: the server reads its data"),
    ("authentication", "correct the user and password in TANDEMN_REDIS_URL"),
    ("permission", "let the user of TANDEMN_REDIS_URL run scripts on tandemn:* keys"),
    ("moved", "point TANDEMN_REDIS_URL at the node, or a proxy, that has every slot"),
)


class Script:
    """A Lua script and the name under which the server keeps it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisLane:
    """Calls to one Redis server, in the order asked, over one connection."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            max_connections=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(CONNECT_S, timeout_s),
            # redis-py would send a `complete` again whose reply was lost, and report a lost lease.
            retry=Retry(NoBackoff(), 0),
        )
        self._waiting: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None

    async def call(self, command: tuple[Any, ...], script: Script | None = None) -> Any:
        """Send one command and return its answer.

        Raises:
            QueueUnavailable: with the cause; the command may have been carried out.
        """
        if len(self._waiting) >= WAITING:
            raise QueueUnavailable(
                f"{WAITING} calls wait for Redis already", next_step="try again in a second"
            )
        call = _Call(command, script)
        self._waiting.append(call)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await call.answer

    async def aclose(self) -> None:
        """Close the connection; calls under way raise QueueUnavailable."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
        for call in self._waiting:
            call.fail(ConnectionError("the queue was closed"))
        self._waiting.clear()
        await self._redis.aclose()

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            cause: Exception = ConnectionError("the queue was closed")
            try:
                await self._exchange(batch)
            except Exception as exc:  # noqa: BLE001 - whatever it is belongs to the callers, who wait
                cause = exc
            finally:
                # Also where this task is cancelled; calls that have their answer keep it.
                for call in batch:
                    call.fail(cause)

    async def _exchange(self, batch: list[_Call]) -> None:
        unknown = [
            call
            for call, answer in zip(batch, await self._pipeline(batch), strict=True)
            if not call.settle(answer)
        ]
        if unknown:
            for text in {call.script.text for call in unknown if call.script}:
                await self._redis.script_load(text)
            for call, answer in zip(unknown, await self._pipeline(unknown), strict=True):
                if not call.settle(answer):
                    call.fail(answer)

    async def _pipeline(self, batch: list[_Call]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for call in batch:
            pipe.execute_command(*call.command)
        return await pipe.execute(raise_on_error=False)


class _Call:
    __slots__ = ("answer", "command", "script")

    def __init__(self, command: tuple[Any, ...], script: Script | None) -> None:
        self.command = command
        self.script = script
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(self, answer: Any) -> bool:
        """Pass the answer on; False where the server does not know the script (and so ran nothing)."""
        if isinstance(answer, NoScriptError) and self.script is not None:
            return False
        if isinstance(answer, Exception):
            self.fail(answer)
        elif not self.answer.done():
            self.answer.set_result(answer)
        return True

    def fail(self, cause: Exception) -> None:
        # Done already where the caller was cancelled: its command went its way all the same.
        if not self.answer.done():
            self.answer.set_exception(_unavailable(cause))


def _unavailable(cause: Exception) -> QueueUnavailable:
    kind = type(cause).__name__
    text = str(cause) or kind
    step = next(
        (step for marker, step in _NEXT_STEPS if marker in f"{kind} {text}".lower()),
        "see that the Redis server runs",
    )
    error = QueueUnavailable(f"Redis did not do it: {text}", next_step=step)
    error.__cause__ = cause
    return error
