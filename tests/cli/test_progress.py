import io
import json
import re
import time
from typing import Any

from tests.fakes.user_api import completed, job_status

from tandemn.cli import display, report
from tandemn.protocol.jobs import JobState, JobStatus

REPLICAS = [
    {"replica_id": "r0", "state": "running", "gpu": "cpu", "market": "spot"},
    {"replica_id": "r1", "state": "running", "gpu": "cpu", "market": "spot"},
    {"replica_id": "r2", "state": "starting", "gpu": "cpu", "market": "spot", "reason": "loads [it]"},
    {"replica_id": "r3", "state": "killed", "gpu": "cpu", "market": "spot"},
]


def running(**fields: Any) -> JobStatus:
    return job_status(
        requests={"total": 20000, "completed": 1239, "failed": 1},
        requests_per_s=215.0,
        tokens_per_s=13760.4,
        eta_s=87.3,
        replicas=REPLICAS,
        **fields,
    )


def test_plain_line_says_it_all():
    status = running()
    assert report.progress_line(status, status.deadline - 3600) == (
        "running 1,240/20,000 (6.2%), 1 failed, 215 requests/s, 13,760 tokens/s, "
        "ends in 1m 27s (58m 33s before the deadline), replicas: 2 running, 1 starting"
    )
    assert "(1m 27s after the deadline)" in report.progress_line(status, status.deadline)
    late = job_status(is_late=True)
    assert report.progress_line(late, late.deadline + 60) == "running -, 1m late"


def test_progress_follows_to_the_end(plane, tandemn):
    plane.jobs["job-1"] = [
        job_status(state="launching"),
        running(),
        job_status(state="assembling"),
        completed(requests={"total": 20000, "completed": 19999, "failed": 1, "recomputed": 7}),
    ]
    result = tandemn("progress", "job-1")
    assert result.code == 0
    shown = result.out.splitlines()
    assert [line.split()[0] for line in shown[:4]] == ["launching", "running", "assembling", "completed"]
    assert "requests  19,999 completed, 1 failed, 7 recomputed of 20,000" in shown
    assert "output    `tandemn download job-1 -o FILE` fetches it" in shown
    assert "\x1b" not in result.out
    # Every look but the first waits at the control plane for the state to change.
    looks = plane.called("GET", "/api/jobs/job-1")
    assert [look.get("state") for look in looks] == [None, "launching", "running", "assembling"]
    assert all(float(look["wait_s"]) > 0 for look in looks[1:])


def test_json_is_one_object_a_change(plane, tandemn):
    first = job_status()
    plane.jobs["job-1"] = [first, first, first, job_status(state="failed", code="engine_failed")]
    result = tandemn("progress", "job-1", "--json")
    assert result.code == 1
    assert [json.loads(line)["state"] for line in result.out.splitlines()] == ["running", "failed"]


def test_latest_active_job_is_the_default(plane, tandemn):
    result = tandemn("progress")
    assert result.code == 2
    assert "error: no job is under way [no_active_job]" in result.err
    plane.jobs["job-1"] = [completed("job-1")]
    plane.jobs["job-2"] = [job_status("job-2"), completed("job-2", state="expired")]
    plane.jobs["job-2"].append(job_status("job-2"))
    plane.jobs["job-3"] = [completed("job-3")]
    result = tandemn("progress")
    assert result.code == 3
    assert "job-2 expired" in result.out


def test_live_bar_shows_names_as_they_are():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with display.job_display(stream=stream) as show:
        show(running(reason="[red]not markup[/red]"))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "1,240/20,000 (6.2%)" in shown
    assert "[red]not markup[/red]" in shown
    assert "r2 starting, cpu spot (loads [it])" in shown
    assert "r3" not in shown


def test_plain_lines_do_not_flood():
    stream = io.StringIO()
    with display.job_display(stream=stream) as show:
        for done in range(1000):
            show(job_status(requests={"total": 1000, "completed": done}))
        show(completed())
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["running", "completed"]


def test_every_state_has_an_exit_code():
    codes = {state: report.exit_code(job_status(state=state)) for state in JobState}
    assert {state for state, code in codes.items() if code} == {
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.EXPIRED,
        JobState.OVER_BUDGET,
    }
    assert codes[JobState.EXPIRED] == codes[JobState.OVER_BUDGET] == 3


def test_bad_lines_that_were_skipped_are_no_failure():
    skipped = completed(errors_total=2, errors=[{"line": 1, "code": "c", "message": "m"}])
    assert report.exit_code(skipped) == 0
    began = time.time()
    failed_later = job_status(state="failed", errors_total=2, started_at=began)
    assert report.exit_code(failed_later) == 1
