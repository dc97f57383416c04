"""Validate an input of the store without stalling the event loop: in a process of its own where it is large.

Parsing holds the interpreter's lock, so a thread would not do. Run as `python -m tandemn.batch.input_process`:
parameters as JSON on stdin; on stdout JSON lines, some with `progress` (bytes read), the last with `report` or
`error`. The index goes to the store, so that what crosses the pipe stays small.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tandemn import errors
from tandemn.batch.input import MAX_ERRORS, InputReport, InputValidator
from tandemn.batch.prompt_tokens import cached_tokenizer, can_count, tokenizer_file
from tandemn.batch.split import LineIndex
from tandemn.errors import Broken, TandemnError
from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: Inputs up to this many bytes are validated in a thread: that takes less than starting a process.
SMALL_INPUT_BYTES = 2 * 1024 * 1024
#: Bytes between two reports of progress.
PROGRESS_BYTES = 8 * 1024 * 1024
#: Bytes of the child's last words that go into an error.
_STDERR_BYTES = 2000


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    store: str
    name: str
    index_store: str
    index_name: str
    skip_invalid: bool = False
    max_errors: int = MAX_ERRORS
    tokenizer: str | None = None
    """File of the model's tokenizer."""
    hub_cache: str | None = None
    """Where to look for the tokenizer of the model that the lines name; None: do not."""

    @property
    def counts_tokens(self) -> bool:
        return (self.tokenizer is not None or self.hub_cache is not None) and can_count()


class _Failure(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    message: str
    code: str
    next_step: str | None = None
    object_id: str | None = None


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    progress: int | None = None
    report: InputReport | None = None
    error: _Failure | None = None


async def validate_input(
    store: ObjectStore,
    name: str,
    *,
    index_store: ObjectStore,
    index_name: str,
    skip_invalid: bool = False,
    model: str | None = None,
    hub_cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> InputReport:
    """Validate the object `name` and store its line index as `index_name`.

    Args:
        store: where the input lies.
        name: the input.
        index_store: where the index goes; a user's bucket is only read from.
        index_name: its name there; read it with `load_index`.
        skip_invalid: leave bad lines out rather than refuse the input.
        model: whose tokenizer counts tokens, where it is on this machine; None: the one that the lines name.
        hub_cache: where downloaded models lie; None: tokens are not counted.
        progress: told the bytes read so far, now and then.

    Raises:
        NotFound: `object_not_found`.
        Broken: `validation_failed` where the process died.
    """
    parameters = Parameters(
        store=store.url,
        name=name,
        index_store=index_store.url,
        index_name=index_name,
        skip_invalid=skip_invalid,
        tokenizer=_own_tokenizer(model, hub_cache),
        hub_cache=str(hub_cache) if model is None and _is_folder(hub_cache) else None,
    )
    size = await store.size(name)
    # Reading a tokenizer takes a second, with the interpreter's lock held.
    if size > SMALL_INPUT_BYTES or parameters.counts_tokens:
        return await validate_in_process(parameters, progress=progress)
    data = await store.get(name)
    report, index = await asyncio.to_thread(_validate_bytes, data, parameters)
    await index_store.put(index_name, b"".join(index.encode()))
    if progress is not None:
        progress(size)
    return report


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.is_dir()


def _own_tokenizer(model: str | None, hub_cache: Path | None) -> str | None:
    file = tokenizer_file(model, hub_cache) if model is not None and hub_cache is not None else None
    return str(file) if file is not None else None


async def load_index(store: ObjectStore, index_name: str) -> LineIndex:
    """Read the index that `validate_input` stored."""
    return LineIndex.decode(await store.get(index_name))


async def validate_in_process(
    parameters: Parameters, *, progress: Callable[[int], None] | None = None
) -> InputReport:
    """Validate in a process of its own; where this task is cancelled, the process is killed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tandemn.batch.input_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=PROGRESS_BYTES,
    )
    try:
        assert child.stdin is not None
        assert child.stderr is not None
        with contextlib.suppress(ConnectionError):
            child.stdin.write(msgspec.json.encode(parameters))
            await child.stdin.drain()
        child.stdin.close()
        last_words = asyncio.ensure_future(child.stderr.read())
        report = await _listen(child, progress)
        await child.wait()
        if report is None:
            words = (await last_words)[-_STDERR_BYTES:].decode(errors="replace")
            raise Broken(
                f"validating {parameters.name} ended with status {child.returncode} and no result",
                code="validation_failed",
                next_step=f"its last words were: {words or 'none'}",
            )
        return report
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _listen(
    child: asyncio.subprocess.Process, progress: Callable[[int], None] | None
) -> InputReport | None:
    assert child.stdout is not None
    decoder = msgspec.json.Decoder(_Message)
    async for line in child.stdout:
        message = decoder.decode(line)
        if message.error is not None:
            raise _raised(message.error)
        if message.report is not None:
            return message.report
        if progress is not None and message.progress is not None:
            progress(message.progress)
    return None


def _raised(failure: _Failure) -> TandemnError:
    kind = getattr(errors, failure.kind, Broken)
    error: TandemnError = kind(
        failure.message, code=failure.code, next_step=failure.next_step, object_id=failure.object_id
    )
    return error


def _validate_bytes(data: bytes, parameters: Parameters) -> tuple[InputReport, LineIndex]:
    validator = InputValidator(skip_invalid=parameters.skip_invalid, max_errors=parameters.max_errors)
    validator.feed(data)
    validator.end()
    if validator.needs_second_pass:
        validator.confirm(data)
    return validator.finish()


async def _validate_stream(parameters: Parameters) -> InputReport:
    store = ObjectStore.open(parameters.store)
    validator = InputValidator(
        skip_invalid=parameters.skip_invalid,
        max_errors=parameters.max_errors,
        keeps_sample=parameters.counts_tokens,
    )
    read = told = 0
    async for block in store.stream(parameters.name):
        validator.feed(block)
        read += len(block)
        if read - told >= PROGRESS_BYTES:
            told = read
            _say(_Message(progress=read))
    validator.end()
    if validator.needs_second_pass:
        async for block in store.stream(parameters.name):
            validator.confirm(block)
    report, index = validator.finish(_tokenizer_file(parameters, validator.models))

    async def encoded() -> AsyncIterator[bytes]:
        for block in index.encode():
            yield block

    await ObjectStore.open(parameters.index_store).put_stream(parameters.index_name, encoded())
    return report


def _tokenizer_file(parameters: Parameters, models: tuple[str, ...]) -> Path | None:
    if not parameters.counts_tokens:
        return None
    if parameters.tokenizer is not None:
        return Path(parameters.tokenizer)
    if parameters.hub_cache is None or len(models) != 1:
        return None
    # Whoever wrote the lines may name no folder of this machine's.
    return cached_tokenizer(models[0], Path(parameters.hub_cache))


def _say(message: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Validate what stdin names; a fault is told on stdout too."""
    parameters = msgspec.json.decode(sys.stdin.buffer.read(), type=Parameters)
    try:
        _say(_Message(report=asyncio.run(_validate_stream(parameters))))
    except TandemnError as exc:
        failure = _Failure(
            kind=type(exc).__name__,
            message=exc.message,
            code=exc.code,
            next_step=exc.next_step,
            object_id=exc.object_id,
        )
        _say(_Message(error=failure))
    except BrokenPipeError:
        os._exit(1)  # whoever asked is gone


if __name__ == "__main__":
    main()
