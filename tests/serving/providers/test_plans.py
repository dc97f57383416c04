"""What each provider is asked for, and what it refuses before anyone is asked."""

import json
import sys
from decimal import Decimal

import pytest
import yaml

from tandemn.errors import InvalidInput, MissingDependency
from tandemn.serving.choice import choose_provider
from tandemn.serving.providers import adapters, skyserve_service
from tandemn.serving.providers.cloudrun import CloudRun
from tandemn.serving.providers.modal import Modal
from tandemn.serving.providers.provider import SERVERLESS_REPLICAS, Provider
from tandemn.serving.providers.runpod import RunPod
from tandemn.serving.scaling import read_policy
from tandemn.serving.spec import spec_from_flags

PROVIDERS: dict[str, Provider] = {
    "modal": Modal(None, object),
    "runpod": RunPod("key"),
    "cloudrun": CloudRun(None, None, project="p"),
}


def spec(policy: str = "", **flags):
    return spec_from_flags(
        {"model": "Qwen/Qwen3-0.6B", "gpu": "L4", **flags}, policy=read_policy(policy.encode())
    )


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
def test_a_plan_is_json_with_a_deterministic_name_and_a_dated_price(provider):
    plan = provider.plan(spec())
    assert plan == provider.plan(spec())
    assert plan.remote_name == "tandemn-qwen3-0-6b-l4"
    assert json.loads(json.dumps(plan.request)) == plan.request
    assert plan.usd_per_hour is not None
    assert "20" in plan.price_source


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ({"gpu": "L5"}, "unknown_gpu"),
        ({"gpu": "V100"}, "gpu_not_offered"),
        ({"gpu_count": 16}, "too_many_gpus"),
        ({"gpu_count": 8, "tp_size": 3}, "wrong_usage"),
    ],
)
def test_what_is_not_to_be_had_is_refused(provider, flags, code):
    if provider.name == "cloudrun" and code == "wrong_usage":
        code = "too_many_gpus"
    with pytest.raises(InvalidInput) as caught:
        provider.plan(spec(**flags))
    assert (caught.value.code, caught.value.exit_code) == (code, 2)
    assert code == "too_many_gpus" or caught.value.next_step


def test_near_names_are_suggested():
    with pytest.raises(InvalidInput) as caught:
        PROVIDERS["modal"].plan(spec(gpu="L40"))
    assert "L40S" in str(caught.value)
    with pytest.raises(InvalidInput) as caught:
        PROVIDERS["cloudrun"].plan(spec(gcp_region="us-centrall"))
    assert caught.value.code == "unknown_region"
    assert "us-central1" in str(caught.value)


def test_a_policy_beyond_a_limit_is_clamped_with_a_warning():
    plan = PROVIDERS["runpod"].plan(spec("serverless: {timeout: 600}"))
    assert plan.request["timeout"] == 330_000
    assert any("330" in warning and "600" in warning for warning in plan.warnings)
    plan = PROVIDERS["modal"].plan(spec("serverless: {scaledown_window: 1}"))
    assert plan.request["scaledown_window"] == 2
    assert len(plan.warnings) == 1
    plan = PROVIDERS["cloudrun"].plan(spec("serverless: {concurrency: 2000}"))
    assert plan.request["concurrency"] == 1000


def test_policy_and_flags_arrive():
    policy = "serverless: {concurrency: 7, scaledown_window: 90, timeout: 100}"
    flags = {"workers_max": 5, "serverless_provider": "runpod", "region": "EU-RO-1", "gpu": "A40"}
    request = PROVIDERS["runpod"].plan(spec(policy, **flags)).request
    assert request["scaling"]["requestCount"] == 7
    assert request["workers"] == {"min": 0, "max": 5, "idleTimeout": 90}
    assert (request["timeout"], request["dataCenterIds"]) == (100_000, ["EU-RO-1"])
    assert request["gpu"] == {"pools": ["AMPERE_48"], "count": 1}
    assert "--enforce-eager" in request["args"]
    slow = PROVIDERS["modal"].plan(spec(cold_start_mode="no_fast_boot", gpu_count=4, tp_size=2))
    assert slow.request["gpu"] == "L4:4"
    assert "--enforce-eager" not in slow.request["command"]
    assert slow.request["command"][-2:] == ["--data-parallel-size", "2"]
    assert slow.usd_per_hour == 4 * Decimal("0.7992")


def test_a_pool_of_mixed_gpus_is_said():
    assert any("RTX4090" in warning for warning in PROVIDERS["runpod"].plan(spec()).warnings)


def test_the_cheapest_that_can_is_chosen_and_the_rest_explained():
    choice = choose_provider(spec(), PROVIDERS, {"other": "not signed in"})
    assert choice.plan.provider == "runpod"
    assert "0.684" in choice.reason
    assert [line.split(":")[0] for line in choice.others] == ["cloudrun", "modal", "other"]
    choice = choose_provider(spec(gpu="T4"), PROVIDERS)
    assert choice.plan.provider == "modal"
    assert any("does not offer" in line for line in choice.others)


def test_the_named_one_is_followed_and_its_refusal_shown():
    named = spec(serverless_provider="modal")
    assert choose_provider(named, {"modal": PROVIDERS["modal"]}).reason == "it was asked for"
    with pytest.raises(InvalidInput) as caught:
        choose_provider(spec(serverless_provider="cloudrun", gpu="H100"), {"cloudrun": PROVIDERS["cloudrun"]})
    assert caught.value.code == "gpu_not_offered"


def test_nobody_configured():
    with pytest.raises(InvalidInput) as caught:
        choose_provider(spec(), {}, {"modal": "not signed in"})
    assert caught.value.code == "no_serverless_provider"
    assert "not signed in" in str(caught.value)


def test_providers_are_found_by_entry_point():
    assert {"modal", "runpod", "cloudrun"} <= set(adapters.providers())
    with pytest.raises(InvalidInput, match="did you mean runpod") as caught:
        adapters.open_provider("runpood")
    assert (caught.value.code, caught.value.exit_code) == ("unknown_provider", 2)


def test_without_a_key_runpod_says_so(monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    with pytest.raises(InvalidInput, match="RUNPOD_API_KEY") as caught:
        adapters.open_provider("runpod")
    assert caught.value.code == "provider_credentials"
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_x")
    assert adapters.open_provider("runpod").name == "runpod"


@pytest.mark.parametrize(("name", "package"), [("modal", "modal"), ("cloudrun", "google.auth")])
def test_a_missing_sdk_is_an_error_with_the_line_for_pip(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"pip install 'tandemn\[{name}\]'") as caught:
        adapters.open_provider(name)
    assert caught.value.exit_code == 2


def test_modal_is_bounded():
    assert PROVIDERS["modal"].plan(spec()).request["max_containers"] == SERVERLESS_REPLICAS


def test_skyserve_renders_policy_and_engine():
    policy = "spot: {min_replicas: 1, max_replicas: 3, target_qps: 2, upscale_delay: 7, downscale_delay: 9}"
    task = skyserve_service.service_task(spec(policy, region="us-east-1", gpu_count=2, tp_size=2))
    assert yaml.safe_load(yaml.safe_dump(task)) == task
    assert task["service"]["replica_policy"] == {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_qps_per_replica": 2,
        "upscale_delay_seconds": 7,
        "downscale_delay_seconds": 9,
        "num_overprovision": 1,
    }
    assert task["resources"]["infra"] == "aws/us-east-1"
    assert task["resources"]["accelerators"] == {"L4": 2}
    assert task["resources"]["use_spot"]
    assert task["run"].startswith("vllm serve Qwen/Qwen3-0.6B ")
    assert task["secrets"] == {"VLLM_API_KEY": None, "HF_TOKEN": None}


def test_a_fleet_that_may_be_at_zero_is_not_padded():
    assert "num_overprovision" not in skyserve_service.service_task(spec())["service"]["replica_policy"]


def test_serverless_only_has_no_fleet():
    with pytest.raises(InvalidInput):
        skyserve_service.service_task(spec(serverless_only=True))
