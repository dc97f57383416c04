"""`python -m tandemn.router`: the router as a process of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tandemn import settings
from tandemn.errors import TandemnError
from tandemn.router.app import GRACE_S, Options, run
from tandemn.router.router import Keys


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, serve, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tandemn.router", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes any free one")
    parser.add_argument("--table", type=Path, required=True, help="JSON routing table")
    parser.add_argument("--state", type=Path, help="where counters survive (default: beside the table)")
    parser.add_argument("--cert", type=Path, help="PEM certificate: serve HTTPS")
    parser.add_argument(
        "--key", type=Path, help="PEM key of the certificate, where it is not in the same file"
    )
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="for streams under way after SIGTERM")
    parser.add_argument("--public", action="store_true", help="serve without a key")
    given = parser.parse_args(arguments)
    options = Options(
        host=given.host,
        port=given.port,
        table=given.table,
        state=given.state,
        cert=given.cert,
        key=given.key,
        grace_s=given.grace_s,
        is_public=given.public,
    )
    try:
        run(options, keys_from(settings.load()))
    except TandemnError as exc:
        sys.stderr.write(f"tandemn router: {exc}\n")
        return exc.exit_code
    return 0


def keys_from(loaded: settings.Settings) -> Keys:
    """The keys as the environment gives them; an empty one is none."""
    client, admin = loaded.router_key, loaded.router_admin_key
    return Keys(
        client=(client.get_secret_value() or None) if client is not None else None,
        admin=(admin.get_secret_value() or None) if admin is not None else None,
    )


if __name__ == "__main__":
    sys.exit(main())
