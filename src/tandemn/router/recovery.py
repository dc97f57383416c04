"""A stream whose backend was lost: how far it had come, and how it goes on or ends.

What to ask of which backend is decided in `resume`; this applies it, tries again with pauses where that fails,
and passes the continuation's events through a `Seam`.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from tandemn.router.progress import Progress
from tandemn.router.resume import Continuation, Finish, Refusal, continue_stream
from tandemn.router.routing import MAX_RESUMES
from tandemn.router.seam import Seam, SeamMismatch, broken_events
from tandemn.router.sse import data_of

if TYPE_CHECKING:
    from tandemn.router.stream import Stream
    from tandemn.router.wire import AnswerHead

#: Seconds between tries to continue one stream; a backend that restarts in place gets a few seconds.
RESUME_DELAYS_S: Final = (0.0, 0.0, 0.1, 0.3, 1.0, 2.0, 4.0)


class Recovery:
    __slots__ = ("_breaks", "_lost", "_progress", "_seam", "_stream", "_timer", "_tries")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._breaks = 0
        self._lost = ""
        """The backend that broke it last."""
        self._progress = Progress()
        self._seam: Seam | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tries = 0

    def broke(self, why: str, backend: str) -> None:
        """The backend is lost: go on elsewhere, or end with an error event."""
        stream = self._stream
        self._lost = backend
        self._breaks += 1
        self._tries = 0
        if not stream.can_resume:
            self._give_up(f"{stream.why_not} ({why})")
        elif self._breaks > MAX_RESUMES:
            self._give_up(f"it broke {self._breaks} times")
        else:
            for events in stream.take_kept():
                self._progress.fold(events)
            self._resume()

    def end(self) -> None:
        """The stream is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, reason: str) -> None:
        stream = self._stream
        meters = stream.exchange.router.meter.backends
        if self._lost in meters:
            meters[self._lost].counts["resume_failures"] += 1
        stream.out(broken_events(reason))
        stream.close(is_whole=False)

    # --- asking ---------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._timer = None
        stream = self._stream
        exchange = stream.exchange
        router = exchange.router
        if self._tries >= len(RESUME_DELAYS_S):
            self._give_up(f"{self._tries} tries to continue it failed")
            return
        self._tries += 1
        now = monotonic()
        backend = router.choose(exchange.tried, now) or router.choose((), now)
        if backend is None:
            self._resume_later()
            return
        spec = backend.spec
        step = continue_stream(
            exchange.request.path, exchange.body, self._progress, spec.engine, spec.max_model_len
        )
        match step:
            case Continuation():
                ask = exchange.ask
                assert ask is not None
                exchange.continuation = step
                exchange.head = None
                self._seam = Seam(step, self._progress, ask.is_chat, shows_ids=ask.wants_ids)
                exchange.attempt(backend, now, is_fresh=True)
            case Finish():
                stream.out(step.events)
                stream.close(is_whole=False)
            case Refusal():
                self._give_up(step.reason)

    def _resume_later(self) -> None:
        delay = RESUME_DELAYS_S[min(self._tries, len(RESUME_DELAYS_S) - 1)]
        self._timer = asyncio.get_running_loop().call_later(delay, self._resume)

    def failed(self, why: str, *, is_counted: bool) -> None:
        """A try to continue got no answer."""
        exchange = self._stream.exchange
        backend = exchange.backend
        if backend is not None:
            if not is_counted:
                backend.failed(why, monotonic())
            exchange.note_tried(backend.spec.name)
        exchange.release(reusable=False)
        exchange.pending = b""
        self._resume_later()

    # --- the answer -----------------------------------------------------------------------------------------

    def answered(self, head: AnswerHead, rest: bytes) -> None:
        """The continuation's answer begins with this head and these bytes."""
        stream = self._stream
        exchange = stream.exchange
        backend = exchange.backend
        assert backend is not None
        if head.status != 200 or not head.is_stream:
            exchange.release(reusable=False)
            self._give_up(f"backend {backend.spec.name} refused the continuation with HTTP {head.status}")
            return
        exchange.router.meter.of(self._lost, monotonic()).counts["resumes"] += 1
        exchange.tried = ()
        stream.begin_again(head, rest)

    def deliver(self, events: bytes) -> bool:
        """Pass the continuation's events on; False where they ended it."""
        stream, seam = self._stream, self._seam
        assert seam is not None
        out: list[bytes] = []
        for data in data_of(events):
            if data.startswith(b'{"error"') or b'"abort"' in data:
                stream.out(b"".join(out))
                stream.broken("the engine failed within the continuation")
                return False
            try:
                out.append(seam.translate(data))
            except (SeamMismatch, msgspec.DecodeError, ValueError) as exc:
                stream.out(b"".join(out))
                stream.exchange.release(reusable=False)
                self._give_up(str(exc))
                return False
        stream.is_done = self._progress.is_done
        if self._progress.size > stream.exchange.router.table.limits.kept_stream_bytes:
            stream.stop_keeping()
        stream.out(b"".join(out))
        return True
