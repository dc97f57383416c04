"""What handlers ask for: the services, who is calling, and the object that the path names.

The gate has found all of it, and has seen that the caller may.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from tandemn.control.access.rules import Caller
from tandemn.control.services import Services
from tandemn.control.store.records import ReplicaRecord


def services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


def caller(request: Request) -> Caller:
    return cast("Caller", request.state.caller)


def calling_replica(replica_id: str, request: Request) -> ReplicaRecord:
    del replica_id  # declared because the path has it
    return cast("ReplicaRecord", request.state.replica)


def full_job_id(job_id: str, request: Request) -> str:
    """Return the full id of the job that the path names, which may have it cut short."""
    del job_id
    return cast("str", request.state.job_id)


def same_route(request: Request) -> None:
    """See that the rule which let this request pass is the rule of the route that serves it."""
    assert request.state.rule_path == request.scope["route"].path, "the table and the routes differ"


ServicesNow = Annotated[Services, Depends(services)]
CallerNow = Annotated[Caller, Depends(caller)]
CallingReplica = Annotated[ReplicaRecord, Depends(calling_replica)]
JobId = Annotated[str, Depends(full_job_id)]
