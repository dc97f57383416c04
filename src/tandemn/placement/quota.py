"""AWS quotas of GPU instances: vCPUs by region, family and market, minus what runs already.

Reading them takes boto3 (extra `aws`) and a network; everything else in this file is plain. A family whose quota could
not be read is absent, and an absent quota does not limit a plan: the launch itself will tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandemn.errors import MissingDependency, NotAllowed, Retryable
from tandemn.placement.catalog.offers import aws_quota_family, aws_vcpus
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tandemn.clock import Clock
    from tandemn.placement.solver import QuotaKey

#: Codes of the EC2 quotas of GPU families, in vCPUs (Service Quotas console, 2026): P5 has a spot quota of its own.
#: Checked on 2026-11-25: G and P against skypilot-org/skypilot-catalog's instance_quota_mapping.csv, P5 against lists
#: of Service Quotas in two public repositories. Which spot quota P6 counts against is told differently by such lists.
QUOTA_CODES: Mapping[tuple[str, str], str] = {
    ("G", Market.ON_DEMAND.value): "L-DB2E81BA",
    ("G", Market.SPOT.value): "L-3819A6DF",
    ("P", Market.ON_DEMAND.value): "L-417A185B",
    ("P", Market.SPOT.value): "L-7212CCBC",
    ("P5", Market.SPOT.value): "L-C4BD4855",
}
#: How long a reading is believed, in seconds: quotas change when a person asks for more.
CACHE_S = 600.0
#: A region that does not answer within this many seconds is left out.
TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """One quota of one region, in vCPUs."""

    region: str
    family: str
    market: str
    limit: int
    used: int
    code: str

    @property
    def free(self) -> int:
        return max(self.limit - self.used, 0)


def quota_family(instance_type: str, market: str) -> str | None:
    """Whose quota an instance counts against: its family's, except that P5 spot has its own."""
    if market == Market.SPOT.value and instance_type.startswith("p5"):
        return "P5"
    return aws_quota_family(instance_type)


def free_vcpus(quotas: Iterable[Quota]) -> dict[QuotaKey, int]:
    """What a plan is limited by."""
    return {(quota.region, quota.family, quota.market): quota.free for quota in quotas}


def as_rows(quotas: Iterable[Quota]) -> list[dict[str, Any]]:
    """Quotas as plain values, in the order in which people read them."""
    ordered = sorted(quotas, key=lambda quota: (quota.region, quota.family, quota.market))
    return [
        {
            "region": quota.region,
            "family": quota.family,
            "market": quota.market,
            "limit_vcpus": quota.limit,
            "used_vcpus": quota.used,
            "free_vcpus": quota.free,
            "code": quota.code,
        }
        for quota in ordered
    ]


class QuotaReader:
    """Reads quotas through boto3, each region at most once in `CACHE_S`."""

    def __init__(self, clock: Clock, session: Any = None) -> None:
        self._clock = clock
        self._session = session
        self._cache: dict[str, tuple[float, tuple[Quota, ...]]] = {}

    def read(self, regions: Sequence[str], *, fresh: bool = False) -> tuple[Quota, ...]:
        """Read the quotas of `regions`.

        Raises:
            MissingDependency: boto3 is not installed.
            NotAllowed: there are no credentials, or they may not read quotas.
            Retryable: no region answered.
        """
        session = self._session or _session()
        found: list[Quota] = []
        failure: Exception | None = None
        for region in dict.fromkeys(regions):
            at, quotas = self._cache.get(region, (-CACHE_S, ()))
            if fresh or self._clock.now() - at >= CACHE_S:
                try:
                    quotas = _read_region(session, region)
                except Retryable as exc:
                    failure = exc
                    continue
                self._cache[region] = (self._clock.now(), quotas)
            found += quotas
        if failure is not None and not found:
            raise failure
        return tuple(found)


def _session() -> Any:
    try:
        import boto3.session  # noqa: PLC0415 # an optional SDK is imported when it is used
    except ImportError as exc:
        raise MissingDependency(
            "reading AWS quotas needs boto3", next_step="run `pip install 'tandemn[aws]'`"
        ) from exc
    make: Any = boto3.session.Session
    return make()


def _read_region(session: Any, region: str) -> tuple[Quota, ...]:
    # They come with boto3, which is imported when it is used.
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError  # noqa: PLC0415

    make: Any = Config
    config = make(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"max_attempts": 2})
    try:
        limits = _limits(session.client("service-quotas", region_name=region, config=config))
        used = _used(session.client("ec2", region_name=region, config=config))
    except NoCredentialsError as exc:
        raise NotAllowed("there are no AWS credentials", next_step="run `aws configure`") from exc
    except ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", ""))
        if code in {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure"}:
            raise NotAllowed(f"AWS refused to tell the quotas of {region}: {code}") from exc
        raise Retryable(f"AWS did not tell the quotas of {region}: {code}") from exc
    except BotoCoreError as exc:
        raise Retryable(f"AWS did not answer for {region}: {type(exc).__name__}") from exc
    return tuple(
        Quota(
            region=region,
            family=family,
            market=market,
            limit=limits[code],
            used=used.get((family, market), 0),
            code=code,
        )
        for (family, market), code in QUOTA_CODES.items()
        if code in limits
    )


def _limits(client: Any) -> dict[str, int]:
    """The quotas that apply to the account, by code; one that AWS does not know is absent."""
    limits: dict[str, int] = {}
    for code in sorted(set(QUOTA_CODES.values())):
        try:
            answer = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
        except client.exceptions.NoSuchResourceException:
            continue
        value = answer.get("Quota", {}).get("Value")
        if value is not None:
            limits[code] = int(value)
    return limits


def _used(client: Any) -> dict[tuple[str, str], int]:
    """Count the vCPUs of GPU instances that run or are starting."""
    used: dict[tuple[str, str], int] = {}
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    for page in client.get_paginator("describe_instances").paginate(Filters=states):
        for reservation in page.get("Reservations", []):
            for instance in reservation.get("Instances", []):
                is_spot = instance.get("InstanceLifecycle") == "spot"
                market = Market.SPOT.value if is_spot else Market.ON_DEMAND.value
                family = quota_family(str(instance.get("InstanceType", "")), market)
                if family is not None:
                    used[family, market] = used.get((family, market), 0) + _vcpus(instance)
    return used


def _vcpus(instance: Mapping[str, Any]) -> int:
    cpu = instance.get("CpuOptions") or {}
    told = int(cpu.get("CoreCount") or 0) * int(cpu.get("ThreadsPerCore") or 1)
    return told or aws_vcpus(str(instance.get("InstanceType", "")))
