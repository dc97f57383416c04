"""What a caller cannot do to a control plane: send too much, too slowly, too often; hold on; inject; learn."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from urllib.parse import quote

import aiohttp
import pytest
from tests.control.plane import served

from tandemn.control import connections as bounds
from tandemn.control.access import bodies, open_requests
from tandemn.control.connections import Connections
from tandemn.control.store import jobs, keys
from tandemn.protocol.jobs import JobState
from tandemn.protocol.keys import Role

PATIENCE_S = 10


@pytest.fixture
async def plane(tmp_path):
    async with served(tmp_path, upload_bytes=100_000) as plane:
        for name, role in (("root", Role.ADMIN), ("alice", Role.USER)):
            await plane.new_key(name, role)
        yield plane


@asynccontextmanager
async def connected(plane):
    """A bare connection."""
    host, _, port = plane.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def ends(reader) -> bytes:
    """What the server says until it closes; that it never does is a failure."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionResetError:
        return b""


def head(plane, method, path, *lines):
    key = f"Authorization: Bearer {plane.keys['alice']}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", key, *lines, "", ""]).encode()


def code(answer):
    return answer["error"]["code"]


async def stored(plane):
    return [name async for name, _ in plane.services.objects.list()]


async def blocks(count, size=1000, pause_s=0.0):
    for _ in range(count):
        yield b"x" * size
        await asyncio.sleep(pause_s)


def form(content):
    with aiohttp.MultipartWriter("form-data") as form:
        form.append("batch").set_content_disposition("form-data", name="purpose")
        part = form.append_payload(aiohttp.AsyncIterablePayload(content))
        part.set_content_disposition("form-data", name="file", filename="x.jsonl")
        return form


async def test_a_json_body_too_large(plane):
    large = b'{"x": "' + b"x" * bodies.JSON_BYTES + b'"}'
    for body in (large, blocks(2000)):  # with a length, and without
        status, answer = await plane.call("POST", "/api/jobs", key=plane.keys["alice"], data=body)
        assert (status, code(answer)) == (413, "body_too_large")


async def test_an_upload_too_large_leaves_nothing(plane):
    key = plane.keys["alice"]
    status, answer = await plane.call("POST", "/v1/files", key=key, data=form(blocks(200)))
    assert (status, code(answer)) == (413, "body_too_large")
    async with connected(plane) as (reader, writer):
        writer.write(
            head(
                plane,
                "POST",
                "/v1/files",
                "Content-Type: multipart/form-data; boundary=x",
                "Content-Length: 100001",
            )
        )
        assert b" 413 " in await ends(reader)  # before a byte of it
    assert await stored(plane) == []
    status, _ = await plane.call("POST", "/v1/files", key=key, data=form(blocks(50)))
    assert status == 200


@pytest.mark.parametrize("path", ["/api/jobs", "/v1/files"])
async def test_a_body_that_stands_still(plane, monkeypatch, path):
    monkeypatch.setattr(bodies, "JSON_S", 0.2)
    monkeypatch.setattr(bodies, "STALL_S", 0.2)
    async with connected(plane) as (reader, writer):
        kind = "multipart/form-data; boundary=x" if path == "/v1/files" else "application/json"
        writer.write(head(plane, "POST", path, f"Content-Type: {kind}", "Content-Length: 1000"))
        writer.write(
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' if "files" in path else b"{"
        )
        said = await ends(reader)
    assert b" 408 " in said
    assert b"body_too_slow" in said
    assert await stored(plane) == []


async def test_an_upload_that_drips(plane, monkeypatch):
    monkeypatch.setattr(bodies, "STALL_S", 0.2)
    monkeypatch.setattr(bodies, "SLOWEST_BYTES_PER_S", 10_000)
    status, answer = await plane.call(
        "POST", "/v1/files", key=plane.keys["alice"], data=form(blocks(100, size=10, pause_s=0.05))
    )
    assert (status, code(answer)) == (408, "body_too_slow")
    assert await stored(plane) == []


async def test_a_key_that_calls_too_often(tmp_path):
    async with served(tmp_path, requests_per_s=2.0, requests_burst=5.0) as plane:
        for name, role in (("root", Role.ADMIN), ("alice", Role.USER), ("bob", Role.USER)):
            await plane.new_key(name, role)
        answers = [await plane.call("GET", "/api/me", key=plane.keys["alice"]) for _ in range(7)]
        assert [status for status, _ in answers[:5]] == [200] * 5
        assert 429 in {status for status, _ in answers}
        headers = {"Authorization": f"Bearer {plane.keys['alice']}"}
        async with plane.session.get(f"{plane.url}/api/me", headers=headers) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert code(await answer.json()) == "rate_limited"
        # Nobody else waits, and the command line on the server's machine never does.
        assert (await plane.call("GET", "/api/me", key=plane.keys["bob"]))[0] == 200
        for _ in range(10):
            assert (await plane.call("GET", "/api/me", key=plane.services.local_key))[0] == 200


async def test_wrong_keys_again_and_again(plane):
    good = plane.keys["alice"]
    assert (await plane.call("GET", "/api/me", key=good))[0] == 200
    seen = set()
    for number in range(60):
        status, answer = await plane.call("GET", "/api/me", key=f"tdm-{number:010x}-guess")
        seen.add((status, code(answer)))
    assert seen == {(401, "invalid_api_key"), (429, "too_many_wrong_keys")}
    # A key that was good before is none of the guesses.
    assert (await plane.call("GET", "/api/me", key=good))[0] == 200


async def test_so_many_requests_of_one_key_at_a_time(plane, monkeypatch):
    monkeypatch.setattr(open_requests, "OPEN_PER_KEY", 3)
    job_id = await plane.new_job("alice")
    waiting = f"/api/jobs/{job_id}?wait_s=1&state=running"
    polls = [asyncio.create_task(plane.call("GET", waiting, key=plane.keys["alice"])) for _ in range(3)]
    while len(plane.services.open_requests._open) < 3:
        await asyncio.sleep(0.01)
    status, answer = await plane.call("GET", "/api/me", key=plane.keys["alice"])
    assert (status, code(answer)) == (429, "too_many_open")
    assert (await plane.call("GET", "/api/me", key=plane.keys["root"]))[0] == 200
    await asyncio.gather(*polls)
    assert (await plane.call("GET", "/api/me", key=plane.keys["alice"]))[0] == 200


@pytest.mark.parametrize("verb", ["revoke", "rotate"])
async def test_a_key_that_is_taken_away_ends_what_is_open(plane, verb):
    job_id = await plane.new_job("alice")
    await plane.new_replica(job_id)
    poll = asyncio.create_task(
        plane.call("GET", f"/api/jobs/{job_id}?wait_s=25&state=running", key=plane.keys["alice"])
    )
    headers = {"Authorization": f"Bearer {plane.keys['alice']}"}
    log = await plane.session.get(f"{plane.url}/api/jobs/{job_id}/logs?follow=true", headers=headers)
    while len(plane.services.open_requests._open) < 2:
        await asyncio.sleep(0.01)
    assert (await plane.call("POST", f"/api/keys/alice/{verb}", key=plane.keys["root"]))[0] == 200
    status, answer = await asyncio.wait_for(poll, PATIENCE_S)
    assert (status, code(answer)) == (401, "key_revoked")
    with pytest.raises(aiohttp.ClientPayloadError):  # the answer had begun: it breaks off
        await asyncio.wait_for(log.read(), PATIENCE_S)
    assert not plane.services.open_requests._open


async def test_a_key_that_another_process_takes_away(plane, monkeypatch):
    monkeypatch.setattr(open_requests, "RECHECK_S", 0.05)
    watching = asyncio.create_task(plane.services.open_requests.watch(plane.services.database))
    job_id = await plane.new_job("alice")
    poll = asyncio.create_task(
        plane.call("GET", f"/api/jobs/{job_id}?wait_s=25&state=running", key=plane.keys["alice"])
    )
    await asyncio.sleep(0.1)

    await plane.services.database.run(keys.revoke, "alice", now=1.0, actor="elsewhere")
    status, _ = await asyncio.wait_for(poll, PATIENCE_S)
    assert status == 401
    watching.cancel()


async def test_who_comes_while_keys_are_looked_at_is_not_cut_off(plane):
    open_now, came = plane.services.open_requests, asyncio.Event()

    class Slow:
        """The database, whose answer is on its way for a while."""

        async def run(self, *look):
            found = await plane.services.database.run(*look)
            await came.wait()
            return found

    path, polls = f"/api/jobs/{await plane.new_job('alice')}?wait_s=2&state=running", []
    for name in ("alice", "root"):
        polls.append(asyncio.create_task(plane.call("GET", path, key=plane.keys[name])))
        while len(open_now._open) < len(polls):
            await asyncio.sleep(0.01)
        if name == "alice":
            looking = asyncio.create_task(open_now.cut_off(Slow()))
            await asyncio.sleep(0.1)
    came.set()
    await looking
    assert [status for status, _ in await asyncio.gather(*polls)] == [200, 200]


async def test_an_admin_may_revoke_the_key_in_its_hand(plane):
    await plane.new_key("other", Role.ADMIN)
    status, answer = await plane.call("POST", "/api/keys/root/revoke", key=plane.keys["root"])
    assert (status, answer["name"]) == (200, "root")
    assert (await plane.call("GET", "/api/me", key=plane.keys["root"]))[0] == 401


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_head_that_never_ends(plane, monkeypatch, sent):
    monkeypatch.setattr(bounds, "HEAD_S", 0.2)
    async with connected(plane) as (reader, writer):
        writer.write(sent)
        assert await ends(reader) == b""


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /", b"x" * 1024),
        (b"GET / HTTP/1.1\r\n", b"X-A: " + b"x" * 1017 + b"\r\n"),
        (b"GET / HTTP/1.1\r\nX-A: ", b"x" * 1024),
        (
            b"POST /api/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X-T: " + b"x" * 1017 + b"\r\n",
        ),
        (b"POST /api/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x" * 1024),
    ],
    ids=["url", "headers", "one header", "trailers", "chunk extension"],
)
async def test_a_head_without_end_is_not_kept(plane, start, more):
    async with connected(plane) as (reader, writer):
        writer.write(start)
        try:
            for _ in range(1000):
                writer.write(more)
                await writer.drain()
        except ConnectionError:
            return
        said = await ends(reader)
        assert not said or said.startswith(b"HTTP/1.1 4")


async def test_a_flood_of_pipelined_requests(plane):
    async with connected(plane) as (reader, writer):
        writer.write(head(plane, "GET", "/api/me") * 500)
        said = await ends(reader)
    assert said.count(b"HTTP/1.1 200") < 100


async def test_so_many_connections(tmp_path):
    async with served(tmp_path, Connections(most=4, most_per_address=2)) as plane:
        async with (
            connected(plane),
            connected(plane),
            connected(plane),
            connected(plane),
            connected(plane) as (reader, _),
        ):
            assert await ends(reader) == b""
        # Their ends are noticed, and there is room again.
        for _ in range(200):
            async with connected(plane) as (reader, writer):
                writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 404 " in await ends(reader):
                    return
        raise AssertionError("no room")


def test_an_address_has_its_share_of_connections():
    counted = Connections(most=4, most_per_address=2)
    assert [counted.enter("203.0.113.7") for _ in range(3)] == [True, True, False]
    assert [counted.enter("127.0.0.1") for _ in range(3)] == [True, True, False]
    counted.leave("203.0.113.7")
    assert counted.enter("203.0.113.8")


async def test_a_reader_that_does_not_read(plane, monkeypatch):
    monkeypatch.setattr(bounds, "READER_S", 0.3)
    file_id = await plane.new_file("alice", b"x" * 20_000_000)
    async with connected(plane) as (reader, writer):
        reader._limit = 1  # stop reading at once
        writer.write(head(plane, "GET", f"/v1/files/{file_id}/content"))
        while not plane.services.open_requests._open:
            await asyncio.sleep(0.01)
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while plane.services.open_requests._open:
            assert asyncio.get_running_loop().time() < end, "the answer is held for ever"
            await asyncio.sleep(0.05)


async def test_a_files_name_injects_nothing(plane):
    key = plane.keys["alice"]
    for name in (
        'a"; x="b.jsonl',
        "日本語.jsonl",
        "a\\..\\b.jsonl",
        "../../etc/passwd",
        "x" * 5000,
        "ü.jsonl",
    ):
        data = aiohttp.FormData({"purpose": "batch"})
        data.add_field("file", b"{}\n", filename=name, content_type="application/jsonl")
        status, file = await plane.call("POST", "/v1/files", key=key, data=data)
        if status == 400:
            assert code(file) == "invalid_request"
            continue
        assert "/" not in file["filename"]
        headers = {"Authorization": f"Bearer {key}"}
        async with plane.session.get(f"{plane.url}/v1/files/{file['id']}/content", headers=headers) as answer:
            assert answer.status == 200
            assert answer.content_disposition is not None
            assert answer.content_disposition.filename == file["filename"]
            assert await answer.read() == b"{}\n"


async def test_a_files_name_in_other_letters(plane):
    """As some clients send it: not encoded."""
    body = (
        '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--x\r\nContent-Disposition: form-data; name="file"; filename="日本 ü.jsonl"\r\n\r\n{}\n\r\n--x--\r\n'
    )
    key, kind = plane.keys["alice"], {"Content-Type": "multipart/form-data; boundary=x"}
    status, file = await plane.call("POST", "/v1/files", key=key, data=body.encode(), headers=kind)
    assert (status, file["filename"]) == (200, "日本 ü.jsonl")
    headers = {"Authorization": f"Bearer {key}"}
    async with plane.session.get(f"{plane.url}/v1/files/{file['id']}/content", headers=headers) as answer:
        assert answer.status == 200
        assert quote("日本 ü.jsonl") in answer.headers["Content-Disposition"]


@pytest.mark.parametrize(
    "name", ["%00", "a%00b", "%0d%0aX-Injected:1", "..%2f..%2fetc", "%ff%fe", "a%2f..%2fb", "%F0%9F%98%80"]
)
async def test_a_path_injects_nothing(plane, name):
    key = plane.keys["alice"]
    job_id = await plane.new_job("alice")
    replica_id, token = await plane.new_replica(job_id)
    for path, shown in (
        ("/v1/files/{}", key),
        ("/v1/files/{}/content", key),
        ("/v1/batches/{}", key),
        ("/api/jobs/{}", key),
        ("/api/jobs/" + job_id + "/logs?replica={}", key),
        ("/api/jobs?after={}", key),
        ("/api/jobs?state={}", key),
        ("/v1/files?after={}&purpose={}", key),
        ("/api/deployments/{}", key),
        (f"/api/replicas/{replica_id}/objects/jobs/{job_id}/parts/" + "{}", token),
        ("/api/replicas/{}/input", token),
        ("/api/events?actor={}", plane.keys["root"]),
        ("/api/keys/{}/revoke", plane.keys["root"]),
    ):
        method = "POST" if path.endswith("revoke") else "GET"
        async with connected(plane) as (reader, writer):
            line = f"{method} {path.replace('{}', name)} HTTP/1.1\r\nHost: x\r\n"
            writer.write(f"{line}Authorization: Bearer {shown}\r\nConnection: close\r\n\r\n".encode())
            said = await ends(reader)
        status = int(said.split()[1])
        assert status in {200, 400, 401, 404}, said
        assert b"X-Injected" not in said.split(b"\r\n\r\n")[0]


async def test_a_replica_reads_and_writes_its_jobs_objects_only(plane):
    mine, theirs = await plane.new_job("alice"), await plane.new_job("root")
    replica_id, token = await plane.new_replica(mine)
    base = f"/api/replicas/{replica_id}/objects"
    await plane.services.objects.put(f"jobs/{theirs}/parts/x", b"secret")
    for name in (
        f"jobs/{theirs}/parts/x",
        f"jobs/{mine}/parts/../../{theirs}/parts/x",
        f"jobs/{mine}/output.jsonl",
        "files/x",
        f"jobs/{mine}/partsx",
    ):
        for method in ("GET", "PUT"):
            status, answer = await plane.call(method, f"{base}/{name}", key=token, data=b"mine")
            assert (status, code(answer)) == (401, "object_denied") or status in {400, 404}, (method, name)
    assert await plane.services.objects.get(f"jobs/{theirs}/parts/x") == b"secret"
    # The token dies with the job, but for the goodbye of a replica that is told to stop.
    assert (await plane.call("PUT", f"{base}/jobs/{mine}/parts/x", key=token, data=b"mine"))[0] == 204
    await plane.services.database.run(jobs.change, mine, state=JobState.CANCELLED.value)
    for method, path, refusal in (
        ("PUT", f"{base}/jobs/{mine}/parts/x", "job_ended"),
        ("GET", f"{base}/jobs/{mine}/parts/x", "lease_lost"),
        ("GET", f"/api/replicas/{replica_id}/input", "lease_lost"),
    ):
        status, answer = await plane.call(method, path, key=token, data=b"more")
        assert (status, code(answer)) == (409, refusal), (method, path)


async def test_errors_tell_no_internals(plane):
    job_id = await plane.new_job("alice")
    plane.redis.stop()
    told = {}
    for name in ("alice", "root"):
        status, answer = await plane.call(
            "POST", f"/api/jobs/{job_id}/add", key=plane.keys[name], json={"replicas": 1}
        )
        assert (status, code(answer)) == (503, "queue_unavailable")
        told[name] = json.dumps(answer)
    assert "the control plane's queue does not answer" in told["alice"]
    assert "redis" not in told["alice"].lower()
    assert told["alice"] != told["root"]


async def test_users_requests_do_not_reach_into_the_server(plane):
    file_id = await plane.new_file("alice")
    for spec, refusal in (
        ({"model": "/etc/passwd", "input_file_id": file_id}, "model_not_allowed"),
        ({"model": "demo/tiny", "input_url": "s3://somebody/x.jsonl"}, "input_url_not_allowed"),
        (
            {"model": "demo/tiny", "input_file_id": file_id, "engine_args": ["--journal", "/x"]},
            "engine_argument_not_allowed",
        ),
    ):
        for path in ("/api/jobs", "/api/plans"):
            status, answer = await plane.call(
                "POST", path, key=plane.keys["alice"], json={"slo_s": 60, **spec}
            )
            assert (status, code(answer)) == (403, refusal), path
    spec = {"model": "../x", "gpu": "cpu", "service_name": "x"}
    status, answer = await plane.call(
        "POST", "/api/deployments", key=plane.keys["alice"], json={"spec": spec}
    )
    assert (status, code(answer)) == (403, "model_not_allowed")
