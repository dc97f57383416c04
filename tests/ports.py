"""Ports for test doubles that need one before they listen, or that come back on the same one."""

from __future__ import annotations

import random
import socket

#: Below those that the kernel gives away by itself (net.ipv4.ip_local_port_range, 32768 to 60999): no connection and
#: no server of another test that is running beside this one gets it meanwhile.
PORTS = range(23000, 32000)
_random = random.SystemRandom()


def free_port() -> int:
    while True:
        port = _random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
