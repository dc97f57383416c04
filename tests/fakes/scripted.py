"""A backend that does, connection by connection, what a test tells it: real sockets, one thread each."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

Script = Callable[[socket.socket, bytes], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def read_request(sock: socket.socket) -> bytes:
    """One whole request, as it came; empty where the peer left."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = sock.recv(65536)
        if not piece:
            return b""
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"\r\ncontent-length:" in lower:
        length = int(lower.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            piece = sock.recv(1 << 20)
            if not piece:
                return b""
            body += piece
    elif b"transfer-encoding" in lower:
        while not body.endswith(b"0\r\n\r\n"):
            body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Scripted:
    """Runs `script(sock, request)` for every request, keep-alive included, until it closes the socket."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.peers: list[object] = []
        """Addresses of the connections that came."""
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with self.listener, contextlib.suppress(OSError):
            while True:
                sock, peer = self.listener.accept()
                self.peers.append(peer)
                self._open.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, ValueError):
            while request := read_request(sock):
                self.requests.append(request)
                self.script(sock, request)

    def end(self) -> None:
        """Wake every thread; each closes its own socket.

        Closed from here, a listener would stay open as long as its thread waits in `accept`; and a process that is
        stopped and goes on meanwhile makes the kernel begin that call again, with a number that by then may be the
        socket of somebody else, whose connections this double would answer.
        """
        self.listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def replies(answer: bytes) -> Script:
    return lambda sock, _: sock.sendall(answer)


def closes(sock: socket.socket, _: bytes) -> None:
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()
