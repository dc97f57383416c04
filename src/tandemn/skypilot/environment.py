"""SkyPilot behind a pipe: finds the Python that has it, keeps one worker process there, and calls functions by name.

SkyPilot pins what the rest of us would rather choose ourselves (click, uvicorn, bcrypt …) and weighs 320 MB and more, so
that it is never imported here. docs/skypilot.md has the protocol and the reasons.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from tandemn.errors import MissingDependency, Retryable
from tandemn.skypilot.faults import translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.errors import TandemnError

WORKER = Path(__file__).with_name("worker.py")

#: Versions that the calls made here are known to fit: tested against the first.
KNOWN = ("0.14.",)
#: How to install it where nothing else needs its pins.
INSTALL = "uv tool install 'skypilot[aws]==0.14.1' (or pipx), or name its Python in TANDEMN_SKYPILOT_PYTHON"
#: How long a call may take where its caller says nothing else, in seconds. The first one may start SkyPilot's API
#: server: 40 to 115 s on two cores.
CALL_S = 300.0
#: Tries to start SkyPilot's API server: it gives itself 60 s, which a busy machine exceeds, and goes on coming up.
STARTS = 3
NOT_STARTED = re.compile(
    "Failed to start SkyPilot API server|SkyPilot API server process exited unexpectedly"
)
#: How long `import sky` may take, in seconds.
HELLO_S = 120.0


def task(config: Mapping[str, Any]) -> dict[str, Any]:
    """Make an argument that becomes a `sky.Task` made of this YAML configuration."""
    return {"$task": dict(config)}


def member(enumeration: str, name: str) -> dict[str, Any]:
    """Make an argument that becomes a member of one of SkyPilot's enumerations, `("StatusRefreshMode", "FORCE")`."""
    return {"$enum": [enumeration, name]}


def find_python(named: str | None, path: str | None) -> str | None:
    """Name the Python that has SkyPilot: the one that is set, that of the `sky` command, or this one; None: no such."""
    if named is not None:
        return named
    command = shutil.which("sky", path=path)
    if command is not None:
        beside = Path(command).resolve().parent
        for name in ("python3", "python"):
            if (beside / name).exists():
                return str(beside / name)
    return sys.executable if importlib.util.find_spec("sky") is not None else None


class _NotStarted(Retryable):
    """SkyPilot's API server did not come up in time."""

    def __init__(self, error: TandemnError) -> None:
        super().__init__(error.message, code="skypilot_unavailable", next_step=error.next_step)


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[str]
    version: str
    waiting: dict[int, Future[dict[str, Any]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_gone: bool = False


class SkyPilot:
    """Calls SkyPilot. Calls block: make them in threads, as many at a time as you like.

    Args:
        python: the interpreter that has SkyPilot; None: looked for at the first call.
        log: the file that takes what SkyPilot prints.
        environment: of the worker and so of SkyPilot's API server; Tandemn's own settings are left out of it.
    """

    def __init__(
        self, python: str | None, log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._python = python
        self._log = log
        given = os.environ if environment is None else environment
        self.environment = {name: value for name, value in given.items() if not name.startswith("TANDEMN_")}
        self._worker: _Worker | None = None
        self._starting = threading.Lock()
        self._last_id = 0

    @property
    def home(self) -> Path:
        """The home folder in which SkyPilot keeps its state and the SSH configuration of its clusters."""
        return Path(self.environment.get("HOME") or Path.home())

    @property
    def python(self) -> str:
        """The interpreter that has SkyPilot.

        Raises:
            MissingDependency: there is none.
        """
        found = find_python(self._python, self.environment.get("PATH"))
        if found is None:
            raise MissingDependency("SkyPilot is not installed", code="skypilot_missing", next_step=INSTALL)
        return found

    @property
    def version(self) -> str:
        """SkyPilot's version. Raises MissingDependency, Retryable."""
        return self._running().version

    def call(
        self,
        function: str,
        /,
        *,
        answer: Literal["result", "request"] = "result",
        within_s: float = CALL_S,
        **arguments: Any,
    ) -> Any:
        """Call a function below `sky` and return what it gives, as JSON values.

        Args:
            function: its name below `sky`: `launch`, `status`, `serve.up`.
            answer: `request` returns the id of the request that was made instead of waiting for what it gives.
            within_s: how long to wait for the answer; what was asked for goes on in SkyPilot.
            arguments: JSON values, and what `task` and `member` make.

        Raises:
            TandemnError: what SkyPilot raised, by what the caller can do (see `faults`).
        """
        asked = {"function": function, "arguments": arguments, "answer": answer}
        for _ in range(STARTS - 1):
            with suppress(_NotStarted):
                return self._ask(asked, within_s)["result"]
        return self._ask(asked, within_s)["result"]

    def read(self, function: str, stream: str, /, *, within_s: float = CALL_S, **arguments: Any) -> str:
        """Call a function that writes to a stream, its parameter `stream`, and return what it wrote."""
        asked = {"function": function, "arguments": arguments, "capture": stream}
        output: str = self._ask(asked, within_s)["output"]
        return output

    def close(self) -> None:
        """End the worker. What was asked for goes on in SkyPilot's API server."""
        with self._starting:
            worker, self._worker = self._worker, None
        if worker is not None:
            assert worker.process.stdin is not None
            with suppress(OSError):
                worker.process.stdin.close()
            try:
                worker.process.wait(5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def _ask(self, call: dict[str, Any], within_s: float) -> dict[str, Any]:
        worker = self._running()
        future: Future[dict[str, Any]] = Future()
        with worker.lock:
            self._last_id += 1
            number = self._last_id
            worker.waiting[number] = future
            try:
                if worker.is_gone:
                    raise BrokenPipeError
                assert worker.process.stdin is not None
                worker.process.stdin.write(json.dumps({"id": number, **call}) + "\n")
                worker.process.stdin.flush()
            except OSError as exc:
                worker.waiting.pop(number)
                raise _gone(self._log) from exc
        try:
            reply = future.result(within_s)
        except FutureTimeout as exc:
            raise Retryable(
                f"SkyPilot has not answered {call['function']} within {within_s:g} s", code="skypilot_silent"
            ) from exc
        finally:
            worker.waiting.pop(number, None)
        if "error" in reply:
            error = translated(reply["error"])
            raise _NotStarted(error) if NOT_STARTED.search(error.message) else error
        return reply

    def _running(self) -> _Worker:
        with self._starting:
            worker = self._worker
            if worker is None or worker.is_gone or worker.process.poll() is not None:
                worker = self._worker = self._start()
            return worker

    def _start(self) -> _Worker:
        python = self.python
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603 - our own script, and an interpreter that the user named
                    [python, "-u", str(WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**self.environment, "PYTHONIOENCODING": "utf-8"},
                    start_new_session=True,  # Ctrl-C at the control plane is not for it
                    text=True,
                    encoding="utf-8",
                )
        except OSError as exc:
            raise MissingDependency(
                f"{python}, which should have SkyPilot, does not start: {exc.strerror}",
                code="skypilot_missing",
                next_step=INSTALL,
            ) from exc
        hello = _hello(process, self._log)
        problem = hello.get("error")
        version = str(hello.get("skypilot"))
        if problem is None and not version.startswith(KNOWN):
            problem = f"it has SkyPilot {version}; known are {', '.join(f'{each}x' for each in KNOWN)}"
        if problem is not None:
            process.kill()
            process.wait()
            raise MissingDependency(
                f"{python} has no SkyPilot that can be used: {problem}",
                code="skypilot_missing",
                next_step=INSTALL,
            )
        worker = _Worker(process, version)
        threading.Thread(target=_read, args=(worker, self._log), name="skypilot", daemon=True).start()
        return worker


def _hello(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """Read the worker's first line; a worker that does not come to it is killed."""
    assert process.stdout is not None
    overdue = threading.Timer(HELLO_S, process.kill)
    overdue.start()
    try:
        line = process.stdout.readline()
    finally:
        overdue.cancel()
    if not line:
        process.wait()
        raise _gone(log)
    try:
        hello: dict[str, Any] = json.loads(line)["hello"]
    except (ValueError, KeyError, TypeError) as exc:
        process.kill()
        process.wait()
        raise _gone(log) from exc
    return hello


def _read(worker: _Worker, log: Path) -> None:
    """Hand every answer to whoever waits for it, until the worker ends."""
    stream: IO[str] | None = worker.process.stdout
    assert stream is not None
    with suppress(ValueError, OSError):
        for line in stream:
            reply = json.loads(line)
            future = worker.waiting.pop(reply["id"], None)
            if future is not None:
                future.set_result(reply)
    worker.process.wait()
    with worker.lock:
        worker.is_gone = True
        left = list(worker.waiting.values())
    for future in left:
        with suppress(Exception):  # its caller has given it up meanwhile
            future.set_exception(_gone(log))


def _gone(log: Path) -> Retryable:
    return Retryable("SkyPilot's worker process has ended", code="skypilot_gone", next_step=f"its log: {log}")
