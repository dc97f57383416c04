"""What SkyPilot is given, as golden files; where SkyPilot is there, its own schema has the last word on them.

`TANDEMN_WRITE_GOLDEN=1 pytest tests/fleet/test_skypilot_task.py` writes them anew.
"""

import os
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from tandemn.fleet.engines.engine import EngineName
from tandemn.fleet.launchers.skypilot_task import TaskSpec, place_of_offer, places, task_config
from tandemn.placement.catalog.offers import Offer
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import Market

GOLDEN = Path(__file__).parent / "golden"


def offer(provider: str, place: str, instance: str, price: str | None, **values) -> Offer:
    region, _, zone = place.partition("/")
    defaults = {"gpu": "L4", "gpus": 1, "market": Market.SPOT}
    return Offer(
        provider=provider,
        region=region,
        zone=zone or None,
        instance_type=instance,
        usd_per_hour=None if price is None else Decimal(price),
        source="a test",
        as_of="2026-11",
        **{**defaults, **values},
    )


def spec(**values) -> TaskSpec:
    defaults = {
        "cluster": "tandemn-job-1-r0",
        "replica_id": "job-1-r0",
        "config": ReplicaConfig(gpu="L4", market=Market.SPOT),
        "engine": EngineName.VLLM,
        "server_url": "https://tandemn.example",
        "wheel": Path("/wheels/tandemn-0.1.0-py3-none-any.whl"),
        "places": [],
        "cloud": "aws",
        "secrets": {"HF_TOKEN": "hf-…", "TANDEMN_REPLICA_TOKEN": "…"},
    }
    return TaskSpec(**{**defaults, **values})


TASKS = {
    "aws_spot": spec(
        places=[
            offer("aws", "us-east-1/us-east-1a", "g6.xlarge", "0.25"),
            offer("aws", "us-west-2/us-west-2b", "g6.xlarge", "0.28"),
        ]
    ),
    "aws_two_nodes": spec(
        config=ReplicaConfig(gpu="A100", tp=8, pp=2, nodes=2, market=Market.ON_DEMAND),
        places=[offer("aws", "us-east-1", "p4d.24xlarge", "22", gpu="A100", gpus=8, market=Market.ON_DEMAND)],
    ),
    "gcp_image": spec(
        cloud="gcp",
        image="vllm/vllm-openai:v0.32.0",
        places=[offer("gcp", "us-central1/us-central1-a", "g2-standard-4", "0.28")],
    ),
    "gcp_named": spec(
        cloud="gcp", config=ReplicaConfig(gpu="L4", tp=2, market=Market.ON_DEMAND, region="us-east1")
    ),
    "slurm": spec(
        cloud="slurm",
        config=ReplicaConfig(gpu="H100", market=Market.SPOT),
        engine=EngineName.SIMULATED,
        server_url="http://127.0.0.1:21234",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_task_is_as_recorded(name):
    path = GOLDEN / f"task_{name}.yaml"
    text = yaml.safe_dump(task_config(TASKS[name]), sort_keys=False, width=120)
    if os.environ.get("TANDEMN_WRITE_GOLDEN"):
        path.write_text(text)
    assert yaml.safe_load(text) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", TASKS)
def test_what_it_runs_is_shell(name):
    config = task_config(TASKS[name])
    for part in ("setup", "run"):
        checked = subprocess.run(
            ["bash", "-n"], input=config[part], text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_places_are_those_that_fit_the_cheapest_first():
    offers = [
        offer("aws", "us-east-1/us-east-1a", "g6.xlarge", "0.30"),
        offer("aws", "us-west-2/us-west-2b", "g6.xlarge", "0.25"),
        offer("aws", "us-west-2/us-west-2b", "g6.2xlarge", "0.40"),
        offer("aws", "eu-west-1/eu-west-1a", "g6.xlarge", None),
        offer("aws", "us-east-1", "g6.xlarge", "0.80", market=Market.ON_DEMAND),
        offer("aws", "us-east-1/us-east-1a", "g6.12xlarge", "1.60", gpus=4),
        offer("aws", "us-east-1/us-east-1a", "g5g.xlarge", "0.10", arch="arm64"),
        offer("gcp", "us-central1/us-central1-a", "g2-standard-4", "0.20"),
    ]
    config = ReplicaConfig(gpu="L4", market=Market.SPOT)

    def found(cloud: str | None = "aws", **values) -> list[tuple[str, str]]:
        ranked = places(config.model_copy(update=values), offers, cloud)
        return [(each.place, each.instance_type) for each in ranked]

    east, west = ("us-east-1a", "g6.xlarge"), ("us-west-2b", "g6.xlarge")
    assert found() == [west, east, ("us-west-2b", "g6.2xlarge")]
    assert found(None)[0] == ("us-central1-a", "g2-standard-4")
    assert found(regions=("us-east-1",)) == [east]
    assert found(region="us-east-1a") == [east]
    assert found(market=Market.ON_DEMAND) == [("us-east-1", "g6.xlarge")]
    assert found(dp=4) == found(tp=4) == [("us-east-1a", "g6.12xlarge")]
    assert found(gpu="H100") == []


def test_zones_that_are_known_by_their_ids_are_left_to_skypilot():
    offers = [
        offer("aws", "us-east-1/use1-az4", "g6.xlarge", "0.30"),
        offer("aws", "us-east-1/use1-az6", "g6.xlarge", "0.25"),
        offer("aws", "us-east-1/us-east-1c", "g6.xlarge", "0.28"),
    ]
    ranked = places(ReplicaConfig(gpu="L4", market=Market.SPOT), offers, "aws")
    assert [place_of_offer(each) for each in ranked] == ["aws/us-east-1", "aws/us-east-1/us-east-1c"]
    assert ranked[0].usd_per_hour == Decimal("0.25")
