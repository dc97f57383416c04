"""The gate: every request passes here before its body is read, by the table of `rules.py` or not at all.

It finds the route's rule, then who is calling (a key, a replica's token, or this machine), then whether the
object that the path names is the caller's. What it found goes to the handlers in the request's state.

A control plane without keys serves loopback only, and whoever may use that is its one owner. What web pages
and proxies could send there on somebody's behalf is refused.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from tandemn import __version__
from tandemn.control import tokens
from tandemn.control.access.browsers import refuse_strangers
from tandemn.control.access.rules import LOCAL_CALLER, Access, Caller, Owned, Rule, allows, find, is_known
from tandemn.control.api.failures import answer, http_answer
from tandemn.control.store import deployments, files, jobs, keys, replicas
from tandemn.errors import Conflict, Forbidden, NotAllowed, NotFound, TandemnError
from tandemn.protocol import handshake
from tandemn.protocol.keys import Role

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
        self._app = app
        self._services = services
        #: Whether a key was ever given; then nobody gets in without one any more.
        self._has_keys = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        try:
            match = _match(scope)
            _check_version(scope, match.rule)
            scope.setdefault("state", {}).update(await self._admit(scope, match))
        except TandemnError as error:
            await answer(error)(scope, receive, send)
            return
        except HTTPException as error:
            await http_answer(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, match: Match) -> dict[str, Any]:
        """Return what handlers need to know of the caller and of the object that the path names.

        Raises:
            NotAllowed: no key, or a wrong one.
            Forbidden: the key's role may not.
            NotFound: there is no such object, or it is another's.
        """
        found: dict[str, Any] = {"rule_path": match.path}
        key = _bearer(scope)
        if match.rule.access is Access.OPEN:
            return found
        if match.rule.access is Access.REPLICA:
            replica_id = match.params["replica_id"]
            return found | {"replica": await self._services.database.run(_replica, replica_id, key)}
        return found | await self._services.database.run(self._look, scope, match, key)

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


def _match(scope: Scope) -> Match:
    found = find(scope["method"], scope["path"])
    if found is None:
        raise HTTPException(405 if is_known(scope["path"]) else 404, "Method Not Allowed")
    return found


def _with_headers(send: Send) -> Send:
    """Say with every answer which version gave it, and that it is for its asker alone."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending


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
        raise NotAllowed(
            "this control plane asks for a key, as `Authorization: Bearer KEY`",
            code="missing_api_key",
            next_step="tandemn login URL, or set TANDEMN_API_KEY",
        )
    key_id = tokens.key_id_of(key)
    found = keys.by_id(connection, key_id) if key_id else None
    if not tokens.matches(key, found.secret_hash if found else None) or found is None:
        raise NotAllowed("this is no key of this control plane", next_step="ask its administrator for one")
    if found.revoked_at is not None:
        raise NotAllowed(f"the key of {found.name} was revoked", code="key_revoked")
    keys.used(connection, found, now=now)
    return Caller(name=found.name, role=found.role, key_id=found.key_id)


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
