"""Leading: of all control planes on one database, one at a time does what acts; every one serves.

`Leadership` beats and keeps the seat (`election` decides), `while_leading` runs the leader's tasks while it
has it. A leader that was stopped or cut off and wakes up is kept from acting twice over: its clock has run
out (`assert_leading`, asked just before a launch), its writes are refused (`check_term`, asked in every
transaction of a leader's task), and a replica that it launched all the same is turned away at its first call,
for its successor has ended that replica's record.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import structlog

from tandemn import __version__
from tandemn.clock import steady
from tandemn.control import election
from tandemn.control.election import Sighting, Step
from tandemn.control.listeners import is_loopback
from tandemn.control.store import events, leadership
from tandemn.control.store.leadership import ControlPlane
from tandemn.errors import Superseded, TandemnError
from tandemn.events import EventKind
from tandemn.processes import host_id, living, start_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from tandemn.clock import Clock
    from tandemn.control.election import Seat, Verdict
    from tandemn.control.store.database import Database

_log = structlog.get_logger()

#: A control plane that has been silent for so many leases is forgotten by the leader.
FORGET_LEASES = 6
#: Before the leader's tasks are begun again after one of them broke off by a fault.
FAULT_PAUSE_S = 1.0


class LeaderTask(Protocol):
    """What only the control plane that leads may do."""

    async def run(self) -> None:
        """Go on until cancelled or halted."""
        ...

    async def halt(self) -> None:
        """Begin nothing any more, and return when nothing is under way, within a few seconds."""
        ...


def this_process(url: str) -> ControlPlane:
    """Describe this control plane, under an id that no other has."""
    return ControlPlane(
        server_id=f"server-{secrets.token_hex(4)}",
        url=url,
        host=host_id(),
        pid=os.getpid(),
        started=start_time(os.getpid()),
        version=__version__,
    )


class Leadership:
    """This control plane's part in the election.

    Args:
        database: the one that all of them share.
        me: this one.
        clock: for the times that people read.
        lease_s: after so long a silence a leader is replaced; the same for all of them.
    """

    def __init__(
        self, database: Database, me: ControlPlane, clock: Clock, *, lease_s: float = election.LEASE_S
    ) -> None:
        self.me = me
        self.leader: ControlPlane | None = None
        """The one that leads, as of the last beat."""
        self.faults = 0
        """How often a leader's task, or a beat, broke off by a fault."""
        self._database = database
        self._clock = clock
        self._lease_s = lease_s
        self._beat_s = lease_s * election.BEAT_S / election.LEASE_S
        self._hold_s = lease_s * election.HOLD_S / election.LEASE_S
        self._term: int | None = None
        self._trusted_until = 0.0
        self._members: list[ControlPlane] = []
        self._sightings: Mapping[str, Sighting] = {}
        self._changed = asyncio.Event()

    @property
    def is_leading(self) -> bool:
        return self._term is not None and steady() < self._trusted_until

    @property
    def term(self) -> int | None:
        """The term under which this one leads."""
        return self._term if self.is_leading else None

    @property
    def members(self) -> list[ControlPlane]:
        """Every control plane that is alive as far as is known; this one is the first."""
        now = steady()
        others = [each for each in self._members if each.server_id != self.me.server_id]
        alive = [each for each in others if not self._is_silent(each.server_id, now)]
        return [self.me, *alive]

    @property
    def urls(self) -> list[str]:
        """Where replicas may call, this one first; another machine's loopback is of no use to them."""
        others = [each for each in self.members[1:] if each.host == self.me.host or not _is_local(each.url)]
        return [self.me.url, *(each.url for each in others)]

    def assert_leading(self) -> None:
        """Raise Superseded (code `not_leading`) where the seat may be another's by now; no I/O."""
        if not self.is_leading:
            raise Superseded("this control plane does not lead any more", code="not_leading")

    async def elected(self) -> int:
        """Wait until this one leads; return the term."""
        while (term := self.term) is None:
            await self._changed.wait()
        return term

    async def lost(self, term: int) -> None:
        """Wait until this one does not lead under this term any more."""
        while self.term == term:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, self._trusted_until - steady()))

    async def run(self) -> None:
        """Beat until cancelled: a beat that fails, whatever of, must not be the last."""
        while True:
            await asyncio.sleep(self._beat_s)
            try:
                await self.beat()
            except Exception as exc:  # noqa: BLE001 - without it, this one would never lead again
                self.faults += 1
                _log.error("a beat broke off", exc_info=exc)

    async def beat(self) -> None:
        """Show a sign of life; take the seat where it is to be had, keep it where it is held."""
        began = steady()
        try:
            term, seat, members, sightings, verdict = await self._database.run(self._campaign)
        except TandemnError as exc:
            _log.warning("no sign of life could be written", error=str(exc))
            return
        self._members, self._sightings = members, sightings
        holder = self.me.server_id if term is not None else seat.holder
        self.leader = next((each for each in members if each.server_id == holder), None)
        before = self.term
        if term is not None:
            self._trusted_until = began + self._hold_s
        if term != self._term:
            self._log_change(term, verdict)
        self._term = term
        # Also where it is the old term: trust in it had run out, and whoever saw that waits to be elected.
        if self.term != before:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def resign(self) -> None:
        """Leave in order: another may lead at once."""
        self._term = None
        try:
            await self._database.run(leadership.leave, self.me.server_id)
        except TandemnError as exc:
            _log.warning("the seat was not given up; it will run out", error=str(exc))

    def fence(self, term: int) -> Callable[[Connection], None]:
        """Return what a transaction of a leader's task asks first: whether its term is still the last one."""

        def check(connection: Connection) -> None:
            leadership.check_term(connection, term)

        return check

    def _campaign(
        self, connection: Connection
    ) -> tuple[int | None, Seat, list[ControlPlane], Mapping[str, Sighting], Verdict]:
        """One beat, one look, one decision: a transaction; safe to repeat."""
        at = self._clock.now()
        seat, members = leadership.beat(connection, self.me, now=at)
        now = steady()
        sightings = {
            each.server_id: election.watch(
                self._sightings.get(each.server_id), each.beat, is_dead=self._is_dead(each), now=now
            )
            for each in members
        }
        verdict = election.decide(
            seat,
            me=self.me.server_id,
            holder=sightings.get(seat.holder) if seat.holder is not None else None,
            now=now,
            lease_s=self._lease_s,
        )
        term: int | None = None
        if verdict.step is Step.LEAD:
            term = seat.term
            leadership.forget(connection, self._forgettable(sightings, now))
        elif verdict.step is Step.CLAIM:
            term = leadership.claim(connection, self.me.server_id, term=seat.term)
            if term is not None:
                events.append(
                    connection,
                    EventKind.LEADER_ELECTED,
                    now=at,
                    server_id=self.me.server_id,
                    url=self.me.url,
                    term=term,
                    reason=verdict.reason,
                )
        return term, seat, members, sightings, verdict

    def _is_dead(self, each: ControlPlane) -> bool:
        """Whether its process is known to be gone: only of this machine that can be known."""
        return each.host == self.me.host and living(each.pid, each.started) is None

    def _is_silent(self, server_id: str, now: float) -> bool:
        seen = self._sightings.get(server_id)
        return seen is None or seen.is_silent(now, self._lease_s)

    def _forgettable(self, sightings: Mapping[str, Sighting], now: float) -> list[str]:
        long = self._lease_s * FORGET_LEASES
        others = {name: seen for name, seen in sightings.items() if name != self.me.server_id}
        return [name for name, seen in others.items() if seen.is_silent(now, long)]

    def _log_change(self, term: int | None, verdict: Verdict) -> None:
        if term is not None:
            _log.info("leading", server_id=self.me.server_id, term=term, reason=verdict.reason)
        else:
            _log.warning("not leading any more", server_id=self.me.server_id, reason=verdict.reason)


def _is_local(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


async def while_leading(leadership: Leadership, make_tasks: Callable[[int], Sequence[LeaderTask]]) -> None:
    """Run a leader's tasks whenever this control plane leads, anew under each term, until cancelled."""
    while True:
        term = await leadership.elected()
        tasks = make_tasks(term)
        running = [asyncio.create_task(each.run(), name=type(each).__name__) for each in tasks]
        lost = asyncio.create_task(leadership.lost(term), name="lost")
        try:
            await asyncio.wait([lost, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            await asyncio.gather(*(each.halt() for each in tasks), return_exceptions=True)
            for each in running:
                each.cancel()
            ends = await asyncio.gather(*running, return_exceptions=True)
        for each, end in zip(running, ends, strict=True):
            if isinstance(end, Exception):
                leadership.faults += 1
                _log.error("a task of the leader broke off", task=each.get_name(), exc_info=end)
        if leadership.is_leading:
            await asyncio.sleep(FAULT_PAUSE_S)
