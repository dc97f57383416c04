"""Turns how a request ended into the line that the output will have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.batch import answers
from tandemn.runner import outcome
from tandemn.runner.outcome import Judgement
from tandemn.runner.strikes import MAX_STRIKES

if TYPE_CHECKING:
    from tandemn.runner.chunks import HeldChunk
    from tandemn.runner.feeder import Request, Result


def keep_result(job_id: str, chunk: HeldChunk, request: Request, result: Result) -> None:
    """Keep the answer or error line of a request in its chunk."""
    # The same whoever computes it: its place in the input.
    request_id = f"req_{chunk.lease.first_request + request.index}"
    match result.judgement:
        case Judgement.ANSWER:
            line = answers.success_line(
                job_id, request.custom_id, request_id=request_id, body=result.body, status=result.status
            )
            chunk.prompt_tokens += result.usage.prompt_tokens
            chunk.output_tokens += result.usage.completion_tokens
        case Judgement.REFUSED:
            line = answers.refusal_line(
                job_id, request.custom_id, request_id=request_id, status=result.status, body=result.body
            )
        case Judgement.AGAIN:
            _, message = answers.engine_error(result.status, result.body)
            line = answers.not_run_line(job_id, request.custom_id, code="engine_error", message=message)
    chunk.spool.append(request.index, line, is_error=result.judgement is not Judgement.ANSWER)


def keep_stored(chunk: HeldChunk, answer: answers.Answer) -> None:
    """Keep an answer that an earlier holder of the chunk stored; its tokens are this chunk's, too."""
    if answer.index >= chunk.lease.requests:
        return
    if chunk.spool.append(answer.index, answer.line, is_error=answer.kind == "e") and answer.kind == "o":
        usage = outcome.usage_of_line(answer.line)
        chunk.prompt_tokens += usage.prompt_tokens
        chunk.output_tokens += usage.completion_tokens


def keep_conviction(job_id: str, chunk: HeldChunk, request: Request) -> None:
    """Keep the error line of a request that is not tried again because the engine died of it."""
    line = answers.not_run_line(
        job_id,
        request.custom_id,
        code="request_killed_engine",
        message=f"the engine died {MAX_STRIKES} times while it computed this request",
    )
    chunk.spool.append(request.index, line, is_error=True)
