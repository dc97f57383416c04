"""The routing table: which backends a deployment has and under which limits they are used.

It arrives as JSON, from a file at the start and through `/router/config` later. Reading it is strict:
an unknown key, a wrong type or an impossible value is refused, and the error names the key.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from tandemn.errors import InvalidInput

#: The only version of the format so far.
TABLE_VERSION: Final = 1

#: Seconds until a serverless backend must have begun its answer: a cold start of minutes is normal there.
SERVERLESS_FIRST_BYTE_S: Final = 600.0
#: Seconds until a stream from a backend that is up must have begun.
FIRST_BYTE_S: Final = 60.0

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
#: Field name characters of RFC 9110.
HeaderName = Annotated[str, msgspec.Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
#: A client's key, as it stands after `Bearer `.
ClientKey = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]+\Z")]
#: Clients' keys at a time: the present one, and those that a rotation has not ended yet.
MOST_KEYS: Final = 16
HeaderValue = Annotated[str, msgspec.Meta(pattern=r"^[\t\x20-\x7e\x80-\xff]*$")]


class Market(StrEnum):
    SPOT = "spot"
    ON_DEMAND = "on-demand"
    SERVERLESS = "serverless"


class Engine(StrEnum):
    """What a backend speaks beyond the OpenAI API: decides how a broken stream can be continued there."""

    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    OTHER = "other"


class Probe(StrEnum):
    """When the router may ask a backend how it is."""

    ALWAYS = "always"
    DEMAND = "demand"
    """Only while requests come: where a poke itself is demand, an idle backend can scale to zero."""
    NEVER = "never"


class Backend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Anywhere that this deployment's requests may go."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    market: Market
    url: str
    headers: dict[HeaderName, HeaderValue] = {}
    """Sent with every request, instead of the client's own of that name."""
    engine: Engine = Engine.VLLM
    replicas: Count = 1
    concurrency: Count | None = None
    """Requests in flight per replica; absent: no limit."""
    price_usd_per_hour: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Orders backends of one market."""
    draining: bool = False
    """A notice came: nothing new goes there."""
    probe: Probe | None = None
    health_path: Annotated[str, msgspec.Meta(pattern=r"^/[\x21-\x7e]*$")] = "/health"
    first_byte_s: Positive | None = None
    max_model_len: Count | None = None
    """Context of one request, in tokens: tells when a broken stream had nothing left to say."""
    ca_file: str | None = None
    """PEM file that the certificate is checked against, instead of the system's."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("`url` must be http://HOST[:PORT][/PREFIX] or https://…")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("`url` must have no query, fragment or user")
        if not self.url.isascii() or any(character <= " " for character in self.url):
            raise ValueError("`url` must be printable ASCII")
        _ = parts.port  # raises ValueError where it is none

    @property
    def room(self) -> int | None:
        """Requests in flight at most; None: no limit."""
        return None if self.concurrency is None else self.concurrency * self.replicas

    @property
    def probing(self) -> Probe:
        """`probe`, or the market's own: a poke would keep a serverless backend awake, and billed."""
        if self.probe is not None:
            return self.probe
        by_market = {
            Market.SPOT: Probe.DEMAND,
            Market.ON_DEMAND: Probe.ALWAYS,
            Market.SERVERLESS: Probe.NEVER,
        }
        return by_market[self.market]

    @property
    def first_byte_limit_s(self) -> float:
        if self.first_byte_s is not None:
            return self.first_byte_s
        return SERVERLESS_FIRST_BYTE_S if self.market is Market.SERVERLESS else FIRST_BYTE_S


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on waiting and keeping; each has a default that suits LLM traffic."""

    connect_s: Positive = 3.0
    answer_s: Positive = 600.0
    """Until an answer that is not streamed must have begun."""
    silence_s: Positive = 10.0
    """Until a peer that no longer acknowledges anything counts as lost (TCP_USER_TIMEOUT and keepalive)."""
    stall_s: Positive | None = 120.0
    """Longest pause inside a stream."""
    spot_ttft_s: Positive | None = None
    """TTFT of spot beyond which requests overflow; absent: 3x the serverless median, at least 2 s."""
    kept_body_bytes: Annotated[int, msgspec.Meta(ge=0)] = 32 << 20
    """Longest request body that is kept for another try; a longer one is passed on as it comes."""
    kept_stream_bytes: Annotated[int, msgspec.Meta(ge=0)] = 4 << 20
    """Text and token ids kept per stream; past it the stream cannot be resumed."""
    kept_total_bytes: Annotated[int, msgspec.Meta(ge=0)] = 512 << 20
    """The same over all streams."""


class RoutingTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    backends: tuple[Backend, ...]
    limits: Limits = Limits()
    keys: Annotated[tuple[ClientKey, ...], msgspec.Meta(min_length=1, max_length=MOST_KEYS)] | None = None
    """What clients may show, in place of the key that the router was started with; absent: that one."""

    def __post_init__(self) -> None:
        if self.version != TABLE_VERSION:
            raise ValueError(f"`version` must be {TABLE_VERSION}, not {self.version}")
        names = [backend.name for backend in self.backends]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"`backends[].name` {repeated[0]!r} is given twice")


def read_table(content: bytes) -> RoutingTable:
    """Read a table from JSON.

    Raises:
        InvalidInput: `invalid_routing_table`; the message names the key.
    """
    try:
        return msgspec.json.decode(content, type=RoutingTable)
    except msgspec.ValidationError as exc:
        raise InvalidInput(f"routing table: {exc}", code="invalid_routing_table") from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidInput(f"routing table is not JSON: {exc}", code="invalid_routing_table") from exc


def write_table(table: RoutingTable) -> bytes:
    """JSON that `read_table` reads back; it holds keys."""
    return msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n"
