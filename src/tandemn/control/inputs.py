"""Where a job's input lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord


def input_of(services: Services, job: JobRecord) -> tuple[ObjectStore, str]:
    """Find the job's input: in the object store, or in a bucket of the user's."""
    if job.input_url is None:
        assert job.input_object is not None, "a job has one input"
        return services.objects, job.input_object
    folder, _, name = job.input_url.rpartition("/")
    return ObjectStore.open(folder), name
