"""OpenAI's Files API."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from tandemn.control import names
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.api.multipart import FileUpload
from tandemn.control.store import files
from tandemn.control.store.records import FileRecord
from tandemn.errors import InvalidInput
from tandemn.protocol.openai import FileDeleted, FileList, FileObject

router = APIRouter(prefix="/v1/files")


def file_object(file: FileRecord) -> FileObject:
    return FileObject(
        id=file.file_id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
    )


@router.post("")
async def upload(request: Request, services: ServicesNow, caller: CallerNow) -> FileObject:
    """Take a file in. Nothing of it stays where the upload breaks off or its form is wrong."""
    form = FileUpload(request.headers.get("content-type", ""), request.stream())
    file_id = names.new_file_id()
    name = names.file_object(file_id)
    size = await services.objects.put_stream(name, form.content())
    try:
        purpose = _checked_purpose(form.fields.get("purpose"))
        assert form.filename is not None, "content() has ended"
        file = FileRecord(
            file_id=file_id,
            filename=form.filename,
            purpose=purpose,
            bytes=size,
            object=name,
            created_at=services.clock.now(),
            job_id=None,
            owner=caller.name,
        )
        await services.database.run(files.add, file, actor=caller.name)
    except BaseException:
        await services.objects.delete(name)
        raise
    return file_object(file)


def _checked_purpose(purpose: str | None) -> str:
    if purpose != "batch":
        raise InvalidInput(
            f"purpose is {purpose!r}; batch is the one that is served",
            code="invalid_purpose",
            param="purpose",
        )
    return purpose


@router.get("")
async def list_files(
    *,
    services: ServicesNow,
    caller: CallerNow,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    purpose: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    found = await services.database.run(
        files.page,
        limit=limit,
        after=after,
        purpose=purpose,
        newest_first=order == "desc",
        owner=caller.sees,
    )
    data = [file_object(file) for file in found[:limit]]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/{file_id}")
async def retrieve(file_id: str, services: ServicesNow) -> FileObject:
    return file_object(await services.database.run(files.get, file_id))


@router.get("/{file_id}/content")
async def content(file_id: str, services: ServicesNow) -> StreamingResponse:
    file = await services.database.run(files.get, file_id)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f'attachment; filename="{file.filename}"',
    }
    return StreamingResponse(
        services.objects.stream(file.object), headers=headers, media_type="application/octet-stream"
    )


@router.delete("/{file_id}")
async def delete(file_id: str, services: ServicesNow, caller: CallerNow) -> FileDeleted:
    file = await services.database.run(files.delete, file_id, now=services.clock.now(), actor=caller.name)
    await services.objects.delete(file.object)
    return FileDeleted(id=file_id)
