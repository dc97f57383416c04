"""Real processes for the router's tests: the router itself, and backends that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.ports import free_port

from tandemn.fleet.engines.engine import DEMO_MODEL, EngineName, EngineSpec
from tandemn.fleet.engines.llamacpp import LlamaCpp

KEY = "sk-test-key"
ADMIN = "sk-admin-key"
FAKE = Path(__file__).with_name("vllm_backend.py")


class Process:
    """A child that says on its first line which port it took."""

    popen: Any

    def __init__(self, argv: list[str], **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TANDEMN_")}
        self.popen = subprocess.Popen(argv, stdout=subprocess.PIPE, env={**inherited, **environment})
        out: Any = self.popen.stdout
        line = out.readline()
        if not line:
            raise RuntimeError(f"{argv} ended with {self.popen.wait()}")
        self.port = json.loads(line)["port"]
        self.url = f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()

    def stop(self, limit_s: float = 10.0) -> int:
        self.popen.send_signal(signal.SIGTERM)
        code = int(self.popen.wait(limit_s))
        self.popen.stdout.close()
        return code

    def end(self) -> None:
        if self.popen.poll() is None:
            self.kill()


class Engine:
    """The embedded engine with demo/tiny."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        adapter = LlamaCpp(folder / "models")
        spec = EngineSpec(
            engine=EngineName.LLAMACPP, model=DEMO_MODEL, port=self.port, extra_args=("--slots", "4")
        )
        environment = {**os.environ, **adapter.environment(spec)}
        with (folder / "engine.log").open("ab") as log:
            self.popen: Any = subprocess.Popen(adapter.command(spec), env=environment, stdout=log, stderr=log)
        wait_for(self._answers, 60)

    def _answers(self) -> bool:
        assert self.popen.poll() is None, "the engine ended"
        with contextlib.suppress(OSError):
            return bool(ask(self.port, path="/health", method="GET")[0] == 200)
        return False

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def end(self) -> None:
        if self.popen.poll() is None:
            self.kill()


class Rig:
    front: Any
    """Where a suite keeps its router, and below what else it shares."""
    other: Any
    port: int
    ports: list[int]
    both: list[Any]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process | Engine] = []

    def vllm(self, *, gap_ms: float = 2.0, port: int = 0) -> Any:
        return self._keep(Process([sys.executable, str(FAKE), "--port", str(port), "--gap-ms", str(gap_ms)]))

    def engine(self, port: int | None = None) -> Any:
        return self._keep(Engine(self.folder, port))

    def router(
        self,
        *backends: dict[str, Any],
        limits: dict[str, Any] | None = None,
        key: str = KEY,
        extra: tuple[str, ...] = (),
    ) -> Any:
        table = self.folder / "table.json"
        if backends or not table.exists():
            table.write_text(json.dumps({"version": 1, "backends": list(backends), "limits": limits or {}}))
        argv = [sys.executable, "-m", "tandemn.router", "--port", "0", "--table", str(table), *extra]
        keys = {"TANDEMN_ROUTER_KEY": key, "TANDEMN_ROUTER_ADMIN_KEY": ADMIN}
        return self._keep(Process(argv, **keys))

    def _keep(self, process):
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.end()


def backend(name: str, url: str, market: str = "serverless", **more: object) -> dict[str, Any]:
    return {"name": name, "market": market, "url": url, **more}


def ask(
    port: int,
    body: dict[str, Any] | None = None,
    *,
    path: str = "/v1/chat/completions",
    key: str = KEY,
    method: str = "POST",
):
    """One request over `http.client`; (status, headers, body)."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        content = None if body is None else json.dumps(body)
        fields = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request(method, path, content, fields)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def metrics(port: int) -> dict[str, float]:
    """The `/metrics` page as {series: value}."""
    status, _, text = ask(port, path="/metrics", method="GET")
    assert status == 200
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def health(port: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(port, path="/router/health", method="GET")[2])
    return found


def wait_for(condition, limit_s: float = 10.0):
    """Poll until `condition()` is true; what it said."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def raw(port: int, request: bytes, limit_s: float = 10.0) -> bytes:
    """Send bytes and read until the peer closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as sock:
        sock.sendall(request)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            got += piece
    return got


class Events:
    """A stream of server-sent events, read one by one."""

    def __init__(
        self, port: int, body: dict[str, Any], *, path: str = "/v1/chat/completions", key: str = KEY
    ) -> None:
        content = json.dumps({"stream": True, **body}).encode()
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n\r\n"
        self.sock.sendall(head.encode() + content)
        self.file = self.sock.makefile("rb")
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            line = self.file.readline()
            if not line:
                raise AssertionError(f"no answer: {self.head!r}")
            self.head += line
        self.status = int(self.head[9:12])
        self.is_ended = False

    def __iter__(self):
        """The data of each event; ends with the last chunk, fails where the message is truncated."""
        content = b""
        while True:
            size_line = self.file.readline()
            assert size_line.endswith(b"\r\n"), "truncated"
            size = int(size_line, 16)
            chunk = self.file.read(size)
            assert len(chunk) == size, "truncated"
            assert self.file.readline() == b"\r\n"
            if size == 0:
                assert not content, "half an event at the end"
                self.is_ended = True
                return
            content += chunk
            *whole, content = content.split(b"\n\n")
            assert not content, "a chunk holds half an event"
            for event in whole:
                assert event.startswith(b"data: ")
                yield event[6:].decode()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def text_of(data: str) -> str:
    """The text that an event brings."""
    if data == "[DONE]":
        return ""
    event = json.loads(data)
    assert "error" not in event, event
    choices = event["choices"]
    if not choices:
        return ""
    return choices[0]["delta"].get("content") or "" if "delta" in choices[0] else choices[0]["text"]
