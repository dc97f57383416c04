"""When each replica of a local deployment began and ended: what metered costs are held against.

One line is appended when a replica begins and one when it has ended, so that a kill loses nothing that was written.
What a killed fleet process left open is closed by the next one, at the last sign of life.
"""

from __future__ import annotations

import os
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import structlog

from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How much of the log's end tells who ended lately: some 200 replicas.
RECENT_BYTES = 64 << 10
#: Seconds of an hour, for prices.
_HOUR_S = 3600

_log = structlog.get_logger()


class _Begun(msgspec.Struct, kw_only=True, tag="begun"):
    replica_id: str
    market: Market
    at: float
    usd_per_hour: Decimal


class _Ended(msgspec.Struct, kw_only=True, tag="ended"):
    replica_id: str
    at: float
    why: str


class Lifetime(msgspec.Struct, kw_only=True, frozen=True):
    """One replica's, in seconds of the fleet's own clock."""

    replica_id: str
    market: Market
    began: float
    ended: float | None
    """None: it lives."""
    usd_per_hour: Decimal
    why: str = ""
    """Why it ended."""

    def seconds(self, since: float, until: float) -> float:
        """How much of it lies between two times."""
        end = until if self.ended is None else min(self.ended, until)
        return max(0.0, end - max(self.began, since))

    def usd(self, since: float, until: float) -> Decimal:
        """What that costs."""
        return Decimal(str(self.seconds(since, until))) * self.usd_per_hour / _HOUR_S


class LifetimeLog:
    """The record of one deployment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, replica_id: str, market: Market, usd_per_hour: Decimal, at: float) -> None:
        self._append(_Begun(replica_id=replica_id, market=market, at=at, usd_per_hour=usd_per_hour))

    def end(self, replica_id: str, at: float, why: str) -> None:
        self._append(_Ended(replica_id=replica_id, at=at, why=why))

    def close_open(self, at: float, why: str) -> None:
        """End whatever a former process left open; not before it began."""
        for lifetime in list(self.read()):
            if lifetime.ended is None:
                self.end(lifetime.replica_id, max(at, lifetime.began), why)

    def read(self) -> Iterator[Lifetime]:
        """Yield the ended ones as they ended, then the living. Only the living are held in memory."""
        living: dict[str, _Begun] = {}
        for line in self._lines():
            if isinstance(line, _Begun):
                living[line.replica_id] = line
            elif begun := living.pop(line.replica_id, None):
                yield _lifetime(begun, line)
        for begun in living.values():
            yield _lifetime(begun, None)

    def recent(self, market: Market) -> dict[str, Lifetime]:
        """Return the last lives of a market, by replica, without reading more than the log's end."""
        begun: dict[str, _Begun] = {}
        found: dict[str, Lifetime] = {}
        for line in self._lines(RECENT_BYTES):
            if isinstance(line, _Begun) and line.market is market:
                begun[line.replica_id] = line
                found[line.replica_id] = _lifetime(line, None)
            elif isinstance(line, _Ended) and line.replica_id in begun:
                found[line.replica_id] = _lifetime(begun[line.replica_id], line)
        return found

    def total(self, market: Market, since: float, until: float) -> tuple[float, Decimal]:
        """Add up a market's seconds between two times, and what they cost."""
        seconds, usd = 0.0, Decimal(0)
        for lifetime in self.read():
            if lifetime.market is market:
                seconds += lifetime.seconds(since, until)
                usd += lifetime.usd(since, until)
        return seconds, usd

    def _append(self, line: _Begun | _Ended) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
        except OSError as exc:
            # A full disk must not end the service.
            _log.error("a lifetime was not written", replica=line.replica_id, error=exc.strerror)

    def _lines(self, last_bytes: int | None = None) -> Iterator[_Begun | _Ended]:
        decoder = msgspec.json.Decoder(_Begun | _Ended)
        try:
            with self.path.open("rb") as file:
                if last_bytes is not None:
                    # The line that this falls into is passed over like any other that is cut.
                    file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
                for line in file:
                    # A line that a full disk cut short tells nothing.
                    try:
                        yield decoder.decode(line)
                    except msgspec.MsgspecError:
                        continue
        except FileNotFoundError:
            return


def _lifetime(begun: _Begun, ended: _Ended | None) -> Lifetime:
    return Lifetime(
        replica_id=begun.replica_id,
        market=begun.market,
        began=begun.at,
        ended=None if ended is None else ended.at,
        usd_per_hour=begun.usd_per_hour,
        why="" if ended is None else ended.why,
    )
