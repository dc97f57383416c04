"""API keys: make, list, rotate, revoke. A key is told once, in the answer that made it."""

from __future__ import annotations

from fastapi import APIRouter

from tandemn.control import tokens
from tandemn.control.api.dependencies import CallerNow, ServicesNow
from tandemn.control.store import keys
from tandemn.control.views import key_made, key_view
from tandemn.protocol.keys import CreateKey, KeyList, KeyMade, KeyView

router = APIRouter(prefix="/api/keys")


@router.post("", status_code=201)
async def create(body: CreateKey, services: ServicesNow, caller: CallerNow) -> KeyMade:
    new = tokens.new_key()
    record = await services.database.run(
        keys.create, body.name, body.role, new, now=services.clock.now(), actor=caller.name
    )
    return key_made(record, new)


@router.get("")
async def list_keys(services: ServicesNow) -> KeyList:
    return KeyList(keys=[key_view(each) for each in await services.database.run(keys.all_of)])


@router.post("/{name}/rotate")
async def rotate(name: str, services: ServicesNow, caller: CallerNow) -> KeyMade:
    new = tokens.new_key()
    record = await services.database.run(keys.rotate, name, new, now=services.clock.now(), actor=caller.name)
    await services.open_requests.cut_off(services.database)
    return key_made(record, new)


@router.post("/{name}/revoke")
async def revoke(name: str, services: ServicesNow, caller: CallerNow) -> KeyView:
    record = await services.database.run(keys.revoke, name, now=services.clock.now(), actor=caller.name)
    await services.open_requests.cut_off(services.database)
    return key_view(record)
