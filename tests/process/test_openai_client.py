"""The official client, unchanged, against the real control plane, runners and engine."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
import pytest
from tests.process import traces
from tests.process.house import PATIENCE_S, House, chat_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types import Batch

ENDED = {"completed", "failed", "expired", "cancelled"}
ENDPOINT: Any = "/v1/chat/completions"


@pytest.fixture(scope="module")
def base_url(shared_house: House) -> str:
    assert shared_house.run("server", "start").returncode == 0
    url = json.loads((shared_house.home / "server.json").read_text())["url"]
    return f"{url}/v1"


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Batches that run beside each other while the tests look at one after the other."""

    good: Batch
    slow: Batch
    short: Batch
    bad_lines: Batch
    mixed: Batch
    nameless: Batch
    other_endpoint: Batch


GOOD = chat_lines(40, model="demo/tiny")
#: Minutes of work for one replica: 500 requests of 3,000 tokens.
LONG = "".join(
    json.dumps(
        {
            "custom_id": f"slow-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "demo/tiny",
                "messages": [{"role": "user", "content": str(number)}],
                # The first ones are answered at once.
                "max_tokens": 3 if number < 12 else 3000,
                "ignore_eos": True,
            },
        }
    )
    + "\n"
    for number in range(500)
)
BAD = GOOD + "nonsense\n" + GOOD.splitlines()[3] + "\n"


def uploaded(client: openai.OpenAI, content: str, name: str = "batch.jsonl") -> str:
    return client.files.create(file=(name, content.encode()), purpose="batch").id


def created(client: openai.OpenAI, content: str, **options: Any) -> Batch:
    options = {"completion_window": "24h", "endpoint": ENDPOINT} | options
    return client.batches.create(input_file_id=uploaded(client, content), **options)


@pytest.fixture(scope="module")
def submitted(client: openai.OpenAI) -> Submitted:
    mixed = chat_lines(2, model="demo/tiny") + chat_lines(2, model="demo/other", prefix="o")
    return Submitted(
        slow=created(client, LONG, metadata={"for": "cancelling"}),
        good=created(client, GOOD, completion_window="90m", metadata={"customer": "one", "run": "7"}),
        short=created(client, LONG, completion_window="2s"),
        bad_lines=created(client, BAD),
        mixed=created(client, mixed),
        nameless=created(client, chat_lines(2)),
        other_endpoint=created(client, GOOD, endpoint="/v1/embeddings"),
    )


def polled(client: openai.OpenAI, batch: Batch, *states: str) -> Batch:
    """Retrieve until the batch has ended, or is in one of the states."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        batch = client.batches.retrieve(batch.id)
        if batch.status in (states or ENDED):
            return batch
        assert batch.status not in ENDED, batch
        time.sleep(0.2)
    raise AssertionError(batch)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def errors_of(batch: Batch) -> list[tuple[int | None, str | None]]:
    assert batch.errors is not None
    assert batch.errors.data is not None
    return [(error.line, error.code) for error in batch.errors.data]


def test_a_new_batch_looks_like_openais(client, submitted):
    batch = submitted.good
    assert batch.object == "batch"
    assert batch.endpoint == "/v1/chat/completions"
    assert batch.completion_window == "90m"
    assert batch.metadata == {"customer": "one", "run": "7"}
    assert batch.expires_at == batch.created_at + 90 * 60
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    assert batch.errors is None
    assert client.files.retrieve(batch.input_file_id).filename == "batch.jsonl"


def test_file_lifecycle(client, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text(GOOD)
    by_path = client.files.create(file=path, purpose="batch")
    with path.open("rb") as source:
        by_handle = client.files.create(file=source, purpose="batch")
    by_bytes = client.files.create(file=GOOD.encode(), purpose="batch")

    assert (by_path.object, by_path.purpose, by_path.bytes) == ("file", "batch", len(GOOD.encode()))
    assert by_path.filename == by_handle.filename == "requests.jsonl"
    assert client.files.retrieve(by_bytes.id) == by_bytes
    assert client.files.wait_for_processing(by_bytes.id).status == "processed"
    assert client.files.content(by_path.id).read() == path.read_bytes()
    with client.files.with_streaming_response.content(by_path.id) as answer:
        assert b"".join(answer.iter_bytes()) == path.read_bytes()

    mine = [by_path.id, by_handle.id, by_bytes.id]
    for file_id in mine:
        deleted = client.files.delete(file_id)
        assert (deleted.id, deleted.object, deleted.deleted) == (file_id, "file", True)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file_id)
        with pytest.raises(openai.NotFoundError):
            client.files.content(file_id)
        with pytest.raises(openai.NotFoundError):
            client.files.delete(file_id)


def test_files_are_listed_in_pages_and_order(client):
    # Outputs of jobs that other tests left behind may come between, hence the purpose.
    mine = [uploaded(client, GOOD, f"{number}.jsonl") for number in range(5)]
    newest = client.files.list(limit=2, purpose="batch")
    assert [file.id for file in newest.data] == mine[:2:-1]
    assert newest.has_more
    assert newest.has_next_page()
    assert [file.id for file in newest.get_next_page().data] == mine[2:0:-1]
    every = [file.id for file in client.files.list(limit=2, purpose="batch")]
    assert every[:5] == mine[::-1]
    assert len(every) == len(set(every))
    assert [file.id for file in client.files.list(order="asc", limit=3, purpose="batch")] == every[::-1]
    assert set(mine) <= {file.id for file in client.files.list(purpose="batch")}
    assert [file.id for file in client.files.list(purpose="fine-tune")] == []
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-unknown")


def test_a_field_may_follow_the_file(client, base_url):
    """The client sends its fields first; others, curl among them, send them as they are given."""
    boundary = "b0undary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="späte/ölig.jsonl"\r\n\r\n{GOOD}\r\n',
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}--\r\n',
    ]
    request = urllib.request.Request(
        f"{base_url}/files",
        data="".join(parts).encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request) as answer:
        file_id = json.load(answer)["id"]
    assert client.files.content(file_id).text == GOOD
    assert client.files.retrieve(file_id).filename == "ölig.jsonl"


def test_bad_lines_fail_the_batch(client, submitted):
    batch = polled(client, submitted.bad_lines)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.failed_at >= batch.created_at
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert errors_of(batch) == [(41, "invalid_json"), (42, "duplicate_custom_id")]
    assert all(error.message for error in batch.errors.data or [])
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    # The file is the user's own: it is kept.
    assert client.files.retrieve(batch.input_file_id).id == batch.input_file_id


def test_lines_must_agree(client, submitted):
    assert errors_of(polled(client, submitted.mixed)) == [(None, "mixed_models")]
    assert errors_of(polled(client, submitted.nameless)) == [(None, "missing_model")]
    assert errors_of(polled(client, submitted.other_endpoint)) == [(None, "endpoint_mismatch")]


def refusal(error: type[openai.APIStatusError], call: Any, **arguments: Any) -> tuple[str | None, str | None]:
    """Call, expect the error, and return its code and the parameter at fault."""
    with pytest.raises(error) as refused:
        call(**arguments)
    body: Any = refused.value.body
    assert set(body) >= {"message", "type", "param", "code"}
    assert body["message"]
    return refused.value.code, refused.value.param


def test_refusals(client, submitted):
    file_id = submitted.good.input_file_id
    good = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    create = client.batches.create
    bad_request = openai.BadRequestError
    assert refusal(bad_request, create, **good | {"input_file_id": "file-unknown"}) == (
        "invalid_input_file_id",
        "input_file_id",
    )
    assert refusal(bad_request, create, **good | {"endpoint": "/v1/images"}) == ("invalid_value", "endpoint")
    assert refusal(bad_request, create, **good | {"completion_window": "soon"}) == (
        "invalid_completion_window",
        "completion_window",
    )
    assert (
        refusal(bad_request, create, **good | {"completion_window": "0h"})[0] == "invalid_completion_window"
    )
    assert (
        refusal(bad_request, create, **good | {"completion_window": "900d"})[0] == "invalid_completion_window"
    )
    many = {str(number): "" for number in range(17)}
    assert refusal(bad_request, create, **good | {"metadata": many})[1] == "metadata"
    assert refusal(bad_request, create, **good | {"metadata": {"k" * 65: "v"}})[0] == "invalid_value"
    assert refusal(bad_request, create, **good | {"metadata": {"k": "v" * 513}})[0] == "invalid_value"
    assert refusal(bad_request, client.files.create, file=b"{}", purpose="fine-tune") == (
        "invalid_purpose",
        "purpose",
    )
    not_found = openai.NotFoundError
    assert refusal(not_found, client.batches.retrieve, batch_id="batch_unknown") == (
        "batch_not_found",
        "batch_id",
    )
    assert refusal(not_found, client.batches.cancel, batch_id="batch_unknown") == (
        "batch_not_found",
        "batch_id",
    )
    assert refusal(not_found, client.batches.list, after="batch_unknown")[0] == "batch_not_found"
    assert refusal(not_found, client.files.retrieve, file_id="file-unknown") == ("file_not_found", "id")
    assert refusal(bad_request, client.batches.list, limit=101) == ("invalid_value", "limit")


def test_output_in_input_order(client, submitted):
    batch = polled(client, submitted.good)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (40, 40, 0)
    assert batch.model == "demo/tiny"
    assert batch.error_file_id is None
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    lines = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"r{number}" for number in range(40)]
    assert len({line["id"] for line in lines}) == 40
    for line in lines:
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        assert line["response"]["body"]["object"] == "chat.completion"
    usage = batch.usage
    assert usage is not None
    used = [line["response"]["body"]["usage"] for line in lines]
    assert usage.input_tokens == sum(each["prompt_tokens"] for each in used)
    assert usage.output_tokens == sum(each["completion_tokens"] for each in used)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens

    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.bytes == len(client.files.content(output.id).read())
    assert output.id in {file.id for file in client.files.list(purpose="batch_output")}
    assert (
        refusal(openai.ConflictError, client.batches.cancel, batch_id=batch.id)[0] == "batch_not_cancellable"
    )


def test_cancelled_midway(client, submitted):
    batch = submitted.slow
    polled(client, batch, "in_progress")
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        counts = client.batches.retrieve(batch.id).request_counts
        assert counts is not None
        if counts.completed >= 12:
            break
        time.sleep(0.2)
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status in {"cancelling", "finalizing", "cancelled"}
    assert cancelling.cancelling_at is not None

    batch = polled(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert batch.metadata == {"for": "cancelling"}
    counts = batch.request_counts
    assert counts is not None
    assert counts.total == 500
    assert counts.completed >= 12
    assert counts.completed + counts.failed == 500
    answers = lines_of(client, batch.output_file_id)
    refused = lines_of(client, batch.error_file_id)
    assert len(answers) == counts.completed
    assert len(refused) == counts.failed
    assert {line["error"]["code"] for line in refused} == {"batch_cancelled"}
    assert {line["response"] for line in refused} == {None}
    assert in_order(answers)
    assert in_order(refused)
    assert sorted(number_of(line) for line in answers + refused) == list(range(500))
    assert (
        refusal(openai.ConflictError, client.batches.cancel, batch_id=batch.id)[0] == "batch_not_cancellable"
    )


def number_of(line: dict[str, Any]) -> int:
    return int(line["custom_id"].removeprefix("slow-"))


def in_order(lines: list[dict[str, Any]]) -> bool:
    numbers = [number_of(line) for line in lines]
    return numbers == sorted(set(numbers))


def test_expired(client, submitted):
    batch = polled(client, submitted.short)
    assert batch.status == "expired"
    assert batch.completion_window == "2s"
    assert batch.expired_at is not None
    assert batch.expires_at is not None
    assert batch.expired_at >= batch.expires_at
    assert batch.cancelled_at is None
    counts = batch.request_counts
    assert counts is not None
    refused = lines_of(client, batch.error_file_id)
    assert len(refused) == counts.failed > 0
    assert counts.completed + counts.failed == counts.total == 500
    assert {line["error"]["code"] for line in refused} == {"batch_expired"}


def test_batches_are_listed_in_pages(client, submitted):
    every = [batch.id for batch in client.batches.list()]
    assert every == [batch.id for batch in client.batches.list(limit=2)]
    first = client.batches.list(limit=3)
    assert first.has_more
    assert [batch.id for batch in first.data] == every[:3]
    assert len(every) == len(set(every)) >= 7
    assert every.index(submitted.good.id) < every.index(submitted.slow.id)


async def test_the_asynchronous_client(base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        file = await client.files.create(file=("a.jsonl", GOOD.encode()), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        await client.batches.cancel(batch.id)
        assert batch.id in [each.id async for each in client.batches.list(limit=2)]
        assert (await client.files.content(file.id)).text == GOOD
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_unknown")
        while (batch := await client.batches.retrieve(batch.id)).status not in ENDED:
            time.sleep(0.1)
        assert batch.status == "cancelled", batch


def test_an_input_that_is_being_read_is_kept(client):
    batch = created(client, LONG)
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    client.batches.cancel(batch.id)
    polled(client, batch)
    assert client.files.delete(batch.input_file_id).deleted


def test_nothing_of_all_that_runs_on(shared_house, client, submitted):
    for batch in client.batches.list():
        polled(client, batch)
    traces.nothing_runs(shared_house)
