"""The keys of deployments: files of the state folder that only their owner reads, never the database.

A deployment has a folder with a file for each key: `engine`, which its backends ask the router for; `endpoint`,
which the router asks clients for, and `endpoint-old`, the one before it; `admin`, which changes the router.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tandemn.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes of randomness in a key.
KEY_BYTES = 32


class KeyUse(StrEnum):
    """What a key opens."""

    ENGINE = "engine"
    ENDPOINT = "endpoint"
    ADMIN = "admin"


class Keyring:
    """Keys below `folder`, in one folder for each deployment.

    Args:
        folder: is made, for its owner alone, where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, service_name: str, use: KeyUse) -> SecretStr:
        """Return a deployment's key; it is made, and on disk, before the first caller sees it.

        Raises:
            StoreUnavailable: the folder cannot be written.
        """
        path = self._folder / service_name / use.value
        try:
            if not path.exists():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                draft = _draft(path)
                try:
                    # A link fails where the name exists: of two that make it at once, the first one's key holds.
                    with suppress(FileExistsError):
                        os.link(draft, path)
                finally:
                    draft.unlink()
            return _read(path)
        except OSError as exc:
            raise StoreUnavailable(f"cannot keep the key of {service_name}: {exc.strerror}") from exc

    def old_endpoint_key(self, service_name: str) -> SecretStr | None:
        """Return the endpoint's key before the last rotation; whether it is still taken, the record says."""
        with suppress(FileNotFoundError):
            return _read(self._old(service_name))
        return None

    def rotate(self, service_name: str) -> SecretStr:
        """Make a new key for the endpoint and keep the present one as the old one.

        Raises:
            StoreUnavailable: the folder cannot be written; the present key holds.
        """
        self.key(service_name, KeyUse.ENDPOINT)
        path, old = self._folder / service_name / KeyUse.ENDPOINT.value, self._old(service_name)
        try:
            draft = _draft(path)
            # The present key is the old one first: a crash in between leaves both the same, and no one locked out.
            kept = old.with_name(f"{draft.name}-old")
            os.link(path, kept)
            kept.replace(old)
            draft.replace(path)
            return _read(path)
        except OSError as exc:
            raise StoreUnavailable(f"cannot rotate the key of {service_name}: {exc.strerror}") from exc

    def drop_old(self, service_name: str) -> None:
        """Remove the endpoint's old key; safe to repeat."""
        self._old(service_name).unlink(missing_ok=True)

    def forget(self, service_name: str) -> None:
        """Remove the keys of a deployment that is gone; safe to repeat."""
        shutil.rmtree(self._folder / service_name, ignore_errors=True)

    def names(self) -> list[str]:
        """Name the deployments that have keys."""
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def _old(self, service_name: str) -> Path:
        return self._folder / service_name / f"{KeyUse.ENDPOINT.value}-old"


def _read(path: Path) -> SecretStr:
    return SecretStr(path.read_text("ascii").strip())


def _draft(path: Path) -> Path:
    """Write a new key whole under another name first: one that a crash cut short would lock everyone out."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w", encoding="ascii") as out:
        out.write(f"sk-{secrets.token_urlsafe(KEY_BYTES)}\n")
        out.flush()
        os.fsync(out.fileno())
    return draft
