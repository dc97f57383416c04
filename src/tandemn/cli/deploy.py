"""`tandemn deploy`: upload the input, submit the job, say what is wrong with it; with `--wait`, see it through."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from tandemn.cli import answers, options, report
from tandemn.cli.connection import connect
from tandemn.cli.display import job_display, upload_display
from tandemn.cli.follow import follow, is_planned
from tandemn.cli.output import EXIT_INTERRUPTED, emit, note, say
from tandemn.cli.text import duration, parse_slo, plural
from tandemn.client import UserClient
from tandemn.errors import InvalidInput, TandemnError
from tandemn.protocol.jobs import JobSpec, JobState, JobStatus

app = typer.Typer(rich_markup_mode=None)

#: Where an input may lie that the control plane reads itself.
REMOTE_SCHEMES = ("s3://", "gs://", "az://")
#: How long the clean-up after a failed submit may take.
CLEAN_UP_S = 10.0


class _DeployCommand(TyperCommand):
    """Keeps what follows `--` for the engine."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            ctx.meta["engine_args"] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)


@app.command("deploy", cls=_DeployCommand)
def deploy(
    *,
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL INPUT",
            help="The model, and the requests: a JSONL file, or s3://… (gs://, az://) to be read in place.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model, where MODEL is not given.")] = None,
    slo: Annotated[
        str | None, typer.Option("--slo", help="Deadline: 4h, 0.5h, 30m, 90s; a plain number is hours.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option("--max-output-tokens", help="Longest answer, where a request names none.")
    ] = None,
    cloud: Annotated[str | None, typer.Option("--cloud", help="Where replicas run: local, aws, …")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Only this region of the cloud.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="GPU type; cpu is this machine's; auto.")] = None,
    tp: Annotated[int | None, typer.Option("--tp", help="GPUs a replica splits each layer over.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Stages a replica splits the layers into.")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="How many replicas to run.")] = None,
    on_demand: Annotated[bool, typer.Option("--on-demand", help="No spot instances.")] = False,
    chunk_size: Annotated[int | None, typer.Option("--chunk-size", help="Requests a chunk.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="llamacpp, vllm or simulated.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="Most it may cost.")] = None,
    priority: Annotated[int, typer.Option("--priority", help="Higher goes first among jobs.")] = 0,
    advisor: Annotated[
        Literal["own", "koi"], typer.Option("--advisor", help="Whose plan is followed.")
    ] = "own",
    force: Annotated[
        bool, typer.Option("--force", help="Run it although the plan cannot meet the deadline.")
    ] = False,
    persist: Annotated[
        bool, typer.Option("--persist", help="Leave the replicas running when the job ends.")
    ] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave bad lines out instead of refusing the input.")
    ] = False,
    stop_at_deadline: Annotated[
        bool, typer.Option("--stop-at-deadline", help="Expire at the deadline instead of going on late.")
    ] = False,
    output: options.Output = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end; -o implies it.")] = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """Run a batch job: a model, a file of requests, a deadline.

    Each line of INPUT is one request in OpenAI's batch format. What follows `--` goes to the engine.
    Returns when input and model have been checked; with --wait (or -o) when the job has ended. Ctrl-C while it
    waits leaves the job running.

    Exit codes: 0 submitted (with --wait: completed), 1 failed or cancelled, 2 wrong usage or bad input,
    3 expired or over budget.

    Examples:
        tandemn deploy demo/tiny requests.jsonl --slo 4h
        tandemn deploy demo/tiny requests.jsonl --slo 30m --cloud local --replicas 2 -o answers.jsonl
        tandemn deploy demo/tiny s3://bucket/requests.jsonl --slo 4 --json
        tandemn deploy demo/tiny requests.jsonl --slo 4h -- --n-gpu-layers 0
    """
    del yes  # this version launches on this machine only, so that nothing is asked
    model, source = split_names(names or [], model)
    spec = options.checked(
        JobSpec,
        {"budget_usd": "--budget", "slo_s": "--slo", "model": "MODEL"},
        model=model,
        slo_s=_slo(slo),
        max_output_tokens=max_output_tokens,
        cloud=cloud,
        region=region,
        gpu=gpu,
        tp=tp,
        pp=pp,
        replicas=replicas,
        on_demand=on_demand,
        chunk_size=chunk_size,
        engine=engine,
        engine_args=context.meta.get("engine_args", []),
        budget_usd=budget,
        priority=priority,
        advisor=advisor,
        force=force,
        persist=persist,
        skip_invalid=skip_invalid,
        stop_at_deadline=stop_at_deadline,
    )
    if not is_remote(source):
        check_input(Path(source))
    if output is not None:
        answers.check_output(output)
    return asyncio.run(_deploy(spec, source, output, is_waiting=wait or output is not None, as_json=as_json))


def split_names(names: Sequence[str], model: str | None) -> tuple[str, str]:
    """Tell MODEL and INPUT apart; with `--model`, INPUT stands alone.

    Raises:
        InvalidInput: one is missing, or there are more.
    """
    words = [*([model] if model else []), *names]
    match words:
        case [name, source]:
            return name, source
        case [] | [_]:
            raise InvalidInput(
                "MODEL is missing" if not words else "INPUT is missing: this version runs batch jobs only",
                code="wrong_usage",
                next_step="tandemn deploy MODEL INPUT.jsonl --slo 4h",
                param="input" if words else "model",
            )
        case _:
            raise InvalidInput(
                f"unexpected arguments: {' '.join(words[2:])}",
                code="wrong_usage",
                next_step="flags of the engine follow `--`",
            )


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


def _slo(text: str | None) -> float:
    if text is None:
        raise InvalidInput(
            "--slo is missing: a job has a deadline",
            code="wrong_usage",
            next_step="tandemn deploy MODEL INPUT.jsonl --slo 4h",
            param="slo",
        )
    return parse_slo(text)


async def _deploy(spec: JobSpec, source: str, output: Path | None, *, is_waiting: bool, as_json: bool) -> int:
    async with connect() as client:
        submitted, file_id = await _submit(client, spec, source)
        job_id = submitted.job_id
        if not as_json:
            say(f"job {job_id} submitted")
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


async def _submit(client: UserClient, spec: JobSpec, source: str) -> tuple[JobStatus, str | None]:
    """Return the job, and the id of the file that was uploaded for it."""
    if is_remote(source):
        return await client.submit(spec.model_copy(update={"input_url": source})), None
    path = Path(source)
    with upload_display(path) as count:
        file = await client.upload(path, on_bytes=count)
    submission = asyncio.ensure_future(client.submit(spec.model_copy(update={"input_file_id": file.id})))
    try:
        # Ctrl-C waits for the answer here: a job that was submitted must be known by its id.
        return await asyncio.shield(submission), file.id
    except asyncio.CancelledError:
        _forget_interrupt()
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
    _forget_interrupt()
    if as_json:
        emit({"job_id": job_id})
    note(f"detached from job {job_id}; it goes on without this command")
    note(f"`tandemn progress {job_id}` comes back to it, `tandemn cancel {job_id}` ends it")
    return 0 if is_waiting else EXIT_INTERRUPTED


def _forget_interrupt() -> None:
    """Tell asyncio that the interrupt was answered: it would raise it again at the end."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
