"""API keys: who, which role, and the hash of the secret. A name is given once and never to another person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select, update

from tandemn.control.access.rules import LOCAL
from tandemn.control.store import events
from tandemn.control.store.schema import api_keys
from tandemn.errors import Conflict, InvalidInput, NotFound
from tandemn.events import EventKind
from tandemn.protocol.keys import Role

if TYPE_CHECKING:
    from tandemn.control.tokens import NewKey

#: How exactly it is known when a key was last used, in seconds: a write for each request would be too many.
LAST_USED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    name: str
    role: Role
    key_id: str
    secret_hash: str
    created_at: float
    created_by: str
    rotated_at: float | None
    revoked_at: float | None
    last_used_at: float | None


def create(
    connection: Connection, name: str, role: Role, new: NewKey, *, now: float, actor: str
) -> KeyRecord:
    """Record a key for a new name.

    Raises:
        Conflict: the name has, or had, a key (code `key_name_taken`).
        InvalidInput: nobody can have the name (`invalid_key_name`), or the first key of all is no admin's
            (`first_key_not_admin`).
    """
    if name == LOCAL:
        raise InvalidInput(
            f"{LOCAL} is the owner of what was made without a key",
            code="invalid_key_name",
            next_step="choose another name",
            param="name",
        )
    if _row(connection, name) is not None:
        raise Conflict(
            f"the name {name} is taken: what was made with its key belongs to it",
            code="key_name_taken",
            next_step=f"give it a new key, also a revoked one: tandemn keys rotate {name}",
            object_id=name,
        )
    if role is not Role.ADMIN and not has_any(connection):
        raise InvalidInput(
            "the first key must be an admin's: from then on nobody gets in without a key",
            code="first_key_not_admin",
            next_step="tandemn keys create NAME --role admin",
            param="role",
        )
    connection.execute(
        api_keys.insert().values(
            name=name,
            role=role.value,
            key_id=new.key_id,
            secret_hash=new.secret_hash,
            created_at=now,
            created_by=actor,
        )
    )
    events.append(connection, EventKind.API_KEY_CREATED, now=now, actor=actor, name=name, role=role.value)
    return get(connection, name)


def rotate(connection: Connection, name: str, new: NewKey, *, now: float, actor: str) -> KeyRecord:
    """Put another key in the place of this one, which is void from now on; a revoked name lives again."""
    get(connection, name)
    connection.execute(
        update(api_keys)
        .where(api_keys.c.name == name)
        .values(key_id=new.key_id, secret_hash=new.secret_hash, rotated_at=now, revoked_at=None)
    )
    events.append(connection, EventKind.API_KEY_ROTATED, now=now, actor=actor, name=name)
    return get(connection, name)


def revoke(connection: Connection, name: str, *, now: float, actor: str) -> KeyRecord:
    """Make the key void from now on; what was made with it stays. Safe to repeat."""
    if get(connection, name).revoked_at is None:
        connection.execute(update(api_keys).where(api_keys.c.name == name).values(revoked_at=now))
        events.append(connection, EventKind.API_KEY_REVOKED, now=now, actor=actor, name=name)
    return get(connection, name)


def get(connection: Connection, name: str) -> KeyRecord:
    """Raises NotFound with code `key_not_found`."""
    row = _row(connection, name)
    if row is None:
        raise NotFound(
            f"there is no key of {name}",
            code="key_not_found",
            next_step="`tandemn keys list` shows them",
            object_id=name,
        )
    return _record(row)


def role_of(connection: Connection, owner: str) -> Role:
    """Say what an owner may do, whose key may be revoked by now; without a key it is this machine's own."""
    row = _row(connection, owner)
    return Role(row.role) if row is not None else Role.ADMIN


def by_id(connection: Connection, key_id: str) -> KeyRecord | None:
    row = connection.execute(select(api_keys).where(api_keys.c.key_id == key_id)).first()
    return _record(row) if row is not None else None


def live_ids(connection: Connection, key_ids: set[str]) -> set[str]:
    """Say which of these are neither revoked nor rotated away."""
    query = select(api_keys.c.key_id).where(api_keys.c.key_id.in_(key_ids), api_keys.c.revoked_at.is_(None))
    return set(connection.scalars(query))


def all_of(connection: Connection) -> list[KeyRecord]:
    return [_record(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at))]


def is_one_live(connection: Connection) -> bool:
    """Say whether somebody could get in with a key."""
    return (
        connection.execute(select(api_keys.c.name).where(api_keys.c.revoked_at.is_(None)).limit(1)).first()
        is not None
    )


def has_any(connection: Connection) -> bool:
    """Say whether a key was ever given: nobody gets in without one from then on."""
    return connection.execute(select(api_keys.c.name).limit(1)).first() is not None


def used(connection: Connection, key: KeyRecord, *, now: float) -> None:
    """Note that the key was used, to the minute."""
    if key.last_used_at is None or now - key.last_used_at >= LAST_USED_S:
        connection.execute(update(api_keys).where(api_keys.c.key_id == key.key_id).values(last_used_at=now))


def _row(connection: Connection, name: str) -> Any:
    return connection.execute(select(api_keys).where(api_keys.c.name == name)).first()


def _record(row: Any) -> KeyRecord:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return KeyRecord(**{**values, "role": Role(values["role"])})
