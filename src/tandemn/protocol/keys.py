"""API keys as the command line and the control plane speak of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Role(StrEnum):
    VIEWER = "viewer"
    """Reads everything, changes nothing."""
    USER = "user"
    """Reads and changes what is its own."""
    ADMIN = "admin"
    """Reads and changes everything, and gives keys."""


class Me(BaseModel):
    """Whom a control plane takes its caller for."""

    name: str
    """Owner of what the caller makes; `local` without keys."""
    role: Role


#: Who a key is for: a person, or a program of theirs. It may be an email address.
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$")]


class CreateKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: KeyName
    role: Role


class KeyView(BaseModel):
    """A key as it may be shown: never the key itself."""

    name: str
    """Owner of what is made with it."""
    role: Role
    key_id: str
    """The key's second part: tells which key of a leak or a log it is."""
    created_at: float
    created_by: str
    rotated_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    """To the minute."""


class KeyMade(KeyView):
    """A key that was just made; the one time that it is told."""

    key: str


class KeyList(BaseModel):
    keys: list[KeyView]
