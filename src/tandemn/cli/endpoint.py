"""A deployment's endpoint: `tandemn endpoint`, and the first answer that `deploy` waits for."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import aiohttp
import typer

from tandemn.cli import deployment_report as report
from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, note, say
from tandemn.cli.text import parse_duration
from tandemn.errors import ServerUnavailable
from tandemn.protocol.deployments import EndpointKey, RotateRequest

app = typer.Typer(rich_markup_mode=None)

#: What every engine answers without computing.
PROBE_PATH = "/v1/models"
#: One try; a router gives a backend ten minutes for its first byte.
TRY_S = 900.0
CONNECT_S = 5.0
#: Between two tries.
PAUSE_S = 0.3
#: How long the router itself may be out of reach before it is taken to be so from this machine.
UNREACHABLE_S = 60.0


@app.command("endpoint")
def endpoint(
    *,
    service_name: options.ServiceNameNeeded,
    rotate_key: Annotated[bool, typer.Option("--rotate-key", help="Make a new key.")] = False,
    keep_old: Annotated[
        str, typer.Option("--keep-old", help="How long the old key is still taken: 1h, 30m, 0s.")
    ] = "1h",
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show a deployment's endpoint and key, with a curl line; --rotate-key gives it a new key without an outage.

    Examples:
        tandemn endpoint --service-name chat
        tandemn endpoint --service-name chat --rotate-key --keep-old 24h --json
    """
    asyncio.run(_endpoint(service_name, _kept_s(keep_old) if rotate_key else None, as_json=as_json))


def _kept_s(text: str) -> float:
    return 0.0 if text.strip() in {"0", "0s"} else parse_duration(text, "keep_old")


async def _endpoint(service_name: str, keep_old_s: float | None, *, as_json: bool) -> None:
    async with connect() as client:
        status = await client.deployment(service_name)
        if keep_old_s is None:
            key = await client.endpoint_key(service_name)
        else:
            request = options.checked(RotateRequest, {"keep_old_s": "--keep-old"}, keep_old_s=keep_old_s)
            key = await client.rotate_key(service_name, request)
    _tell(key, status.spec.model, as_json=as_json)


def _tell(key: EndpointKey, model: str, *, as_json: bool) -> None:
    if as_json:
        emit({"service_name": key.service_name, "endpoint": key.endpoint, "api_key": key.api_key})
    elif key.endpoint is None:
        note(f"the deployment {key.service_name} has no endpoint yet: its router does not run")
    else:
        say(report.endpoint_lines(key, model))


async def first_answer(url: str, key: str | None) -> None:
    """Ask the endpoint until a backend answers; cancel it to give up.

    Raises:
        ServerUnavailable: nobody listens there, as far as this machine can tell (`endpoint_unreachable`).
    """
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    timeout = aiohttp.ClientTimeout(total=TRY_S, sock_connect=CONNECT_S)
    heard_at = time.monotonic()
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        while True:
            try:
                async with session.get(f"{url}{PROBE_PATH}", allow_redirects=False) as answer:
                    await answer.read()
                    # 401: the router has not been told the latest key yet. 404 is an answer, too.
                    if answer.status < 500 and answer.status not in {401, 429}:
                        return
                heard_at = time.monotonic()
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                if time.monotonic() - heard_at > UNREACHABLE_S + CONNECT_S:
                    raise ServerUnavailable(
                        f"the endpoint {url} cannot be reached from this machine: {exc or type(exc).__name__}",
                        code="endpoint_unreachable",
                        next_step="the deployment is ready: call it from where its router runs, or mend the way there",
                    ) from exc
            await asyncio.sleep(PAUSE_S)
