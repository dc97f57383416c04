"""Following a deployment, over restarts of the control plane, and showing each step of each part as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TextIO

from tandemn.cli import deployment_report as report
from tandemn.cli.follow import patiently
from tandemn.client import UserClient
from tandemn.protocol.deployments import DeploymentStatus

#: Longest look that the control plane is asked to hold back, in seconds.
LOOK_S = 10.0

Seen = Callable[[DeploymentStatus], None]


class Steps:
    """A line for each change of each part, with the seconds since the command began."""

    def __init__(self, stream: TextIO, service_name: str | None = None) -> None:
        self._stream = stream
        self._head = f"{service_name} " if service_name is not None else ""
        self._began = time.monotonic()
        self._last: DeploymentStatus | None = None

    def __call__(self, status: DeploymentStatus) -> None:
        for line in report.step_lines(self._last, status):
            self.say(line)
        self._last = status

    def say(self, line: str) -> None:
        """Write one line of it."""
        self._stream.write(f"{time.monotonic() - self._began:6.1f} s  {self._head}{line}\n")
        self._stream.flush()


async def follow(
    client: UserClient, status: DeploymentStatus, *, until: Callable[[DeploymentStatus], bool], show: Seen
) -> DeploymentStatus:
    """Look at a deployment until `until` holds; `show` is given every look.

    Raises:
        Retryable: the control plane did not answer for two minutes.
    """
    while True:
        show(status)
        if until(status):
            return status
        status = await patiently(
            client,
            partial(client.deployment, status.service_name, since=status.updated_at, wait_s=LOOK_S),
            f"`tandemn status --service-name {status.service_name}` shows how it stands",
        )
