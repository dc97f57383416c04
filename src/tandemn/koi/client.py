"""One HTTP call to Koi: bounded in time and size, redirects not followed; a fault is a value, not an error."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import aiohttp

from tandemn import __version__
from tandemn.koi.recommendation import Unused, plain

if TYPE_CHECKING:
    from types import TracebackType

#: Longest answer that is read: a decision with its alternatives and reasons takes some 10 KB.
MAX_ANSWER_BYTES = 1 << 20
#: Of an answer that says no, this much is read for the log.
SHOWN_BYTES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Unused):
    """It answered, but with no success."""

    status: int

    @property
    def is_final(self) -> bool:
        """Whether the same again will be refused again: 4xx but for those that say `later`."""
        return 400 <= self.status < 500 and self.status not in {408, 425, 429}


class KoiClient:
    """Speaks to `url`.

    Args:
        url: `KOI_SERVICE_URL`, without a slash at the end.
        timeout_s: for one call, from name lookup to the last byte.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Its answers are not unpacked: some KB on the wire could be GBs in memory. And no cookies are kept.
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": f"tandemn/{__version__}", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: bytes) -> bytes | Unused:
        """Send JSON; return the body of a 2xx answer, or why there is none."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(path, body)
        except TimeoutError:
            return Unused(code="koi_timeout", reason=f"it did not answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            detail = f" ({plain(str(exc))})" if str(exc) else ""
            return Unused(code="koi_unreachable", reason=f"no answer: {type(exc).__name__}{detail}")

    async def _post(self, path: str, body: bytes) -> bytes | Unused:
        assert self._session is not None, "enter the client before calling it"
        async with self._session.post(
            self._url + path,
            data=body,
            headers={"Content-Type": "application/json"},
            allow_redirects=False,
        ) as answer:
            if 300 <= answer.status < 400:
                return Refused(
                    code="koi_refused",
                    reason=f"it answered {answer.status}: redirects are not followed",
                    status=answer.status,
                )
            if answer.status >= 400:
                shown = await _at_most(answer, SHOWN_BYTES)
                text = plain((shown or b"").decode(errors="replace"))
                return Refused(
                    code="koi_refused",
                    reason=f"it answered {answer.status}{f': {text}' if text else ''}",
                    status=answer.status,
                )
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                return Unused(
                    code="koi_bad_answer", reason="its answer is compressed, which was not asked for"
                )
            content = await _at_most(answer, MAX_ANSWER_BYTES)
            if content is None:
                return Unused(
                    code="koi_bad_answer", reason=f"its answer is longer than {MAX_ANSWER_BYTES >> 10} KiB"
                )
            return content


async def _at_most(answer: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Read the body; None where it is longer (an error's is cut instead, by what was read until then)."""
    content = bytearray()
    async for block in answer.content.iter_chunked(1 << 16):
        content += block
        if len(content) > limit:
            return bytes(content[:limit]) if answer.status >= 400 else None
    return bytes(content)
