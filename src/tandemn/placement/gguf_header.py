"""The header of a GGUF file, and only that: long arrays become their lengths, tensors are not looked at.

The `gguf` package maps the whole file and decodes every token of the vocabulary, which takes seconds; a plan
needs a dozen numbers. Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

from tandemn.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

#: A value of a header: per-layer figures are short arrays of numbers.
GgufValue = int | float | str | tuple[int | float, ...]
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: More keys, or longer strings (in bytes) or arrays than these mean a broken file, not a large model.
_MAX_KEYS, _MAX_STRING, _MAX_ARRAY = 10_000, 64 * 1024 * 1024, 10_000_000
#: Arrays of numbers up to this length are kept: no model has as many layers.
_KEPT_ARRAY = 1024


def read_gguf(path: Path) -> dict[str, GgufValue]:
    """Return the header's keys; an array of strings, or a long one, has its length for a value.

    Raises:
        InvalidInput: it is not a little-endian GGUF file of version 2 or 3, or it is cut short.
    """
    with path.open("rb") as file:
        try:
            return _read(file, str(path))
        except (struct.error, UnicodeDecodeError) as exc:
            raise InvalidInput(f"{path} is a broken GGUF file", code="bad_gguf", param="model") from exc


def _read(file: BinaryIO, where: str) -> dict[str, GgufValue]:
    if file.read(4) != b"GGUF":
        raise InvalidInput(f"{where} is not a GGUF file", code="bad_gguf", param="model")
    version, _tensors, count = struct.unpack("<IQQ", file.read(20))
    if version not in {2, 3} or count > _MAX_KEYS:
        raise InvalidInput(f"{where} is GGUF of version {version}", code="bad_gguf", param="model")
    header: dict[str, GgufValue] = {}
    for _ in range(count):
        key = _string(file)
        header[key] = _value(file, struct.unpack("<I", file.read(4))[0])
    return header


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MAX_STRING:
        raise struct.error("string too long")
    return file.read(length).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> GgufValue:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", file.read(12))
        if length > _MAX_ARRAY:
            raise struct.error("array too long")
        if inner in _SCALARS and length <= _KEPT_ARRAY:
            form = f"<{length}{_SCALARS[inner]}"
            kept: tuple[int | float, ...] = struct.unpack(form, file.read(struct.calcsize(form)))
            return kept
        if inner in _SCALARS:
            file.seek(length * struct.calcsize("<" + _SCALARS[inner]), 1)
        else:
            for _ in range(length):
                _value(file, inner)
        return int(length)
    if kind not in _SCALARS:
        raise struct.error(f"value of kind {kind}")
    form = "<" + _SCALARS[kind]
    value: int | float = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value
