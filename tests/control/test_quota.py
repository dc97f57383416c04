"""Quota through the whole control plane: what runs already is taken off, a full quota moves the plan, `tandemn quota` shows it."""

import asyncio
import json

import pytest
from tests.control.plane import served
from tests.fakes.aws_quotas import Wired, aws_account, launch, service_quotas

from tandemn.cli.app import run
from tandemn.clock import SystemClock
from tandemn.placement.quota import QuotaReader

SPOT_G, ON_DEMAND_G = "L-3819A6DF", "L-DB2E81BA"
#: On demand in two regions, no spot anywhere.
LIMITS = {
    "us-east-1": {ON_DEMAND_G: 64.0, SPOT_G: 0.0},
    "us-west-2": {ON_DEMAND_G: 64.0, SPOT_G: 0.0},
    "us-east-2": {ON_DEMAND_G: 0.0, SPOT_G: 0.0},
}
JOB = {"model": "Qwen/Qwen3-8B", "cloud": "aws", "slo_s": 36_000, "gpu": "L4"}


@pytest.fixture
async def account(tmp_path):
    with aws_account() as session, service_quotas(LIMITS) as url:
        async with served(tmp_path) as plane:
            # Nothing of a reading is kept: the tests launch between two plans.
            object.__setattr__(plane.services, "quotas", Fresh(SystemClock(), Wired(session, url)))
            yield plane, session


class Fresh(QuotaReader):
    def read(self, regions, *, fresh=False):
        return super().read(regions, fresh=True)


async def planned(plane, **more):
    content = b"".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 100},
            }
        ).encode()
        + b"\n"
        for number in range(200)
    )
    file_id = await plane.new_file("local", content)
    key = plane.services.local_key
    return await plane.call("POST", "/api/plans", key=key, json={**JOB, "input_file_id": file_id, **more})


def places(answer):
    return {(row["region"], row["market"]) for row in answer["plan"]}


async def test_an_exhausted_quota_moves_the_plan_elsewhere(account):
    plane, session = account
    status, before = await planned(plane)
    assert status == 200, before
    assert places(before) == {("us-east-1", "on-demand"), ("us-west-2", "on-demand")}, (
        "no spot: its quota is 0"
    )
    launch(session, "g6.16xlarge", before["plan"][0]["region"], cores=32)
    [other] = {"us-east-1", "us-west-2"} - {before["plan"][0]["region"]}
    status, after = await planned(plane)
    assert status == 200, after
    assert places(after) == {(other, "on-demand")}
    launch(session, "g6.16xlarge", other, cores=32)
    status, refused = await planned(plane)
    assert status == 422
    assert "quota" in json.dumps(refused)


async def test_the_command_shows_limit_use_and_what_is_free(account, monkeypatch, capfd):
    plane, session = account
    launch(session, "g5.2xlarge", "us-west-2", count=3)
    monkeypatch.setenv("TANDEMN_SERVER_URL", plane.url)
    monkeypatch.setenv("TANDEMN_API_KEY", plane.services.local_key)
    assert await asyncio.to_thread(run, ["quota", "--region", "us-west-2", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["quotas"]
    assert {
        "region": "us-west-2",
        "family": "G",
        "market": "on-demand",
        "limit_vcpus": 64,
        "used_vcpus": 24,
        "free_vcpus": 40,
    } in rows
    assert await asyncio.to_thread(run, ["quota", "--region", "us-west-2"]) == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if "on-demand" in line]
    assert line.split() == ["us-west-2", "G", "on-demand", "64", "24", "40"]
