"""Where the control plane listens: always on this machine's loopback, and on the network where it is told to.

The loopback door is plain HTTP: the command line and the replicas of this machine use it. The other one is for
everybody else, with TLS where a certificate is given.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tandemn import server_records
from tandemn.errors import InvalidInput
from tandemn.settings import EMBEDDED_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Connections that may wait to be accepted.
BACKLOG = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM; `key` is None where the certificate's file has it, too."""

    cert: Path
    key: Path | None

    def check(self) -> None:
        """Raises InvalidInput where these files are no certificate and key (code `invalid_certificate`)."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidInput(
                f"the certificate {self.cert} cannot be used: {exc.strerror or exc}",
                code="invalid_certificate",
                next_step="give PEM files: --tls-cert with the whole chain, --tls-key with its key",
                param="tls_cert",
            ) from exc

    def stamp(self) -> tuple[float, ...]:
        """Return what changes when the files do."""
        files = [self.cert] if self.key is None else [self.cert, self.key]
        return tuple(file.stat().st_mtime for file in files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One listening socket, and the URL by which it is reached."""

    listener: socket.socket
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    local: Door
    shared: Door | None
    """For others than this machine; asks for keys."""


@contextmanager
def open_doors(home: Path, *, host: str, port: int, tls: Tls | None) -> Iterator[Doors]:
    """Listen on `host`, and on loopback where that is something else.

    Raises:
        InvalidInput: a port in use, or a host that is not this machine's (code `port_unavailable`).
    """
    with ExitStack() as stack:
        if is_loopback(host) and tls is None:
            yield Doors(local=stack.enter_context(_door(host, _ports(home, port))), shared=None)
            return
        ports = [port] if port else [EMBEDDED_PORT, 0]
        shared = stack.enter_context(_door(host, ports, scheme="https" if tls else "http"))
        local = stack.enter_context(_door("127.0.0.1", _ports(home, 0)))
        yield Doors(local=local, shared=shared)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ports(home: Path, port: int) -> list[int]:
    """Return the ports to try: the one asked for; else a killed predecessor's, the usual one, any."""
    if port:
        return [port]
    record = server_records.read(server_records.main_record(home))
    before = urlsplit(record.url).port if record is not None else None
    # Its replicas live on and know no other address.
    return [before, EMBEDDED_PORT, 0] if before else [EMBEDDED_PORT, 0]


@contextmanager
def _door(host: str, ports: list[int], *, scheme: str = "http") -> Iterator[Door]:
    """Bind the first of these ports that can be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in ports:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(BACKLOG)
        except OSError as exc:
            listener.close()
            if candidate == ports[-1]:
                raise InvalidInput(
                    f"cannot listen on {host}:{candidate}: {exc.strerror}",
                    code="port_unavailable",
                    param="port",
                    next_step="choose another --port",
                ) from exc
            continue
        with listener:
            name = f"[{host}]" if ":" in host else host
            yield Door(listener=listener, url=f"{scheme}://{name}:{listener.getsockname()[1]}")
        return
