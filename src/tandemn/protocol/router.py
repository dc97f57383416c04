"""What a router tells its control plane: `/router/meter` (docs/router.md)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class PeriodRead(BaseModel):
    """A stretch of time in which one backend was busy, Unix times."""

    backend: str = Field(max_length=256)
    start: float = Field(allow_inf_nan=False)
    end: float = Field(allow_inf_nan=False)
    busy_s: float = 0.0
    inflight_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    peak: int = Field(ge=0)
    requests: int = Field(default=0, ge=0)
    number: int = 0


class BackendTotals(BaseModel):
    """Running totals of one backend."""

    name: str = Field(max_length=256)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As usage told it."""
    estimated_completion_tokens: int = 0
    """Counted from events, where no usage came."""
    inflight_s: dict[int, float] = {}

    def totals(self) -> dict[str, Any]:
        """As the ledger has it: all completion tokens, and how many of them are estimated."""
        tokens = self.completion_tokens + self.estimated_completion_tokens
        return self.model_dump(exclude={"name"}) | {"completion_tokens": tokens}


class MeterPage(BaseModel):
    series: str = Field(max_length=64)
    backends: list[BackendTotals]
    periods: list[PeriodRead]
    next: int
    complete_from: int
    under_way: list[PeriodRead]
