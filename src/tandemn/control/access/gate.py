"""The gate: every request passes here before its body is read, by the table of `rules.py` or not at all.

It finds the route's rule, then who is calling (a key, a replica's token, or this machine), then whether the
object that the path names is the caller's. What it found goes to the handlers in the request's state.

A control plane without keys serves loopback only, and whoever may use that is its one owner. What web pages
and proxies could send there on somebody's behalf is refused.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from structlog.contextvars import bound_contextvars

from tandemn import __version__
from tandemn.control import tokens
from tandemn.control.access import bodies
from tandemn.control.access.browsers import refuse_strangers
from tandemn.control.access.rates import Buckets, Rate
from tandemn.control.access.refusals import Refusals
from tandemn.control.access.rules import (
    LOCAL_CALLER,
    Access,
    Body,
    Caller,
    Owned,
    Rule,
    allows,
    find,
    is_known,
)
from tandemn.control.api.failures import answer, http_answer, without_internals
from tandemn.control.store import deployments, files, jobs, keys, replicas
from tandemn.errors import Conflict, Forbidden, NotAllowed, NotFound, TandemnError, TooManyRequests
from tandemn.protocol import handshake
from tandemn.protocol.keys import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tandemn.control.access.open_requests import OpenRequest
    from tandemn.control.access.rules import Match
    from tandemn.control.services import Services
    from tandemn.control.store.records import ReplicaRecord

_HEADERS = (
    (handshake.HEADER.lower().encode(), __version__.encode()),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class Gate:
    """ASGI middleware over the application whose routes are in the table."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        settings = services.settings
        self._app = app
        self._services = services
        self._limits = {Body.NONE: 0, Body.JSON: bodies.JSON_BYTES, Body.UPLOAD: settings.upload_bytes}
        self._calls = Buckets(Rate(per_s=settings.requests_per_s, burst=settings.requests_burst))
        self._refusals = Refusals(services.clock)
        #: Whether a key was ever given; then nobody gets in without one any more.
        self._has_keys = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answering = _Answering(send)
        entry: OpenRequest | None = None
        try:
            match = _match(scope)
            _check_version(scope, match.rule)
            state = await self._admit(scope, match)
            scope.setdefault("state", {}).update(state)
            with (
                bound_contextvars(**_whose(state)),
                self._services.open_requests.entered(state.get("caller")) as entry,
            ):
                await self._app(scope, await self._bounded(scope, receive, match.rule), answering.send)
        except TandemnError as error:
            told = without_internals(error) if self._has_keys else error
            await answer(told)(scope, receive, answering.send)
        except HTTPException as error:
            await http_answer(scope, error)(scope, receive, answering.send)
        except bodies.Gone:
            pass
        except asyncio.CancelledError:
            if entry is None or not entry.is_revoked:
                raise
            entry.task.uncancel()
            if not answering.has_begun:
                taken = NotAllowed("the key was taken away", code="key_revoked")
                await answer(taken)(scope, receive, answering.send)
            # Else the answer stays unfinished, and the connection is closed: the caller sees that it is cut off.

    async def _admit(self, scope: Scope, match: Match) -> dict[str, Any]:
        """Return what handlers need to know of the caller and of the object that the path names.

        Raises:
            NotAllowed: no key, or a wrong one.
            Forbidden: the key's role may not.
            NotFound: there is no such object, or it is another's.
            TooManyRequests: the key called too often, or its address showed too many wrong ones.
        """
        found: dict[str, Any] = {"rule_path": match.path}
        if match.rule.access is Access.OPEN:
            return found
        key = _bearer(scope)
        with self._refusals.counted(scope, key):
            if match.rule.access is Access.REPLICA:
                replica_id = match.params["replica_id"]
                return found | {"replica": await self._services.database.run(_replica, replica_id, key)}
            if self._has_keys and not key:
                raise _missing_key()
            found |= await self._services.database.run(self._look, scope, match, key)
        self._limit_calls(found["caller"])
        return found

    def _look(self, connection: Connection, scope: Scope, match: Match, key: str) -> dict[str, Any]:
        self._has_keys = self._has_keys or keys.has_any(connection)
        if hmac.compare_digest(key.encode(), self._services.local_key.encode()):
            caller = LOCAL_CALLER
        elif self._has_keys:
            caller = _key_holder(connection, key, now=self._services.clock.now())
        else:
            refuse_strangers(scope)
            caller = LOCAL_CALLER
        _check_role(match.rule, caller)
        return {"caller": caller} | _own_object(connection, match, caller)

    def _limit_calls(self, caller: Caller) -> None:
        if caller.key_id is None:
            return
        wait_s = self._calls.take(caller.key_id, self._services.clock.now())
        if wait_s > 0:
            raise TooManyRequests(
                f"{caller.name} calls more often than {self._services.settings.requests_per_s:g} times a second",
                retry_after_s=wait_s,
                next_step="call less often; a long poll or a larger page spares calls",
            )

    async def _bounded(self, scope: Scope, receive: Receive, rule: Rule) -> Receive:
        """Hold the body to what its route may be sent."""
        limit = self._limits[rule.body]
        match rule.body:
            case Body.NONE:
                return receive  # nobody reads it
            case Body.JSON:
                bodies.check_length(scope, limit)
                return await bodies.read_whole(receive, limit)
            case Body.UPLOAD:
                bodies.check_length(scope, limit)
                return bodies.watched(receive, limit, asyncio.get_running_loop().time)


class _Answering:
    """Says with every answer which version gave it, and that it is for its asker alone; knows whether it began."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await self._send(message)


def _whose(state: Mapping[str, Any]) -> dict[str, str]:
    """What every log line of this request says: whose job and replica it was about."""
    replica = state.get("replica")
    if replica is not None:
        return {"job_id": replica.job_id, "replica_id": replica.replica_id}
    return {"job_id": state["job_id"]} if "job_id" in state else {}


def _match(scope: Scope) -> Match:
    found = find(scope["method"], scope["path"])
    if found is None:
        raise HTTPException(405 if is_known(scope["path"]) else 404, "Method Not Allowed")
    return found


def _check_version(scope: Scope, rule: Rule) -> None:
    """Refuse a command line of another generation before it misreads an answer; runners may outlive an upgrade."""
    theirs = _header(scope, handshake.HEADER.lower().encode())
    if theirs and rule.access is not Access.REPLICA and not handshake.go_together(theirs, __version__):
        raise Conflict(
            f"this control plane is version {__version__}, and you are version {theirs[:40]}",
            code="version_mismatch",
            next_step=f"pip install tandemn=={__version__}",
        )


def _bearer(scope: Scope) -> str:
    scheme, _, key = _header(scope, b"authorization").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _key_holder(connection: Connection, key: str, *, now: float) -> Caller:
    if not key:
        raise _missing_key()
    key_id = tokens.key_id_of(key)
    found = keys.by_id(connection, key_id) if key_id else None
    if not tokens.matches(key, found.secret_hash if found else None) or found is None:
        raise NotAllowed("this is no key of this control plane", next_step="ask its administrator for one")
    if found.revoked_at is not None:
        raise NotAllowed(f"the key of {found.name} was revoked", code="key_revoked")
    keys.used(connection, found, now=now)
    return Caller(name=found.name, role=found.role, key_id=found.key_id)


def _missing_key() -> NotAllowed:
    return NotAllowed(
        "this control plane asks for a key, as `Authorization: Bearer KEY`",
        code="missing_api_key",
        next_step="tandemn login URL, or set TANDEMN_API_KEY",
    )


def _check_role(rule: Rule, caller: Caller) -> None:
    if not allows(rule, caller.role):
        needed = Role.ADMIN if rule.access is Access.ADMIN else Role.USER
        raise Forbidden(
            f"the key of {caller.name} is a {caller.role}'s; this takes a {needed}'s",
            next_step="ask an administrator",
        )


def _own_object(connection: Connection, match: Match, caller: Caller) -> dict[str, Any]:
    """Find the object that the path names among those that the caller sees; a job's id may be cut short."""
    owned = match.rule.owned
    if owned is None:
        return {}
    name = match.params[owned.value]
    match owned:
        case Owned.JOB:
            return {"job_id": jobs.resolve(connection, name, owner=caller.sees).job_id}
        case Owned.BATCH:
            jobs.get_batch(connection, name, owner=caller.sees)
        case Owned.FILE:
            files.get(connection, name, owner=caller.sees)
        case Owned.DEPLOYMENT:
            deployments.get(connection, name, owner=caller.sees)
    return {}


def _replica(connection: Connection, replica_id: str, token: str) -> ReplicaRecord:
    """Find the replica that calls by its own token.

    Raises:
        NotAllowed: not its token.
        NotFound: it has ended (code `replica_ended`): whoever calls should end, too.
    """
    try:
        replica = replicas.get(connection, replica_id)
    except NotFound:
        replica = None
    if not tokens.matches(token, replica.token_hash if replica else None) or replica is None:
        raise NotAllowed("this is not the replica's token", code="invalid_token", object_id=replica_id)
    if replica.state.has_ended:
        raise NotFound(
            f"replica {replica_id} has ended: {replica.reason}", code="replica_ended", object_id=replica_id
        )
    return replica
