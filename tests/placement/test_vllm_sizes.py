"""Weights and caches against vLLM's own: as it answered once (vllm_sizes.json), and anew where it is installed."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tandemn.placement.memory import cache_bytes_per_gpu, weight_bytes_per_gpu
from tandemn.placement.model_config import shape_from_config

FILE = Path(__file__).with_name("vllm_sizes.json")
SIZES = Path(__file__).parents[2] / "tools/vllm_cpu/sizes.py"
CASES = json.loads(FILE.read_text())
#: vLLM's routers and latent down-projections are on every rank, its norms and biases count too: less than this.
WEIGHTS = 0.015
#: Its blocks on a CPU have 128 tokens, so that a window takes up to one more of them.
CACHE = 0.025
#: Tokens of one pass on a CPU: a window keeps so many beyond itself while a prompt is read.
AHEAD = 2048


def answers(cases):
    return [(case, int(tp), answer) for case in cases for tp, answer in case["vllm"].items()]


def check(case, tp, answer):
    shape = shape_from_config(case["config"], name=case["name"])
    assert weight_bytes_per_gpu(shape, tp, 1) == pytest.approx(answer["weight_bytes"], rel=WEIGHTS)
    cache = cache_bytes_per_gpu(shape, case["max_model_len"], tp=tp, ahead=AHEAD)
    assert cache == pytest.approx(answer["request_bytes"], rel=CACHE)


@pytest.mark.parametrize(
    ("case", "tp", "answer"),
    [pytest.param(*each, id=f"{each[0]['name']}-{each[1]}") for each in answers(CASES)],
)
def test_sizes_are_those_that_vllm_said(case, tp, answer):
    check(case, tp, answer)


@pytest.mark.vllm
def test_sizes_are_those_that_vllm_says(tmp_path):
    asked = [case | {"vllm": dict.fromkeys(case["vllm"])} for case in CASES]
    questions = tmp_path / "cases.json"
    questions.write_text(json.dumps(asked))
    python = Path(os.environ["TANDEMN_VLLM_COMMAND"]).with_name("python")
    done = subprocess.run([python, SIZES, questions], stdout=subprocess.PIPE, check=True)
    said = answers(json.loads(done.stdout))
    assert len(said) == len(answers(CASES))
    for case, tp, answer in said:
        assert "error" not in answer, f"{case['name']} on {tp}: {answer['error']}"
        check(case, tp, answer)
