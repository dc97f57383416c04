"""Secrets that callers show: API keys and replica tokens. Made here, kept as hashes.

They are random and long, so a plain hash is enough to keep them out of the database. An API key is
`tdm-KEYID-SECRET`: the id finds the record, the hash of the whole is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

_KEY_PREFIX = "tdm"
#: Compared where there is no record, so that an unknown key takes as long as a wrong one.
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """An API key that was just made; only its id and hash are kept."""

    key_id: str
    key: str = field(repr=False)

    @property
    def secret_hash(self) -> str:
        return token_hash(self.key)


def new_key() -> NewKey:
    key_id = secrets.token_hex(5)
    return NewKey(key_id=key_id, key=f"{_KEY_PREFIX}-{key_id}-{secrets.token_urlsafe(32)}")


def key_id_of(key: str) -> str | None:
    """Return the id that a key carries; None where it is no key of ours."""
    parts = key.split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _KEY_PREFIX else None


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def matches(token: str, kept_hash: str | None) -> bool:
    """Compare in constant time; False where nothing is kept."""
    return hmac.compare_digest(token_hash(token), kept_hash or _NO_HASH) and kept_hash is not None
