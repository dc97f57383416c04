"""Keys and owners over real HTTP: how the first key comes to be, and that nobody sees what is another's."""

from __future__ import annotations

import json

import pytest
from tests.control.plane import served

from tandemn import __version__
from tandemn.control.store import events, keys
from tandemn.protocol.keys import Role


@pytest.fixture
async def plane(tmp_path):
    async with served(tmp_path) as plane:
        yield plane


@pytest.fixture
async def team(plane):
    for name, role in (("root", Role.ADMIN), ("vera", Role.VIEWER), ("alice", Role.USER), ("bob", Role.USER)):
        await plane.new_key(name, role)
    return plane


def code(answer):
    return answer["error"]["code"]


async def test_without_keys_whoever_is_on_this_machine_is_the_owner(plane):
    me = await plane.call("GET", "/api/me", key="whatever a client insists on sending")
    assert me == (200, {"name": "local", "role": "admin"})
    job_id = await plane.new_job("local")
    _, listed = await plane.call("GET", "/api/jobs")
    assert [(job["job_id"], job["owner"]) for job in listed["jobs"]] == [(job_id, "local")]


@pytest.mark.parametrize(
    ("header", "value", "refusal"),
    [
        ("Origin", "https://evil.example", "browser_refused"),
        ("Host", "evil.example:26336", "browser_refused"),
        ("X-Forwarded-For", "203.0.113.7", "proxied_without_keys"),
        ("Forwarded", "for=203.0.113.7", "proxied_without_keys"),
    ],
)
async def test_without_keys_pages_and_proxies_are_refused(plane, header, value, refusal):
    status, answer = await plane.call("GET", "/api/jobs", headers={header: value})
    assert (status, code(answer)) == (403, refusal)


async def test_the_first_key_closes_the_door(plane):
    status, answer = await plane.call("POST", "/api/keys", json={"name": "alice", "role": "user"})
    assert (status, code(answer)) == (400, "first_key_not_admin")
    status, made = await plane.call("POST", "/api/keys", json={"name": "root", "role": "admin"})
    assert status == 201
    status, answer = await plane.call("GET", "/api/jobs")
    assert (status, code(answer)) == (401, "missing_api_key")
    assert (await plane.call("GET", "/api/jobs", key=made["key"]))[0] == 200
    # The command line on the server's own machine still gets in.
    me = await plane.call("GET", "/api/me", key=plane.services.local_key)
    assert me == (200, {"name": "local", "role": "admin"})
    # With a key, a page can do nothing that its reader could not; behind a proxy the server is in its place.
    proxied = {"X-Forwarded-For": "203.0.113.7", "Host": "tandemn.example.com", "Origin": "https://x.example"}
    assert (await plane.call("GET", "/api/jobs", key=made["key"], headers=proxied))[0] == 200


async def test_a_key_is_told_once_and_kept_as_a_hash(team):
    _, made = await team.call(
        "POST", "/api/keys", key=team.keys["root"], json={"name": "carol", "role": "user"}
    )
    _, listed = await team.call("GET", "/api/keys", key=team.keys["root"])
    secret = made["key"].rpartition("-")[2]
    assert secret not in json.dumps(listed)
    kept = await team.services.database.run(keys.get, "carol")
    assert made["key"] not in repr(kept)
    assert kept.key_id in made["key"]
    assert {each["name"]: each["role"] for each in listed["keys"]}["carol"] == "user"


async def test_rotated_and_revoked_at_once(team):
    old = team.keys["alice"]
    assert (await team.call("GET", "/api/jobs", key=old))[0] == 200
    _, made = await team.call("POST", "/api/keys/alice/rotate", key=team.keys["root"])
    assert (await team.call("GET", "/api/jobs", key=old))[0] == 401
    assert (await team.call("GET", "/api/jobs", key=made["key"]))[0] == 200
    await team.call("POST", "/api/keys/alice/revoke", key=team.keys["root"])
    status, answer = await team.call("GET", "/api/jobs", key=made["key"])
    assert (status, code(answer)) == (401, "key_revoked")
    # The name keeps what it made, and nobody else is given it.
    status, answer = await team.call(
        "POST", "/api/keys", key=team.keys["root"], json={"name": "alice", "role": "user"}
    )
    assert (status, code(answer)) == (409, "key_name_taken")
    job_id = await team.new_job("alice")
    _, again = await team.call("POST", "/api/keys/alice/rotate", key=team.keys["root"])
    _, listed = await team.call("GET", "/api/jobs", key=again["key"])
    assert [job["job_id"] for job in listed["jobs"]] == [job_id]


async def test_a_name_must_be_one(team):
    for name in ("local", "", "a b", "../x", "x" * 65, "-x", "alice\n"):
        status, answer = await team.call(
            "POST", "/api/keys", key=team.keys["root"], json={"name": name, "role": "user"}
        )
        assert (status, code(answer)) in {(400, "invalid_value"), (400, "invalid_key_name")}, name


async def test_lists_show_what_the_caller_sees(team):
    jobs = {name: await team.new_job(name) for name in ("alice", "bob")}
    for name, job_id in jobs.items():
        _, listed = await team.call("GET", "/api/jobs", key=team.keys[name])
        assert [(job["job_id"], job["owner"]) for job in listed["jobs"]] == [(job_id, name)]
        _, batches = await team.call("GET", "/v1/batches", key=team.keys[name])
        assert [batch["id"] for batch in batches["data"]] == [job_id]
        _, files = await team.call("GET", "/v1/files", key=team.keys[name])
        assert len(files["data"]) == 1
        _, cost = await team.call("GET", "/api/cost", key=team.keys[name])
        assert ([job["job_id"] for job in cost["jobs"]], cost["jobs_total"]) == ([job_id], 1)
    for name in ("root", "vera"):
        _, listed = await team.call("GET", "/api/jobs", key=team.keys[name])
        assert {job["owner"] for job in listed["jobs"]} == {"alice", "bob"}
        _, cost = await team.call("GET", "/api/cost", key=team.keys[name])
        assert cost["jobs_total"] == 2


async def test_another_owners_object_looks_like_none(team):
    job_id, file_id = await team.new_job("alice"), await team.new_file("alice")
    for path, real in (
        ("/api/jobs/{}", job_id),
        ("/v1/batches/{}", job_id),
        ("/v1/files/{}", file_id),
        ("/v1/files/{}/content", file_id),
        ("/v1/files?after={}", file_id),
        ("/v1/batches?after={}", job_id),
        ("/api/jobs?after={}", job_id),
    ):
        invented = real[:-3] + "zzz"
        theirs = await team.call("GET", path.format(real), key=team.keys["bob"])
        none = await team.call("GET", path.format(invented), key=team.keys["bob"])
        assert theirs[0] == none[0] == 404
        assert json.dumps(theirs[1]).replace(real, "ID") == json.dumps(none[1]).replace(invented, "ID")


async def test_a_cut_off_id_is_looked_for_among_ones_own(team):
    theirs, mine = await team.new_job("alice"), await team.new_job("bob")
    status, found = await team.call("GET", "/api/jobs/job-", key=team.keys["bob"])
    assert (status, found["job_id"]) == (200, mine)
    status, found = await team.call("POST", "/api/jobs/job-/cancel", key=team.keys["bob"])
    assert (status, found["job_id"]) == (200, mine)
    status, answer = await team.call("GET", "/api/jobs/job-", key=team.keys["root"])
    assert (status, code(answer)) == (400, "ambiguous_job")
    assert theirs in answer["error"]["message"]


async def test_a_request_cannot_name_another_owners_file(team):
    theirs = await team.new_file("alice")
    spec = {"model": "demo/tiny", "input_file_id": theirs, "slo_s": 60}
    batch = {"input_file_id": theirs, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for path, body, refusal in (
        ("/api/jobs", spec, (404, "file_not_found")),
        ("/api/plans", spec, (404, "file_not_found")),
        ("/v1/batches", batch, (400, "invalid_input_file_id")),
    ):
        status, answer = await team.call("POST", path, key=team.keys["bob"], json=body)
        assert (status, code(answer)) == refusal
    assert (await team.call("POST", "/api/jobs", key=team.keys["alice"], json=spec))[0] == 201


async def test_events_say_who(team):
    _, file = await team.call(
        "POST", "/v1/files", key=team.keys["alice"], data={"purpose": "batch", "file": b"{}\n"}
    )
    spec = {"model": "demo/tiny", "input_file_id": file["id"], "slo_s": 60}
    _, job = await team.call("POST", "/api/jobs", key=team.keys["alice"], json=spec)
    await team.call("POST", f"/api/jobs/{job['job_id']}/cancel", key=team.keys["root"])
    # Not the job's: what is being cancelled still reads its own.
    _, other = await team.call(
        "POST", "/v1/files", key=team.keys["alice"], data={"purpose": "batch", "file": b"{}\n"}
    )
    await team.call("DELETE", f"/v1/files/{other['id']}", key=team.keys["root"])
    await team.call("POST", "/api/keys/bob/revoke", key=team.keys["root"])
    _, listed = await team.call("GET", "/api/events", key=team.keys["root"])
    said = [(each["kind"], each["actor"]) for each in listed["events"] if each["actor"] != "test"]
    assert said == [
        ("file_added", "alice"),
        ("job_submitted", "alice"),
        ("job_state", "root"),
        ("file_added", "alice"),
        ("file_deleted", "root"),
        ("api_key_revoked", "root"),
    ]
    _, of_alice = await team.call("GET", "/api/events?actor=alice", key=team.keys["root"])
    assert len(of_alice["events"]) == 3


async def test_when_a_key_was_used_last(team):
    before = await team.services.database.run(keys.get, "alice")
    await team.call("GET", "/api/jobs", key=team.keys["alice"])
    after = await team.services.database.run(keys.get, "alice")
    assert before.last_used_at is None
    assert after.last_used_at is not None
    assert [each.kind for each in await team.services.database.run(events.page, after=0, limit=9)] == [
        "api_key_created"
    ] * 4


async def test_a_command_line_of_another_version_is_told(team):
    key = team.keys["alice"]
    status, answer = await team.call("GET", "/api/jobs", key=key, headers={"Tandemn-Version": "9.0.0"})
    assert (status, code(answer)) == (409, "version_mismatch")
    assert "9.0.0" in answer["error"]["message"]
    assert f"pip install tandemn=={__version__}" in answer["error"]["next_step"]
    # Others, such as the official OpenAI client, say nothing of the kind.
    assert (await team.call("GET", "/api/jobs", key=key))[0] == 200
    # Runners outlive an upgrade of their control plane.
    replica_id, token = await team.new_replica(await team.new_job("alice"))
    status, _ = await team.call(
        "POST", f"/api/replicas/{replica_id}/hello", key=token, headers={"Tandemn-Version": "9.0.0"}
    )
    assert status == 200


async def test_every_answer_says_its_version_and_stays_with_its_asker(team):
    for path in ("/api/jobs", "/nowhere"):
        async with team.session.get(team.url + path) as answer:
            assert answer.headers["Tandemn-Version"] == __version__
            assert answer.headers["Cache-Control"] == "no-store"
