"""What several suites share: an S3 server."""

from __future__ import annotations

import logging
import os
import secrets
import urllib.request

import pytest
from hypothesis import HealthCheck, settings
from tests import postgres_server

# No test is timed: a machine that stands still for a moment is not a slow example.
settings.register_profile("tandemn", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandemn")

# Routers of tests that run beside each other do not ask for the same ports: one that starts again wants its former one.
os.environ["TANDEMN_LOCAL_ROUTER_PORT"] = str(
    18000 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw99").removeprefix("gw"))
)

# A plan asks the hub for sizes that it does not know; tests that mean to have a hub of their own on loopback.
os.environ["HF_HUB_OFFLINE"] = "1"

S3_KEY = "AKIATESTTESTTEST"
S3_SECRET = "not-a-real-secret-but-never-to-be-shown"


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 server over HTTP on a free port; yields its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """The URL of a prefix in a bucket of its own; the environment holds what a client needs to use it."""
    bucket = f"bucket-{secrets.token_hex(4)}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")).close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return f"s3://{bucket}/some/prefix"


def pytest_sessionstart():
    if postgres_server.IS_WANTED and (missing := postgres_server.missing()):
        raise pytest.UsageError(missing)


def pytest_collection_modifyitems(items):
    """What waits for processes begins first: begun last, its long modules run on when all else has ended."""
    items.sort(key=lambda item: "process" not in item.path.parts)


def pytest_sessionfinish():
    postgres_server.end_shared()


@pytest.fixture
def database_url(tmp_path):
    """The URL of an empty database: SQLite, or PostgreSQL where the tests run on that."""
    if postgres_server.IS_WANTED:
        return postgres_server.fresh_database()
    return f"sqlite:///{tmp_path / 'state.db'}"
