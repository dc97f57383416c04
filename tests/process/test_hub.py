"""Plans of models that nothing here knows but the hub: command line, control plane and a hub on loopback, all real."""

from __future__ import annotations

import json

import pytest
from tests.fakes.hub import LLAMA_8B, TOKEN, hub
from tests.process.conftest import built

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
}
JOB = ("plan", "acme/tuned-8b", "lines.jsonl", "--slo", "4h", "--cloud", "aws")


@pytest.fixture(scope="module")
def fake():
    with hub({"acme/tuned-8b": {"config.json": json.dumps(LLAMA_8B)}}) as fake:
        fake.gated.add("acme/tuned-8b")
        yield fake


@pytest.fixture(scope="module")
def town(fake):
    with built(HF_ENDPOINT=fake.url, HF_HUB_OFFLINE="0", HF_TOKEN=TOKEN) as house:
        (house.home / "lines.jsonl").write_text(f"{json.dumps(LINE)}\n")
        assert house.run("server", "start").returncode == 0
        yield house


def test_a_job_and_a_deployment_of_a_model_of_the_hub_are_planned(town, here):
    done = here(town, *JOB, "--json")
    assert done.returncode == 0, done.stderr
    [best] = [row for row in json.loads(done.stdout)["plan"] if row["rank"] == 0]
    table = json.loads(here(town, JOB[0], "meta-llama/Llama-3.1-8B-Instruct", *JOB[2:], "--json").stdout)
    [same] = [row for row in table["plan"] if row["rank"] == 0]
    assert (best["gpu"], best["tp"]) == (same["gpu"], same["tp"])

    done = here(town, "plan", "--model", "acme/tuned-8b", "--gpu", "auto", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["options"]
    assert TOKEN not in done.stdout + done.stderr


def test_the_demo_s_model_is_not_looked_for_on_the_hub(town, here, fake):
    asked = len(fake.asked)
    done = here(town, JOB[0], "demo/tiny", *JOB[2:])
    assert (done.returncode, len(fake.asked)) == (2, asked)
    assert "runs on this machine" in done.stderr


def test_a_deployment_that_does_not_fit_is_refused(town, here):
    done = here(town, "plan", "--model", "acme/tuned-8b", "--gpu", "T4", "--max-model-len", "32768", "--json")
    assert done.returncode == 3
    assert "does_not_fit" in done.stderr


def test_a_hub_that_is_silent_hides_nothing_that_can_be_known_without_it(town, here, fake):
    fake.status = 503
    try:
        done = here(town, JOB[0], "acme/other", *JOB[2:])
        assert done.returncode == 1
        assert "hub_unavailable" in done.stderr
        assert fake.url in done.stderr
        assert here(town, JOB[0], "acme/Qwen3-32B-AWQ", *JOB[2:]).returncode == 0
        # Where the GPU is named, it is the provider that says no.
        for gpu, code in (("auto", "hub_unavailable"), ("L4", "gpu_not_offered")):
            asked = ("plan", "--model", "acme/other", "--gpu", gpu, "--serverless-provider", "local")
            assert code in here(town, *asked).stderr
    finally:
        fake.status = 200
