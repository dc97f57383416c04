"""The hub's client over real HTTP: what is there, what is not, who may read it, and what it costs to find out."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from tests.fakes.hub import TOKEN, hub
from tests.ports import free_port

from tandemn.errors import NotFound, Retryable
from tandemn.hub.client import Hub

FILES = {"config.json": 1000, "index.json": 1000}
MODELS = {"acme/small": {"config.json": "{}", "index.json": "[]"}, "acme/bare": {"config.json": "{}"}}


@pytest.fixture
def fake():
    with hub(MODELS) as fake:
        yield fake


@pytest.fixture
def client(tmp_path, fake):
    def made(token=None, *, endpoint=fake.url, is_offline=False):
        secret = None if token is None else SecretStr(token)
        return Hub(endpoint=endpoint, cache=tmp_path, token=secret, is_offline=is_offline)

    return made


def downloaded(cache, name, text):
    """Lay a file of acme/small where the hub's own client does."""
    home = cache / "models--acme--small"
    snapshot = home / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123456789abcdef")
    (snapshot / name).write_text(text)


async def test_files_are_read_and_the_first_one_is_needed(fake, client):
    assert await client().texts("acme/small", FILES) == {"config.json": "{}", "index.json": "[]"}
    assert await client().texts("acme/bare", FILES) == {"config.json": "{}", "index.json": None}
    fake.models["acme/ggufs"] = {"model.gguf": "GGUF"}
    with pytest.raises(NotFound, match=r"has no config\.json") as caught:
        await client().texts("acme/ggufs", FILES)
    assert caught.value.code == "unknown_model"


async def test_of_a_larger_file_the_beginning_is_read(tmp_path, fake, client):
    fake.models["acme/small"]["index.json"] = "x" * 5_000_000
    assert (await client().texts("acme/small", FILES))["index.json"] == "x" * 1000
    downloaded(tmp_path, "config.json", "y" * 5000)
    assert (await client().texts("acme/small", FILES))["config.json"] == "y" * 1000


async def test_a_model_that_is_not_there_or_private(client):
    for token in (None, TOKEN):
        with pytest.raises(NotFound, match="has no such model"):
            await client(token).texts("acme/none", FILES)


@pytest.mark.parametrize("token", [None, "hf_without_the_licence"])
async def test_a_gated_model_says_what_to_do(token, fake, client):
    fake.gated.add("acme/small")
    with pytest.raises(NotFound, match="HF_TOKEN") as caught:
        await client(token).texts("acme/small", FILES)
    assert f"{fake.url}/acme/small" in str(caught.value)
    assert "hf_without" not in str(caught.value)
    assert (await client(TOKEN).texts("acme/small", FILES))["config.json"] == "{}"


async def test_a_renamed_model_is_followed_and_the_token_goes_to_nobody_else(fake, client):
    fake.renamed["acme/old"] = "acme/small"
    assert (await client(TOKEN).texts("acme/old", FILES))["config.json"] == "{}"
    assert {token for _, token in fake.asked} == {TOKEN}
    with hub(MODELS) as other:
        fake.elsewhere["acme/bare"] = other.url
        assert (await client(TOKEN).texts("acme/bare", FILES))["config.json"] == "{}"
        assert {token for _, token in other.asked} == {None}


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_hub_that_does_not_answer_can_be_asked_again(status, fake, client):
    fake.status = status
    with pytest.raises(Retryable, match=str(status)) as caught:
        await client().texts("acme/small", FILES)
    assert caught.value.code == "hub_unavailable"
    with pytest.raises(Retryable):
        await client(endpoint=f"http://127.0.0.1:{free_port()}").texts("acme/small", FILES)


async def test_nothing_is_asked_where_nothing_may_be(fake, client):
    with pytest.raises(NotFound, match="HF_HUB_OFFLINE"):
        await client(is_offline=True).texts("acme/small", FILES)
    for odd in ("acme", "../etc/passwd", "a/b/c", "acme/..", "acme/small?x=1", "acme/sm all"):
        with pytest.raises(NotFound, match="no name of a model"):
            await client().texts(odd, FILES)
    assert not fake.asked


async def test_what_lies_on_this_machine_is_not_asked_for(tmp_path, fake, client):
    downloaded(tmp_path, "config.json", '{"here": 1}')
    for is_offline in (True, False):
        texts = await client(is_offline=is_offline).texts("acme/small", FILES)
        assert texts == {"config.json": '{"here": 1}', "index.json": None}
    assert not fake.asked
