"""The call itself: bounded in time and size, against a real server that does what it should not."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from aiohttp.test_utils import TestServer
from tests.fakes.koi_service import GOOD, Service
from tests.koi.test_recommendation import NOTHING, spec

from tandemn.koi.client import KoiClient, Refused
from tandemn.koi.recommendation import Recommendation, Unused, question, read_answer

BODY = (
    question(spec(), NOTHING, job_id=None, event_id="e", requests=1, input_tokens=1, output_tokens=1, now=0.0)
    .model_dump_json(exclude_none=True)
    .encode()
)
#: For a Koi that never ends its answer, and for one that does.
SHORT_S, LONG_S = 1.0, 30.0


@pytest.fixture
async def koi(tmp_path):
    import json

    service = Service(tmp_path)
    server = TestServer(service.app())
    await server.start_server()

    class Koi:
        url = str(server.make_url("")).rstrip("/")

        async def post(self, path="/decide", limit_s=LONG_S, **behaviour):
            (tmp_path / "behaviour.json").write_text(json.dumps(behaviour))
            async with KoiClient(self.url, limit_s) as client:
                return await client.post(path, BODY)

        def paths(self):
            return [
                json.loads(line)["path"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()
            ]

    yield Koi()
    await server.close()


async def test_a_good_answer(koi):
    found = read_answer(await koi.post(), spec())
    assert isinstance(found, Recommendation)
    assert found.decision_id == GOOD["decision_id"]


@pytest.mark.parametrize(
    ("mode", "code", "words"),
    [
        ("hang", "koi_timeout", "1 s"),
        ("slow", "koi_timeout", "1 s"),
        ("500", "koi_refused", "500"),
        ("redirect", "koi_refused", "not followed"),
        ("huge", "koi_bad_answer", "longer"),
        ("bomb", "koi_bad_answer", "compressed"),
    ],
)
async def test_an_answer_that_is_of_no_use(koi, mode, code, words):
    began = time.monotonic()
    limit_s = SHORT_S if code == "koi_timeout" else LONG_S
    found = await koi.post(decide=mode, limit_s=limit_s)
    assert isinstance(found, Unused)
    assert found.code == code
    assert words in found.reason
    # Its limit, and much for a busy machine: a hang would take an hour.
    assert time.monotonic() - began < limit_s + 20
    assert "/elsewhere" not in koi.paths()


async def test_a_refusal_is_told_with_its_words_and_whether_it_is_final(koi):
    found = await koi.post("/job/started")
    assert isinstance(found, Refused)
    assert found.is_final
    assert "422" in found.reason
    assert not Refused(code="koi_refused", reason="", status=503).is_final
    assert not Refused(code="koi_refused", reason="", status=429).is_final


async def test_nobody_there_and_somebody_who_is_no_web_server():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with KoiClient(f"http://127.0.0.1:{taken.getsockname()[1]}", LONG_S) as client:
            found = await client.post("/decide", BODY)
    assert isinstance(found, Unused)
    assert found.code == "koi_unreachable"

    async def babble(_reader, writer):
        writer.write(b"220 mail.example ESMTP\r\n\x00\xff" * 100)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server, KoiClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", LONG_S) as client:
        found = await client.post("/decide", BODY)
    assert isinstance(found, Unused)
    assert found.code == "koi_unreachable"
    assert found.reason.isprintable()
