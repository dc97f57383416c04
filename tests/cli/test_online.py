"""Deployments on the command line, against a control plane that only speaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tests.fakes.user_api import deployment_plan, deployment_status

from tandemn.cli import deployment_report
from tandemn.errors import Conflict, InvalidInput

DEPLOY = ("deploy", "--model", "demo/tiny", "--gpu", "L4", "--service-name", "chat")
BACKEND = deployment_status().backends[0].model_dump()


def backends(state, **fields):
    return [BACKEND | {"state": state} | fields]


@pytest.fixture
def scripted(plane):
    plane.plan = deployment_plan()
    plane.deployments["chat"] = [
        deployment_status(state="planned", backends=backends("planned"), endpoint=None),
        deployment_status(state="provisioning", backends=backends("provisioning", reason="waits for a GPU")),
        deployment_status(),
    ]
    return plane


def test_deploy_shows_the_plan_each_step_and_how_to_call_it(scripted, tandemn):
    result = tandemn(*DEPLOY)
    assert result.code == 0, result.err
    assert "deployment chat: demo/tiny on 1 x L4, 4096 tokens\n" in result.out
    assert "0 to 3    $0.8/h" in result.out
    assert (
        "serverless: modal, because it is the cheapest\nnot runpod: RUNPOD_API_KEY is not set\n" in result.out
    )
    assert "warning: runpod ends a request after 330 s\n" in result.out
    steps = [line.split("  ")[-1] for line in result.out.splitlines() if " s  serverless: " in line]
    assert steps == [
        "serverless: planned (modal)",
        "serverless: provisioning (modal): waits for a GPU",
        "serverless: idle (modal)",
    ]
    assert f"endpoint  {scripted.url}\nkey       sk-1\n" in result.out
    assert f"curl {scripted.url}/v1/chat/completions -H 'Content-Type: application/json'" in result.out
    assert "-H 'Authorization: Bearer sk-1'" in result.out
    assert f'client = OpenAI(base_url="{scripted.url}/v1", api_key="sk-1")' in result.out
    assert scripted.called("GET", "/v1/models") == [{}]  # it has answered before it is called ready


def test_deploy_json_is_the_endpoint_and_its_key(scripted, tandemn):
    result = tandemn(*DEPLOY, "--json")
    assert result.json == {"service_name": "chat", "endpoint": scripted.url, "api_key": "sk-1"}
    assert "serverless: idle (modal)" in result.err


def test_every_flag_reaches_the_control_plane(scripted, tandemn, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "spot: {min_replicas: 2, max_replicas: 4}\nserverless: {concurrency: 8, timeout: 100}\n"
    )
    flags = (
        "--gpu-count 4 --serverless-provider runpod --spots-cloud gcp --region r --tp-size 2 --max-model-len 100 "
        "--concurrency 9 --workers-max 5 --cold-start-mode no_fast_boot --no-scale-to-zero --public "
        "--serverless-only --quantization awq --spot-ttft-limit 1.5 --router-cloud aws "
        "--router-region us-east-1 --router-name chat.example.com --budget 2.50 --force --yes"
    )
    result = tandemn(*DEPLOY, *flags.split(), "--scaling-policy", policy, "--", "--seed", "1")
    assert result.code == 0, result.err
    (planned,) = scripted.called("POST", "/api/deployments/plan")
    assert (planned["is_update"], planned["force"]) == (False, True)
    assert planned["spec"] == {
        "service_name": "chat",
        "model": "demo/tiny",
        "gpu": "L4",
        "gpu_count": 4,
        "tp_size": 2,
        "max_model_len": 100,
        "quantization": "awq",
        "cold_start_mode": "no_fast_boot",
        "serverless_provider": "runpod",
        "spots_cloud": "gcp",
        "region": "r",
        "serverless_only": True,
        "workers_max": 5,
        "gcp_project": None,
        "gcp_region": None,
        "public": True,
        "spot_ttft_limit": 1.5,
        "router_cloud": "aws",
        "router_region": "us-east-1",
        "router_name": "chat.example.com",
        "budget_usd": "2.50",
        "engine_args": ["--seed", "1"],
        "scaling": {
            "spot": {
                "min_replicas": 2,
                "max_replicas": 4,
                "target_qps": 10.0,
                "upscale_delay": 5,
                "downscale_delay": 300,
                "on_demand_fallback": False,
            },
            "serverless": {"concurrency": 9, "scaledown_window": 300, "timeout": 100},
        },
    }
    # What is recorded is what was planned, with every choice made.
    (recorded,) = scripted.called("POST", "/api/deployments")
    assert recorded["spec"]["serverless_provider"] == "modal"


def test_the_model_may_stand_first(scripted, tandemn):
    assert tandemn("deploy", "demo/tiny", "--gpu", "L4", "--service-name", "chat").code == 0
    (planned,) = scripted.called("POST", "/api/deployments/plan")
    assert planned["spec"]["model"] == "demo/tiny"


def test_an_update_changes_what_flags_name_and_no_more(scripted, tandemn, tmp_path):
    before = deployment_status().spec.model_dump() | {"max_model_len": 999, "serverless_provider": "modal"}
    before["scaling"]["serverless"]["timeout"] = 77
    scripted.deployments["chat"] = [deployment_status(spec=before)]
    policy = tmp_path / "policy.yaml"
    policy.write_text("spot: {max_replicas: 3}\n")
    arguments = ("--service-name", "chat", "--update", "--concurrency", "64", "--scaling-policy", policy)
    result = tandemn("deploy", *arguments)
    assert result.code == 0, result.err
    (planned,) = scripted.called("POST", "/api/deployments/plan")
    assert planned["is_update"]
    wanted = json.loads(json.dumps(before))
    wanted["scaling"]["serverless"]["concurrency"] = 64
    wanted["scaling"]["spot"]["max_replicas"] = 3
    assert planned["spec"] == wanted | {"engine_args": []}
    (recorded,) = scripted.called("POST", "/api/deployments")
    assert recorded["is_update"]


def test_an_update_is_waited_for_until_the_providers_have_taken_it(scripted, tandemn):
    scripted.deployments["chat"] = [
        deployment_status(),
        deployment_status(backends=backends("idle", is_current=False)),
        deployment_status(backends=backends("idle", is_current=False)),
        deployment_status(),
    ]
    assert tandemn("deploy", "--service-name", "chat", "--update", "--concurrency", "64").code == 0
    assert len(scripted.deployments["chat"]) == 1


def test_update_needs_a_name(home, tandemn):
    result = tandemn("deploy", "--update", "--concurrency", "64")
    assert (result.code, "needs the deployment's name" in result.err) == (2, True)
    assert not home.exists()


def test_a_failed_deployment_ends_with_1_and_the_reason(scripted, tandemn):
    failed = {"state": "failed", "reason": "serverless: no balance", "code": "provider_permission"}
    scripted.deployments["chat"] = [deployment_status(**failed)]
    result = tandemn(*DEPLOY, "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "provider_permission"
    assert "no balance" in result.json["error"]["message"]
    assert "tandemn destroy --service-name chat" in result.json["error"]["next_step"]


def test_a_deployment_that_fails_while_its_first_answer_is_waited_for_ends_the_wait(scripted, tandemn):
    scripted.refusals["GET", "/v1/models"] = InvalidInput("no", code="x")
    scripted.refusals["GET", "/v1/models"].http_status = 503
    scripted.deployments["chat"] += [
        deployment_status(state="failed", reason="serverless: out of memory", code="startup_failed")
    ]
    result = tandemn(*DEPLOY)
    assert (result.code, "out of memory" in result.err) == (1, True)


def test_what_the_control_plane_refuses_is_told_as_it_is(scripted, tandemn):
    scripted.refusals["POST", "/api/deployments"] = Conflict(
        "the name chat is taken", code="name_taken", next_step="use another"
    )
    result = tandemn(*DEPLOY)
    assert (result.code, result.err) == (
        2,
        "error: the name chat is taken [name_taken]\nnext step: use another\n",
    )


@pytest.mark.parametrize(
    ("price", "answer", "code", "is_made"),
    [
        ("0.8", "n\n", 1, False),
        ("0.8", "y\n", 0, True),
        (None, "n\n", 1, False),
        ("0", "", 0, True),
    ],
)
def test_a_terminal_is_asked_before_money_is_spent(scripted, monkeypatch, price, answer, code, is_made):
    scripted.plan = deployment_plan(price=price)
    scripted.deployments["chat"] = [deployment_status()]
    main, side = os.openpty()
    command = [sys.executable, "-m", "tandemn.cli", *DEPLOY, "--serverless-only"]
    process = subprocess.Popen(command, stdin=side, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(main, answer.encode())
    _, said = process.communicate(timeout=60)
    os.close(main)
    os.close(side)
    assert process.returncode == code, said
    assert bool(scripted.called("POST", "/api/deployments")) is is_made
    if price == "0.8":
        assert "Up to $2.40 an hour with all replicas. Deploy it?" in said


def test_ctrl_c_says_how_to_come_back(scripted):
    scripted.deployments["chat"] = [deployment_status(state="creating", backends=backends("creating"))]
    command = [sys.executable, "-m", "tandemn.cli", *DEPLOY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "serverless: creating" in line:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the deployment chat is being made without this command" in said
    assert "`tandemn destroy --service-name chat` removes it" in said
    assert "Traceback" not in said


def test_destroy_waits_until_it_is_gone_and_shows_a_delete_that_fails(scripted, tandemn):
    stuck = backends("deleting", reason="HTTP 500", code="provider_unavailable")
    scripted.deployments["chat"] = [
        deployment_status(),
        deployment_status(state="deleting", backends=backends("deleting")),
        deployment_status(state="deleting", backends=stuck),
        deployment_status(state="deleted", backends=backends("deleted"), router=None),
    ]
    result = tandemn("destroy", "--service-name", "chat")
    assert result.code == 0
    assert "serverless: deleting (modal): HTTP 500 [provider_unavailable]\n" in result.out
    assert result.out.endswith("chat deleted\n")


def test_destroy_all_ends_deployments_too(scripted, tandemn):
    scripted.deployments = {
        name: [deployment_status(name, state="deleting"), deployment_status(name, state="deleted")]
        for name in ("one", "two")
    }
    result = tandemn("destroy", "--all", "--yes", "--json")
    assert result.code == 0
    assert [each["state"] for each in result.json["deployments"]] == ["deleted", "deleted"]
    assert result.json["jobs"] == []


def test_destroy_of_what_never_was(scripted, tandemn):
    result = tandemn("destroy", "--service-name", "none")
    assert (result.code, "deployment_not_found" in result.err) == (2, True)


def test_status_and_list(scripted, tandemn):
    replicas = [{"replica_id": "r0", "state": "ready", "pid": 4242}]
    scripted.deployments["chat"] = [
        deployment_status(backends=backends("ready", replicas=replicas, ready_replicas=1), reason=None)
    ]
    shown = tandemn("status", "--service-name", "chat", "--json").json
    assert (shown["service_name"], shown["state"], shown["router"]["state"]) == ("chat", "ready", "ready")
    assert shown["backends"][0]["replicas"] == replicas
    out = tandemn("status", "--service-name", "chat").out
    assert "state      ready\n" in out
    assert "  serverless r0 ready, pid 4242\n" in out
    assert "not known" in out
    out = tandemn("list").out
    assert out.splitlines()[1].split()[:4] == ["chat", "ready", "demo/tiny", "L4"]
    assert tandemn("list", "--state", "degraded", "--json").json["deployments"] == []
    assert tandemn("list", "--state", "running", "--json").json["deployments"] == []


def test_a_rotated_key_is_shown(scripted, tandemn):
    result = tandemn("endpoint", "--service-name", "chat", "--rotate-key", "--keep-old", "30m", "--json")
    assert result.json == {"service_name": "chat", "endpoint": scripted.url, "api_key": "sk-new"}
    (asked,) = scripted.called("POST", "/api/deployments/chat/key/rotate")
    assert asked == {"keep_old_s": 1800.0}
    result = tandemn("endpoint", "--service-name", "chat")
    assert "key       sk-1\n" in result.out
    assert tandemn("endpoint", "--service-name", "chat", "--rotate-key", "--keep-old", "soon").code == 2


def test_logs_of_a_deployment(scripted, tandemn):
    scripted.logs["chat"] = b"router it serves\nserverless up\n"
    result = tandemn("logs", "--service-name", "chat", "--json")
    assert [json.loads(line) for line in result.out.splitlines()] == [
        {"part": "router", "line": "it serves"},
        {"part": "serverless", "line": "up"},
    ]
    assert tandemn("logs", "--service-name", "chat", "--replica", "r0").code == 2
    assert tandemn("logs", "job-1", "--service-name", "chat").code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "L4", "--tp", "2"], "a deployment has --tp-size"),
        (["--gpu", "L4", "--replicas", "2"], "spot.min_replicas"),
        (["--gpu", "L4", "--slo", "4h"], "tandemn deploy MODEL INPUT.jsonl --slo 4h"),
        (["--gpu", "L4", "--wait"], "--wait is a flag of jobs"),
        (["{lines}", "--slo", "1h", "--tp-size", "2"], "instead: --tp"),
        (["{lines}", "--slo", "1h", "--service-name", "s"], "--service-name is a flag of deployments"),
        (["{lines}", "--slo", "1h", "--max-model-len", "9"], "-- --max-model-len N"),
    ],
)
def test_a_flag_of_the_other_workload_names_the_right_one(arguments, says, lines, home, tandemn):
    result = tandemn("deploy", "demo/tiny", *[each.format(lines=lines) for each in arguments])
    assert result.code == 2
    assert says in result.err
    assert not home.exists()


def test_steps_are_told_once():
    one = deployment_status()
    assert deployment_report.step_lines(one, deployment_status()) == []
    assert len(deployment_report.step_lines(None, one)) == 2


def test_a_control_plane_that_goes_away_is_waited_for(scripted, tandemn, monkeypatch):
    scripted.refusals["GET", "/api/deployments/chat"] = InvalidInput("down", code="x")
    scripted.refusals["GET", "/api/deployments/chat"].http_status = 503
    began = time.monotonic()
    monkeypatch.setattr("tandemn.cli.follow.OUTAGE_S", 0.0)
    result = tandemn(*DEPLOY)
    assert result.code == 1
    assert "tandemn status --service-name chat" in result.err
    assert time.monotonic() - began < 30
