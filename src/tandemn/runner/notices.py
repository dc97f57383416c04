"""Notices of preemption that a cloud gives on the instance itself: AWS's spot `instance-action`.

SIGTERM, the other notice, is received in app.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import structlog

if TYPE_CHECKING:
    from tandemn.clock import Clock

#: AWS recommends to look every five seconds; the notice comes two minutes ahead.
POLL_S = 5.0

#: The service is on the machine's own link: what does not answer in this time is not there.
CALL_S = 2.0

#: The session token's life; a 401 brings a new one earlier.
TOKEN_TTL_S = 21600

#: Time left where a notice names none that can be read.
UNKNOWN_S = 60.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The cloud takes the instance away."""

    action: str
    at: float
    """Seconds since the epoch."""


class _Body(msgspec.Struct):
    action: str = "terminate"
    time: str | None = None


def parse(body: bytes, now: float) -> Notice:
    """Read an `instance-action` document; what cannot be read still is a notice.

    Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """
    try:
        found = msgspec.json.decode(body, type=_Body)
        at = datetime.fromisoformat(found.time) if found.time else None
    except (msgspec.DecodeError, ValueError):
        return Notice(action="terminate", at=now + UNKNOWN_S)
    if at is None:
        return Notice(action=found.action, at=now + UNKNOWN_S)
    return Notice(action=found.action, at=(at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


async def spot_notice(metadata_url: str, clock: Clock, *, poll_s: float = POLL_S) -> Notice:
    """Wait until the instance metadata service (version 2: token first) announces a preemption."""
    base = f"{metadata_url.rstrip('/')}/latest"
    token: str | None = None
    timeout = aiohttp.ClientTimeout(total=CALL_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            try:
                token = token or await _token(session, base)
                status, body = await _action(session, base, token)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                _log.debug("metadata service does not answer", error=str(exc))
            else:
                if status == 200:
                    return parse(body, clock.now())
                if status == 401:
                    token = None
            await asyncio.sleep(poll_s)


async def _token(session: aiohttp.ClientSession, base: str) -> str:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
    async with session.put(f"{base}/api/token", headers=headers) as answer:
        answer.raise_for_status()
        return await answer.text()


async def _action(session: aiohttp.ClientSession, base: str, token: str) -> tuple[int, bytes]:
    headers = {"X-aws-ec2-metadata-token": token}
    async with session.get(f"{base}/meta-data/spot/instance-action", headers=headers) as answer:
        return answer.status, await answer.read()
