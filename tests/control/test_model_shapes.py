"""Sizes of models that the table does not have: asked of the hub once, and guessed from a name only where it is silent."""

from __future__ import annotations

import json

import pytest
from tests.fakes.hub import LLAMA_8B, hub

from tandemn.clock import MockClock
from tandemn.control.model_shapes import KNOWN_S, REMEMBERED, UNKNOWN_S, ModelShapes
from tandemn.errors import InvalidInput, NotFound, Retryable
from tandemn.hub.client import Hub
from tandemn.placement.models import shape_of

#: Its quantiser left the attention as it was.
LLAMA_405B_FP8 = LLAMA_8B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_hidden_layers": 126,
    "quantization_config": {
        "quant_method": "fbgemm_fp8",
        "modules_to_not_convert": ["lm_head", *(f"model.layers.{n}.self_attn" for n in range(126))],
    },
}


@pytest.fixture
def fake():
    with hub({"acme/tuned": {"config.json": json.dumps(LLAMA_8B)}}) as fake:
        yield fake


@pytest.fixture
def clock():
    return MockClock(1_000_000.0)


@pytest.fixture
def shapes(tmp_path, fake, clock):
    return ModelShapes(Hub(endpoint=fake.url, cache=tmp_path, token=None, is_offline=False), clock)


async def test_a_model_of_the_hub_is_asked_for_once_an_hour(fake, shapes, clock):
    shape = await shapes.of("acme/tuned", may_be_file=True)
    assert (shape.name, shape.params()) == ("acme/tuned", shape_of("Llama-3.1-8B").params())
    asked = len(fake.asked)
    assert await shapes.of("acme/tuned", may_be_file=True) == shape
    assert len(fake.asked) == asked
    clock.advance(KNOWN_S + 1)
    await shapes.of("acme/tuned", may_be_file=True)
    assert len(fake.asked) == 2 * asked


async def test_what_is_known_here_is_not_asked_for(tmp_path, fake, shapes):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    await shapes.of(str(tmp_path), may_be_file=True)
    await shapes.of("Qwen/Qwen3-8B", may_be_file=True)
    assert not fake.asked


async def test_weights_are_as_large_as_the_index_says(fake, shapes):
    index = {"metadata": {"total_size": 17_000_000_000}, "weight_map": {"w" * 100_000: "a"}}
    fake.models["acme/tuned"]["model.safetensors.index.json"] = json.dumps(index, indent=2)
    assert (await shapes.of("acme/tuned", may_be_file=True)).weight_bytes() == 17e9


async def test_a_file_of_this_machine_s_is_nobody_else_s(tmp_path, shapes):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    with pytest.raises(NotFound, match="no name of a model"):
        await shapes.of(str(tmp_path), may_be_file=False)


async def test_a_quantised_copy_is_what_its_config_says_and_guessed_only_without_one(fake, shapes, clock):
    name = "meta-llama/Llama-3.1-405B-Instruct-FP8"
    guessed = await shapes.of(name, may_be_file=False)
    assert guessed.weight_bytes() / 8 == pytest.approx(51.3e9, rel=0.01)
    fake.models[name] = {"config.json": json.dumps(LLAMA_405B_FP8)}
    clock.advance(UNKNOWN_S + 1)
    read = await shapes.of(name, may_be_file=False)
    assert read.weight_bytes() - guessed.weight_bytes() == pytest.approx(126 * 2 * (16384 + 1024) * 16384)


async def test_a_model_that_is_not_there_has_near_names(shapes):
    with pytest.raises(NotFound, match="Qwen3-32B") as caught:
        await shapes.of("Qwen/Qwen3-32", may_be_file=True)
    assert caught.value.code == "unknown_model"
    assert "has no such model" in caught.value.message


async def test_an_answer_that_says_no_is_believed_for_a_while_only(fake, shapes, clock):
    fake.status = 503
    for _ in range(2):
        with pytest.raises(Retryable):
            await shapes.of("acme/tuned", may_be_file=True)
    assert len(fake.asked) == 1
    fake.status = 200
    clock.advance(UNKNOWN_S + 1)
    assert (await shapes.of("acme/tuned", may_be_file=True)).layers == 32


async def test_a_config_that_cannot_be_read_is_told(fake, shapes):
    fake.models["acme/odd"] = {"config.json": "[]"}
    with pytest.raises(InvalidInput, match=r"config\.json of acme/odd is not a JSON object") as caught:
        await shapes.of("acme/odd", may_be_file=True)
    assert caught.value.code == "bad_model_config"


async def test_what_is_remembered_is_bounded(fake, shapes, monkeypatch):
    monkeypatch.setattr("tandemn.control.model_shapes.REMEMBERED", 3)
    assert REMEMBERED >= 3
    for number in range(8):
        with pytest.raises(NotFound):
            await shapes.of(f"acme/none-{number}", may_be_file=True)
    asked = len(fake.asked)
    with pytest.raises(NotFound):
        await shapes.of("acme/none-7", may_be_file=True)
    assert len(fake.asked) == asked
    with pytest.raises(NotFound):
        await shapes.of("acme/none-0", may_be_file=True)
    assert len(fake.asked) == asked + 1
