"""Plans and quotas, as the control plane shows them."""

from __future__ import annotations

from pydantic import BaseModel


class PlanRow(BaseModel):
    """Some replicas of one configuration; rows of one rank make up one way to do the job, rank 0 the plan."""

    rank: int
    gpu: str
    tp: int
    pp: int
    instance_type: str
    instances: int
    replicas: int
    market: str
    provider: str
    region: str | None
    zone: str | None
    usd_per_hour: float
    expected_usd: float
    """Of the whole rank."""
    expected_finish_s: float
    slow_finish_s: float
    """At the margin that the plan keeps."""
    margin_s: float
    """Between the expected finish and the deadline."""
    tokens_per_s: float
    reason: str
    price_source: str
    price_date: str


class PlanLoser(BaseModel):
    what: str
    gpu: str | None
    reason: str


class PlanWorkload(BaseModel):
    requests: int
    input_tokens_mean: float
    output_tokens_mean: float
    context: int
    basis: str


class PlanAnswer(BaseModel):
    """`tandemn plan MODEL INPUT --json`."""

    plan: list[PlanRow]
    losers: list[PlanLoser]
    workload: PlanWorkload
    predictor: str
    warnings: list[str]


class QuotaRow(BaseModel):
    region: str
    family: str
    market: str
    limit_vcpus: int
    used_vcpus: int
    free_vcpus: int


class QuotaAnswer(BaseModel):
    """`tandemn quota --json`."""

    quotas: list[QuotaRow]
