"""`python -m tandemn.control`: serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tandemn import settings
from tandemn.control.daemon import serve
from tandemn.control.listeners import Tls
from tandemn.errors import TandemnError
from tandemn.settings import LogFormat


def main() -> int:
    """Run the control plane; returns its exit code."""
    parser = argparse.ArgumentParser(prog="tandemn.control")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the usual one if it is free, else any")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--log-format", type=LogFormat, help="default: TANDEMN_LOG_FORMAT")
    parser.add_argument("--standby", action="store_true", help="beside another one of this state folder")
    options = parser.parse_args()
    tls = Tls(cert=options.tls_cert, key=options.tls_key) if options.tls_cert else None
    try:
        chosen = settings.load()
        if options.log_format is not None:
            chosen = chosen.model_copy(update={"log_format": options.log_format})
        asyncio.run(serve(chosen, host=options.host, port=options.port, tls=tls, is_standby=options.standby))
    except TandemnError as exc:
        print(f"error: {exc} [{exc.code}]", file=sys.stderr)  # noqa: T201 - the starter shows it
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
