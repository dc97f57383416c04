"""Replica tokens: made at launch, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Tokens are random and long, so a plain hash is enough to keep them out of the database."""
    return hashlib.sha256(token.encode()).hexdigest()
