"""A cloud's instance metadata service (version 2: a token first), served by the test."""

from __future__ import annotations

import contextlib
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "metadata-token"


class Service(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.notice: dict[str, Any] | None = None
        self.tokens_asked = 0
        self.calls_without_token = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def announce(self, seconds: float) -> None:
        """Give notice that the instance is taken away in so many seconds."""
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        self.notice = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def withdraw(self) -> None:
        """Announce nothing any more: the next instance is another one."""
        self.notice = None


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        self.server.tokens_asked += 1
        self._answer(200, TOKEN.encode())

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self.server.calls_without_token += 1
            self._answer(401, b"")
        elif self.server.notice is None:
            self._answer(404, b"")
        else:
            self._answer(200, json.dumps(self.server.notice).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def metadata_service() -> Iterator[Service]:
    """Serve on a free port until the end of the block."""
    service = Service()
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()
