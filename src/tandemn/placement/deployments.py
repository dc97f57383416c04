"""Hardware of a deployment: does the model fit the GPU that was asked for, and which one to take for `--gpu auto`."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tandemn.errors import Infeasible
from tandemn.placement.candidates import TP_SIZES
from tandemn.placement.catalog.gpus import gpu_named, gpus
from tandemn.placement.memory import check_fit
from tandemn.placement.remedy import smallest_layout
from tandemn.placement.roofline import Case
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.placement.model_shape import ModelShape
    from tandemn.placement.throughput import Predictor

#: The load that options are compared under: a chat with a middling context, as many at once as the policy's default.
INPUT_TOKENS, OUTPUT_TOKENS, CONCURRENCY = 1000, 300, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOption:
    """One GPU and how many of it a replica takes, with prices by market; None: not known or not offered."""

    gpu: str
    gpu_count: int
    output_tokens_per_s: float
    """Of one replica under the load that options are compared under."""
    log_sd: float
    concurrent_requests: float
    """Requests of the full context that the cache holds."""
    serverless_usd_per_hour: Decimal | None
    serverless_provider: str | None
    spot_usd_per_hour: Decimal | None
    on_demand_usd_per_hour: Decimal | None
    usd_per_million_tokens: float | None
    """Output tokens on the cheapest market, always busy."""


def deployment_options(
    shape: ModelShape,
    offers: Iterable[Offer],
    predictor: Predictor,
    *,
    context: int,
    gpu: str | None = None,
    gpu_count: int | None = None,
    force: bool = False,
) -> tuple[DeploymentOption, ...]:
    """Options that fit, cheapest per token first; unpriced ones last.

    Args:
        shape: the model.
        offers: what can be rented.
        predictor: how fast layouts are.
        context: `--max-model-len`.
        gpu: only this GPU (any of its names); None or `auto`: any.
        gpu_count: GPUs of one replica; None: as few as fit.
        force: do not check memory.

    Raises:
        Infeasible: it does not fit what was asked for; the next step names what it fits.
        NotFound: the GPU is not known.
    """
    priced = _prices(offers)
    name = None if gpu in {None, "auto"} else gpu_named(str(gpu)).name
    names = (
        [name] if name is not None else [known for known in gpus() if any(key[0] == known for key in priced)]
    )
    reasons: list[str] = []
    layouts: list[tuple[str, int]] = []
    for candidate in names:
        fitting = _fewest(shape, candidate, context, gpu_count, reasons, force=force)
        if fitting is not None:
            layouts.append((candidate, fitting))
    if not layouts:
        smallest = smallest_layout(shape, context, name)
        raise Infeasible(
            f"{shape.name} with {context} tokens of context does not fit{f' on {name}' if name else ''}: {reasons[0]}",
            code="does_not_fit",
            next_step=f"it fits {smallest[1]} x {smallest[0]}"
            if smallest
            else "give a smaller --max-model-len",
            param="gpu",
        )
    options = _options(shape, layouts, priced, predictor, context)
    return tuple(sorted(options, key=_by_cost))


def _by_cost(option: DeploymentOption) -> tuple[bool, float]:
    return (option.usd_per_million_tokens is None, option.usd_per_million_tokens or 0.0)


def _fewest(
    shape: ModelShape, gpu: str, context: int, count: int | None, reasons: list[str], *, force: bool
) -> int | None:
    for tp in TP_SIZES if count is None else (count,):
        fit = check_fit(shape, gpus()[gpu], tp=tp, context=context)
        if fit.fits or force:
            return tp
        reasons.append(f"{tp} x {gpu}: {fit.reason}")
    return None


def _prices(offers: Iterable[Offer]) -> dict[tuple[str, Market, int], tuple[Decimal, str]]:
    """Lowest price of an instance with exactly so many GPUs; serverless prices are per GPU."""
    lowest: dict[tuple[str, Market, int], tuple[Decimal, str]] = {}
    for offer in offers:
        if offer.usd_per_hour is None or offer.arch != "x86_64":
            continue
        key = (offer.gpu, offer.market, offer.gpus)
        price = (offer.usd_per_hour, offer.provider)
        lowest[key] = min(lowest.get(key, price), price)
    return lowest


def _price(
    priced: dict[tuple[str, Market, int], tuple[Decimal, str]], gpu: str, market: Market, count: int
) -> tuple[Decimal, str] | None:
    if market is Market.SERVERLESS:
        single = priced.get((gpu, market, 1))
        return None if single is None else (single[0] * count, single[1])
    # An instance with more GPUs than needed serves as well, paid in full.
    whole = [value for key, value in priced.items() if key[:2] == (gpu, market) and key[2] >= count]
    return min(whole, default=None)


def _options(
    shape: ModelShape,
    layouts: Sequence[tuple[str, int]],
    priced: dict[tuple[str, Market, int], tuple[Decimal, str]],
    predictor: Predictor,
    context: int,
) -> list[DeploymentOption]:
    output = 0 if shape.is_embedding else min(OUTPUT_TOKENS, context // 2)
    cases = [
        Case(
            shape=shape,
            gpu=gpus()[gpu],
            tp=count,
            input_tokens=min(INPUT_TOKENS, context // 2),
            output_tokens=output,
            concurrency=CONCURRENCY,
        )
        for gpu, count in layouts
    ]
    options = []
    for (gpu, count), prediction in zip(layouts, predictor.predict(cases), strict=True):
        prices = {market: _price(priced, gpu, market, count) for market in Market}
        known = [price[0] for price in prices.values() if price is not None]
        rate = prediction.output_tokens_per_s
        serverless, spot = prices[Market.SERVERLESS], prices[Market.SPOT]
        dear = prices[Market.ON_DEMAND]
        options.append(
            DeploymentOption(
                gpu=gpu,
                gpu_count=count,
                output_tokens_per_s=rate,
                log_sd=prediction.log_sd,
                concurrent_requests=check_fit(shape, gpus()[gpu], tp=count, context=context).sequences(
                    context
                ),
                serverless_usd_per_hour=serverless[0] if serverless else None,
                serverless_provider=serverless[1] if serverless else None,
                spot_usd_per_hour=spot[0] if spot else None,
                on_demand_usd_per_hour=dear[0] if dear else None,
                usd_per_million_tokens=float(min(known)) / 3600 / rate * 1e6 if known and rate else None,
            )
        )
    return options


def to_json(options: Iterable[DeploymentOption]) -> list[dict[str, Any]]:
    """Options as plain JSON values; prices are numbers, null where not known."""

    def plain(value: object) -> object:
        if isinstance(value, Decimal):
            return float(value)
        return round(value, 4) if isinstance(value, float) else value

    return [
        {field: plain(getattr(option, field)) for field in DeploymentOption.__dataclass_fields__}
        for option in options
    ]
