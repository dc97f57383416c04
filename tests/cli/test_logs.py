import json

from tests.fakes.user_api import job_status

from tandemn.protocol.jobs import EventView


def test_logs_pass_as_they_are(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    plane.logs["job-1"] = "r0 loading [model]\nr1 a\u2028b\n".encode()
    assert (
        tandemn("logs", "job-1", "--tail", "7", "--replica", "r0", "-f").out.encode() == plane.logs["job-1"]
    )
    assert plane.called("GET", "/api/jobs/job-1/logs") == [{"tail": "7", "follow": "true", "replica": "r0"}]
    lines = [json.loads(line) for line in tandemn("logs", "job-1", "--json").out.splitlines()]
    assert lines == [
        {"replica_id": "r0", "line": "loading [model]"},
        {"replica_id": "r1", "line": "a\u2028b"},
    ]


def test_last_line_without_its_end(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    plane.logs["job-1"] = b"r0 cut"
    assert json.loads(tandemn("logs", "job-1", "--json").out) == {"replica_id": "r0", "line": "cut"}


def test_every_page_of_events(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    plane.events["job-1"] = [
        EventView(seq=seq, at=float(seq), kind="replica_state", replica_id="r0", data={"state": "x\n[y]"})
        for seq in range(1, 2002)
    ]
    shown = [json.loads(line)["seq"] for line in tandemn("events", "job-1", "--json").out.splitlines()]
    assert shown == list(range(1, 2002))
    first = tandemn("events", "job-1").out.splitlines()[0]
    assert first == "1970-01-01 00:00:01  replica_state  r0  state=x\\n[y]"
