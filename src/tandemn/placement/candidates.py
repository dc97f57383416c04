"""Candidates: every way to run the model on what is offered, with rate, price, and why the others are out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.placement.catalog.gpus import gpus
from tandemn.placement.memory import check_fit
from tandemn.placement.quota import quota_family
from tandemn.placement.roofline import Case
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from decimal import Decimal

    from tandemn.placement.catalog.offers import Offer
    from tandemn.placement.model_shape import ModelShape
    from tandemn.placement.throughput import Prediction, Predictor
    from tandemn.placement.workload import Workload

TP_SIZES, PP_SIZES = (1, 2, 4, 8), (1, 2, 3, 4, 8)
#: Requests that vLLM runs at once by default (`max_num_seqs`): a batch job always has that many.
CONCURRENCY = 256
#: From launch to the first answer, without the weights: machine, image, engine, CUDA graphs.
BOOT_S = 300.0
#: Weights from object store or hub to GPU.
LOAD_BYTES_S = 0.4e9
#: Share of a replica's time in which it has enough to do: ramp up, tail, chunk borders.
BUSY = 0.95
#: Smallest context that is planned, so that a small job does not pin a replica to tiny requests.
MIN_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotRisk:
    """What is assumed of a spot instance before it is measured."""

    lifetime_s: float = 4 * 3600.0
    """Mean time until it is taken: between 2 and 6 hours in two of six recorded zones, longer in the rest."""
    wait_s: float = 600.0
    """Mean time until another is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One unit that can be rented: one instance or more, running whole replicas of one layout."""

    offer: Offer
    tp: int
    pp: int
    instances: int
    """Machines of one unit."""
    replicas: int
    """Replicas that one unit runs."""
    usd_per_hour: Decimal
    """Of one unit."""
    requests_per_s: float
    """Of one unit, expected, preemptions included."""
    slow_requests_per_s: float
    """Of one unit, at the margin that the plan keeps."""
    paid_share: float
    """Share of paid time in which work is done: a preempted unit starts again at the user's cost."""
    start_s: float
    prediction: Prediction

    @property
    def vcpus(self) -> int:
        return self.offer.vcpus * self.instances

    def units_of(self, replicas: int) -> int:
        """How many such units hold so many replicas."""
        return -(-replicas // self.replicas)

    def allowed(self, quota: Mapping[tuple[str, str, str], int]) -> int | None:
        """How many such units free vCPUs allow; None: they are not limited."""
        key = self.quota_key
        return quota[key] // self.vcpus if key is not None and key in quota and self.vcpus else None

    @property
    def quota_key(self) -> tuple[str, str, str] | None:
        """Region, family and market whose quota it counts against; None: no quota is known to apply."""
        if self.offer.quota_family is None or self.offer.market is Market.SERVERLESS:
            return None
        market = self.offer.market.value
        family = quota_family(self.offer.instance_type, market) if self.offer.provider == "aws" else None
        return (self.offer.region, family or self.offer.quota_family, market)

    @property
    def usd_per_request(self) -> float:
        """Cost of work alone, start-up not counted."""
        rate = self.prediction.requests_per_s * BUSY * self.replicas * self.paid_share
        return float(self.usd_per_hour) / 3600 / rate

    @property
    def request_s(self) -> float:
        """Seconds that one request takes in a full batch: no job is done sooner, however many replicas it has."""
        return self.prediction.batch / self.prediction.requests_per_s

    @property
    def slow_request_s(self) -> float:
        return self.request_s * self.requests_per_s / self.slow_requests_per_s

    @property
    def usd_to_start(self) -> float:
        return float(self.usd_per_hour) / 3600 * self.start_s

    @property
    def label(self) -> str:
        return f"{self.offer.gpu} TP{self.tp} PP{self.pp}, {self.offer.instance_type}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Something offered that cannot be used, and why."""

    what: str
    reason: str
    gpu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user fixed; None leaves it to the planner."""

    gpu: str | None = None
    tp: int | None = None
    pp: int | None = None
    replicas: int | None = None
    region: str | None = None
    on_demand: bool = False
    force: bool = False

    def allows(self, offer: Offer) -> bool:
        if self.on_demand and offer.market is Market.SPOT:
            return False
        if self.gpu is not None and offer.gpu != self.gpu:
            return False
        return self.region is None or self.region in {offer.region, offer.zone}


def start_s(shape: ModelShape) -> float:
    """Seconds from launch to the first answer."""
    return BOOT_S + shape.weight_bytes() / LOAD_BYTES_S


def enumerate_candidates(
    shape: ModelShape,
    workload: Workload,
    offers: Iterable[Offer],
    predictor: Predictor,
    *,
    wish: Wish | None = None,
    margin: float = 1.28,
    risk: SpotRisk | None = None,
) -> tuple[list[Candidate], list[Rejected]]:
    """Every usable candidate, and what was rejected.

    Args:
        shape: the model.
        workload: what it has to do.
        offers: what can be rented; serverless ones are left out, batch jobs do not run there.
        predictor: how fast a layout is.
        wish: what the user fixed.
        margin: standard deviations by which the rate that the deadline is held to lies below the expected one.
        risk: what is assumed of spot instances.
    """
    wish, risk = wish or Wish(), risk or SpotRisk()
    usable, rejected = _usable([offer for offer in offers if wish.allows(offer)])
    layouts: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for key in sorted({(offer.gpu, offer.gpus) for offer in usable}):
        fitting, refused = _layouts(shape, workload, *key, wish)
        layouts[key] = fitting
        rejected += refused
    wanted = sorted({(gpu, *layout) for (gpu, _), fitting in layouts.items() for layout in fitting})
    rates = _predict(shape, workload, wanted, predictor)
    candidates = [
        _candidate(
            offer, (tp, pp), rates[(offer.gpu, tp, pp)], start=start_s(shape), margin=margin, risk=risk
        )
        for offer in usable
        for tp, pp in layouts[(offer.gpu, offer.gpus)]
    ]
    return candidates, rejected


def _usable(offers: Sequence[Offer]) -> tuple[list[Offer], list[Rejected]]:
    usable, rejected = [], []
    for offer in offers:
        what = f"{offer.instance_type} {offer.market} {offer.place}"
        if offer.market is Market.SERVERLESS:
            continue
        if offer.usd_per_hour is None:
            rejected.append(Rejected(what=what, reason="its price is not known", gpu=offer.gpu))
        elif offer.arch != "x86_64":
            rejected.append(
                Rejected(what=what, reason=f"engines are built for x86_64, not {offer.arch}", gpu=offer.gpu)
            )
        else:
            usable.append(offer)
    return usable, rejected


def _layouts(
    shape: ModelShape, workload: Workload, gpu_name: str, count: int, wish: Wish
) -> tuple[list[tuple[int, int]], list[Rejected]]:
    gpu = gpus()[gpu_name]
    context = min(max(workload.context, MIN_CONTEXT), max(shape.max_context, workload.context))
    fitting: list[tuple[int, int]] = []
    reason = ""
    for tp in TP_SIZES if wish.tp is None else (wish.tp,):
        for pp in PP_SIZES if wish.pp is None else (wish.pp,):
            # Tensor parallelism never leaves the machine; pipeline stages may.
            if tp > count or pp > shape.layers or (pp > 1 and shape.is_embedding):
                reason = reason or f"TP {tp} needs {tp} GPUs in one instance, it has {count}"
                continue
            fit = check_fit(shape, gpu, tp=tp, pp=pp, context=context)
            if fit.fits or wish.force:
                fitting.append((tp, pp))
            else:
                reason = fit.reason
    if fitting:
        return fitting, []
    return [], [Rejected(what=f"{count}x {gpu_name}", reason=reason, gpu=gpu_name)]


def _predict(
    shape: ModelShape, workload: Workload, layouts: Sequence[tuple[str, int, int]], predictor: Predictor
) -> dict[tuple[str, int, int], Prediction]:
    cases = [
        Case(
            shape=shape,
            gpu=gpus()[gpu],
            tp=tp,
            pp=pp,
            input_tokens=max(workload.input_tokens.mean, 1.0),
            output_tokens=workload.output_tokens.mean,
            concurrency=min(CONCURRENCY, workload.requests),
        )
        for gpu, tp, pp in layouts
    ]
    return dict(zip(layouts, predictor.predict(cases), strict=True))


def _candidate(
    offer: Offer,
    layout: tuple[int, int],
    prediction: Prediction,
    *,
    start: float,
    margin: float,
    risk: SpotRisk,
) -> Candidate:
    tp, pp = layout
    needed = tp * pp
    instances = max(1, -(-pp // max(offer.gpus // tp, 1)))
    replicas = offer.gpus // needed if instances == 1 else 1
    paid, present = 1.0, 1.0
    if offer.market is Market.SPOT:
        # Losing any machine of a unit stops all of it.
        life = risk.lifetime_s / instances
        paid, present = life / (life + start), life / (life + start + risk.wait_s)
    assert offer.usd_per_hour is not None, "offers without a price were rejected"
    factor = BUSY * replicas * present
    return Candidate(
        offer=offer,
        tp=tp,
        pp=pp,
        instances=instances,
        replicas=replicas,
        usd_per_hour=offer.usd_per_hour * instances,
        requests_per_s=prediction.requests_per_s * factor,
        slow_requests_per_s=prediction.slow_requests_per_s(margin) * factor,
        paid_share=paid,
        start_s=start,
        prediction=prediction,
    )
