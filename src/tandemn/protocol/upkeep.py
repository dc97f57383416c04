"""Checks, and what providers have that no record knows."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class CheckState(StrEnum):
    OK = "ok"
    FAILED = "failed"
    NOT_SET_UP = "not set up"
    """Nobody is signed in, or its SDK is not installed: nothing is wrong as long as nobody wants it."""


class CheckView(BaseModel):
    name: str
    state: CheckState
    detail: str
    code: str | None = None
    next_step: str | None = None


class CheckReport(BaseModel):
    """`tandemn check --json`."""

    checks: list[CheckView]


class StrayView(BaseModel):
    """Something that a provider has under our names, and no record knows."""

    kind: str
    """`backend`, `router` or `cluster`."""
    provider: str
    remote_name: str
    remote_id: str
    place: str | None = None
    is_gone: bool = False
    """Whether it was deleted just now, and its provider has said so."""
    reason: str | None = None
    """Why it is still there although it was to be deleted."""


class StrayReport(BaseModel):
    """`tandemn gc --json`."""

    strays: list[StrayView]
    unread: dict[str, str] = {}
    """Providers that could not be asked, and why."""
    not_set_up: list[str] = []
    """Providers that nobody is signed in to: what is there is not known either."""


class CollectRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    remote_names: list[str]
    """Only strays of these names are deleted."""
