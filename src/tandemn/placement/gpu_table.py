"""GPUs side by side, as people compare them: what each is, where it is cheapest, and what spot saves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tandemn.errors import InvalidInput
from tandemn.placement.catalog.gpus import gpu_named, gpus
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tandemn.placement.catalog.offers import Offer

#: Specifications that a row shows, by the name that they have in it and in the table of GPUs.
_SHOWN_SPECS = ("memory_gb", "bandwidth_gb_s", "bf16_tflops")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One GPU at one provider and market, at its lowest known price per GPU; None: no price is known."""

    gpu: str
    memory_gb: int
    bandwidth_gb_s: float
    bf16_tflops: float
    fp8_tflops: float | None
    provider: str
    market: str
    usd_per_gpu_hour: Decimal | None
    usd_per_hour: Decimal | None
    """Of the whole instance that has that price."""
    instance_type: str
    gpus: int
    place: str
    saves: float | None
    """Share of the provider's own on-demand price of this GPU that it is below; None where either is not known."""
    source: str
    as_of: str
    checked: str | None
    """The second source of the price; None: no second source has it."""
    unconfirmed: tuple[str, ...]
    """Figures of this row that are not confirmed by a second source, by name."""
    remark: str


def show_gpus(
    offers: Iterable[Offer],
    *,
    gpu: str | None = None,
    provider: str | None = None,
    market: Market | None = None,
    every_offer: bool = False,
) -> tuple[GpuRow, ...]:
    """Rows by GPU (small to large memory bandwidth), cheapest first within one.

    Args:
        offers: what can be rented.
        gpu: only this one (any of its names).
        provider: only this one.
        market: only this one.
        every_offer: every instance type and place, not only the cheapest of each provider and market.

    Raises:
        NotFound: the GPU is not known; near names are suggested.
        InvalidInput: the provider is not known.
    """
    offers = list(offers)
    providers = sorted({offer.provider for offer in offers})
    if provider is not None and provider not in providers:
        raise InvalidInput(
            f"no offers of provider {provider!r}",
            code="unknown_provider",
            next_step=f"known are {', '.join(providers)}",
            param="provider",
        )
    name = gpu_named(gpu).name if gpu is not None else None
    on_demand = _lowest_on_demand(offers)
    chosen = [
        offer
        for offer in offers
        if (name is None or offer.gpu == name)
        and (provider is None or offer.provider == provider)
        and (market is None or offer.market is market)
    ]
    if not every_offer:
        chosen = _cheapest_of_each(chosen)
    return tuple(
        _row(offer, on_demand.get((offer.provider, offer.gpu))) for offer in sorted(chosen, key=_order)
    )


def _order(offer: Offer) -> tuple[float, str, bool, Decimal, str, str]:
    price = offer.usd_per_gpu_hour
    gpu = gpus()[offer.gpu]
    return (
        gpu.bandwidth_gb_s,
        offer.gpu,
        price is None,
        price or Decimal(0),
        offer.instance_type,
        offer.place,
    )


def _cheapest_of_each(offers: Sequence[Offer]) -> list[Offer]:
    best: dict[tuple[str, str, Market], Offer] = {}
    for offer in sorted(offers, key=_order):
        best.setdefault((offer.gpu, offer.provider, offer.market), offer)
    return list(best.values())


def _lowest_on_demand(offers: Iterable[Offer]) -> dict[tuple[str, str], Decimal]:
    lowest: dict[tuple[str, str], Decimal] = {}
    for offer in offers:
        price = offer.usd_per_gpu_hour
        if offer.market is Market.ON_DEMAND and price is not None:
            key = (offer.provider, offer.gpu)
            lowest[key] = min(price, lowest.get(key, price))
    return lowest


def _row(offer: Offer, on_demand: Decimal | None) -> GpuRow:
    gpu, price = gpus()[offer.gpu], offer.usd_per_gpu_hour
    saves = None
    if offer.market is Market.SPOT and price is not None and on_demand is not None:
        saves = float(1 - price / on_demand)
    return GpuRow(
        gpu=offer.gpu,
        memory_gb=gpu.memory_gb,
        bandwidth_gb_s=gpu.bandwidth_gb_s,
        bf16_tflops=gpu.bf16_tflops,
        fp8_tflops=gpu.fp8_tflops,
        provider=offer.provider,
        market=offer.market.value,
        usd_per_gpu_hour=None if price is None else price.quantize(Decimal("0.0001")),
        usd_per_hour=offer.usd_per_hour,
        instance_type=offer.instance_type,
        gpus=offer.gpus,
        place=offer.place,
        saves=saves,
        source=offer.source,
        as_of=offer.as_of,
        checked=offer.checked or None,
        unconfirmed=(*(name for name in _SHOWN_SPECS if name in gpu.unconfirmed), *_unconfirmed_price(offer)),
        remark=offer.remark,
    )


def _unconfirmed_price(offer: Offer) -> tuple[str, ...]:
    return ("usd_per_gpu_hour",) if offer.usd_per_hour is not None and not offer.checked else ()


def to_json(rows: Iterable[GpuRow]) -> list[dict[str, Any]]:
    """Rows as plain JSON values; prices are numbers, null where not known."""
    return [
        {key: float(value) if isinstance(value, Decimal) else value for key, value in asdict(row).items()}
        for row in rows
    ]
