"""`python -m tandemn.serving.local`: the fleet process of one deployment, started by the provider `local`."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvloop

from tandemn import logs, settings
from tandemn.serving.local.fleet import Fleet
from tandemn.serving.local.folder import FleetFolder


def main() -> None:
    """Serve the orders of a folder."""
    parser = argparse.ArgumentParser(prog="python -m tandemn.serving.local", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    given = parser.parse_args()
    logs.configure(settings.load().log_format)
    uvloop.run(_serve(FleetFolder(given.folder, given.logs)))


async def _serve(folder: FleetFolder) -> None:
    await Fleet(folder, settings.load()).run()


if __name__ == "__main__":
    main()
