from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.errors import InvalidInput
from tandemn.protocol.deployments import ScalingPolicy
from tandemn.serving.scaling import LONGEST_POLICY_BYTES, layered, read_policy

FULL = b"""\
spot:
  min_replicas: 1
  max_replicas: 4
  target_qps: 2.5
serverless:
  concurrency: 8
  scaledown_window: 20
"""


def test_without_a_file_the_defaults_hold():
    assert layered() == ScalingPolicy()
    assert layered().spot.model_dump() == {
        "min_replicas": 0,
        "max_replicas": 8,
        "target_qps": 10,
        "upscale_delay": 5,
        "downscale_delay": 300,
        "on_demand_fallback": False,
    }
    assert layered().serverless.model_dump() == {"concurrency": 32, "scaledown_window": 60, "timeout": 600}


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n", b"spot:\nserverless: {}\n"])
def test_an_empty_file_says_nothing(content):
    assert layered(read_policy(content)) == ScalingPolicy()


def test_file_lies_over_defaults_and_flags_over_both():
    policy = layered(read_policy(FULL), concurrency=64)
    assert (policy.spot.max_replicas, policy.spot.upscale_delay) == (4, 5)
    assert policy.spot.target_qps == 2.5
    assert policy.serverless.concurrency == 64
    assert policy.serverless.scaledown_window == 20


def test_no_scale_to_zero_keeps_one_replica_and_widens_the_window():
    assert layered(no_scale_to_zero=True).spot.min_replicas == 1
    policy = layered(read_policy(b"spot: {min_replicas: 3}"), no_scale_to_zero=True)
    assert (policy.spot.min_replicas, policy.serverless.scaledown_window) == (3, 300)


@pytest.mark.parametrize(
    ("content", "key", "line", "says"),
    [
        (b"spot:\n  min_replica: 1\n", "spot.min_replica", 2, "did you mean min_replicas"),
        (b"spott: {}\n", "spott", 1, "did you mean spot"),
        (b"\n\nrouter: {}\n", "router", 3, "known are spot, serverless"),
        (b"spot:\n  max_replicas: '4'\n", "spot.max_replicas", 2, "integer"),
        (b"spot:\n  max_replicas: yes\n", "spot.max_replicas", 2, "integer"),
        (b"spot:\n  max_replicas: 4.0\n", "spot.max_replicas", 2, "integer"),
        (b"spot:\n  max_replicas:\n", "spot.max_replicas", 2, "integer"),
        (b"spot:\n  max_replicas: [1]\n", "spot.max_replicas", 2, "integer"),
        (b"spot:\n\n  min_replicas: -1\n", "spot.min_replicas", 3, "greater than or equal to 0"),
        (b"spot:\n  target_qps: 0\n", "spot.target_qps", 2, "greater than 0"),
        (b"spot:\n  target_qps: .nan\n", "spot.target_qps", 2, "finite|greater"),
        (b"spot:\n  target_qps: .inf\n", "spot.target_qps", 2, "finite|less"),
        (b"spot:\n  target_qps: 2026-01-01\n", "spot.target_qps", 2, "number"),
        (b"spot:\n  max_replicas: 2\n  min_replicas: 3\n", "spot.min_replicas", 3, "above max_replicas"),
        (b"spot:\n  min_replicas: 9\n", "spot.min_replicas", 2, "which is 8"),
        (b"spot:\n  min_replicas: 1\n  min_replicas: 2\n", "spot.min_replicas", 3, "twice"),
        (b"serverless:\n  timeout: 0\n", "serverless.timeout", 2, "greater than or equal to 1"),
        (b"serverless: 5\n", "serverless", 1, "mapping"),
        (b"- spot\n", None, 1, "mapping"),
        (b"spot: {min_replicas: 1\n", None, 2, "expected"),
        (b"spot: {min_replicas: !!python/name:os.system ''}\n", None, 1, "could not determine"),
        (b"a: 1\n---\nb: 2\n", None, 2, "another document"),
        (b"? [a]\n: 1\n", "?", 1, "unknown key"),
    ],
)
def test_what_is_wrong_is_named_by_key_and_line(content, key, line, says):
    with pytest.raises(InvalidInput, match=says) as caught:
        read_policy(content, "policy.yaml")
    assert caught.value.message.startswith(f"policy.yaml, line {line}: ")
    assert caught.value.param == key
    assert (caught.value.code, caught.value.exit_code) == ("invalid_scaling_policy", 2)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"spot: {target_qps: 2026-99-99}",
        b"[" * 20_000,
        b"#" * (LONGEST_POLICY_BYTES + 1),
        b"\x00",
    ],
)
def test_what_is_no_policy_at_all_is_refused(content):
    with pytest.raises(InvalidInput):
        read_policy(content)


def test_a_flag_that_cannot_be_is_named():
    with pytest.raises(InvalidInput, match=r"--concurrency") as caught:
        layered(concurrency=0)
    assert caught.value.param == "concurrency"


@given(st.binary(max_size=60))
def test_no_input_does_anything_but_read_or_be_refused(content):
    with suppress(InvalidInput):
        read_policy(content)
