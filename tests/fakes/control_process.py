"""What `python -m tandemn.control` looks like from outside: it serves, and says so in server.json."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from aiohttp import web
from tests.fakes.user_api import FakeControlPlane

from tandemn import __version__
from tandemn.processes import start_time
from tandemn.server_records import ServerRecord


async def serve(host: str, port: int, version: str, *, is_standby: bool) -> None:
    home = Path(os.environ["TANDEMN_HOME"])
    plane = FakeControlPlane()
    runner = web.AppRunner(plane.app())
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    plane.url = f"http://{host}:{runner.addresses[0][1]}"
    record = ServerRecord(url=plane.url, pid=os.getpid(), started=start_time(os.getpid()), version=version)
    place = home / "servers" / f"{os.getpid()}.json" if is_standby else home / "server.json"
    place.parent.mkdir(exist_ok=True)
    temporary = home / f"server.json.{os.getpid()}"
    temporary.write_text(record.model_dump_json())
    temporary.replace(place)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await runner.cleanup()
    place.unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail")
    parser.add_argument("--version", default=__version__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--standby", action="store_true")
    arguments = parser.parse_args()
    if arguments.fail:
        sys.exit(arguments.fail)
    asyncio.run(serve(arguments.host, arguments.port, arguments.version, is_standby=arguments.standby))


if __name__ == "__main__":
    main()
