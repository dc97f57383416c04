"""A control plane for a team, as its administrator and users meet it: TLS, keys, owners; every process real."""

from __future__ import annotations

import json
import shutil
import ssl
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from tests.certificates import self_signed
from tests.process.conftest import built
from tests.process.house import House, chat_lines, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Team:
    """The server's machine, and two users' machines that are logged in."""

    server: House
    url: str
    certificate: Path
    keys: dict[str, str]
    alice: House
    bob: House


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    return self_signed(folder, alias="IP:127.0.0.1")[0]


def machine(url: str, certificate: Path, key: str) -> House:
    house = House(Path(tempfile.mkdtemp(prefix="tdm-")), SSL_CERT_FILE=str(certificate))
    done = subprocess.run(
        [*house.command, "login", url],
        env=house.environment,
        input=key + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return house


@pytest.fixture(scope="module")
def team(certificate: Path) -> Iterator[Team]:
    with built() as server:
        first = server.run("keys", "create", "ops", "--role", "admin")
        assert first.returncode == 0, first.stderr
        key_file = str(certificate.with_suffix(".key"))
        started = server.run(
            "server", "start", "--host", "0.0.0.0", "--tls-cert", str(certificate), "--tls-key", key_file
        )
        assert started.returncode == 0, started.stderr
        port = json.loads((server.home / "server.json").read_text())["shared_url"].rpartition(":")[2]
        url = f"https://127.0.0.1:{port}"
        keys = {"ops": first.stdout.strip()}
        for name in ("alice", "bob"):
            keys[name] = server.run("keys", "create", name).stdout.strip()
        machines = [machine(url, certificate, keys[name]) for name in ("alice", "bob")]
        try:
            yield Team(server, url, certificate, keys, *machines)
        finally:
            for each in machines:
                assert not each.processes()
                shutil.rmtree(each.home)


def test_the_network_is_not_served_before_there_is_a_key():
    with built() as house:
        refused = house.run("server", "start", "--host", "0.0.0.0")
        assert refused.returncode == 1
        assert "[public_without_keys]" in refused.stderr
        assert "tandemn keys create NAME --role admin" in refused.stderr
        no_admin = house.run("keys", "create", "alice", "--json")
        assert no_admin.returncode == 2
        assert json.loads(no_admin.stdout)["error"]["code"] == "first_key_not_admin"
        assert house.run("keys", "list").stdout.startswith("no keys")
        assert not house.processes(), "asking for keys starts no control plane"


def test_a_key_is_shown_once_and_never_written(team):
    listed = team.server.json("keys", "list")["keys"]
    assert [(each["name"], each["role"]) for each in listed] == [
        ("ops", "admin"),
        ("alice", "user"),
        ("bob", "user"),
    ]
    secrets = {name: key[-20:] for name, key in team.keys.items()}
    for path in team.server.home.rglob("*"):
        if path.is_file() and not path.is_socket():
            content = path.read_bytes()
            assert not [name for name, secret in secrets.items() if secret.encode() in content], path


def test_a_login_is_its_owners_alone(team):
    saved = team.alice.home / "login.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert json.loads(saved.read_text()) == {"url": team.url, "key": team.keys["alice"]}
    assert json.loads(team.alice.run("server", "status", "--json").stdout)["version"]


@pytest.fixture
def as_user(here, team, monkeypatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process, with somebody's key; the trust in a certificate is settled at start."""

    def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        door = json.loads((team.server.home / "server.json").read_text())["url"]
        house = team.alice if name == "alice" else team.bob
        monkeypatch.setenv("TANDEMN_API_KEY", team.keys[name])
        done: subprocess.CompletedProcess[str] = here(house, *arguments, url=door)
        monkeypatch.delenv("TANDEMN_API_KEY")
        return done

    return call


def test_users_run_jobs_and_see_their_own(team, here, as_user):
    for house in (team.alice, team.bob):
        (house.home / "in.jsonl").write_text(chat_lines(20))
    mine = team.alice.submit("demo/tiny", "in.jsonl", "--slo", "1h")
    done = as_user("bob", "deploy", "demo/tiny", "in.jsonl", "--slo", "1h", "-o", "out.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert len(read_lines(team.bob.home / "out.jsonl")) == 20
    theirs = json.loads(done.stdout)["job_id"]
    ended = [json.loads(line) for line in as_user("alice", "progress", mine, "--json").stdout.splitlines()]
    assert (ended[-1]["state"], ended[-1]["owner"]) == ("completed", "alice")
    listed = json.loads(as_user("bob", "list", "--json").stdout)
    assert [job["job_id"] for job in listed["jobs"]] == [theirs]
    for command in ("status", "cancel", "logs", "events", "download"):
        refused = as_user("bob", command, mine)
        assert refused.returncode == 2, command
        assert "[job_not_found]" in refused.stderr
    # Whoever is on the server's own machine sees everything, and who did it.
    everyone = {job["owner"] for job in json.loads(here(team.server, "list", "--json").stdout)["jobs"]}
    assert everyone == {"alice", "bob"}
    events = [json.loads(line) for line in here(team.server, "events", "--json").stdout.splitlines()]
    submitted = {(each["job_id"], each["actor"]) for each in events if each["kind"] == "job_submitted"}
    assert submitted == {(mine, "alice"), (theirs, "bob")}
    assert "[forbidden]" in as_user("bob", "events").stderr


def test_the_official_client_takes_a_key(team):
    trust = ssl.create_default_context(cafile=team.certificate)

    def client(key: str) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=trust)
        return openai.OpenAI(base_url=f"{team.url}/v1", api_key=key, http_client=http, max_retries=0)

    with client(team.keys["alice"]) as alice:
        content = chat_lines(2, model="demo/tiny").encode()
        file = alice.files.create(file=("a.jsonl", content), purpose="batch")
        assert file.id in {each.id for each in alice.files.list()}
    with client(team.keys["bob"]) as bob, pytest.raises(openai.NotFoundError):
        bob.files.retrieve(file.id)
    with client("sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.files.list()


def test_a_certificate_that_nobody_vouches_for(team):
    house = House(Path(tempfile.mkdtemp(prefix="tdm-")), TANDEMN_API_KEY=team.keys["bob"])
    try:
        refused = house.run("login", team.url)
        assert refused.returncode == 1
        assert "[certificate_not_trusted]" in refused.stderr
        assert "SSL_CERT_FILE" in refused.stderr
        assert not (house.home / "login.json").exists()
    finally:
        shutil.rmtree(house.home)


def test_a_key_that_was_taken_away(team, here, as_user):
    team.keys["guest"] = here(team.server, "keys", "create", "guest", "--role", "viewer").stdout.strip()
    assert as_user("guest", "list").returncode == 0
    (team.bob.home / "in.jsonl").write_text(chat_lines(1))
    assert "[forbidden]" in as_user("guest", "deploy", "demo/tiny", "in.jsonl", "--slo", "1h").stderr
    new = here(team.server, "keys", "rotate", "guest").stdout.strip()
    assert "[invalid_api_key]" in as_user("guest", "list").stderr
    team.keys["guest"] = new
    assert as_user("guest", "list").returncode == 0
    assert here(team.server, "keys", "revoke", "guest").returncode == 0
    assert "[key_revoked]" in as_user("guest", "list").stderr


def test_logged_out(team, here):
    assert here(team.bob, "logout").stdout.strip() == f"logged out of {team.url}"
    assert not (team.bob.home / "login.json").exists()
    assert here(team.bob, "logout").stdout.strip() == "nobody was logged in"
