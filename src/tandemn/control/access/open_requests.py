"""Requests that are being answered: so many at a time for each key, and none for a key that was taken away.

A key is looked at when a request begins. A long poll, a followed log or a download may outlive it, so requests
that have been open for a while are looked at again, and cut off when their key is void.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from tandemn.control.store import keys
from tandemn.errors import TandemnError, TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tandemn.control.access.rules import Caller
    from tandemn.control.store.database import Database

_log = structlog.get_logger()

#: Requests of one key that may be open at a time: each may hold some blocks of a file.
OPEN_PER_KEY = 64
#: How long a request that is open may go on after its key was taken away by another control plane.
RECHECK_S = 2.0


@dataclass(eq=False, slots=True)
class OpenRequest:
    key_id: str
    task: asyncio.Task[object]
    is_revoked: bool = False


@dataclass(slots=True)
class OpenRequests:
    """Those of one control plane."""

    _open: dict[int, OpenRequest] = field(default_factory=dict)
    _per_key: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def entered(self, caller: Caller | None) -> Iterator[OpenRequest | None]:
        """Count the running task as a request of the caller's; who needs no key is not counted.

        Raises:
            TooManyRequests: it has too many open already (code `too_many_open`).
        """
        task = asyncio.current_task()
        if caller is None or caller.key_id is None or task is None:
            yield None
            return
        if self._per_key[caller.key_id] >= OPEN_PER_KEY:
            raise TooManyRequests(
                f"{caller.name} has {OPEN_PER_KEY} requests open",
                code="too_many_open",
                retry_after_s=1.0,
                next_step="wait for one of them to end",
            )
        number = next(self._numbers)
        entry = self._open[number] = OpenRequest(caller.key_id, task)
        self._per_key[caller.key_id] += 1
        try:
            yield entry
        finally:
            del self._open[number]
            self._per_key[caller.key_id] -= 1
            if not self._per_key[caller.key_id]:
                del self._per_key[caller.key_id]

    async def cut_off(self, database: Database) -> None:
        """End every request whose key is void by now, but the one that this is part of."""
        asked = set(self._per_key)
        if not asked:
            return
        # Not of those that come while the database is asked: their keys were looked at since, and are not in its answer.
        void = asked - await database.run(keys.live_ids, asked)
        for entry in self._open.values():
            is_other = entry.task is not asyncio.current_task()
            if entry.key_id in void and is_other and not entry.is_revoked:
                entry.is_revoked = True
                entry.task.cancel()

    async def watch(self, database: Database) -> None:
        """Cut off until cancelled: keys are taken away by other processes, too."""
        while True:
            await asyncio.sleep(RECHECK_S)
            try:
                await self.cut_off(database)
            except TandemnError as exc:
                _log.warning("open requests cannot be looked at", error=str(exc))
