"""Taking a job in: check what can be checked without reading its input, then record it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tandemn.control import names
from tandemn.control.access import restrictions
from tandemn.control.cloud_choice import choose_cloud
from tandemn.control.store import files, jobs
from tandemn.errors import InvalidInput
from tandemn.fleet.engines.engine import EngineName
from tandemn.protocol.jobs import JobState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.access.rules import Caller
    from tandemn.control.services import Services
    from tandemn.protocol.jobs import JobSpec

#: Stores that an input may be read from in place.
INPUT_SCHEMES = ("s3", "gs", "az")


async def submit(services: Services, spec: JobSpec, caller: Caller) -> str:
    """Record a job of the caller's, wake the reconciler, and return its id.

    Raises:
        InvalidInput: a cloud, engine or input that there is not.
    """
    cloud = (await choose_cloud(services, spec)).cloud
    if spec.engine is not None and spec.engine not in list(EngineName):
        raise InvalidInput(
            f"no engine called {spec.engine!r}",
            code="unknown_engine",
            param="engine",
            next_step=f"engines: {', '.join(EngineName)}",
        )
    check_spec(services, spec.model_copy(update={"cloud": cloud}), caller)
    job_id = names.new_job_id()
    now = services.clock.now()

    def record(connection: Connection) -> None:
        input_object = None
        if spec.input_file_id is not None:
            input_object = files.get(connection, spec.input_file_id, owner=caller.sees).object
        jobs.add(
            connection,
            job_id=job_id,
            spec=spec,
            now=now,
            input_object=input_object,
            cloud=cloud,
            owner=caller.name,
        )

    await services.database.run(record)
    services.pulse.beat(job_id)
    return job_id


def check_spec(services: Services, spec: JobSpec, caller: Caller) -> None:
    """See that there is one input, and that a user asks for nothing that would reach into the server itself.

    Raises:
        InvalidInput: `invalid_input`, `invalid_input_url`, `invalid_model`.
        Forbidden: see `restrictions`.
    """
    if (spec.input_file_id is None) == (spec.input_url is None):
        raise InvalidInput("give one input: a file or a URL", code="invalid_input", param="input_file_id")
    if spec.input_url is not None and urlsplit(spec.input_url).scheme not in INPUT_SCHEMES:
        raise InvalidInput(
            f"an input URL begins with {', '.join(f'{each}://' for each in INPUT_SCHEMES)}",
            code="invalid_input_url",
            param="input_url",
        )
    restrictions.check_priority(spec.priority, caller.role)
    if not spec.model_from_lines:  # the lines' model is looked at when they have been read
        restrictions.check_model(spec.model, caller.role)
    runs_here = (spec.cloud or "local") == "local"
    restrictions.check_engine_args(spec.engine_args, caller.role, runs_here=runs_here)
    if spec.input_url is not None:
        restrictions.check_input_url(
            spec.input_url,
            caller.role,
            allowed=services.settings.input_url_prefixes,
            store_url=services.objects.url,
        )


async def request_cancel(services: Services, job_id: str, *, actor: str) -> None:
    """Record that the job should end as cancelled; no error where it has ended or is ending."""
    now = services.clock.now()

    def record(connection: Connection) -> None:
        # One that is being read or planned goes the same way: what the step under way still writes is cleaned up.
        for reason, states in (
            ("cancelled before it began", (JobState.VALIDATING, JobState.PLANNING)),
            (
                "cancelled by request; keeping the answers that are finished",
                (JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING),
            ),
        ):
            jobs.move(
                connection,
                job_id,
                to=JobState.CANCELLING,
                frm=states,
                now=now,
                reason=reason,
                actor=actor,
                outcome=JobState.CANCELLED.value,
                cancelling_at=now,
            )

    await services.database.run(record)
    services.pulse.beat(job_id)
