"""Join what the chunks left into `output.jsonl` and `errors.jsonl`, in input order.

A completed chunk has one object of output lines and one of error lines, named by the database. Of a chunk that
the job's end cut off, the answers that were stored are kept and the rest become error lines with the reason.
Every step writes the same bytes when it is repeated, so an assembly that died is simply run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.batch.answers import decode_segment, not_run_line
from tandemn.batch.request_line import iter_requests
from tandemn.errors import Broken

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence

    from tandemn.batch.answers import Answer
    from tandemn.batch.split import ChunkRange
    from tandemn.objects import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkObjects:
    """A chunk's answers as stored; a name is None where there are no such lines."""

    chunk: int
    requests: int
    output: str | None
    output_lines: int
    errors: str | None
    error_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedChunk:
    """A chunk that the job's end cut off."""

    range: ChunkRange
    parts: Sequence[str]
    """Its segments, in the order in which they were granted and written."""
    code: str
    """Of the error lines: `batch_cancelled`, `batch_expired`, `over_budget`, …"""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    output_lines: int
    output_bytes: int
    """0, and no object, where no request succeeded."""
    error_lines: int
    error_bytes: int
    """0, and no object, where none failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyNames:
    """Where things lie in the store."""

    input: str
    output: str
    errors: str
    settled_prefix: str
    """For what is written on the way; removed at the end."""


async def assemble(
    store: ObjectStore,
    chunks: AsyncIterable[ChunkObjects | UnfinishedChunk],
    *,
    names: AssemblyNames,
    batch_id: str,
    requests: int,
    inputs: ObjectStore | None = None,
) -> Assembled:
    """Write the output and the errors of a job.

    Args:
        store: where chunks lie and results go.
        chunks: all chunks of the job, in order.
        names: of the objects.
        batch_id: what the ids of error lines are made from.
        requests: of the job.
        inputs: where the input lies, if elsewhere.

    Raises:
        Broken: `assembly_incomplete` where a chunk, or all of them, hold more or fewer lines than requests;
            `input_changed`.
        NotFound: `object_not_found` where a named object is gone.
    """
    output: list[str] = []
    errors: list[str] = []
    output_lines = error_lines = 0
    expected = 0
    async for chunk in chunks:
        if isinstance(chunk, UnfinishedChunk):
            done = await settle(store, chunk, names=names, batch_id=batch_id, inputs=inputs or store)
        else:
            done = chunk
        _check(done, expected)
        expected += 1
        output_lines += done.output_lines
        error_lines += done.error_lines
        output += [done.output] if done.output else []
        errors += [done.errors] if done.errors else []
    if output_lines + error_lines != requests:
        raise _incomplete(
            f"{expected} chunks hold {output_lines + error_lines} answers to {requests} requests"
        )
    assembled = Assembled(
        output_lines=output_lines,
        output_bytes=await _join(store, names.output, output),
        error_lines=error_lines,
        error_bytes=await _join(store, names.errors, errors),
    )
    await store.delete_prefix(names.settled_prefix)
    return assembled


async def settle(
    store: ObjectStore, chunk: UnfinishedChunk, *, names: AssemblyNames, batch_id: str, inputs: ObjectStore
) -> ChunkObjects:
    """Write a cut-off chunk's objects: its stored answers, and error lines for the requests that have none.

    Memory is one chunk's answers.
    """
    answers = await _stored_answers(store, chunk.parts)
    where = chunk.range
    lines: dict[str, list[bytes]] = {"o": [], "e": []}
    blocks = inputs.stream(names.input, where.byte_start, where.byte_end)
    async for request in iter_requests(
        blocks, byte_start=where.byte_start, requests=where.requests, skipped=frozenset(where.skipped)
    ):
        if answer := answers.get(request.index):
            lines[answer.kind].append(answer.line)
        else:
            line = not_run_line(batch_id, request.custom_id, code=chunk.code, message=chunk.message)
            lines["e"].append(line)
    prefix = f"{names.settled_prefix}/{where.index}"
    return ChunkObjects(
        chunk=where.index,
        requests=where.requests,
        output=await _put_lines(store, f"{prefix}.output", lines["o"]),
        output_lines=len(lines["o"]),
        errors=await _put_lines(store, f"{prefix}.errors", lines["e"]),
        error_lines=len(lines["e"]),
    )


async def _stored_answers(store: ObjectStore, parts: Sequence[str]) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    for part in parts:
        for answer in decode_segment(await store.get(part)):
            found.setdefault(answer.index, answer)
    return found


async def _put_lines(store: ObjectStore, name: str, lines: list[bytes]) -> str | None:
    if not lines:
        return None
    await store.put(name, b"\n".join(lines) + b"\n")
    return name


async def _join(store: ObjectStore, dest: str, names: list[str]) -> int:
    if names:
        return await store.concat(dest, names)
    await store.delete(dest)  # of an earlier run, which cannot have written it; but no line may stand there
    return 0


def _check(chunk: ChunkObjects, expected: int) -> None:
    if chunk.chunk != expected:
        raise _incomplete(f"chunk {expected} is missing: chunk {chunk.chunk} came in its place")
    if chunk.output_lines + chunk.error_lines != chunk.requests:
        lines = chunk.output_lines + chunk.error_lines
        raise _incomplete(f"chunk {chunk.chunk} holds {lines} answers to {chunk.requests} requests")
    for name, count in ((chunk.output, chunk.output_lines), (chunk.errors, chunk.error_lines)):
        if (name is None) != (count == 0):
            raise _incomplete(f"chunk {chunk.chunk} has {count} lines in object {name}")


def _incomplete(what: str) -> Broken:
    return Broken(
        f"the answers cannot be put together: {what}",
        code="assembly_incomplete",
        next_step="this is a fault of Tandemn: report it with the job's events",
    )
