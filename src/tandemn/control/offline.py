"""`python -m tandemn.control.offline`: keys, while no control plane serves this state folder.

The first key of all comes to be here: a control plane that never gave one does not serve the network, and
whoever may write to the database needs no key. The answer, or the error, is one JSON value on stdout.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tandemn import settings
from tandemn.clock import SystemClock
from tandemn.control import tokens
from tandemn.control.access.rules import LOCAL
from tandemn.control.store import keys
from tandemn.control.store.database import open_database
from tandemn.control.views import key_made, key_view
from tandemn.errors import TandemnError
from tandemn.protocol.errors import to_body
from tandemn.protocol.keys import KeyList, Role

if TYPE_CHECKING:
    from pydantic import BaseModel
    from sqlalchemy import Connection


def main() -> int:
    """Do one thing to the keys; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tandemn.control.offline")
    parser.add_argument("verb", choices=["create", "list", "rotate", "revoke"])
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("role", nargs="?", type=Role, default=Role.USER)
    options = parser.parse_args()
    try:
        answer = _run(options.verb, options.name, options.role)
    except TandemnError as exc:
        print(to_body(exc).model_dump_json())  # noqa: T201 - the command line reads it
        return exc.exit_code
    print(answer.model_dump_json())  # noqa: T201
    return 0


def _run(verb: str, name: str, role: Role) -> BaseModel:
    found = settings.load()
    found.home_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = SystemClock().now()
    new = tokens.new_key()

    def work(connection: Connection) -> BaseModel:
        match verb:
            case "create":
                return key_made(keys.create(connection, name, role, new, now=now, actor=LOCAL), new)
            case "rotate":
                return key_made(keys.rotate(connection, name, new, now=now, actor=LOCAL), new)
            case "revoke":
                return key_view(keys.revoke(connection, name, now=now, actor=LOCAL))
            case _:
                return KeyList(keys=[key_view(each) for each in keys.all_of(connection)])

    database = open_database(found)
    try:
        database.migrate()
        return database.run_sync(work)
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
