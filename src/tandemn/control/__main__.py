"""`python -m tandemn.control`: serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tandemn import settings
from tandemn.control.daemon import serve
from tandemn.errors import TandemnError


def main() -> int:
    """Run the control plane; returns its exit code."""
    parser = argparse.ArgumentParser(prog="tandemn.control")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the usual one if it is free, else any")
    options = parser.parse_args()
    try:
        asyncio.run(serve(settings.load(), host=options.host, port=options.port))
    except TandemnError as exc:
        print(f"error: {exc} [{exc.code}]", file=sys.stderr)  # noqa: T201 - the starter shows it
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
