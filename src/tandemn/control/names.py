"""Names that the control plane gives: ids, and where each object of a job lies in the store."""

from __future__ import annotations

import secrets


def new_job_id() -> str:
    return f"job-{secrets.token_hex(6)}"


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def file_object(file_id: str) -> str:
    return f"files/{file_id}"


def job_folder(job_id: str) -> str:
    return f"jobs/{job_id}/"


def scratch_folders(job_id: str) -> tuple[str, ...]:
    """What is of no use once the output is assembled."""
    return (*unanswered_folders(job_id), f"{job_folder(job_id)}chunks/")


def unanswered_folders(job_id: str) -> tuple[str, ...]:
    """What is of no use to a job that has ended, whether its output could be assembled or not."""
    folder = job_folder(job_id)
    return (f"{folder}parts/", settled_prefix(job_id))


def settled_prefix(job_id: str) -> str:
    """Where the lines of chunks that the job's end cut off are written on the way to the output."""
    return f"{job_folder(job_id)}settled"


def index_object(job_id: str) -> str:
    return f"{job_folder(job_id)}index"


def parts_folder(job_id: str, chunk: int) -> str:
    return f"{job_folder(job_id)}parts/{chunk:07d}/"


def part_object(job_id: str, chunk: int, token: str, part: int) -> str:
    return f"{parts_folder(job_id, chunk)}{token}-{part:06d}"


def chunk_object(job_id: str, chunk: int, token: str) -> str:
    """The answers of a finished chunk, in input order."""
    return f"{job_folder(job_id)}chunks/{chunk:07d}/{token}"


def chunk_errors_object(job_id: str, chunk: int, token: str) -> str:
    return f"{chunk_object(job_id, chunk, token)}.errors"


def output_object(job_id: str) -> str:
    return f"{job_folder(job_id)}output.jsonl"


def errors_object(job_id: str) -> str:
    return f"{job_folder(job_id)}errors.jsonl"
