"""Tokens of an input's prompts, with a real tokenizer that the tests train themselves."""

import itertools

import numpy as np
import pytest
from tests.batch.lines import line
from tokenizers import Tokenizer, models, pre_tokenizers

from tandemn.batch import prompt_tokens
from tandemn.batch.input import InputValidator
from tandemn.batch.input_process import validate_input
from tandemn.batch.prompt_tokens import SAMPLE, PromptSample, cached_tokenizer, tokenizer_file
from tandemn.objects import ObjectStore

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def words(tmp_path):
    """One token a word: what is counted can be counted by hand. It would cut and fill up, were it let."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=4)
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def cached(words, tmp_path, model="owner/name"):
    hub = tmp_path / "hub"
    home = hub / f"models--{model.replace('/', '--')}"
    snapshot = home / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    (snapshot / "tokenizer.json").symlink_to(words)  # as the hub's client links its blobs
    return hub


def chat(name, *contents):
    body = {"model": "owner/name", "messages": [{"role": "user", "content": each} for each in contents]}
    return line(name, body=body)


def validated(lines, tokenizer, **options):
    validator = InputValidator(keeps_sample=True, **options)
    for each in lines:
        validator.feed(each + b"\n")
    validator.end()
    return validator.finish(tokenizer)[0]


def test_tokens_are_the_tokenizers_and_the_longest_is_counted_whole(words):
    parts = [
        {"type": "text", "text": "d e"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "f"},
    ]
    report = validated([chat("1", "aa bb cc"), chat("2", parts, "g h i j k l m"), chat("3", None)], words)
    tokens = report.prompt_tokens
    assert tokens is not None
    assert tokens.prompts == 2, "a prompt without text is none"
    assert tokens.longest == 10
    assert tokens.per_character == pytest.approx(13 / (8 + len("d e\nf\ng h i j k l m")))
    assert report.prompt_chars.max == 3 + 1 + 13
    assert report.messages_mean == pytest.approx(4 / 3)


def test_the_longest_is_found_wherever_it_stands(words):
    lines = [chat(str(number), "a b") for number in range(3000)]
    lines[1777] = chat("long", " ".join("w" * 1 for _ in range(5000)))
    report = validated(lines, words)
    assert report.prompt_tokens is not None
    assert report.prompt_tokens.longest == 5000
    assert report.prompt_chars.max == 9999
    assert SAMPLE / 2 <= report.prompt_tokens.prompts < SAMPLE


def test_a_sample_is_spread_over_the_whole_input_and_bounded():
    sample = PromptSample()
    at = 0
    for size in [1, 7, 1000, 3, 0, 250, 9000, 13]:
        bodies = list(range(at, at + size))
        if bodies:
            sample.add(bodies, np.ones(size, np.int64), str)
        at += size
    kept = [int(text) for text in sample.texts]
    steps = {b - a for a, b in itertools.pairwise(kept)}
    assert SAMPLE / 2 <= len(kept) < SAMPLE
    assert kept[0] == 0
    assert len(steps) == 1, "every so many, without a gap"
    assert at - kept[-1] <= steps.pop()


def test_a_huge_prompt_is_scaled(words, monkeypatch):
    monkeypatch.setattr(prompt_tokens, "_EXACT_CHARACTERS", 1000)
    report = validated([chat("1", "w " * 50_000)], words)
    assert report.prompt_tokens is not None
    assert report.prompt_tokens.longest == pytest.approx(50_000, rel=0.01)


def test_without_text_or_a_readable_file_there_is_no_count(words, tmp_path):
    ids = line("1", url="/v1/completions", body={"model": "m", "prompt": [1, 2, 3]})
    assert validated([ids], words).prompt_tokens is None
    (tmp_path / "broken.json").write_text("{}")
    assert validated([chat("1", "a b")], tmp_path / "broken.json").prompt_tokens is None
    assert validated([chat("1", "a b")], None).prompt_tokens is None


def test_a_tokenizer_at_hand_is_found_and_no_other(words, tmp_path):
    hub = cached(words, tmp_path)
    assert tokenizer_file(str(words.parent), hub) == words
    found = tokenizer_file("owner/name", hub)
    assert found is not None
    assert found.resolve() == words
    assert tokenizer_file("owner/other", hub) is None
    assert tokenizer_file(str(tmp_path), hub) is None, "a folder without one"
    for crooked in (str(words.parent), "../hub", "owner/../name", "a/b/c", "name", "/etc"):
        assert cached_tokenizer(crooked, hub) is None
    (hub / "models--owner--name" / "refs" / "main").write_text("../../../model")
    assert cached_tokenizer("owner/name", hub) is None


@pytest.mark.parametrize("model", [None, "owner/name"])
async def test_an_input_of_the_store_is_counted_by_the_model_it_names(words, tmp_path, model):
    store = ObjectStore.open(tmp_path / "store")
    await store.put("in.jsonl", chat("1", "a b c") + b"\n" + chat("2", "d"))
    hub = cached(words, tmp_path)
    options = {"index_store": store, "index_name": "index", "model": model}
    report = await validate_input(store, "in.jsonl", hub_cache=hub, **options)
    assert report.prompt_tokens is not None
    assert (report.prompt_tokens.prompts, report.prompt_tokens.longest) == (2, 3)
    elsewhere = await validate_input(store, "in.jsonl", hub_cache=tmp_path / "none", **options)
    assert elsewhere.prompt_tokens is None
    assert elsewhere.prompt_chars == report.prompt_chars


async def test_lines_name_no_folder_of_this_machine(words, tmp_path):
    store = ObjectStore.open(tmp_path / "store")
    body = {"model": str(words.parent), "messages": [{"role": "user", "content": "a b"}]}
    await store.put("in.jsonl", line("1", body=body))
    (tmp_path / "hub").mkdir()
    report = await validate_input(
        store, "in.jsonl", index_store=store, index_name="index", hub_cache=tmp_path / "hub"
    )
    assert report.prompt_tokens is None
