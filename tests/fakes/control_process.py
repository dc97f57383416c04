"""What `python -m tandemn.control` looks like from outside: it serves, and says so in server.json."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
from aiohttp import web
from tests.fakes.user_api import FakeControlPlane

from tandemn import __version__
from tandemn.cli.embedded import ServerRecord


async def serve(host: str, port: int, version: str) -> None:
    home = Path(os.environ["TANDEMN_HOME"])
    plane = FakeControlPlane()
    runner = web.AppRunner(plane.app())
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    plane.url = f"http://{host}:{runner.addresses[0][1]}"
    record = ServerRecord(
        url=plane.url, pid=os.getpid(), started=psutil.Process().create_time(), version=version
    )
    temporary = home / f"server.json.{os.getpid()}"
    temporary.write_text(record.model_dump_json())
    temporary.replace(home / "server.json")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await runner.cleanup()
    (home / "server.json").unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail")
    parser.add_argument("--version", default=__version__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.fail:
        sys.exit(arguments.fail)
    asyncio.run(serve(arguments.host, arguments.port, arguments.version))


if __name__ == "__main__":
    main()
