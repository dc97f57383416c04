"""Where a job runs that names no cloud."""

from types import SimpleNamespace

import pytest

from tandemn.control.cloud_choice import choose_cloud
from tandemn.errors import InvalidInput, MissingDependency, Retryable
from tandemn.protocol.jobs import JobSpec


def services(enabled=(), setting=None):
    def ask():
        if isinstance(enabled, Exception):
            raise enabled
        return list(enabled)

    launchers = {name: SimpleNamespace(check=lambda: None) for name in ("local", "aws", "gcp", "any")}
    return SimpleNamespace(
        settings=SimpleNamespace(cloud=setting), clouds=SimpleNamespace(enabled=ask), launchers=launchers
    )


def spec(**values):
    return JobSpec(**{"model": "Qwen/Qwen3-32B", "slo_s": 60, **values})


@pytest.mark.parametrize(
    ("wanted", "there", "cloud", "why"),
    [
        ({"cloud": "gcp"}, {"enabled": ["aws"]}, "gcp", "as asked for"),
        ({}, {"enabled": ["aws"]}, "aws", "has access"),
        ({}, {"enabled": ["aws", "gcp"]}, "any", "aws, gcp"),
        ({}, {"enabled": []}, "local", "sky check"),
        ({}, {"enabled": MissingDependency("none")}, "local", "not installed"),
        ({}, {"enabled": Retryable("it does not answer")}, "local", "does not answer"),
        ({}, {"enabled": ["aws"], "setting": "gcp"}, "gcp", "TANDEMN_CLOUD"),
        ({"model": "demo/tiny"}, {"enabled": ["aws"]}, "local", "llamacpp"),
        ({"gpu": "cpu"}, {"enabled": ["aws"]}, "local", "CPU"),
        ({"engine": "simulated"}, {"enabled": ["aws"]}, "local", "simulated"),
        ({"model": "demo/tiny", "cloud": "aws"}, {"enabled": ["aws"]}, "aws", "as asked for"),
    ],
)
async def test_cloud(wanted, there, cloud, why):
    choice = await choose_cloud(services(**there), spec(**wanted))
    assert choice.cloud == cloud
    assert why in choice.reason


async def test_a_cloud_that_there_is_not():
    with pytest.raises(InvalidInput) as caught:
        await choose_cloud(services(), spec(cloud="moon"))
    assert caught.value.code == "unknown_cloud"
    assert "aws" in str(caught.value)
