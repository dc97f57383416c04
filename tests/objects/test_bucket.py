from __future__ import annotations

import re
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tandemn.errors import Conflict, InvalidInput, NotFound, StoreUnavailable
from tandemn.objects import ObjectStore, bucket

MIB = 1024 * 1024


@contextmanager
def answering(status: int, code: str, *, on: str):
    """An S3 server that starts uploads, and answers requests whose line matches `on` with an error."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            line = f"{self.command} {self.path}"
            seen.append(line)
            if re.search(on, line):
                self.send(status, f"<Error><Code>{code}</Code><Key>secret-key</Key></Error>")
            elif "uploads" in self.path:
                self.send(
                    200,
                    "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
                )
            else:
                self.send(204 if self.command == "DELETE" else 200, "")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815 - http.server names them

        def send(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("etag", '"1"')
            self.end_headers()
            if self.command != "HEAD":
                with suppress(BrokenPipeError):  # a client may hang up once one part failed
                    self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(bucket, "RETRIES", 0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRETSECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return monkeypatch


async def blocks(count: int):
    for _ in range(count):
        yield b"x" * MIB


@pytest.mark.parametrize("failing", ["partNumber=2", "POST .*uploadId"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", (InvalidInput, "objects_denied")),
        (400, "QuotaExceeded", (StoreUnavailable, "store_full")),
        (507, "XMinioStorageFull", (StoreUnavailable, "store_full")),
        (400, "Whatever", (StoreUnavailable, "store_unavailable")),
        (404, "NoSuchBucket", (NotFound, "bucket_not_found")),
    ],
)
async def test_an_upload_that_fails_is_aborted_and_explained(environment, failing, status, code, expected):
    with answering(status, code, on=failing) as (url, seen):
        environment.setenv("AWS_ENDPOINT_URL", url)
        store = ObjectStore.open("s3://bkt")
        with pytest.raises(expected[0]) as failure:
            await store.put_stream("big", blocks(30))
    assert failure.value.code == expected[1]
    assert "secret" not in str(failure.value)
    assert "s3://bkt" in str(failure.value)
    assert "DELETE /bkt/big?uploadId=1" in seen


async def test_every_call_says_that_access_is_denied(environment):
    with answering(403, "InvalidAccessKeyId", on=".") as (url, _):
        environment.setenv("AWS_ENDPOINT_URL", url)
        store = ObjectStore.open("s3://user:password@bkt/prefix")
        for call in (
            store.put("a", b""),
            store.get("a"),
            store.size("a"),
            store.delete("a"),
            store.delete_prefix("a"),
            store.concat("b", ["a"]),
            store.exists("a"),
            anext(store.list("a")),
        ):
            with pytest.raises(InvalidInput) as failure:
                await call
            assert failure.value.code == "objects_denied"
            assert "password" not in str(failure.value)
            assert "AKIA" not in str(failure.value)


async def test_a_silent_port_is_unavailable(environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable) as failure:
        await ObjectStore.open("s3://bkt").get("a")
    assert failure.value.code == "store_unavailable"


async def test_plain_http_is_only_for_endpoints_that_say_so(environment):
    environment.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:1")
    with pytest.raises(StoreUnavailable):
        await ObjectStore.open("s3://bkt").get("a")


async def test_a_missing_bucket_is_named(s3_url):
    store = ObjectStore.open("s3://no-such-bucket-here/prefix")
    for call in (store.put("a", b""), anext(store.list())):
        with pytest.raises(NotFound) as failure:
            await call
        assert failure.value.code == "bucket_not_found"
        assert "no-such-bucket-here" in str(failure.value)


async def test_an_object_replaced_while_it_is_read_is_noticed(s3_url):
    store = ObjectStore.open(s3_url)
    await store.put_stream("a", blocks(40))
    stream = store.stream("a")
    await anext(stream)
    await store.put_stream("a", blocks(39))
    with pytest.raises(Conflict) as failure:
        async for _ in stream:
            pass
    assert failure.value.code == "object_changed"
