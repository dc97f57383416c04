import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.errors import InvalidInput
from tandemn.placement.workload import CHARACTERS_PER_TOKEN, Lengths, SubmitCounts, workload_of


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


def test_the_tokenizer_is_used_where_there_is_one():
    workload = workload_of(counts(), tokenize=len, sample=["ab", "cd"])
    assert workload.input_tokens.mean == pytest.approx(392)
    assert "tokenizer on 2" in workload.basis


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
