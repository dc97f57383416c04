"""The head of a client's request: what the router must know of it, and a quick way to read a plain one. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection

_T = TypeVar("_T")

#: Longest head of a request; beyond it the answer is 431.
MAX_HEAD_BYTES: Final = 64 << 10
#: Lines of heads that are remembered, and the longest: clients repeat nearly all of theirs.
MAX_KNOWN_LINES: Final = 8192
MAX_KNOWN_LINE_BYTES: Final = 512

#: Fields of one connection only (RFC 9110, 7.6.1), and those that the router writes itself.
OWN_FIELDS: Final = frozenset(
    {
        b"host",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
    }
)

#: The end of a head, found in half the time that `find` takes.
HEAD_END: Final = re.compile(rb"\r\n\r\n")


class Request:
    """The head of a client's request."""

    __slots__ = (
        "authorization",
        "connection",
        "content_length",
        "expects_continue",
        "fields",
        "is_chunked",
        "is_own",
        "keep_alive",
        "method",
        "path",
        "pieces",
        "target",
        "version",
        "why_refused",
    )

    def __init__(self, method: bytes = b"", target: bytes = b"") -> None:
        self.method = method
        self.target = target
        self.path = b""
        """The target without its query."""
        self.version = "1.1"
        self.pieces: list[bytes] = []
        """Of the fields that are passed on: name, `: `, value, CRLF, …"""
        self.fields = b""
        """The same, joined."""
        self.authorization: bytes | None = None
        self.connection = b""
        self.content_length: int | None = None
        self.is_chunked = False
        self.expects_continue = False
        self.why_refused = ""
        """Why the framing cannot be trusted."""
        self.keep_alive = True
        self.is_own = False
        """Whether the router itself answers it."""

    def own_field(self, name: bytes, value: bytes) -> None:
        """Take note of a field that is not passed on as it is; `name` is in lower case."""
        if name == b"content-length":
            if not value.isdigit() or self.content_length not in {None, int(value)}:
                self.why_refused = "bad Content-Length"
            else:
                self.content_length = int(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked" or self.is_chunked:
                self.why_refused = "a Transfer-Encoding that is not chunked"
            self.is_chunked = True
        elif name == b"authorization":
            self.authorization = value
        elif name == b"expect":
            self.expects_continue = value.lower() == b"100-continue"
        elif name == b"connection":
            self.connection += b"," + value.lower()

    def complete(self, method: bytes, version: str, *, keep_alive: bool) -> None:
        """The head has ended."""
        self.method, self.version, self.keep_alive = method, version, keep_alive
        self.path = self.target.partition(b"?")[0]
        self.is_own = is_own_path(self.path)
        if self.is_chunked and self.content_length is not None:
            self.why_refused = "Content-Length with Transfer-Encoding"
        if self.connection:
            self._drop_named_by_connection()
        self.fields = b"".join(self.pieces)
        self.pieces = []

    def _drop_named_by_connection(self) -> None:
        """Fields that `Connection` names belong to this connection: they are not passed on."""
        named = {token.strip() for token in self.connection.split(b",")} - {b"", b"close", b"keep-alive"}
        if named:
            pieces = self.pieces
            groups = [pieces[at : at + 4] for at in range(0, len(pieces), 4)]
            self.pieces = [piece for group in groups if group[0].lower() not in named for piece in group]

    @property
    def has_body(self) -> bool:
        return self.content_length is not None or self.is_chunked


def is_own_path(path: bytes) -> bool:
    """Whether the router itself answers there."""
    return path.startswith(b"/router/") or path == b"/metrics"


_FIRST_LINE: Final = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[\x21-\x7e]*) HTTP/1\.1")
# As it would be written again: one blank after the colon, none at the end.
_FIELD_LINE: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)"
)
#: Digits of a Content-Length that is surely a number of bytes.
_MAX_LENGTH_DIGITS: Final = 15


#: What a known line is: passed on, or left out. A number is the Content-Length, bytes are the authorization.
_PASSED: Final = True
_LEFT_OUT: Final = False


class HeadReader:
    """Reads plain heads, line by line from memory; whatever is unusual is left to the parser.

    Plain is a head that the parser would read the same way, and that is passed on as it is: HTTP/1.1, kept alive,
    no coding, no upgrade, nothing refused. Most lines were seen before, even where each request has an id of its own.
    """

    def __init__(self, replaced_fields: Collection[bytes] = ()) -> None:
        """`replaced_fields` (lower case) are not passed on: backends get them from the table."""
        self._replaced_fields = frozenset(replaced_fields)
        self._targets: dict[bytes, tuple[bytes, bytes, bytes, bool]] = {}
        self._lines: dict[bytes, bool | int | bytes] = {}

    def read(self, head: bytes) -> Request | None:
        """The request that a head begins, its blank line included; None where it is not plain."""
        lines = head.split(b"\r\n")
        target = self._targets.get(lines[0]) or self._read_target(lines[0])
        if target is None:
            return None
        request = Request()
        request.method, request.target, request.path, request.is_own = target
        known = self._lines.get
        fields: list[bytes] = []
        for line in lines[1:-2]:
            what = known(line)
            if what is None:
                what = self._read_line(line)
            if what is True:
                fields.append(line)
            elif what is None or (what is not False and not _note_own(request, what)):
                return None
        fields.append(b"")
        request.fields = b"\r\n".join(fields)
        return request

    def _read_target(self, line: bytes) -> tuple[bytes, bytes, bytes, bool] | None:
        found = _FIRST_LINE.fullmatch(line)
        if found is None:
            return None
        path = found[2].partition(b"?")[0]
        target = found[1], found[2], path, is_own_path(path)
        _remember(self._targets, line, target)
        return target

    def _read_line(self, line: bytes) -> bool | int | bytes | None:
        """What a line is that is not known yet; None where it is not plain."""
        found = _FIELD_LINE.fullmatch(line)
        if found is None:
            return None
        what = self._what_is(found[1].lower(), found[2])
        if what is not None:
            _remember(self._lines, line, what)
        return what

    def _what_is(self, name: bytes, value: bytes) -> bool | int | bytes | None:
        match name:
            case b"host":
                return _LEFT_OUT
            case b"connection":
                return _LEFT_OUT if value.lower() == b"keep-alive" else None
            case b"authorization":
                return value
            case b"content-length":
                return int(value) if value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS else None
            case _ if name in OWN_FIELDS:
                return None
            case _:
                return _LEFT_OUT if name in self._replaced_fields else _PASSED


def _note_own(request: Request, what: int | bytes) -> bool:
    """Take in a field that is not passed on; False where it is there twice."""
    if isinstance(what, bytes):
        request.authorization = what
        return True
    is_first = request.content_length is None
    request.content_length = what
    return is_first


def _remember(known: dict[bytes, _T], line: bytes, value: _T) -> None:
    if len(known) >= MAX_KNOWN_LINES:
        known.clear()
    if len(line) <= MAX_KNOWN_LINE_BYTES:
        known[line] = value
