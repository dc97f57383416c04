import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.errors import InvalidInput
from tandemn.serving.scaling import read_policy
from tandemn.serving.spec import auto_name, spec_from_flags

FLAGS = {"model": "Qwen/Qwen3-0.6B", "gpu": "L4"}


def test_defaults():
    spec = spec_from_flags(FLAGS)
    assert spec.service_name == "qwen3-0-6b-l4"
    assert (spec.gpu_count, spec.tp_size, spec.max_model_len) == (1, 1, 4096)
    assert (spec.spots_cloud, spec.serverless_provider, spec.region) == ("aws", None, None)
    assert spec.cold_start_mode == "fast_boot"
    assert not spec.public
    assert spec.has_spot


def test_flags_that_were_not_given_leave_the_defaults():
    assert spec_from_flags({**FLAGS, "tp_size": None, "service_name": None}) == spec_from_flags(FLAGS)


def test_policy_and_flags_are_laid_over_each_other():
    policy = read_policy(b"serverless: {concurrency: 8, timeout: 100}")
    spec = spec_from_flags(FLAGS, policy=policy, concurrency=4, no_scale_to_zero=True)
    assert spec.scaling.serverless.model_dump() == {
        "concurrency": 4,
        "scaledown_window": 300,
        "timeout": 100,
    }
    assert spec.scaling.spot.min_replicas == 1


@pytest.mark.parametrize(("gpu", "cloud"), [("cpu", None), ("CPU", "local"), ("cpu", "local")])
def test_cpu_is_this_machine_for_both_backends(gpu, cloud):
    spec = spec_from_flags({**FLAGS, "gpu": gpu}, cloud=cloud)
    assert (spec.gpu, spec.serverless_provider, spec.spots_cloud) == ("cpu", "local", "local")


def test_cloud_is_where_spot_runs():
    assert spec_from_flags(FLAGS, cloud="gcp").spots_cloud == "gcp"


@pytest.mark.parametrize(
    ("changes", "cloud", "param"),
    [
        ({"gpu": None}, None, "gpu"),
        ({"model": None}, None, "model"),
        ({"model": ""}, None, "model"),
        ({"gpu": ""}, None, "gpu"),
        ({"tp_size": 2}, None, "tp_size"),
        ({"tp_size": 0}, None, "tp_size"),
        ({"gpu_count": -1}, None, "tp_size"),
        ({"max_model_len": 0}, None, "max_model_len"),
        ({"workers_max": 3}, None, "workers_max"),
        ({"workers_max": 3, "serverless_provider": "modal"}, None, "workers_max"),
        ({"workers_max": 0, "serverless_provider": "runpod"}, None, "workers_max"),
        ({"gcp_project": "p", "serverless_provider": "modal"}, None, "gcp_project"),
        ({"service_name": "Has Spaces"}, None, "service_name"),
        ({"service_name": "ends-"}, None, "service_name"),
        ({"service_name": "a" * 41}, None, "service_name"),
        ({"service_name": "new\nline"}, None, "service_name"),
        ({"service_name": "newline\n"}, None, "service_name"),
        ({"cold_start_mode": "warm"}, None, "cold_start_mode"),
        ({}, "local", "gpu"),
        ({"gpu": "cpu"}, "aws", "gpu"),
        ({"gpu": "cpu", "serverless_provider": "modal"}, None, "serverless_provider"),
    ],
)
def test_bad_flags_are_refused_by_name(changes, cloud, param):
    with pytest.raises(InvalidInput) as caught:
        spec_from_flags({**FLAGS, **changes}, cloud=cloud)
    assert caught.value.param == param
    assert (caught.value.code, caught.value.exit_code) == ("wrong_usage", 2)


@given(st.text(max_size=80), st.sampled_from(["L4", "A100-80GB", "cpu"]))
def test_every_model_gets_a_name_that_is_allowed(model, gpu):
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", auto_name(model, gpu))


def test_long_names_stay_apart():
    long = "x" * 60
    assert auto_name(f"org/{long}a", "L4") != auto_name(f"org/{long}b", "L4")
