from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.user_api import completed, job_status

from tandemn.cli import workload
from tandemn.errors import Infeasible, InvalidInput, StoreUnavailable

BAD: dict[str, Any] = {
    "state": "failed",
    "code": "invalid_lines",
    "reason": "3 bad lines",
    "errors_total": 3,
    "errors": [
        {"line": 2, "code": "invalid_json", "message": "not JSON: \x1b[31m\u2028[x]"},
        {"line": 7, "code": "duplicate_custom_id", "message": "custom_id 'a' stands on line 1 already"},
    ],
}


def test_job_is_submitted_once_its_input_is_judged(plane, lines, tandemn):
    plane.on_submit = [
        job_status(state="validating"),
        job_status(state="validating"),
        job_status(state="launching", requests={"total": 2}),
    ]
    result = tandemn("deploy", "demo/tiny", lines, "--slo", "30m", "--replicas", "2", "--cloud", "local")
    assert result.code == 0
    assert result.out.startswith("job job-1 submitted\n2 requests, deadline in ")
    assert list(plane.files.values()) == [lines.read_bytes()]
    (spec,) = plane.called("POST", "/api/jobs")
    assert spec["model"] == "demo/tiny"
    assert spec["slo_s"] == 1800
    assert spec["replicas"] == 2
    assert spec["cloud"] == "local"
    assert spec["input_file_id"] == "file-1"
    assert plane.looks["job-1"] == 2


def test_json_is_the_job_id(plane, lines, tandemn):
    plane.on_submit = [job_status(requests={"total": 2})]
    result = tandemn("deploy", "demo/tiny", lines, "--slo", "4", "--json")
    assert result.json == {"job_id": "job-1"}
    assert result.err == ""


def test_every_flag_reaches_the_control_plane(plane, lines, tandemn):
    plane.on_submit = [job_status()]
    flags = (
        "--max-output-tokens 9 --cloud aws --region us-east-1 --gpu L4 --tp 2 --pp 3 --replicas 4 --on-demand "
        "--chunk-size 5 --engine vllm --budget 1.25 --priority low --advisor koi --force --persist --skip-invalid "
        "--stop-at-deadline --yes"
    )
    result = tandemn("deploy", "--model", "m", lines, "--slo", "1", *flags.split(), "--", "--json", "-x", "1")
    assert result.code == 0, result.err
    (spec,) = plane.called("POST", "/api/jobs")
    assert {name: value for name, value in spec.items() if value is not None} == {
        "model": "m",
        "input_file_id": "file-1",
        "slo_s": 3600.0,
        "max_output_tokens": 9,
        "cloud": "aws",
        "region": "us-east-1",
        "gpu": "L4",
        "tp": 2,
        "pp": 3,
        "replicas": 4,
        "on_demand": True,
        "chunk_size": 5,
        "engine": "vllm",
        "engine_args": ["--json", "-x", "1"],
        "budget_usd": "1.25",
        "priority": "low",
        "advisor": "koi",
        "force": True,
        "persist": True,
        "skip_invalid": True,
        "stop_at_deadline": True,
        "model_from_lines": False,
    }


def test_input_in_a_bucket_is_not_uploaded(plane, tandemn):
    plane.on_submit = [job_status()]
    assert tandemn("deploy", "m", "s3://bucket/in.jsonl", "--slo", "1").code == 0
    (spec,) = plane.called("POST", "/api/jobs")
    assert spec["input_url"] == "s3://bucket/in.jsonl"
    assert spec["input_file_id"] is None
    assert not plane.files


@pytest.mark.parametrize("waiting", [[], ["--wait"], ["--json"]])
def test_bad_lines_are_named_and_end_with_2(waiting, plane, lines, tandemn):
    plane.on_submit = [job_status(state="validating"), job_status(**BAD)]
    result = tandemn("deploy", "m", lines, "--slo", "1", *waiting)
    assert result.code == 2
    assert f"{lines}:2: not JSON: \\x1b[31m\\u2028[x] [invalid_json]\n" in result.err
    assert f"{lines}:7: custom_id 'a' stands on line 1 already [duplicate_custom_id]\n" in result.err
    assert "… and 1 more\n" in result.err
    assert f"error: {lines}: 3 bad lines, nothing was launched [invalid_lines]" in result.err
    if waiting == ["--json"]:
        assert result.json["errors"][1]["line"] == 7


@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (["m", "--slo", "4h"], "--slo is a flag of jobs, but INPUT is missing", "wrong_usage"),
        (["m", "{lines}", "stray"], "unexpected arguments: stray", "wrong_usage"),
        (["m", "{tmp}/none.jsonl"], "{tmp}/none.jsonl does not exist", "input_not_found"),
        (["m", "{tmp}"], "{tmp} is a folder", "input_unreadable"),
        (["m", "/dev/null"], "/dev/null is not a plain file", "input_unreadable"),
        (["m", "{tmp}/empty"], "{tmp}/empty is empty", "empty_file"),
        (["m", "{lines}", "--slo", "soon"], "--slo: 'soon' is not a duration", "invalid_slo"),
        (["m", "{lines}", "--replicas", "0"], "--replicas: ", "wrong_usage"),
        (["m", "{lines}", "--budget", "-1"], "--budget: ", "wrong_usage"),
        (["m", "{lines}", "-o", "{tmp}"], "the output file {tmp} is a folder", "invalid_output"),
        (["m", "{lines}", "-o", "{tmp}/no/out"], "has no folder {tmp}/no", "invalid_output"),
        (["m", "{lines}", "--service-name", "s"], "--service-name is a flag of deployments", "wrong_usage"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_started(
    arguments, what, code, tmp_path, lines, home, tandemn
):
    (tmp_path / "empty").touch()
    slo = [] if "--slo" in arguments else ["--slo", "1"]
    filled = [argument.format(tmp=tmp_path, lines=lines) for argument in arguments]
    result = tandemn("deploy", *filled, *slo)
    assert result.code == 2
    assert what.format(tmp=tmp_path) in result.err
    assert f"[{code}]" in result.err
    assert not home.exists()


def test_a_deployment_needs_model_and_gpu(home, tandemn):
    assert "--model is missing" in tandemn("deploy").err
    result = tandemn("deploy", "m")
    assert (result.code, "--gpu is missing" in result.err) == (2, True)
    assert not home.exists()


def test_slo_is_required(lines, home, tandemn):
    result = tandemn("deploy", "m", lines)
    assert result.code == 2
    assert "--slo is missing" in result.err


def test_file_is_deleted_when_the_job_is_refused(plane, lines, tandemn):
    plane.refusals["POST", "/api/jobs"] = Infeasible("no plan meets the deadline", next_step="give it 6h")
    result = tandemn("deploy", "m", lines, "--slo", "1", "--json")
    assert result.code == 3
    assert result.json["error"]["code"] == "infeasible"
    assert plane.called("DELETE", "/v1/files/file-1")
    assert not plane.files


def test_upload_that_is_refused_submits_nothing(plane, lines, tandemn):
    plane.refusals["POST", "/v1/files"] = StoreUnavailable("no space left", next_step="make room")
    result = tandemn("deploy", "m", lines, "--slo", "1")
    assert result.code == 1
    assert "error: no space left [store_unavailable]" in result.err
    assert not plane.called("POST", "/api/jobs")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (completed(), 0),
        (completed(state="failed", reason="the engine died", code="engine_failed"), 1),
        (completed(state="cancelled"), 1),
        (completed(state="expired"), 3),
        (completed(state="over_budget"), 3),
        (completed(state="failed", code="infeasible", started_at=None), 3),
    ],
)
def test_wait_ends_with_the_jobs_exit_code(end, code, plane, lines, tandemn):
    plane.on_submit = [job_status(state="validating"), job_status(state="launching"), job_status(), end]
    result = tandemn("deploy", "m", lines, "--slo", "1", "--wait")
    assert result.code == code
    shown = result.out.splitlines()
    assert shown[0] == "job job-1 submitted on this machine (no cloud is set up)"
    assert shown[1].startswith("running -, deadline in 1h")
    assert f"job-1 {end.state}" in result.out


def test_output_is_fetched_with_error_lines_beside_it(plane, lines, tmp_path, tandemn):
    out = tmp_path / "out.jsonl"
    answer = '{"custom_id": "a", "text": "line\u2028separator"}\n'.encode()
    plane.outputs["job-1"] = answer
    plane.error_files["job-1"] = b'{"custom_id": "b"}\n'
    requests = {"total": 2, "completed": 1, "failed": 1, "recomputed": 4}
    plane.on_submit = [
        completed(requests=requests, error_file_id="file-err", output_tokens=500, cost_usd="1.5")
    ]
    result = tandemn("deploy", "m", lines, "--slo", "1", "-o", out)
    assert result.code == 0
    assert out.read_bytes() == answer
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == b'{"custom_id": "b"}\n'
    assert "1 completed, 1 failed, 4 recomputed of 2" in result.out
    assert "0.4 requests/s, 100 output tokens/s" in result.out
    assert "$1.50" in result.out
    assert f"output    {out}" in result.out
    assert "1 request failed: their error lines are in" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.errors.jsonl",
    ]


def test_wait_with_json_writes_one_value_and_progress_to_stderr(plane, lines, tmp_path, tandemn):
    plane.on_submit = [job_status(), job_status(), job_status(), completed(cost_usd="0.25")]
    result = tandemn("deploy", "m", lines, "--slo", "1", "--json", "-o", tmp_path / "out")
    assert result.json["job_id"] == "job-1"
    assert result.json["state"] == "completed"
    assert result.json["cost_usd"] == 0.25
    assert "running" in result.err


def test_interrupt_while_waiting_detaches(plane, lines):
    plane.on_submit = [job_status(requests={"total": 2})]
    process = _start("deploy", "m", str(lines), "--slo", "1", "--wait")
    assert process.stdout is not None
    while "running" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "detached from job job-1" in err
    assert "`tandemn progress job-1`" in err
    assert "Traceback" not in err
    assert plane.files


def test_interrupt_during_the_upload_leaves_nothing(plane, lines):
    plane.hold_upload = True
    process = _start("deploy", "m", str(lines), "--slo", "1")
    assert plane.upload_began.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "")
    assert not plane.files
    assert not plane.called("POST", "/api/jobs")


def test_server_away_for_a_while_is_waited_for(plane, lines, tandemn):
    plane.on_submit = [job_status(), job_status(), completed()]
    plane.refusals["GET", "/api/jobs/job-1"] = StoreUnavailable("restarting")
    process = _start("deploy", "m", str(lines), "--slo", "1", "--wait")
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting: restarting\n"
    del plane.refusals["GET", "/api/jobs/job-1"]
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "job-1 completed" in out


def test_large_upload_is_told_block_by_block(plane, tmp_path, tandemn):
    path = tmp_path / "a b\u00e9.jsonl"
    path.write_bytes(b"x" * 3_000_000)
    plane.on_submit = [job_status()]
    assert tandemn("deploy", "m", path, "--slo", "1").code == 0
    assert plane.files["file-1"] == path.read_bytes()


def test_file_name_that_is_no_utf8(plane, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.jsonl"
    Path(os.fsdecode(name)).write_text("{}\n")
    plane.on_submit = [job_status()]
    done = subprocess.run(
        [sys.executable, "-m", "tandemn.cli", "deploy", "m", name, "--slo", "1", "--json"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"job_id": "job-1"}


def test_names_are_told_apart():
    assert workload.split_names(["m", "i"], None) == ("m", "i")
    assert workload.split_names(["i"], "m") == ("m", "i")
    with pytest.raises(InvalidInput, match="unexpected arguments: x"):
        workload.split_names(["i", "x"], "m")


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tandemn.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
