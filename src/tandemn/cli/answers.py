"""Fetching a job's answers and error lines into files: complete or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tandemn.client import UserClient
from tandemn.errors import Broken, InvalidInput
from tandemn.protocol.jobs import JobStatus


def errors_path(output: Path) -> Path:
    """Name the file of error lines beside `output`."""
    return output.with_name(f"{output.name}.errors.jsonl")


def check_output(output: Path) -> None:
    """Refuse, before anything is done, an output file that could not be written at the end.

    Raises:
        InvalidInput: it is a folder, or its folder is missing or may not be written to.
    """
    target = _target(output)
    problem = None
    if target.is_dir():
        problem = "is a folder"
    elif not target.parent.is_dir():
        problem = f"has no folder {target.parent}"
    elif _is_special(target):
        problem = None if os.access(target, os.W_OK) else "may not be written to"
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        problem = f"lies in {target.parent}, which may not be written to"
    if problem:
        raise InvalidInput(f"the output file {output} {problem}", code="invalid_output", param="output")


async def fetch(client: UserClient, status: JobStatus, output: Path, *, partial: bool = False) -> Path | None:
    """Write the answers to `output` and error lines to its `.errors.jsonl`; return that file, if there is one.

    An existing file is replaced once the new one is complete. Error lines of an earlier job beside
    `output` are removed where this one has none: they would be taken for this one's.
    """
    await _save(client.output(status.job_id, partial=partial), output)
    if _is_special(_target(output)):
        return None  # a pipe or a device has no file beside it
    errors = errors_path(output)
    if status.error_file_id is None:
        if not partial:
            errors.unlink(missing_ok=True)
        return None
    await _save(client.error_lines(status.job_id), errors)
    return errors


async def _save(blocks: AsyncIterator[bytes], path: Path) -> None:
    try:
        with _written(path) as file:
            async for block in blocks:
                file.write(block)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        raise Broken(
            f"{path} cannot be written: {exc.strerror}",
            code="output_not_written",
            next_step="the answers are kept: `tandemn download JOB -o OTHER` fetches them again",
        ) from exc


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` when all of it has been written, and is gone otherwise."""
    target = _target(path)
    if _is_special(target):
        # A pipe or a device is written to; renaming over it would replace it.
        with target.open("wb") as file:
            yield file
        return
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".tandemn-", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), _mode(target))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _target(path: Path) -> Path:
    # A link keeps its place; what it points to is replaced.
    return path.resolve()


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file() and not target.is_dir()


def _mode(target: Path) -> int:
    """Return the permissions that the file has, or that a new file would get."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
