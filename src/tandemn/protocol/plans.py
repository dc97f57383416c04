"""Plans and quotas, as the control plane shows them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from tandemn.protocol.replicas import Market


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


class KoiAlternative(BaseModel):
    """One of Koi's alternatives."""

    what: str
    reason: str | None = None
    """Why it is of no use; None: it is among the fallbacks where Koi is followed."""


class KoiAdvice(BaseModel):
    """What Koi recommended, and what came of it."""

    is_feasible: bool = False
    """Whether there is a recommendation, and it holds against the catalog, the deadline, quota and budget."""
    is_followed: bool = False
    code: str | None = None
    """Why it is not followed, as a stable code."""
    reason: str
    decision_id: str | None = None
    gpu: str | None = None
    tp: int | None = None
    pp: int | None = None
    replicas: int | None = None
    market: Market | None = None
    region: str | None = None
    instance_type: str | None = None
    predicted_tokens_per_s: float | None = None
    """By Koi."""
    expected_usd: float | None = None
    """By our own figures, as is the next one."""
    expected_finish_s: float | None = None
    expected_tokens: int | None = None
    """Of the whole job, prompts and answers, as Koi was told."""
    alternatives: list[KoiAlternative] = []
    said: str = ""
    """Koi's own words, cut and without control characters."""


def is_absent(value: object) -> bool:
    """Leave a field out of JSON where it has no value: of what is not set up there is no trace."""
    return value is None


class PlanAnswer(BaseModel):
    """`tandemn plan MODEL INPUT --json`."""

    plan: list[PlanRow]
    losers: list[PlanLoser]
    workload: PlanWorkload
    predictor: str
    warnings: list[str]
    koi: KoiAdvice | None = Field(default=None, exclude_if=is_absent)
    """Where `KOI_SERVICE_URL` is set, or `--advisor koi` was asked for."""


class CloudChoice(BaseModel):
    """Where a job would run, and why there."""

    cloud: str
    reason: str


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
