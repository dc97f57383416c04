"""A multipart upload, parsed as it streams in: one file, never whole in memory nor twice on disk."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from tandemn.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: The other fields of an upload are a few words each, and few.
FIELD_BYTES = 64 * 1024
FIELDS = 32
#: Name and value of one header of a part.
HEADER_BYTES = 8 * 1024
_UNSAFE = re.compile(r"[^\w.\- ()+@=,]")


class FileUpload:
    """Reads the form of `POST /v1/files`: fields, and one part called `file`.

    `content()` streams the file; `fields` and `filename` are whole only after it has ended, because a
    client may send its fields after the file.
    """

    def __init__(self, content_type: str, stream: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidInput(
                "a file is uploaded as multipart/form-data", code="invalid_request", param="file"
            )
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._stream = stream
        self._blocks: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._field: str | None = None
        self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
            },
        )

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes. Raises InvalidInput where the form is broken, or has no file."""
        try:
            async for block in self._stream:
                self._parser.write(block)
                if self._blocks:
                    yield b"".join(self._blocks)
                    self._blocks.clear()
            self._parser.finalize()
        except MultipartParseError as exc:
            raise InvalidInput(f"broken multipart form: {exc}", code="invalid_request") from exc
        if self.filename is None:
            raise InvalidInput("'file' is a required property", code="missing_file", param="file")

    def _part_begin(self) -> None:
        self._headers = {}
        self._value = b""
        self._field = None

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _header_end(self) -> None:
        if len(self._headers) >= FIELDS:
            raise InvalidInput("a part of the form has too many headers", code="invalid_request")
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > HEADER_BYTES:
            raise InvalidInput("a header of the form is too long", code="invalid_request")

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if name == "file":
            if self.filename is not None:
                raise InvalidInput("one file at a time", code="invalid_request", param="file")
            given = options.get(b"filename", b"upload.jsonl").decode(errors="replace")
            self.filename = _UNSAFE.sub("_", given.rpartition("/")[2])[:255] or "upload.jsonl"
        else:
            if len(self.fields) >= FIELDS:
                raise InvalidInput("the form has too many fields", code="invalid_request")
            self._field = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._blocks.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise InvalidInput(f"field {self._field!r} is too long", code="invalid_request")

    def _part_end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._value.decode(errors="replace")
