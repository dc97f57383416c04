"""How progress looks: a live bar on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tandemn.cli import report
from tandemn.cli.output import emit, encode
from tandemn.cli.text import printable, rate, size
from tandemn.protocol.jobs import JobStatus, ReplicaView

Show = Callable[[JobStatus], None]

#: Between two plain lines while the state stays the same.
LINE_S = 5.0
#: Between two plain lines of an upload.
UPLOAD_LINE_S = 5.0
_BAR_WIDTH = 30


@contextmanager
def job_display(*, as_json: bool = False, stream: TextIO | None = None) -> Iterator[Show]:
    """Give a function that shows each status of a job on `stream` (stdout where none is given)."""
    stream = stream or sys.stdout
    if as_json:
        yield _Changes()
    elif stream.isatty():
        with _live(stream) as live:
            yield lambda status: live.update(_panel(status, time.time()), refresh=True)
    else:
        yield _Lines(stream)


@contextmanager
def upload_display(path: Path) -> Iterator[Callable[[int], None]]:
    """Give a function that is told of every block sent, and shows the sum on stderr."""
    name, total = path.name, path.stat().st_size
    if sys.stderr.isatty():
        with _live(sys.stderr) as live:
            yield _UploadBar(live, name, total)
    else:
        yield _UploadLines(sys.stderr, name, total)


class _Changes:
    """One JSON object for every change."""

    def __init__(self) -> None:
        self._last: str | None = None

    def __call__(self, status: JobStatus) -> None:
        value = encode(status)
        if value != self._last:
            self._last = value
            emit(status)


class _Lines:
    """A line when the state changes, and every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: JobStatus | None = None
        self._at = 0.0

    def __call__(self, status: JobStatus) -> None:
        now = time.monotonic()
        is_same_state = self._last is not None and self._last.state is status.state
        if is_same_state and (now - self._at < LINE_S or status == self._last):
            return
        self._last, self._at = status, now
        self._stream.write(printable(report.progress_line(status, time.time())) + "\n")
        self._stream.flush()


class _UploadBar:
    def __init__(self, live: Live, name: str, total: int) -> None:
        self._live, self._name, self._total = live, name, total
        self._sent = 0
        self._began = time.monotonic()

    def __call__(self, count: int) -> None:
        self._sent += count
        pace = self._sent / max(time.monotonic() - self._began, 1e-3)
        row = Table.grid(padding=(0, 1))
        row.add_row(
            _line(f"uploading {printable(self._name)}"),
            ProgressBar(total=self._total, completed=self._sent, width=_BAR_WIDTH),
            Text(f"{size(self._sent)} of {size(self._total)}, {size(round(pace))}/s", no_wrap=True),
        )
        self._live.update(row)


class _UploadLines:
    def __init__(self, stream: TextIO, name: str, total: int) -> None:
        self._stream, self._name, self._total = stream, name, total
        self._sent = 0
        self._at = time.monotonic()

    def __call__(self, count: int) -> None:
        self._sent += count
        now = time.monotonic()
        if now - self._at >= UPLOAD_LINE_S:
            self._at = now
            self._stream.write(
                f"uploading {printable(self._name)}: {size(self._sent)} of {size(self._total)}\n"
            )
            self._stream.flush()


def _live(stream: TextIO) -> Live:
    # No markup, no highlighting: model names and reasons are shown as they are.
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    return Live(
        console=console, transient=True, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False
    )


def _panel(status: JobStatus, now: float) -> Group:
    requests = status.requests
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        _line(f"{status.job_id} {status.state}"),
        ProgressBar(
            total=requests.total or None, completed=requests.completed + requests.failed, width=_BAR_WIDTH
        ),
        Text(report.done_of(requests), no_wrap=True),
    )
    lines = [", ".join([*report.rates(status), *report.pace(status, now)])]
    if status.reason:
        lines.append(status.reason)
    if status.swap and status.swap.state in {"launching", "draining"}:
        lines.append(report.swap_line(status.swap))
    lines += [_replica(replica) for replica in status.replicas if not replica.state.has_ended]
    return Group(bar, *(_line(printable(line)) for line in lines if line))


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _replica(replica: ReplicaView) -> str:
    pace = "" if replica.requests_per_s is None else f", {rate(replica.requests_per_s)} requests/s"
    why = f" ({replica.reason})" if replica.reason else ""
    return f"  {replica.replica_id} {replica.state}, {replica.gpu} {replica.market}{pace}{why}"
