"""Log lines say whose job and replica they are about, and keep their format."""

from __future__ import annotations

import errno
import json
import sys

import pytest
import structlog
from tests.control.plane import served

from tandemn import logs
from tandemn.control.access.gate import Gate
from tandemn.settings import LogFormat


class Full:
    """A stream on a disk that has no room for a while."""

    def __init__(self):
        self.is_full, self.lines = True, []

    def write(self, text):
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lines.append(text)
        return len(text)

    def flush(self):
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def configured():
    yield logs.configure
    structlog.reset_defaults()


async def chatty(scope, receive, send):
    """An application that logs a line of every request that the gate lets in."""
    structlog.get_logger().info("was let in", path=scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def asked(gate, path, key):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    await gate(scope, receive, send)
    assert sent[0]["status"] == 200, sent


async def test_every_line_of_a_request_says_whose_it_is(tmp_path, configured, capsys):
    async with served(tmp_path) as plane:
        job_id = await plane.new_job("local")
        replica_id, token = await plane.new_replica(job_id)
        gate = Gate(chatty, plane.services)
        configured(LogFormat.JSON)
        capsys.readouterr()
        await asked(gate, f"/api/jobs/{job_id[:-3]}", plane.services.local_key)
        await asked(gate, f"/api/replicas/{replica_id}/input", token)
        await asked(gate, "/api/jobs", plane.services.local_key)
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    of_job, of_replica, of_none = [line for line in said if line["event"] == "was let in"]
    assert (of_job["job_id"], of_job.get("replica_id")) == (job_id, None)
    assert (of_replica["job_id"], of_replica["replica_id"]) == (job_id, replica_id)
    assert "job_id" not in of_none
    assert {"timestamp", "level", "event"} <= set(of_none)


def test_logfmt_begins_alike_and_has_no_empty_fields(configured, capsys):
    configured(LogFormat.LOGFMT)
    log = structlog.get_logger()
    log.info("serving", url="http://x")
    log.warning("not paced", job_id="job-1", error="a b\nc")
    log.debug("not shown")
    first, second = capsys.readouterr().err.splitlines()
    assert first.partition(" ")[2] == "level=info event=serving url=http://x"
    assert second.partition(" ")[2] == 'level=warning event="not paced" job_id=job-1 error="a b\\nc"'


def test_a_full_disk_costs_lines_and_nothing_else(configured, monkeypatch):
    stream = Full()
    monkeypatch.setattr(sys, "stderr", stream)
    configured(LogFormat.LOGFMT)
    structlog.get_logger().warning("is lost")
    stream.is_full = False
    structlog.get_logger().warning("is written")
    assert "is written" in "".join(stream.lines)
