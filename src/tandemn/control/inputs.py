"""Where a job's input lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.objects import ObjectStore

if TYPE_CHECKING:
    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord


def input_of(services: Services, job: JobRecord) -> tuple[ObjectStore, str]:
    """Find the job's input: in the object store, or in a bucket of the user's."""
    return open_input(services.objects, job.input_object, job.input_url)


def open_input(objects: ObjectStore, name: str | None, url: str | None) -> tuple[ObjectStore, str]:
    """Open an input by its name in the object store, or by its URL."""
    if url is None:
        assert name is not None, "there is one input"
        return objects, name
    folder, _, name = url.rpartition("/")
    return ObjectStore.open(folder), name
