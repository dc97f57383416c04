"""Every bad input, through the command line and the real control plane: named, refused, and nothing left of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.process import traces
from tests.process.house import House, chat_lines, read_lines

if TYPE_CHECKING:
    from pathlib import Path

GOOD = chat_lines(1).encode()
LINE: dict[str, Any] = json.loads(GOOD)


def line(**changes: Any) -> bytes:
    """A good line with some of it changed; None takes the field away."""
    changed = {"custom_id": "changed"} | {k: v for k, v in changes.items() if v is not None}
    fields = {k: v for k, v in (LINE | changed).items() if changes.get(k, "") is not None}
    return json.dumps(fields).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    content: bytes
    line: int | None
    code: str
    total: int = 1


CHAT_BODY = {"messages": [{"role": "user", "content": "x"}]}
CASES = {
    "not JSON": Case(content=GOOD + b"hello\n", line=2, code="invalid_json"),
    "cut off": Case(content=GOOD + GOOD[:50], line=2, code="invalid_json"),
    "not an object": Case(content=GOOD + b"[1, 2]\n", line=2, code="not_an_object"),
    "no custom_id": Case(content=GOOD + line(custom_id=None), line=2, code="missing_custom_id"),
    "number as custom_id": Case(content=GOOD + line(custom_id=7), line=2, code="invalid_custom_id"),
    "repeated custom_id": Case(content=GOOD + line() + GOOD, line=3, code="duplicate_custom_id"),
    "wrong url": Case(content=GOOD + line(url="/v1/responses"), line=2, code="invalid_url"),
    "mixed urls": Case(
        content=GOOD + line(url="/v1/completions", body={"prompt": "x"}), line=2, code="mixed_urls"
    ),
    "GET": Case(content=GOOD + line(method="GET"), line=2, code="invalid_method"),
    "no body": Case(content=GOOD + line(body=None), line=2, code="missing_body"),
    "no messages": Case(content=GOOD + line(body={"max_tokens": 3}), line=2, code="missing_messages"),
    "empty messages": Case(content=GOOD + line(body={"messages": []}), line=2, code="invalid_messages"),
    "30 MB line": Case(
        content=GOOD + line(body=CHAT_BODY | {"user": "x" * 30_000_000}), line=2, code="line_too_long"
    ),
    "50,000 brackets": Case(
        content=GOOD + b"[" * 50_000 + b"]" * 50_000 + b"\n", line=2, code="nesting_too_deep"
    ),
    "deep in the body": Case(
        content=GOOD
        + line(body=CHAT_BODY | {"tools": 0}).replace(b": 0}", b": " + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        line=2,
        code="nesting_too_deep",
    ),
    "NaN": Case(
        content=GOOD + line(body=CHAT_BODY | {"temperature": float("nan")}), line=2, code="invalid_json"
    ),
    "binary garbage": Case(content=bytes(range(256)) * 40, line=1, code="invalid_json", total=41),
    "invalid UTF-8": Case(
        content=GOOD + line().replace(b"changed", b"chang\xff"), line=2, code="invalid_utf8"
    ),
    "UTF-16": Case(content=GOOD.decode().encode("utf-16"), line=1, code="invalid_utf8", total=2),
    "blank lines only": Case(content=b"\n\r\n  \n", line=None, code="empty_file"),
    "many": Case(content=b"x\n" * 2500, line=1, code="invalid_json", total=2500),
}


@pytest.fixture(scope="module")
def house(shared_house: House) -> House:
    assert shared_house.run("server", "start").returncode == 0
    return shared_house


@pytest.mark.parametrize("name", CASES)
def test_bad_lines(house, here, name):
    case = CASES[name]
    path: Path = house.home / "bad input.jsonl"
    path.write_bytes(case.content)

    done = here(house, "deploy", "demo/tiny", str(path), "--slo", "1h", "--json")

    assert done.returncode == 2, done.stderr
    first = done.stderr.splitlines()[0]
    where = f"{path}:{case.line}: " if case.line else f"{path}: "
    assert first.startswith(where)
    assert first.endswith(f"[{case.code}]")
    assert "nothing was launched" in done.stderr
    said = json.loads(done.stdout)
    assert set(said) == {"job_id", "state", "errors_total", "errors"}
    assert said["state"] == "failed"
    assert said["errors_total"] == case.total
    assert len(said["errors"]) == min(case.total, 100)
    assert set(said["errors"][0]) == {"line", "code", "message", "param"}
    assert (said["errors"][0]["line"], said["errors"][0]["code"]) == (case.line, case.code)
    # One line of text each, whatever the bytes were.
    assert all(re.fullmatch(r"[^\x00-\x1f]+", text) for text in done.stderr.splitlines())
    status = traces.asked(house, f"/api/jobs/{said['job_id']}")
    assert (status["state"], status["code"]) == ("failed", "invalid_input_file")
    assert status["errors_total"] == case.total
    assert status["replicas"] == []
    assert traces.objects(house) == []
    assert traces.folders(house) == []
    assert traces.redis_keys(house) == []
    assert traces.runners(house) == []


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda path: None, "input_not_found", "does not exist"),
        (lambda path: path.touch(), "empty_file", "is empty"),
        (lambda path: path.mkdir(), "input_unreadable", "is a folder"),
    ],
    ids=["missing", "empty", "folder"],
)
def test_no_file_to_speak_of(house, here, tmp_path, make, code, says):
    path = tmp_path / "requests.jsonl"
    make(path)
    jobs = traces.asked(house, "/api/jobs")

    done = here(house, "deploy", "demo/tiny", str(path), "--slo", "1h", "--json")

    assert done.returncode == 2
    assert str(path) in done.stderr
    assert says in done.stderr
    assert f"[{code}]" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == code
    assert traces.asked(house, "/api/jobs") == jobs
    assert traces.objects(house) == []


def test_no_server_is_started_for_a_missing_file(tmp_path):
    house = House(tmp_path)
    assert house.run("deploy", "demo/tiny", "nowhere.jsonl", "--slo", "1h").returncode == 2
    assert house.processes() == []
    assert list(tmp_path.iterdir()) == []


def test_text_for_people(house):
    path = house.home / "bad.jsonl"
    path.write_bytes(GOOD + b"hello\n" + line(method="GET"))
    done = house.run("deploy", "demo/tiny", "bad.jsonl", "--slo", "1h")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("bad.jsonl:2: ")
    assert lines[1] == "bad.jsonl:3: `method` must be POST [invalid_method]"
    assert lines[2] == "error: bad.jsonl: 2 bad lines, nothing was launched [invalid_input_file]"
    assert "--skip-invalid" in lines[3]


def test_a_model_or_cloud_that_is_not_there(house, here):
    path = house.home / "good.jsonl"
    path.write_bytes(GOOD)
    done = here(house, "deploy", "/nowhere/model.gguf", "good.jsonl", "--slo", "1h", "--json")
    assert done.returncode == 1
    assert "/nowhere/model.gguf" in done.stderr
    assert "[model_not_found]" in done.stderr
    status = traces.asked(house, f"/api/jobs/{json.loads(done.stdout)['job_id']}")
    assert (status["state"], status["code"], status["replicas"]) == ("failed", "model_not_found", [])
    done = here(house, "deploy", "demo/tiny", "good.jsonl", "--slo", "1h", "--cloud", "moon")
    assert done.returncode == 2
    assert "[unknown_cloud]" in done.stderr
    done = here(house, "deploy", "demo/tiny", "good.jsonl", "--slo", "1h", "--", "--no-such-flag")
    assert done.returncode == 1
    assert "[bad_engine_argument]" in done.stderr
    assert traces.objects(house) == []


def test_odd_but_good_input_works_end_to_end(house, here):
    """A BOM, CRLF, blank lines, no LF at the end, and U+2028, which is no line end in JSON."""
    separator = json.dumps(LINE | {"custom_id": "u\u2028\u2029\x85"}, ensure_ascii=False)
    bodies = [
        json.dumps(LINE | {"custom_id": "first"}),
        separator,
        "",
        " \t ",
        json.dumps(LINE | {"custom_id": 'quote " back \\ \U0001f600'}),
        json.dumps(LINE | {"custom_id": "last"}),
    ]
    path = house.home / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(bodies).encode())
    done = here(
        house, "deploy", "demo/tiny", str(path), "--slo", "1h", "-o", "odd-out.jsonl", "--chunk-size", "1"
    )
    assert done.returncode == 0, done.stderr
    with (house.home / "odd-out.jsonl").open(newline="\n") as out:
        answers = [json.loads(answer) for answer in out]
    ids = ["first", "u\u2028\u2029\x85", 'quote " back \\ \U0001f600', "last"]
    assert [answer["custom_id"] for answer in answers] == ids
    assert not (house.home / "odd-out.jsonl.errors.jsonl").exists()


def test_bad_lines_can_be_left_out(house, here):
    path = house.home / "some.jsonl"
    good = chat_lines(6).encode().splitlines(keepends=True)
    path.write_bytes(
        good[0] + b"hello\n" + b"".join(good[1:4]) + line(method="GET") + good[0] + good[4] + good[5]
    )
    done = here(
        house, "deploy", "demo/tiny", "some.jsonl", "--slo", "1h", "-o", "some-out.jsonl", "--json", "--skip-invalid", "--chunk-size", "2"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["state"] == "completed"
    assert (status["requests"]["total"], status["requests"]["completed"]) == (6, 6)
    assert [(each["line"], each["code"]) for each in status["errors"]] == [
        (2, "invalid_json"),
        (6, "invalid_method"),
        (7, "duplicate_custom_id"),
    ]
    answers = read_lines(house.home / "some-out.jsonl")
    assert [answer["custom_id"] for answer in answers] == [f"r{number}" for number in range(6)]
    traces.nothing_runs(house)
