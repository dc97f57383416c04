"""The authorisation table: which role may call which route, and on whose objects. Pure.

Every route of the application stands here once; the gate (`gate.py`) lets nothing pass that does not, and a
test compares this table with the application's real routes. An object of somebody else's looks to a `user`
exactly like one that does not exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from tandemn.protocol.keys import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Who calls a control plane without keys, and owns what is made there: whoever may use this machine's loopback.
LOCAL = "local"


class Access(StrEnum):
    """What a route asks of its caller."""

    OPEN = "open"
    """Nothing: no key is looked at."""
    READ = "read"
    """Any key; a user sees its own objects only."""
    CHANGE = "change"
    """A user's or an admin's key; a user changes its own objects only."""
    ADMIN = "admin"
    """An admin's key."""
    REPLICA = "replica"
    """The token of the replica that the path names."""


class Owned(StrEnum):
    """Objects that have an owner, by the name of the path parameter that says which one is meant."""

    JOB = "job_id"
    BATCH = "batch_id"
    FILE = "file_id"
    DEPLOYMENT = "service_name"


class Body(StrEnum):
    """How much a route reads of its caller; the gate holds it to the limit of its kind."""

    NONE = "none"
    JSON = "json"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the table."""

    access: Access
    owned: Owned | None = None
    body: Body = Body.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a request comes from."""

    name: str
    role: Role
    key_id: str | None = None
    """Of its key; None: it needs none, it is on this machine."""

    @property
    def sees(self) -> str | None:
        """The owner whose objects it sees; None: everyone's."""
        return self.name if self.role is Role.USER else None


#: Whoever may use this machine's loopback, or read the state folder, has every right anyway.
LOCAL_CALLER = Caller(name=LOCAL, role=Role.ADMIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A route that a request means."""

    path: str
    """As the table writes it."""
    rule: Rule
    params: Mapping[str, str] = field(default_factory=dict)


def _read(owned: Owned | None = None) -> Rule:
    return Rule(access=Access.READ, owned=owned)


def _change(owned: Owned | None = None, body: Body = Body.NONE) -> Rule:
    return Rule(access=Access.CHANGE, owned=owned, body=body)


def _admin(body: Body = Body.NONE) -> Rule:
    return Rule(access=Access.ADMIN, body=body)


def _replica(body: Body = Body.NONE) -> Rule:
    return Rule(access=Access.REPLICA, body=body)


#: The table. A route that lists objects shows its caller those that the caller `sees`.
RULES: Mapping[tuple[str, str], Rule] = {
    ("GET", "/openapi.json"): _read(),
    ("GET", "/api/server"): _read(),
    ("GET", "/api/me"): _read(),
    # Prometheus comes with a viewer's key
    ("GET", "/metrics"): _read(),
    # Keys and the log of the whole server
    ("GET", "/api/keys"): _admin(),
    ("POST", "/api/keys"): _admin(Body.JSON),
    ("POST", "/api/keys/{name}/rotate"): _admin(),
    ("POST", "/api/keys/{name}/revoke"): _admin(),
    ("GET", "/api/events"): _admin(),
    # Files
    ("POST", "/v1/files"): _change(body=Body.UPLOAD),
    ("GET", "/v1/files"): _read(),
    ("GET", "/v1/files/{file_id}"): _read(Owned.FILE),
    ("GET", "/v1/files/{file_id}/content"): _read(Owned.FILE),
    ("DELETE", "/v1/files/{file_id}"): _change(Owned.FILE),
    # Batches
    ("POST", "/v1/batches"): _change(body=Body.JSON),
    ("GET", "/v1/batches"): _read(),
    ("GET", "/v1/batches/{batch_id}"): _read(Owned.BATCH),
    ("POST", "/v1/batches/{batch_id}/cancel"): _change(Owned.BATCH),
    # Jobs
    ("POST", "/api/jobs"): _change(body=Body.JSON),
    ("GET", "/api/jobs"): _read(),
    ("GET", "/api/jobs/{job_id}"): _read(Owned.JOB),
    ("GET", "/api/jobs/{job_id}/output"): _read(Owned.JOB),
    ("GET", "/api/jobs/{job_id}/errors"): _read(Owned.JOB),
    ("GET", "/api/jobs/{job_id}/events"): _read(Owned.JOB),
    ("GET", "/api/jobs/{job_id}/logs"): _read(Owned.JOB),
    ("GET", "/api/jobs/{job_id}/metrics"): _read(Owned.JOB),
    ("POST", "/api/jobs/{job_id}/cancel"): _change(Owned.JOB),
    ("POST", "/api/jobs/{job_id}/destroy"): _change(Owned.JOB),
    ("POST", "/api/jobs/{job_id}/add"): _change(Owned.JOB, Body.JSON),
    ("POST", "/api/jobs/{job_id}/kill"): _change(Owned.JOB, Body.JSON),
    ("POST", "/api/jobs/{job_id}/swap"): _change(Owned.JOB, Body.JSON),
    ("DELETE", "/api/jobs/{job_id}/swap"): _change(Owned.JOB),
    # Deployments; who may know an endpoint's key may use it
    ("POST", "/api/deployments"): _change(body=Body.JSON),
    ("GET", "/api/deployments"): _read(),
    ("POST", "/api/deployments/plan"): _change(body=Body.JSON),
    ("GET", "/api/deployments/{service_name}"): _read(Owned.DEPLOYMENT),
    ("DELETE", "/api/deployments/{service_name}"): _change(Owned.DEPLOYMENT),
    ("GET", "/api/deployments/{service_name}/cost"): _read(Owned.DEPLOYMENT),
    ("GET", "/api/deployments/{service_name}/key"): _change(Owned.DEPLOYMENT),
    ("POST", "/api/deployments/{service_name}/key/rotate"): _change(Owned.DEPLOYMENT, Body.JSON),
    ("GET", "/api/deployments/{service_name}/events"): _read(Owned.DEPLOYMENT),
    ("GET", "/api/deployments/{service_name}/logs"): _read(Owned.DEPLOYMENT),
    # Looking before leaping: planning reads the caller's own file, and costs a while of computing
    ("POST", "/api/plans"): _change(body=Body.JSON),
    ("POST", "/api/plans/cloud"): _change(body=Body.JSON),
    ("GET", "/api/quota"): _read(),
    ("GET", "/resources"): _read(),
    ("GET", "/api/cost"): _read(),
    # What the whole server needs, and what is left over at its providers
    ("GET", "/api/check"): _change(),
    ("GET", "/api/strays"): _admin(),
    ("POST", "/api/strays/collect"): _admin(Body.JSON),
    # Replicas: each speaks for itself only
    ("POST", "/api/replicas/{replica_id}/hello"): _replica(),
    ("POST", "/api/replicas/{replica_id}/heartbeat"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/lease"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/begin"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/upload-target"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/complete"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/release"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/engine-death"): _replica(Body.JSON),
    ("POST", "/api/replicas/{replica_id}/goodbye"): _replica(Body.JSON),
    ("GET", "/api/replicas/{replica_id}/input"): _replica(),
    ("GET", "/api/replicas/{replica_id}/objects/{name:path}"): _replica(),
    ("PUT", "/api/replicas/{replica_id}/objects/{name:path}"): _replica(Body.UPLOAD),
}


def find(method: str, path: str) -> Match | None:
    """Find the rule of a request; None: the table has none, so nothing may happen."""
    for pattern, template, rules in _PATTERNS:
        if method in rules and (found := pattern.fullmatch(path)):
            return Match(path=template, rule=rules[method], params=found.groupdict())
    return None


def is_known(path: str) -> bool:
    """Say whether the table has the path, be it for another method."""
    return any(pattern.fullmatch(path) for pattern, _, _ in _PATTERNS)


def allows(rule: Rule, role: Role) -> bool:
    """Say whether a key of this role may; whose the object is decides what it finds (`Caller.sees`)."""
    match rule.access:
        case Access.OPEN | Access.READ:
            return True
        case Access.CHANGE:
            return role is not Role.VIEWER
        case Access.ADMIN:
            return role is Role.ADMIN
        case Access.REPLICA:
            return False
        case _ as never:
            assert_never(never)


def _compiled() -> list[tuple[re.Pattern[str], str, dict[str, Rule]]]:
    """Compile each path of the table once, those without parameters first: they are meant where both fit."""
    by_path: dict[str, dict[str, Rule]] = {}
    for (method, path), rule in RULES.items():
        by_path.setdefault(path, {})[method] = rule
    ordered = sorted(by_path.items(), key=lambda each: each[0].count("{"))
    return [(re.compile(_pattern(path), re.DOTALL), path, rules) for path, rules in ordered]


def _pattern(path: str) -> str:
    def group(found: re.Match[str]) -> str:
        return f"(?P<{found[1]}>{'.*' if found[2] else '[^/]+'})"

    # Of what stands outside the braces only dots mean something else in a pattern.
    return re.sub(r"\{(\w+)(:path)?\}", group, path.replace(".", r"\."))


_PATTERNS = _compiled()
