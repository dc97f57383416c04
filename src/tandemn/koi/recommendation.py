"""What Koi is asked, and what an answer of its means (PURE). An answer is a stranger's: nothing in it is taken as given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tandemn.errors import NotFound
from tandemn.koi.contract import Alternative, Configuration, DecideRequest, Decision, JobRequest
from tandemn.placement.candidates import Wish
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from tandemn.koi.contract import Resources
    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.jobs import JobSpec

#: Characters of an adviser's reasoning, or of a fault's text, that are kept.
SAID_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Why a recommendation, or one of its alternatives, is not used."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A configuration that Koi names; None leaves it to the planner."""

    gpu: str
    """As our own catalog calls it; `cpu` is this machine's."""
    tp: int
    pp: int
    replicas: int | None
    market: Market | None
    region: str | None
    instance_type: str | None

    def wish(self) -> Wish:
        """As if the user had asked for it: it is checked like an override, and never forced."""
        return Wish(gpu=self.gpu, tp=self.tp, pp=self.pp, replicas=self.replicas, region=self.region)

    def allows(self, offer: Offer) -> bool:
        """Whether it is what the choice says beside the wish: the market, the kind of machine."""
        if self.market is not None and offer.market is not self.market:
            return False
        return self.instance_type is None or offer.instance_type == self.instance_type

    @property
    def label(self) -> str:
        count = f"{self.replicas} x " if self.replicas is not None else ""
        where = f" {self.market}" if self.market is not None else ""
        return f"{count}{self.gpu} TP{self.tp} PP{self.pp}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """An answer that is well formed, names what exists, and does not contradict the user."""

    decision_id: str
    choice: Choice
    predicted_tokens_per_s: float
    alternatives: tuple[Choice | Unused, ...]
    said: str


def question(
    spec: JobSpec,
    resources: Resources,
    *,
    job_id: str | None,
    event_id: str,
    requests: int,
    input_tokens: float,
    output_tokens: float,
    now: float,
) -> DecideRequest:
    """Put a job as Koi is asked of it; token counts are means."""
    named = None if spec.gpu in {None, "auto"} else [str(spec.gpu)]
    return DecideRequest(
        event_id=event_id,
        emitted_at=now,
        correlation_id=job_id or event_id,
        job_request=JobRequest(
            job_id=job_id,
            model_name=spec.model,
            num_requests=max(requests, 1),
            avg_input_tokens=max(round(input_tokens), 1),
            avg_output_tokens=max(round(output_tokens), 1),
            slo_deadline_hours=spec.slo_s / 3600,
            preferred_gpu_types=named,
            region=spec.region,
            preferred_market="on_demand" if spec.on_demand else None,
            cost_roofline_usd=float(spec.budget_usd) if spec.budget_usd is not None else None,
        ),
        resource_map=resources,
    )


def read_answer(body: bytes, spec: JobSpec) -> Recommendation | Unused:
    """Read the answer to a question about `spec`."""
    try:
        decision = Decision.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        return Unused(
            code="koi_bad_answer", reason=plain(f"its answer is not as the contract says: {reason}")
        )
    market = decision.config.market or decision.planned_market
    choice = _choice(decision.config, market)
    if isinstance(choice, Unused):
        return choice
    against = _contradiction(choice, spec)
    if against:
        return Unused(code="koi_contradicts", reason=f"it recommends {choice.label} against {against}")
    return Recommendation(
        decision_id=plain(decision.decision_id),
        choice=choice,
        predicted_tokens_per_s=decision.predicted_tps,
        alternatives=tuple(_alternative(each, spec) for each in decision.alternatives),
        said=plain(decision.reasoning),
    )


def overridden(spec: JobSpec, choice: Choice) -> JobSpec:
    """Return the job as if its user had asked for the choice by flags."""
    return spec.model_copy(
        update={
            "gpu": choice.gpu,
            "tp": choice.tp,
            "pp": choice.pp,
            "replicas": choice.replicas if choice.replicas is not None else spec.replicas,
            "region": choice.region or spec.region,
            "on_demand": spec.on_demand or choice.market is Market.ON_DEMAND,
        }
    )


def plain(text: str) -> str:
    """Cut a stranger's text to what may stand in a log, a database and a terminal."""
    cut = text[: SAID_CHARS + 1]
    shown = "".join(char if char.isprintable() else " " for char in cut[:SAID_CHARS]).strip()
    return f"{shown}…" if len(cut) > SAID_CHARS else shown


def _alternative(each: Alternative, spec: JobSpec) -> Choice | Unused:
    choice = _choice(each, each.planned_market)
    if isinstance(choice, Unused):
        return choice
    against = _contradiction(choice, spec)
    if against:
        return Unused(code="koi_contradicts", reason=f"{choice.label} is against {against}")
    return choice


def _choice(config: Configuration | Alternative, market: str | None) -> Choice | Unused:
    if config.gpu_type.lower() == "cpu":
        gpu = "cpu"
    else:
        try:
            gpu = gpu_named(config.gpu_type).name
        except NotFound:
            return Unused(
                code="koi_unknown_gpu",
                reason=f"it recommends a GPU that is not known: {plain(config.gpu_type)}",
            )
    return Choice(
        gpu=gpu,
        tp=config.tp,
        pp=config.pp,
        replicas=config.dp,
        market={"spot": Market.SPOT, "on_demand": Market.ON_DEMAND}.get(market or ""),
        region=_known(config.region),
        instance_type=_known(config.instance_type),
    )


def _known(name: str | None) -> str | None:
    return None if name is None or name == "unknown" else plain(name)


def _contradiction(choice: Choice, spec: JobSpec) -> str | None:
    """The flag that the user set to something else; flags are never overruled."""
    if spec.gpu not in {None, "auto"}:
        wanted = "cpu" if spec.gpu == "cpu" else gpu_named(str(spec.gpu)).name
        if choice.gpu != wanted:
            return f"--gpu {spec.gpu}"
    pairs = (("tp", choice.tp), ("pp", choice.pp), ("replicas", choice.replicas))
    for flag, value in pairs:
        wanted_count = getattr(spec, flag)
        if wanted_count is not None and value is not None and value != wanted_count:
            return f"--{flag} {wanted_count}"
    if spec.region is not None and choice.region is not None and choice.region != spec.region:
        return f"--region {spec.region}"
    if spec.on_demand and choice.market is Market.SPOT:
        return "--on-demand"
    return None
