"""A job of `tandemn deploy`: upload the input, submit it, say what is wrong with it; with `--wait`, see it through."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tandemn.cli import answers, options, report
from tandemn.cli.agreement import agreed
from tandemn.cli.connection import connect
from tandemn.cli.display import job_display, upload_display
from tandemn.cli.follow import follow, is_planned
from tandemn.cli.output import EXIT_INTERRUPTED, emit, note, say
from tandemn.cli.text import duration, parse_slo, plural
from tandemn.client import UserClient
from tandemn.errors import InvalidInput, TandemnError
from tandemn.protocol.jobs import JobSpec, JobState, JobStatus

#: The cloud that is this machine: nothing is asked there.
LOCAL = "local"
#: Where an input may lie that the control plane reads itself.
REMOTE_SCHEMES = ("s3://", "gs://", "az://")
#: How long the clean-up after a failed submit may take.
CLEAN_UP_S = 10.0


def is_remote(source: str) -> bool:
    """Say whether the input is read in place by the control plane."""
    return source.startswith(REMOTE_SCHEMES)


def check_input(path: Path) -> None:
    """Refuse an input file that cannot be read, before anything is started.

    Raises:
        InvalidInput: it is missing, a folder, unreadable or empty.
    """
    code, problem = "input_unreadable", None
    try:
        if not path.exists():
            code, problem = "input_not_found", "does not exist"
        elif path.is_dir():
            problem = "is a folder"
        elif not path.is_file():
            problem = "is not a plain file"
        elif path.stat().st_size == 0:
            code, problem = "empty_file", "is empty"
        else:
            with path.open("rb"):
                return
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
    raise InvalidInput(f"the input file {path} {problem}", code=code, param="input")


def spec_of(flags: Mapping[str, Any], engine_args: list[str]) -> JobSpec:
    """Make the spec that flags mean: those of the command's parameters that are called as a field is, and three more.

    Raises:
        InvalidInput: a flag is missing or wrong; the message names it.
    """
    fields = {name: flags[name] for name in JobSpec.model_fields if name in flags}
    return options.checked(
        JobSpec,
        {"budget_usd": "--budget", "slo_s": "--slo", "model": "MODEL"},
        **fields | {"slo_s": _slo_s(flags["slo"]), "budget_usd": flags["budget"], "engine_args": engine_args},
    )


def _slo_s(text: str | None) -> float:
    """Read `--slo`, which a job must have, as seconds.

    Raises:
        InvalidInput: it is missing or no duration.
    """
    if text is None:
        raise InvalidInput(
            "--slo is missing: a job has a deadline",
            code="wrong_usage",
            next_step="tandemn deploy MODEL INPUT.jsonl --slo 4h",
            param="slo",
        )
    return parse_slo(text)


async def deploy_job(
    spec: JobSpec,
    source: str,
    output: Path | None,
    *,
    is_asking: bool,
    offers_koi: bool,
    is_waiting: bool,
    as_json: bool,
) -> int:
    """Submit a job, and with `is_waiting` see it through; return the exit code.

    With `is_asking`, whoever sits there sees first what costs money, and is asked; with `offers_koi`, whose plan
    it shall be, too.
    """
    async with connect() as client:
        where = ""
        if spec.cloud is None:
            choice = await client.cloud_of(spec)
            place = "on this machine" if choice.cloud == LOCAL else f"to {choice.cloud}"
            where = f" {place} ({choice.reason})"
            spec = spec.model_copy(update={"cloud": choice.cloud})
        asks = is_asking and spec.cloud != LOCAL
        submitted, file_id = await _submit(client, spec, source, is_asking=asks, offers_koi=offers_koi)
        if submitted is None:
            note("nothing was launched")
            return 1
        job_id = submitted.job_id
        if not as_json:
            say(f"job {job_id} submitted{where}")
        try:
            status = await follow(client, job_id, until=is_planned)
            if file_id is not None and status.state is JobState.FAILED:
                await _forget_upload(client, file_id)  # the copy is of no use to anybody
            if report.has_bad_input(status):
                return _refused(status, source, as_json=as_json)
            if not is_waiting:
                return _accepted(status, as_json=as_json)
            return await _see_through(client, job_id, source, output, as_json=as_json)
        except asyncio.CancelledError:
            return _detached(job_id, is_waiting=is_waiting, as_json=as_json)


async def _submit(
    client: UserClient, spec: JobSpec, source: str, *, is_asking: bool, offers_koi: bool
) -> tuple[JobStatus | None, str | None]:
    """Return the job, None where its plan was not agreed to, and the id of the file that was uploaded for it."""
    if is_remote(source):
        spec = spec.model_copy(update={"input_url": source})
        wanted = await agreed(client, spec, offers_koi=offers_koi) if is_asking else spec
        return (await client.submit(wanted) if wanted is not None else None), None
    path = Path(source)
    with upload_display(path) as count:
        file = await client.upload(path, on_bytes=count)
    spec = spec.model_copy(update={"input_file_id": file.id})
    try:
        wanted = await agreed(client, spec, offers_koi=offers_koi) if is_asking else spec
        if wanted is None:
            await _forget_upload(client, file.id)
            return None, None
    except BaseException:  # Ctrl-C at the question, too, leaves nothing behind
        await _forget_upload(client, file.id)
        raise
    submission = asyncio.ensure_future(client.submit(wanted))
    try:
        # Ctrl-C waits for the answer here: a job that was submitted must be known by its id.
        return await asyncio.shield(submission), file.id
    except asyncio.CancelledError:
        forget_interrupt()
        status = await submission
        note(f"interrupted: job {status.job_id} had been submitted")
        raise KeyboardInterrupt from None
    except TandemnError:
        await _forget_upload(client, file.id)
        raise


async def _forget_upload(client: UserClient, file_id: str) -> None:
    """Remove a file that no job will read; where that fails, it is no news beside what went wrong before."""
    with suppress(TandemnError, TimeoutError):
        async with asyncio.timeout(CLEAN_UP_S):
            await client.delete_file(file_id)


def _refused(status: JobStatus, source: str, *, as_json: bool) -> int:
    """Say what is wrong with the input; nothing was launched."""
    note(report.input_errors(status, source))
    count = plural(status.errors_total, "bad line")
    note(f"error: {source}: {count}, nothing was launched [{status.code or 'invalid_input'}]")
    note("next step: mend the lines, or leave them out with --skip-invalid")
    if as_json:
        emit(
            {
                "job_id": status.job_id,
                "state": str(status.state),
                "errors_total": status.errors_total,
                "errors": [error.model_dump() for error in status.errors],
            }
        )
    return report.exit_code(status)


def _accepted(status: JobStatus, *, as_json: bool) -> int:
    if as_json:
        emit({"job_id": status.job_id})
    if status.state.has_ended:
        note(report.final_lines(status, None))
    elif not as_json:
        say(
            f"{plural(status.requests.total, 'request')}, deadline in {duration(status.deadline - status.created_at)}"
        )
        say(f"`tandemn progress {status.job_id}` follows it")
    return report.exit_code(status)


async def _see_through(
    client: UserClient, job_id: str, source: str, output: Path | None, *, as_json: bool
) -> int:
    # With --json, stdout is for the one value at the end.
    with job_display(stream=sys.stderr if as_json else sys.stdout) as show:
        status = await follow(client, job_id, show=show)
    if report.has_bad_input(status):
        return _refused(status, source, as_json=as_json)
    errors = None
    if output is not None and status.output_file_id is not None:
        errors = await answers.fetch(client, status, output)
    if as_json:
        emit(status)
    else:
        say(report.final_lines(status, str(output) if output is not None and status.output_file_id else None))
    if errors is not None:
        note(f"{plural(status.requests.failed, 'request')} failed: their error lines are in {errors}")
    return report.exit_code(status)


def _detached(job_id: str, *, is_waiting: bool, as_json: bool) -> int:
    """Answer Ctrl-C after the submit: only the watching ends."""
    forget_interrupt()
    if as_json:
        emit({"job_id": job_id})
    note(f"detached from job {job_id}; it goes on without this command")
    note(f"`tandemn progress {job_id}` comes back to it, `tandemn cancel {job_id}` ends it")
    return 0 if is_waiting else EXIT_INTERRUPTED


def forget_interrupt() -> None:
    """Tell asyncio that the interrupt was answered: it would raise it again at the end."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
