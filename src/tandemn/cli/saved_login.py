"""The login that every command finds: `login.json` in the state folder, readable by its owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tandemn.errors import InvalidInput


class SavedLogin(BaseModel):
    url: str
    key: str | None = None
    """None: the control plane asked for none."""

    def __repr__(self) -> str:
        """Without the key: this may end up in a traceback."""
        return f"SavedLogin(url={self.url!r})"


def read(home: Path) -> SavedLogin | None:
    """Return the login of this state folder; None where there is none.

    Raises:
        InvalidInput: the file is there and is none.
    """
    path = _path(home)
    try:
        return SavedLogin.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as exc:
        raise InvalidInput(
            f"{path} cannot be read as a login",
            code="login_unreadable",
            next_step="`tandemn logout` removes it",
        ) from exc


def write(home: Path, login: SavedLogin) -> None:
    """Keep a login in the place of the one before, whole or not at all."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = _path(home).with_name(f"login.json.{secrets.token_hex(4)}")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as out:
            out.write(login.model_dump_json() + "\n")
        draft.replace(_path(home))
    except OSError as exc:
        raise InvalidInput(
            f"the login cannot be kept in {home}: {exc.strerror}",
            code="home_unusable",
            next_step="set TANDEMN_HOME to a folder that you may write to",
        ) from exc


def forget(home: Path) -> None:
    _path(home).unlink(missing_ok=True)


def _path(home: Path) -> Path:
    return home / "login.json"
