from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batch.lines import CHAT, REQUIRED, line

from tandemn.batch import input as input_module
from tandemn.batch.input import InputReport, InputValidator
from tandemn.batch.line_rules import LineCode
from tandemn.batch.split import LineIndex


def validate(
    data: bytes, *, block: int = 1 << 20, skip_invalid: bool = False, max_errors: int = 1000
) -> tuple[InputReport, LineIndex]:
    validator = InputValidator(skip_invalid=skip_invalid, max_errors=max_errors)
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    for piece in blocks:
        validator.feed(piece)
    validator.end()
    if validator.needs_second_pass:
        for piece in blocks:
            validator.confirm(piece)
    return validator.finish()


def report_of(data: bytes, **options: Any) -> InputReport:
    return validate(data, **options)[0]


def requests_at(data: bytes, index: LineIndex) -> list[str]:
    starts = [*index.starts.tolist(), index.end]
    assert starts == sorted(starts)
    return [
        msgspec.json.decode(data[at : data.find(b"\n", at) % (len(data) + 1)])["custom_id"]
        for at in starts[:-1]
    ]


BAD = {
    "not json": (b"hello", LineCode.INVALID_JSON, None),
    "half json": (line()[:-1], LineCode.INVALID_JSON, None),
    "two objects": (line() + line(), LineCode.INVALID_JSON, None),
    "nan": (line(body={"messages": [{}], "temperature": float("nan")}), LineCode.INVALID_JSON, None),
    "infinity": (line(body={"messages": [{}], "x": float("-inf")}), LineCode.INVALID_JSON, None),
    "control character": (b'{"custom_id":"a\x01"}', LineCode.INVALID_JSON, None),
    "nul": (b"\0\0\0", LineCode.INVALID_JSON, None),
    "binary": (bytes(b for b in range(256) if b != 10), LineCode.INVALID_UTF8, None),
    "latin-1": (
        line(body={"messages": [{"content": "X"}]}).replace(b"X", b"\xe9"),
        LineCode.INVALID_UTF8,
        None,
    ),
    "surrogate bytes": (line("X").replace(b"X", b"\xed\xa0\x80"), LineCode.INVALID_UTF8, None),
    "overlong": (line("X").replace(b"X", b"\xc0\xaf"), LineCode.INVALID_UTF8, None),
    "lone surrogate": (line("\ud800"), LineCode.INVALID_JSON, None),
    "a list": (b"[1]", LineCode.NOT_AN_OBJECT, None),
    "a string": (b'"x"', LineCode.NOT_AN_OBJECT, None),
    "null": (b"null", LineCode.NOT_AN_OBJECT, None),
    "brackets": (b"[" * 50_000 + b"]" * 50_000, LineCode.NESTING_TOO_DEEP, None),
    "open brackets": (b"[" * 50_000, LineCode.NESTING_TOO_DEEP, None),
    "deep body": (
        line("Z").replace(b'"hello"', b"[" * 50_000 + b"]" * 50_000),
        LineCode.NESTING_TOO_DEEP,
        None,
    ),
    "no id": (line(...), LineCode.MISSING_CUSTOM_ID, "custom_id"),
    "null id": (line(None), LineCode.MISSING_CUSTOM_ID, "custom_id"),
    "empty id": (line(""), LineCode.INVALID_CUSTOM_ID, "custom_id"),
    "number id": (line(7), LineCode.INVALID_CUSTOM_ID, "custom_id"),
    "get": (line(method="GET"), LineCode.INVALID_METHOD, "method"),
    "no method": (line(method=...), LineCode.INVALID_METHOD, "method"),
    "wrong url": (line(url="/v1/images", body={}), LineCode.INVALID_URL, "url"),
    "url of a type": (line(url=["/v1"], body={}), LineCode.INVALID_URL, "url"),
    "no body": (line(body=...), LineCode.MISSING_BODY, "body"),
    "body of a type": (line(body=[1]), LineCode.INVALID_BODY, "body"),
    "no messages": (line(body={}), LineCode.MISSING_MESSAGES, "body.messages"),
    "empty messages": (line(body={"messages": []}), LineCode.INVALID_MESSAGES, "body.messages"),
    "messages of a type": (line(body={"messages": "hi"}), LineCode.INVALID_MESSAGES, "body.messages"),
    "message of a type": (line(body={"messages": ["hi"]}), LineCode.INVALID_MESSAGES, "body.messages"),
    "model of a type": (line(body={"messages": [{}], "model": 3}), LineCode.INVALID_MODEL, "body.model"),
    "a long line": (line("x" * (30 << 20)), LineCode.LINE_TOO_LONG, None),
    "another url": (line("n", url="/v1/completions"), LineCode.MIXED_URLS, "url"),
    "a repeated id": (line("first"), LineCode.DUPLICATE_CUSTOM_ID, "custom_id"),
}


@pytest.mark.parametrize(
    ("bad", "block"),
    # A long line in small blocks would be 30,000 of them, and show nothing more.
    [(bad, block) for bad in BAD for block in (1 << 20, 997) if block > 997 or len(BAD[bad][0]) <= 1 << 20],
)
def test_a_bad_line_is_named_and_its_neighbours_are_judged_alone(bad, block):
    content, code, param = BAD[bad]
    data = b"\n".join([line("first"), b"", content, line("last"), line(...)])
    report, index = validate(data, block=block)
    assert [(e.line, e.code, e.param) for e in report.errors] == [
        (3, code, param),
        (5, LineCode.MISSING_CUSTOM_ID, "custom_id"),
    ]
    assert not report.is_valid
    assert all(len(error.message) < 300 for error in report.errors)

    report, index = validate(data, block=block, skip_invalid=True)
    assert report.is_valid
    assert (report.requests, report.skipped, report.error_count) == (2, 2, 2)
    assert requests_at(data, index) == ["first", "last"]
    assert all(data[at - 1 : at] == b"\n" for at in index.skipped.tolist())


@pytest.mark.parametrize("url", REQUIRED)
@pytest.mark.parametrize(
    "value", [..., None, 3, {}, [], [None], [1.5], ["a", 1], [["a"]], [1, [2]], True, [True]]
)
def test_required_fields_have_the_right_containers(url, value):
    name = next(iter(REQUIRED[url].keys()))
    body = {} if value is ... else {name: value}
    (error,) = report_of(line(url=url, body=body)).errors
    expected = "missing" if value is ... or value is None else "invalid"
    assert error.code == f"{expected}_{name}"
    assert error.param == f"body.{name}"


@pytest.mark.parametrize("value", ["", "a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_prompts_and_inputs_may_be_text_or_tokens(value):
    for url, name in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        report = report_of(line(url=url, body={name: value, "max_tokens": "the engine's business"}))
        assert report.is_valid
        assert report.url == url


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n \n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_without_requests_is_empty(data):
    report = report_of(data)
    assert [error.code for error in report.errors] == [LineCode.EMPTY_FILE]
    assert not report.is_valid
    assert not report_of(data, skip_invalid=True).is_valid


def test_skipping_everything_is_no_job():
    assert not report_of(b"x\ny\n", skip_invalid=True).is_valid


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_bom_crlf_blank_lines_and_a_missing_last_line_end_are_fine(block):
    data = b"\xef\xbb\xbf" + b"\r\n".join([line("a"), b"", line("b"), b"  \t", line("c")])
    report, index = validate(data, block=block)
    assert report.errors == ()
    assert requests_at(data, index) == ["a", "b", "c"]
    assert index.starts[0] == 3


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_lf_ends_a_line(separator):
    text = (
        json.dumps({"x": separator}, ensure_ascii=False)
        if separator > "\x7f"
        else json.dumps({"x": separator})
    )
    data = line("a", body={"messages": [{"content": "X"}]}).replace(b'"X"', text.encode()) + b"\n"
    assert report_of(data * 1).requests == 1


def test_repeated_ids_name_the_first_line_and_only_later_ones_are_dropped():
    data = b"\n".join([line("a"), line("b"), b"", line("a"), line("c"), line("b"), line("a")])
    for block in (1 << 20, 13):
        report, index = validate(data, block=block)
        assert [(error.line, error.message[-6:]) for error in report.errors] == [
            (4, "line 1"),
            (6, "line 2"),
            (7, "line 1"),
        ]
        report, index = validate(data, block=block, skip_invalid=True)
        assert requests_at(data, index) == ["a", "b", "c"]
        assert len(index.skipped) == 3
    assert report_of(b"\xef\xbb\xbf" + data).errors[0].message.endswith("line 1")


def test_equal_hashes_alone_accuse_nobody(monkeypatch):
    # Every id has one hash in the first pass; the second one tells them apart.
    def colliding(text: str) -> int:
        return hash(text) if text.endswith("\0") else 1

    monkeypatch.setattr(input_module, "hash", colliding, raising=False)
    assert report_of(b"\n".join(line(f"{i}") for i in range(100))).errors == ()
    report = report_of(b"\n".join(line(f"{i % 99}") for i in range(100)))
    assert [(error.line, error.code) for error in report.errors] == [(100, LineCode.DUPLICATE_CUSTOM_ID)]


def test_errors_are_told_up_to_a_limit_and_counted_beyond():
    report = report_of(b"x\n" * 50, max_errors=10)
    assert [error.line for error in report.errors] == list(range(1, 11))
    assert report.error_count == 50


def test_facts_for_planning():
    bodies = [{"messages": [{"content": "x" * 100}], "model": "m1", "max_tokens": 10}] * 90
    bodies += [{"messages": [{"content": "y" * 500}, {"content": "z" * 500}], "model": "m2"}] * 9
    image = [
        {"type": "text", "text": "four"},
        {"type": "image_url", "image_url": {"url": "data:" + "A" * 9000}},
    ]
    bodies += [{"messages": [{"content": image}], "max_completion_tokens": 30}]
    report = report_of(b"\n".join(line(f"{i}", body=body) for i, body in enumerate(bodies)))
    assert report.models == ("m1", "m2")
    assert report.has_unnamed_model
    assert report.has_images
    assert report.prompt_chars.mean == pytest.approx((90 * 100 + 9 * 1000 + 4) / 100)
    assert report.prompt_chars.p50 == pytest.approx(100, rel=0.06)
    assert report.prompt_chars.p95 == pytest.approx(1000, rel=0.06)
    assert (report.output_limits.given, report.output_limits.max) == (91, 30)
    assert report.output_limits.mean == pytest.approx(930 / 91)


def test_long_contents_and_many_blocks_keep_their_positions():
    lines = [line(f"{i}", body={"messages": [{"content": "é" * (i * 7919 % 300_000)}]}) for i in range(30)]
    data = b"\n".join(lines)
    report, index = validate(data, block=65536)
    assert report.errors == ()
    assert requests_at(data, index) == [f"{i}" for i in range(30)]
    assert LineIndex.decode(b"".join(index.encode())).starts.tolist() == index.starts.tolist()


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([line("a"), line("b"), b"", b"\r", b"[" * 3000]))
    ),
    st.integers(1, 200),
)
def test_no_bytes_crash_it_and_every_line_is_accounted_for(lines, block):
    data = b"\n".join(lines)
    whole, index = validate(data, skip_invalid=True)
    pieces, index_of_pieces = validate(data, block=block, skip_invalid=True)
    assert whole == pieces
    assert index.starts.tolist() == index_of_pieces.starts.tolist()
    assert index.skipped.tolist() == index_of_pieces.skipped.tolist()
    filled = sum(1 for text in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if text.strip(b" \t\r"))
    assert len(index.starts) + len(index.skipped) == filled


contents = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.text(min_size=1), contents, contents), min_size=1, max_size=20, unique_by=lambda t: t[0]
    ),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.booleans(),
)
def test_valid_lines_are_valid_together(rows, end, escaped):
    lines = [
        json.dumps(
            {
                "custom_id": custom_id,
                "method": "POST",
                "url": CHAT,
                "body": {"messages": [{"role": "user", "content": content}], "extra": extra},
            },
            ensure_ascii=escaped,
        ).encode("utf-8", "surrogatepass")
        for custom_id, content, extra in rows
    ]
    report, _index = validate(end.join(lines), block=100)
    assert report.errors == ()
    assert report.requests == len(rows)
