"""The engine key of each deployment: a file of the state folder that only its owner reads, never the database."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tandemn.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes of randomness in a key.
KEY_BYTES = 32


class Keyring:
    """Keys below `folder`, one file for each name.

    Args:
        folder: is made, for its owner alone, where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, service_name: str) -> SecretStr:
        """Return the deployment's key; it is made, and on disk, before the first caller sees it.

        Raises:
            StoreUnavailable: the folder cannot be written.
        """
        path = self._folder / service_name
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                self._make(path)
            return SecretStr(path.read_text("ascii").strip())
        except OSError as exc:
            raise StoreUnavailable(f"cannot keep the key of {service_name}: {exc.strerror}") from exc

    def forget(self, service_name: str) -> None:
        """Remove the key of a deployment that is gone; safe to repeat."""
        with suppress(FileNotFoundError):
            (self._folder / service_name).unlink()

    def _make(self, path: Path) -> None:
        # Written whole under another name first: a key that a crash cut short would lock everyone out.
        draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="ascii") as out:
            out.write(f"sk-{secrets.token_urlsafe(KEY_BYTES)}\n")
            out.flush()
            os.fsync(out.fileno())
        try:
            # A link fails where the name exists: of two that make it at once, the first one's key holds.
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
