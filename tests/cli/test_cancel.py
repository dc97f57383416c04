import os
import pty
import subprocess
import sys

import pytest
from tests.fakes.user_api import completed, job_status


def test_cancel(plane, tandemn):
    plane.jobs["job-1"] = [job_status(state="cancelling", requests={"total": 4, "completed": 1})]
    result = tandemn("cancel", "job-1")
    assert result.code == 0
    assert result.out == "job-1 cancelling, 1/4 (25.0%) done\n"
    assert plane.called("POST", "/api/jobs/job-1/cancel")


def test_cancel_waits_for_the_end(plane, tandemn):
    plane.jobs["job-1"] = [
        job_status(state="cancelling"),
        job_status(state="cancelling"),
        completed(state="cancelled"),
    ]
    result = tandemn("cancel", "job-1", "--wait", "--json")
    assert result.code == 0
    assert [job["state"] for job in result.json["jobs"]] == ["cancelled"]


def test_destroy_one(plane, tandemn):
    plane.jobs["job-12"] = [job_status("job-12")]
    assert tandemn("destroy", "job-1").code == 0
    assert plane.called("POST", "/api/jobs/job-12/destroy")


def test_destroy_all_that_live(plane, tandemn):
    plane.jobs = {f"job-{number}": [job_status(f"job-{number}")] for number in range(130)}
    plane.jobs["old"] = [completed("old")]
    result = tandemn("destroy", "--all", "--yes", "--json")
    assert len(result.json["jobs"]) == 130
    assert not plane.called("POST", "/api/jobs/old/destroy")
    plane.jobs = {}
    assert tandemn("destroy", "--all").out == "nothing runs\n"


@pytest.mark.parametrize("arguments", [[], ["job-1", "--all"]])
def test_destroy_needs_one_of_job_and_all(arguments, home, tandemn):
    result = tandemn("destroy", *arguments)
    assert result.code == 2
    assert "give one JOB, or --service-name S, or --all" in result.err


@pytest.mark.parametrize(("typed", "code", "destroyed"), [(b"y\n", 0, 1), (b"n\n", 1, 0), (b"\n", 1, 0)])
def test_a_terminal_is_asked_first(typed, code, destroyed, plane):
    plane.jobs["job-1"] = [job_status()]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tandemn.cli", "destroy", "--all"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, typed)
    _, err = process.communicate(timeout=60)
    os.close(ours)
    assert b"End 1 job (job-1)?" in err
    assert process.returncode == code
    assert len(plane.called("POST", "/api/jobs/job-1/destroy")) == destroyed
