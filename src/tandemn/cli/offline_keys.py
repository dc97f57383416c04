"""Keys of a state that no control plane serves now: a process of the control plane's code does the work."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tandemn.errors import Broken
from tandemn.protocol import errors as wire
from tandemn.protocol.keys import CreateKey, KeyList, KeyMade, KeyView
from tandemn.settings import Settings, child_environment, python_executable

_Answer = TypeVar("_Answer", bound=BaseModel)

#: Bytes of what a failed process said that an error shows.
_TAIL_BYTES = 500


class OfflineKeys:
    """The questions about keys that `UserClient` has, asked of the database itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def create_key(self, request: CreateKey) -> KeyMade:
        return await self._ask(KeyMade, "create", request.name, request.role.value)

    async def list_keys(self) -> KeyList:
        return await self._ask(KeyList, "list")

    async def replace_key(self, name: str) -> KeyMade:
        return await self._ask(KeyMade, "rotate", name)

    async def revoke_key(self, name: str) -> KeyView:
        return await self._ask(KeyView, "revoke", name)

    async def _ask(self, answer_type: type[_Answer], *arguments: str) -> _Answer:
        process = await asyncio.create_subprocess_exec(
            python_executable(),
            "-m",
            "tandemn.control.offline",
            *arguments,
            env=child_environment(self._settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complaint = await process.communicate()
        try:
            if process.returncode == 0:
                return answer_type.model_validate_json(said)
            raise wire.from_body(400, wire.ErrorBody.model_validate_json(said))
        except ValidationError as exc:
            tail = complaint[-_TAIL_BYTES:].decode(errors="replace").strip()
            raise Broken(f"the keys cannot be reached: {tail or 'nothing was said'}") from exc
