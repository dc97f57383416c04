"""The IAM policy of deploy/aws is what our object store asks of S3: all of it is enough, and nothing of it is too much."""

from __future__ import annotations

import json
import secrets
import urllib.request
from pathlib import Path

import boto3
import pytest

from tandemn.errors import NotFound, TandemnError
from tandemn.objects import ObjectStore
from tandemn.objects.bucket import PART_BYTES

POLICY = json.loads((Path(__file__).parents[2] / "deploy" / "aws" / "objects-policy.json").read_text())
ACTIONS = sorted(
    action
    for each in POLICY["Statement"]
    for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
)


async def blocks(count, error=None):
    for _ in range(count):
        yield bytes(PART_BYTES)
    if error is not None:
        raise error


async def whole_life(store):
    """Every kind of call, each of them once: what it reads was written by it."""
    await store.put("a/small", b"small")
    await store.put_stream("a/large", blocks(2))
    assert await store.get("a/small") == b"small"
    assert await store.concat("b/copy", ["a/small"]) == 5
    assert await store.concat("b/both", ["a/small", "a/large"]) == 5 + 2 * PART_BYTES
    with pytest.raises(ZeroDivisionError):
        await store.put_stream("b/broken", blocks(2, ZeroDivisionError()))
    # Where names may not be listed, S3 does not say of an object that it is not there.
    with pytest.raises(NotFound):
        await store.get("a/none")
    assert [name async for name, _ in store.list("a")] == ["a/large", "a/small"]
    await store.delete("a/small")
    await store.delete_prefix("a")
    await store.delete_prefix("b")
    assert [name async for name, _ in store.list()] == []


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """Yields a function: a store of a user who may do what is given, and nothing else; it is S3 that refuses."""

    def client(service, key):
        return boto3.client(
            service,
            endpoint_url=s3_server,
            region_name="us-east-1",
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
        )

    def user(actions):
        anyone = client("iam", {"AccessKeyId": "x", "SecretAccessKey": "x"})
        user = f"user-{secrets.token_hex(4)}"
        anyone.create_user(UserName=user)
        document = json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}],
            }
        )
        anyone.put_user_policy(UserName=user, PolicyName="given", PolicyDocument=document)
        return anyone.create_access_key(UserName=user)["AccessKey"]

    def enforce(after):
        request = urllib.request.Request(
            f"{s3_server}/moto-api/reset-auth",
            data=str(after).encode(),
            headers={"Content-Type": "text/plain"},
            method="POST",
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"]

    before = []

    def store(actions):
        name = f"bucket-{secrets.token_hex(4)}"
        admin = user(["s3:*"])
        key = user(actions)
        client("s3", admin).create_bucket(Bucket=name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        before.append(enforce(0))
        opened = ObjectStore.open(f"s3://{name}/some/prefix")
        uploads = client("s3", admin).list_multipart_uploads
        return opened, lambda: uploads(Bucket=name).get("Uploads", [])

    yield store
    enforce(before[0])


async def test_the_policy_is_enough(bucket):
    store, open_uploads = bucket(ACTIONS)
    await whole_life(store)
    assert open_uploads() == []


@pytest.mark.parametrize("action", ACTIONS)
async def test_nothing_of_it_is_too_much(action, bucket):
    store, open_uploads = bucket([each for each in ACTIONS if each != action])
    if action == "s3:AbortMultipartUpload":
        # What cannot be aborted is left open, and nobody is told: the error that broke the upload off is.
        await whole_life(store)
        assert open_uploads()
        return
    with pytest.raises(TandemnError) as caught:
        await whole_life(store)
    assert caught.value.code == "objects_denied"
