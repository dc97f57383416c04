"""OpenAI's Files API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from tandemn.control import names
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.api.multipart import FileUpload
from tandemn.control.reconcilers.retention import remove
from tandemn.control.retention import LONGEST_S, expires_at
from tandemn.control.store import files
from tandemn.control.store.records import FileRecord
from tandemn.errors import InvalidInput
from tandemn.protocol.openai import FileDeleted, FileList, FileObject

router = APIRouter(prefix="/v1/files")


def file_object(file: FileRecord, kept_days: float | None) -> FileObject:
    expires = expires_at(file.created_at, file.expires_at, kept_days)
    return FileObject(
        id=file.file_id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        expires_at=int(expires) if expires is not None else None,
    )


#: The form, for the API's document: FastAPI knows nothing of a body that is read as it comes.
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": int(LONGEST_S),
                        },
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM)
async def upload(request: Request, services: ServicesNow, caller: CallerNow) -> FileObject:
    """Take a file in. Nothing of it stays where the upload breaks off or its form is wrong."""
    form = FileUpload(request.headers.get("content-type", ""), request.stream())
    file_id = names.new_file_id()
    now = services.clock.now()
    reserved = FileRecord(
        file_id=file_id,
        filename="",
        purpose="",
        bytes=0,
        object=names.file_object(file_id),
        created_at=now,
        job_id=None,
        owner=caller.name,
    )
    await services.database.run(files.reserve, reserved)
    try:
        size = await services.objects.put_stream(reserved.object, form.content())
        purpose = _checked_purpose(form.fields.get("purpose"))
        asked_s = _asked_s(form.fields)
        assert form.filename is not None, "content() has ended"
        file = replace(
            reserved,
            filename=form.filename,
            purpose=purpose,
            bytes=size,
            expires_at=now + asked_s if asked_s is not None else None,
        )
        await services.database.run(files.add, file, actor=caller.name)
    except BaseException:
        await remove(services, reserved)
        raise
    return file_object(file, services.settings.retention_days)


def _asked_s(fields: Mapping[str, str]) -> float | None:
    """Read OpenAI's `expires_after`: so many seconds from now."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    is_number = seconds is not None and seconds.isascii() and seconds.isdecimal() and len(seconds) < 12
    if anchor != "created_at" or not is_number or not 0 < int(seconds or 0) <= LONGEST_S:
        raise InvalidInput(
            f"expires_after is an anchor, created_at, and up to {LONGEST_S:.0f} seconds",
            code="invalid_value",
            param="expires_after",
        )
    return float(seconds or 0)


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
    data = [file_object(file, services.settings.retention_days) for file in found[:limit]]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/{file_id}")
async def retrieve(file_id: str, services: ServicesNow) -> FileObject:
    file = await services.database.run(files.get, file_id)
    return file_object(file, services.settings.retention_days)


@router.get("/{file_id}/content")
async def content(file_id: str, services: ServicesNow) -> StreamingResponse:
    file = await services.database.run(files.get, file_id)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": _disposition(file.filename),
    }
    return StreamingResponse(
        services.objects.stream(file.object), headers=headers, media_type="application/octet-stream"
    )


def _disposition(filename: str) -> str:
    """Name a download, in ASCII and, for who reads RFC 6266, in full."""
    plain = filename.encode("ascii", "replace").decode().replace("?", "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename)}"


@router.delete("/{file_id}")
async def delete(file_id: str, services: ServicesNow, caller: CallerNow) -> FileDeleted:
    file = await services.database.run(
        files.hide, file_id, now=services.clock.now(), actor=caller.name, reason="deleted by request"
    )
    await remove(services, file)
    return FileDeleted(id=file_id)
