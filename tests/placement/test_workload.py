from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.errors import InvalidInput
from tandemn.placement.workload import (
    CHARACTERS_PER_TOKEN,
    Lengths,
    SubmitCounts,
    within_context,
    workload_of,
)


def counts(requests=10, characters=380, limits=(), *, embedding=False):
    return SubmitCounts(
        requests=requests,
        characters=Lengths.of([characters] * requests),
        answer_limits=Lengths.of(limits),
        with_limit=len(limits),
        is_embedding=embedding,
    )


def test_characters_become_tokens_by_a_stated_ratio():
    workload = workload_of(counts())
    assert workload.input_tokens.mean == pytest.approx(380 / CHARACTERS_PER_TOKEN + 12)
    assert "characters a token (estimate)" in workload.basis


def test_the_tokenizer_counts_where_it_is_at_hand():
    counted = replace(counts(), tokens_per_character=0.5, counted=7, longest_tokens=300)
    workload = workload_of(counted)
    assert workload.input_tokens.mean == pytest.approx(190 + 12)
    assert workload.input_tokens.largest == 312
    assert "tokenizer on 7 prompts" in workload.basis


def test_every_message_has_its_template():
    assert workload_of(replace(counts(), messages_mean=3)).input_tokens.mean == pytest.approx(100 + 36)


def test_no_longer_context_is_planned_than_the_model_has():
    long = replace(counts(limits=[3000] * 10), longest_tokens=6000)
    workload, told = within_context(workload_of(long), 8192)
    assert workload.context == 8192
    assert told is not None
    assert "6,012 tokens" in told
    assert "3,000" in told
    assert "8,192" in told
    assert within_context(workload_of(long), 131_072) == (workload_of(long), None)


def test_a_job_whose_usual_prompt_is_too_long_is_left_to_be_refused():
    long = workload_of(counts(characters=100_000))
    assert within_context(long, 4096) == (long, None)
    assert long.context > 4096


def test_limits_bound_answers():
    stated = workload_of(counts(limits=[100] * 10))
    assert stated.output_tokens.mean == pytest.approx(60)
    assert stated.output_tokens.largest == 100
    assert workload_of(counts(), max_output_tokens=50).output_tokens.largest == 50
    assert workload_of(counts(limits=[100] * 5)).output_tokens.largest == 2048


def test_embeddings_have_no_answers():
    workload = workload_of(counts(embedding=True))
    assert workload.output_tokens.largest == 0
    assert workload.context == workload.input_tokens.largest


def test_an_empty_input_is_an_error():
    with pytest.raises(InvalidInput):
        workload_of(counts(requests=0))


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_lengths_are_ordered(values):
    lengths = Lengths.of(values)
    assert min(values) <= lengths.p50 <= lengths.p95 <= lengths.largest
    assert min(values) <= lengths.mean <= max(values) + 1e-9
