"""Bad input of a deployment, through the real command line and control plane: told by name, and nothing is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.process.conftest import built

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.house import House

MODEL = ("deploy", "--model", "Qwen/Qwen3-0.6B")
L4 = (*MODEL, "--gpu", "L4")
RUNPOD = ("--serverless-provider", "runpod")
MODAL = ("--serverless-provider", "modal")
LOCAL = ("deploy", "--model", "demo/tiny", "--gpu", "cpu", "--cloud", "local")

#: What is typed, the exit code, the error's code, and words that the error or its next step must have.
CASES: dict[str, tuple[tuple[str, ...], int, str, tuple[str, ...]]] = {
    "an unknown GPU": ((*MODEL, "--gpu", "H1000"), 2, "unknown_gpu", ("'H1000'", "did you mean", "H100")),
    "--workers-max without RunPod": (
        (*L4, "--workers-max", "2"),
        2,
        "wrong_usage",
        ("--workers-max", "--serverless-provider runpod"),
    ),
    "--tp-size above --gpu-count": (
        (*L4, "--tp-size", "2"),
        2,
        "wrong_usage",
        ("--tp-size 2 is above --gpu-count 1", "--gpu-count 2"),
    ),
    "no --gpu": (MODEL, 2, "wrong_usage", ("--gpu is missing",)),
    "no --model": (("deploy", "--gpu", "L4"), 2, "wrong_usage", ("--model is missing",)),
    "an unknown provider": (
        (*L4, "--serverless-provider", "modla"),
        2,
        "unknown_provider",
        ("'modla'", "did you mean modal?"),
    ),
    "a GPU that the provider does not offer": (
        (*MODEL, "--gpu", "RTX4090", *MODAL),
        2,
        "gpu_not_offered",
        ("modal does not offer the GPU RTX4090",),
    ),
    "more GPUs than it gives": (
        (*L4, *MODAL, "--gpu-count", "16", "--tp-size", "16"),
        2,
        "too_many_gpus",
        ("8 L4 at most",),
    ),
    "a model that does not fit": (
        ("deploy", "--model", "meta-llama/Llama-3.1-70B-Instruct", "--gpu", "L4"),
        3,
        "does_not_fit",
        ("does not fit", "it fits"),
    ),
    "a malformed name": ((*L4, "--service-name", "Not A Name"), 2, "wrong_usage", ("--service-name takes",)),
    "a name that is too long": ((*L4, "--service-name", "a" * 41), 2, "wrong_usage", ("40 characters",)),
    "an impossible length": ((*L4, "--max-model-len", "0"), 2, "wrong_usage", ("--max-model-len",)),
    "a negative count": ((*L4, "--gpu-count", "-1"), 2, "wrong_usage", ("--gpu-count",)),
    "no concurrency": ((*L4, "--concurrency", "0"), 2, "wrong_usage", ("--concurrency",)),
    "an unknown mode": ((*L4, "--cold-start-mode", "warm"), 2, "wrong_usage", ("--cold-start-mode", "warm")),
    "missing credentials": ((*L4, *RUNPOD), 2, "provider_credentials", ("RUNPOD_API_KEY",)),
    "nobody signed in anywhere": (L4, 2, "no_serverless_provider", ("runpod: ", "RUNPOD_API_KEY")),
    "the cpu of a cloud": (
        (*MODEL, "--gpu", "cpu", "--cloud", "aws"),
        2,
        "wrong_usage",
        ("--gpu cpu is this machine's",),
    ),
    "a GPU of this machine": ((*L4, "--cloud", "local"), 2, "wrong_usage", ("--gpu cpu",)),
    "a provider that has no cpu": ((*LOCAL, "--serverless-provider", "modal"), 2, "wrong_usage", ("modal",)),
    "Cloud Run's flag for another": (
        (*L4, *RUNPOD, "--gcp-region", "us-central1"),
        2,
        "wrong_usage",
        ("Cloud Run's alone",),
    ),
    "a policy that is not there": (
        (*L4, "--scaling-policy", "none.yaml"),
        2,
        "policy_unreadable",
        ("none.yaml", "No such file"),
    ),
    "an update of nothing": (
        (*L4, "--service-name", "none", "--update"),
        2,
        "deployment_not_found",
        ("there is no deployment none",),
    ),
}
POLICIES = {
    "an unknown key": ("spot:\n  min_replica: 1\n", ("line 2", "spot.min_replica", "min_replicas?")),
    "an unknown section": ("spots: {}\n", ("line 1", "spots", "did you mean spot?")),
    "a negative number": ("spot:\n  upscale_delay: -5\n", ("line 2", "spot.upscale_delay")),
    "min above max": (
        "spot:\n  min_replicas: 9\n  max_replicas: 3\n",
        ("line 2", "min_replicas is 9, above max_replicas, which is 3"),
    ),
    "a wrong type": ("serverless:\n  timeout: soon\n", ("line 2", "serverless.timeout")),
    "a list": ("- spot\n", ("line 1", "mapping")),
    "no YAML": ("spot: {\n", ("line",)),
}


@pytest.fixture(scope="module")
def town() -> Iterator[House]:
    # Nobody is signed in: neither by the environment nor by a file of the home folder.
    nobody = dict.fromkeys(("RUNPOD_API_KEY", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "HF_TOKEN"), "") | {
        "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",
        "NO_GCE_CHECK": "true",
    }
    with built(**nobody) as house:
        house.environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
        assert house.run("server", "start").returncode == 0
        yield house


def refused(house: House, here: Any, arguments: tuple[str, ...]) -> tuple[int, dict[str, Any], str]:
    done = here(house, *arguments, "--json")
    error = json.loads(done.stdout)["error"]
    made = [here(house, "list", "--state", "all", "--json"), here(house, "gc", "--json")]
    assert json.loads(made[0].stdout)["deployments"] == []
    assert json.loads(made[1].stdout)["strays"] == []
    assert not (house.home / "fleets").exists()
    return done.returncode, error, f"{error['message']} {error['next_step']}"


@pytest.mark.parametrize("case", list(CASES))
def test_bad_flags_are_told_by_name_and_nothing_is_made(town, here, case):
    arguments, code, error_code, words = CASES[case]
    exit_code, error, text = refused(town, here, arguments)
    assert (exit_code, error["code"]) == (code, error_code), text
    for word in words:
        assert word in text


@pytest.mark.parametrize("case", list(POLICIES))
def test_a_bad_policy_is_told_by_key_and_line(town, here, case):
    content, words = POLICIES[case]
    (town.home / "policy.yaml").write_text(content)
    exit_code, error, text = refused(town, here, (*L4, "--scaling-policy", "policy.yaml"))
    assert (exit_code, error["code"]) == (2, "invalid_scaling_policy"), text
    for word in ("policy.yaml", *words):
        assert word in text


def test_a_taken_name_is_refused_and_its_owner_stays(town, here):
    taken = (*LOCAL, "--service-name", "taken", "--serverless-only")
    assert town.run(*taken).returncode == 0
    try:
        before = here(town, "status", "--service-name", "taken", "--json").stdout
        done = here(town, *L4, "--service-name", "taken", "--json")
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (2, "name_taken")
        assert "demo/tiny" in error["message"]
        assert "--update" in error["next_step"]
        done = here(town, "deploy", "--service-name", "taken", "--update", "--public", "--json")
        assert json.loads(done.stdout)["error"]["code"] == "replacement_needed"
        after = here(town, "status", "--service-name", "taken", "--json").stdout
        assert json.loads(after)["spec"] == json.loads(before)["spec"]
    finally:
        assert town.run("destroy", "--service-name", "taken").returncode == 0
