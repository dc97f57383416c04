"""What the environment says: the only module that reads it. Prefix `TANDEMN_`, and `KOI_SERVICE_URL`."""

from __future__ import annotations

import os
import sys
from decimal import Decimal  # noqa: TC003 - pydantic reads annotations at run time
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tandemn.errors import InvalidInput
from tandemn.fleet.engines.engine import EngineName  # noqa: TC001 - pydantic reads annotations at run time

#: First port that the embedded control plane tries; another free one is taken where it is in use.
EMBEDDED_PORT = 26336


class LogFormat(StrEnum):
    """What lines of the control plane's log look like."""

    LOGFMT = "logfmt"
    JSON = "json"


class Settings(BaseSettings):
    """Every setting of every process; each is documented in docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="TANDEMN_", extra="ignore", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".tandemn")
    """State folder. Two of them on one machine do not meet."""
    server_url: str | None = None
    """Where the command line finds the control plane; unset: the embedded one."""
    api_key: SecretStr | None = None
    """Key that the command line sends."""
    public_url: str | None = None
    """Where replicas in a cloud reach the control plane."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of the state, `postgresql://…`; unset: SQLite in the state folder."""
    redis_url: SecretStr | None = None
    """The chunk queue; unset: an embedded redis-server."""
    objects_url: str | None = None
    """Object store: `s3://bucket/prefix`, `gs://…`, `az://…`, or a folder; unset: one in the state folder."""
    retention_days: float | None = Field(default=None, gt=0, le=36_500)
    """How long uploaded files and outputs are kept; unset: until they are deleted."""
    input_urls: str | None = None
    """Prefixes of input URLs, with commas between, that users of a shared control plane may name."""
    upload_bytes: int = Field(default=80_000_000_000, ge=1)
    """Largest file that may be uploaded; what a multipart upload to a bucket holds."""
    requests_per_s: float = Field(default=50.0, gt=0)
    """How many calls one key may make a second, on the average."""
    requests_burst: float = Field(default=200.0, ge=1)
    """How many calls one key may make at once, after a rest."""
    local_router_port: int = Field(default=8080, ge=1, le=65535)
    """The first port that is tried for the router of a local deployment."""
    local_slots: int = Field(default=16, ge=1)
    """How many replicas `--cloud local` may run at a time."""
    local_usd_per_hour: Decimal | None = Field(default=None, ge=0)
    """What a local replica is said to cost; unset: nothing, it is this machine."""
    local_serverless_usd_per_hour: Decimal | None = Field(default=None, ge=0)
    """What a local serverless container is said to cost; unset: nothing."""
    local_engine: EngineName | None = None
    """Engine of local deployments; unset: the one that fits the model."""
    local_spot_start_s: float = Field(default=0.0, ge=0)
    """How long a local spot replica waits before its engine starts, as a cloud's machine boots."""
    local_speed: float = Field(default=1.0, gt=0, le=1000)
    """How many seconds a local deployment's policy counts for each real one."""
    lease_s: float = Field(default=12.0, gt=0)
    """How long a chunk stays with a replica that has fallen silent."""
    heartbeat_s: float = Field(default=5.0, gt=0)
    """How often a replica reports."""
    pace_s: float = Field(default=15.0, gt=0)
    """How often a running job's pace is looked at."""
    flush_s: float = Field(default=3.0, gt=0)
    """How often a replica stores finished answers of an unfinished chunk."""
    leader_lease_s: float = Field(default=10.0, gt=0)
    """A leading control plane that was silent for this long is replaced by another on the same database."""
    silence_s: float = Field(default=300.0, gt=0)
    """A runner that has not heard from its control plane for this long ends itself."""
    store_full_s: float = Field(default=60.0, gt=0)
    """Seconds that a replica waits for room in a full object store before its job is ended."""
    vllm_command: str | None = None
    """The `vllm` executable, where it is not the one on PATH (it lives in an environment of its own)."""
    cloud: str | None = None
    """Where jobs run that name no cloud; unset: on what SkyPilot has access to, else on this machine."""
    cloud_look_s: float = Field(default=15.0, gt=0)
    """How often clouds are asked whether replicas are still there."""
    skypilot_image: str | None = None
    """A Docker image with vLLM in it, for replicas in clouds; unset: each installs vLLM itself."""
    skypilot_python: str | None = None
    """The Python that has SkyPilot, where it is not that of the `sky` command on PATH."""
    engine_api_key: SecretStr | None = None
    """What an engine process that Tandemn starts takes as its key; set by whoever starts it."""
    engine_start_s: float = Field(default=600.0, gt=0)
    """How long an engine may take to load its model."""
    router_key: SecretStr | None = None
    """Bearer key that the router asks its clients for; unset: open to this machine only."""
    router_admin_key: SecretStr | None = None
    """Bearer key that changes the router's table; unset: only its file does."""
    router_cert: Path | None = None
    """PEM certificate with which routers in clouds serve HTTPS; unset: they serve HTTP."""
    router_cert_key: Path | None = None
    """PEM key of that certificate, where it is not in the same file."""
    metadata_url: str = "http://169.254.169.254"
    """The instance metadata service that announces preemptions on AWS."""
    koi_service_url: str | None = Field(default=None, validation_alias="KOI_SERVICE_URL")
    """Koi, the optional adviser; unset: no trace of it."""
    koi_timeout_s: float = Field(default=5.0, gt=0)
    """How long Koi may take for an answer; without one a job is planned as if there were no Koi."""
    koi_keep_s: float = Field(default=86400.0, gt=0)
    """How long a callback that Koi does not take is kept and tried again."""
    koi_heartbeat_s: float = Field(default=30.0, gt=0)
    """How often Koi is told that a launch goes on."""
    log_format: LogFormat = LogFormat.LOGFMT
    """How the control plane, and local deployments' fleets, write their logs; replicas always write JSON."""
    nodes: int = Field(default=1, ge=1)
    """Machines that this replica spans."""
    node_rank: int = Field(default=0, ge=0)
    """Which of them this one is; 0 is the head, where the runner works."""
    head_address: str | None = None
    """Where the others find the head."""
    spot_notices: bool = False
    """Whether a runner asks the metadata service for preemptions; set on AWS spot instances."""
    replica_token: SecretStr | None = None
    """What a runner shows to its control plane. Given by the launcher, for one replica; never on a command line."""

    @field_validator("koi_service_url")
    @classmethod
    def _check_koi(cls, url: str | None) -> str | None:
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("not a URL like http://koi:8090")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a URL with a password in it ends up in logs; Koi takes none")
        if parts.query or parts.fragment:
            raise ValueError("paths are appended to it: it cannot have a query")
        return url.rstrip("/")

    @property
    def input_url_prefixes(self) -> tuple[str, ...]:
        """`input_urls`, apart."""
        return tuple(each.strip() for each in (self.input_urls or "").split(",") if each.strip())

    @property
    def home_path(self) -> Path:
        """`home`, absolute, without `~`."""
        return self.home.expanduser().absolute()


def load() -> Settings:
    """Read the environment now.

    Raises:
        InvalidInput: a variable has a value that its setting cannot take; the message names it.
    """
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        name = name if name == "KOI_SERVICE_URL" else f"TANDEMN_{name}"
        raise InvalidInput(f"{name}: {first['msg']}", code="invalid_setting", param=name) from exc


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a process started in another folder: ours, with the state folder absolute."""
    return {**os.environ, "TANDEMN_HOME": str(settings.home_path)}


def objects_endpoint() -> str | None:
    """The S3 endpoint that obstore reads from the environment itself, where it is not Amazon's own."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def python_executable() -> str:
    """The interpreter that child processes run on: this one."""
    return sys.executable


def runpod_api_key() -> SecretStr | None:
    """The key of RunPod, under the name that RunPod gives it."""
    return _secret("RUNPOD_API_KEY")


def hf_token() -> SecretStr | None:
    """The token for gated models, under the name that the hub gives it."""
    return _secret("HF_TOKEN")


def hub_endpoint() -> str:
    """URL of the hub, or of the mirror that the hub's client is told of."""
    return os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co"


def is_hub_offline() -> bool:
    """Say whether the hub may not be asked, by the variable that its client reads."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def hub_cache() -> Path:
    """Where the hub's client keeps what it downloaded, by the names that it reads itself."""
    if stated := os.environ.get("HF_HUB_CACHE", "").strip():
        return Path(stated).expanduser()
    home = os.environ.get("HF_HOME", "").strip() or "~/.cache/huggingface"
    return Path(home).expanduser() / "hub"


def _secret(name: str) -> SecretStr | None:
    value = os.environ.get(name, "").strip()
    return SecretStr(value) if value else None
