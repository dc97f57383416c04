"""Deployments as the command line and the control plane speak of them."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tandemn.protocol.replicas import Market

#: Longest wait that a policy may ask for, in seconds: a day.
LONGEST_S = 86_400
#: Most replicas of one backend.
MOST_REPLICAS = 1_000

#: With `tandemn-` before it, a name must fit into 49 characters (Cloud Run's limit), and into a DNS label.
ServiceName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]

#: Error type of a policy whose least count is above its greatest.
MIN_ABOVE_MAX = "min_above_max"


class DeploymentState(StrEnum):
    PLANNED = "planned"
    CREATING = "creating"
    PROVISIONING = "provisioning"
    READY = "ready"
    DEGRADED = "degraded"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"
    OVER_BUDGET = "over_budget"
    """Its budget is used up, and all of it is gone."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left; a failed one may still have backends to delete."""
        return self in {DeploymentState.DELETED, DeploymentState.OVER_BUDGET}


class BackendState(StrEnum):
    PLANNED = "planned"
    CREATING = "creating"
    PROVISIONING = "provisioning"
    """It exists; nothing has answered yet."""
    IDLE = "idle"
    """It exists, scaled to zero: the next request starts it."""
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"
    """The provider says that it is gone."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpotScaling(_Strict):
    """How the spot fleet grows and shrinks. Delays in seconds."""

    min_replicas: int = Field(default=0, ge=0, le=MOST_REPLICAS)
    max_replicas: int = Field(default=8, ge=1, le=MOST_REPLICAS)
    target_qps: float = Field(default=10.0, gt=0, le=1_000_000, allow_inf_nan=False)
    """Requests per second that one replica is meant to carry."""
    upscale_delay: int = Field(default=5, ge=0, le=LONGEST_S)
    downscale_delay: int = Field(default=300, ge=0, le=LONGEST_S)
    on_demand_fallback: bool = False
    """While spot is not to be had, SkyServe runs on-demand replicas in its place."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise PydanticCustomError(
                MIN_ABOVE_MAX,
                "min_replicas is {least}, above max_replicas, which is {most}",
                {"least": self.min_replicas, "most": self.max_replicas},
            )
        return self


class ServerlessScaling(_Strict):
    """How the serverless backend does. Times in seconds."""

    concurrency: int = Field(default=32, ge=1, le=10_000)
    """Requests in flight that one replica is meant to carry."""
    scaledown_window: int = Field(default=60, ge=1, le=LONGEST_S)
    """Idle time after which a replica ends."""
    timeout: int = Field(default=600, ge=1, le=LONGEST_S)
    """Longest request."""


class ScalingPolicy(_Strict):
    spot: SpotScaling = SpotScaling()
    serverless: ServerlessScaling = ServerlessScaling()


class DeploymentSpec(_Strict):
    """What the user asked for, complete: every default is filled in. Unset means: Tandemn chooses."""

    service_name: ServiceName
    model: str = Field(min_length=1, max_length=1024)
    gpu: str = Field(min_length=1, max_length=64)
    gpu_count: int = Field(default=1, ge=1, le=64)
    """GPUs of one replica."""
    tp_size: int = Field(default=1, ge=1, le=64)
    max_model_len: int = Field(default=4096, ge=1, le=100_000_000)
    """Context of one request, in tokens."""
    quantization: str | None = Field(default=None, min_length=1, max_length=64)
    cold_start_mode: Literal["fast_boot", "no_fast_boot"] = "fast_boot"
    serverless_provider: str | None = None
    spots_cloud: str = "aws"
    region: str | None = Field(default=None, min_length=1, max_length=64)
    serverless_only: bool = False
    workers_max: int | None = Field(default=None, ge=1, le=MOST_REPLICAS)
    """Most workers; RunPod only."""
    gcp_project: str | None = Field(default=None, min_length=1, max_length=64)
    gcp_region: str | None = Field(default=None, min_length=1, max_length=64)
    public: bool = False
    """The endpoint asks for no key; its backends still do."""
    spot_ttft_limit: float | None = Field(default=None, gt=0, le=LONGEST_S, allow_inf_nan=False)
    """TTFT of spot beyond which requests overflow, in seconds; None: three times serverless's, at least 2 s."""
    budget_usd: Decimal | None = Field(default=None, gt=0, le=1_000_000_000, allow_inf_nan=False)
    """When this is spent, requests under way are finished and everything is taken down."""
    router_cloud: str = "local"
    """Where its router runs: on the control plane's machine, or on a small one of its own in this cloud."""
    router_region: str | None = Field(default=None, min_length=1, max_length=64)
    router_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")
    """The DNS name by which clients reach the router, which its owner points there; None: its address."""
    engine_args: tuple[str, ...] = ()
    """Passed to the engine unread (what follows `--` on the command line)."""
    scaling: ScalingPolicy = ScalingPolicy()

    @property
    def has_spot(self) -> bool:
        return not self.serverless_only


class DeploymentRequest(BaseModel):
    """What is asked for by `tandemn deploy --model`, and how it stands to what is there."""

    model_config = ConfigDict(extra="forbid")

    spec: DeploymentSpec
    is_update: bool = False
    """Change the deployment of that name in place."""
    force: bool = False
    """Although the model does not seem to fit."""


class BackendReplicaView(BaseModel):
    replica_id: str
    state: str
    pid: int | None = None
    """Where it is a process on this machine."""


class BackendPlanView(BaseModel):
    name: str
    market: Market
    provider: str
    remote_name: str
    place: str | None = None
    price_usd_per_hour: Decimal | None = None
    """List price of one replica while it runs; None: not known."""
    price_source: str | None = None
    least_replicas: int = 0
    most_replicas: int | None = None
    reason: str | None = None
    """Why this provider."""


class RouterPlanView(BaseModel):
    host: str
    remote_name: str
    price_usd_per_hour: Decimal | None = None
    price_source: str | None = None


class DeploymentPlan(BaseModel):
    """`tandemn plan --model --gpu --json`: what `deploy` would make, with every default filled in."""

    service_name: str
    spec: DeploymentSpec
    state: DeploymentState | None = None
    """Of the deployment that has the name already."""
    changed: list[str] = []
    """What would be changed of that one."""
    backends: list[BackendPlanView]
    router: RouterPlanView
    left_out: list[str] = []
    """Other providers, and why each was not taken."""
    warnings: list[str] = []
    options: list[dict[str, object]] = []
    """GPUs that the model fits, cheapest per token first."""

    @property
    def is_free(self) -> bool:
        """Whether nobody asks money for any of it."""
        prices = [each.price_usd_per_hour for each in self.backends]
        return all(price == 0 for price in (*prices, self.router.price_usd_per_hour))


class BackendView(BaseModel):
    name: str
    market: Market
    provider: str
    remote_name: str
    """Its name at the provider: what `modal app list` and `sky serve status` show."""
    state: BackendState
    is_current: bool = False
    """Whether the provider has taken what is wanted now; not yet, or no longer, while an update is made."""
    reason: str | None = None
    code: str | None = None
    url: str | None = None
    price_usd_per_hour: Decimal | None = None
    """Of one replica while it runs; None: not known."""
    ready_replicas: int | None = None
    """None: the provider does not tell."""
    replicas: list[BackendReplicaView] = []


class RouterView(BaseModel):
    host: str
    remote_name: str
    state: BackendState
    reason: str | None = None
    code: str | None = None
    url: str | None = None
    pid: int | None = None
    price_usd_per_hour: Decimal | None = None


class DeploymentStatus(BaseModel):
    """`tandemn status --service-name S --json`."""

    service_name: str
    owner: str | None = None
    """Name of the key that it was deployed with; `local` without keys."""
    state: DeploymentState
    reason: str | None = None
    code: str | None = None
    spec: DeploymentSpec
    endpoint: str | None = None
    """Base URL for OpenAI clients; None: the router does not run yet."""
    backends: list[BackendView] = []
    router: RouterView | None = None
    warnings: list[str] = []
    old_key_until: float | None = None
    created_at: float
    updated_at: float


class DeploymentSummary(BaseModel):
    """One row of `tandemn list`."""

    service_name: str
    owner: str | None = None
    state: DeploymentState
    reason: str | None = None
    model: str
    gpu: str
    endpoint: str | None = None
    backends: dict[str, BackendState] = {}
    created_at: float


class DeploymentList(BaseModel):
    deployments: list[DeploymentSummary]


class EndpointKey(BaseModel):
    """What a client needs: `tandemn deploy --json` writes it."""

    service_name: str
    endpoint: str | None = None
    api_key: str | None = None
    """None: the endpoint is public."""
    old_key_until: float | None = None
    """Until when the key before the last rotation is taken, too."""


class RotateRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep_old_s: float = Field(default=3600.0, ge=0, le=30 * 86_400, allow_inf_nan=False)
    """How long the old key is still taken, in seconds."""
