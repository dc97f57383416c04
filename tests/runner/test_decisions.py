import pytest

from tandemn.runner import concurrency, outcome, strikes
from tandemn.runner.concurrency import Holding, chunks_wanted, first_limit, next_limit
from tandemn.runner.outcome import Judgement


def holding(
    *,
    held: int = 1,
    not_begun: int = 0,
    unsent: int = 0,
    requests_per_s: float = 0.0,
    requests_per_chunk: float = 0.0,
) -> Holding:
    return Holding(
        held=held,
        not_begun=not_begun,
        unsent=unsent,
        limit=18,
        requests_per_s=requests_per_s,
        requests_per_chunk=requests_per_chunk,
    )


def test_one_chunk_is_kept_ahead_however_much_is_unsent():
    assert chunks_wanted(holding(unsent=10_000, not_begun=0)) == 1
    assert chunks_wanted(holding(unsent=10_000, not_begun=1)) == 0


def test_small_chunks_are_leased_many_at_a_time_but_not_without_bound():
    assert chunks_wanted(holding(unsent=0, requests_per_s=100.0, requests_per_chunk=50.0)) == 10
    assert (
        chunks_wanted(holding(requests_per_s=1e6, requests_per_chunk=1.0)) == concurrency.MAX_LEASED_AT_ONCE
    )
    assert chunks_wanted(holding(held=concurrency.MAX_HELD, requests_per_s=100.0)) == 0


def test_the_limit_never_leaves_the_engine_without_a_waiting_request():
    limit = first_limit(16)
    assert limit > 16
    assert next_limit(limit, running=16, waiting=limit - 16, slots=16) == limit


def test_a_long_queue_shrinks_the_limit_and_an_empty_one_lets_it_grow_again():
    full = first_limit(256)
    less = next_limit(full, running=100, waiting=full - 100, slots=256)
    assert 100 < less < full
    grown = next_limit(less, running=less, waiting=0, slots=256)
    assert less < grown <= full
    assert next_limit(full, running=full, waiting=0, slots=256) == full


@pytest.mark.parametrize(
    ("status", "judgement"),
    [
        (200, Judgement.ANSWER),
        (400, Judgement.REFUSED),
        (404, Judgement.REFUSED),
        (422, Judgement.REFUSED),
        (408, Judgement.AGAIN),
        (409, Judgement.AGAIN),
        (425, Judgement.AGAIN),
        (429, Judgement.AGAIN),
        (500, Judgement.AGAIN),
        (503, Judgement.AGAIN),
    ],
)
def test_status_decides(status, judgement):
    assert outcome.judge(status) is judgement


def test_usage_is_read_and_nonsense_is_no_answer():
    found = outcome.usage(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}')
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens) == (3, 5)
    assert outcome.usage(b'{"data":[]}') == outcome.NO_USAGE
    for body in (b"", b"[]", b"<html>", b'{"text":"\xff"}', b"[" * 100_000):
        assert outcome.usage(body) is None


def test_backoff_grows_and_is_bounded():
    waits = [outcome.backoff_s(tries) for tries in range(1, 20)]
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2]


def test_strikes_lead_from_together_to_alone_to_conviction():
    found = [strikes.treatment(count) for count in range(5)]
    assert [t.value for t in found] == ["together", "alone", "alone", "convicted", "convicted"]


def test_one_fatal_request_alone_is_convicted_before_the_engine():
    assert not strikes.engine_is_broken(strikes.MAX_STRIKES)
    assert strikes.engine_is_broken(strikes.MAX_DEATHS_IN_A_ROW)


def test_the_tokens_of_a_stored_answer_are_read_from_its_line():
    line = b'{"response":{"status_code":200,"body":{"usage":{"prompt_tokens":3,"completion_tokens":5}}}}'
    assert outcome.usage_of_line(line) == outcome.Usage(prompt_tokens=3, completion_tokens=5)
    assert outcome.usage_of_line(b'{"response":null}') == outcome.NO_USAGE
