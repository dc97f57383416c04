"""Which control plane a command finds, with which key; and that a key goes nowhere else."""

from __future__ import annotations

import io
import stat

import pytest

from tandemn import __version__
from tandemn.cli import connection, saved_login
from tandemn.cli.saved_login import SavedLogin
from tandemn.errors import InvalidInput
from tandemn.protocol.handshake import go_together
from tandemn.settings import load


@pytest.fixture
def asked(monkeypatch):
    """What stdin holds where a key is asked for."""

    def put(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return put


def kept(home):
    return saved_login.read(home)


def test_a_key_from_stdin_is_kept_for_its_owner_alone(plane, home, tandemn, asked, monkeypatch):
    monkeypatch.delenv("TANDEMN_SERVER_URL")
    plane.key = "tdm-1-secret"
    asked("tdm-1-secret\n")
    result = tandemn("login", plane.url + "/")
    assert result.out == f"logged in to {plane.url} as alice (user)\n"
    assert stat.S_IMODE((home / "login.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert kept(home) == SavedLogin(url=plane.url, key="tdm-1-secret")
    assert tandemn("list").out == "no jobs and no deployments\n"
    assert tandemn("logout", "--json").json == {"url": plane.url}
    assert kept(home) is None


def test_a_wrong_key_is_not_kept(plane, home, tandemn, asked):
    plane.key = "tdm-1-secret"
    asked("tdm-1-other\n")
    result = tandemn("login", plane.url)
    assert (result.code, "[invalid_api_key]" in result.err) == (2, True)
    assert kept(home) is None
    asked("\n")
    assert "[missing_api_key]" in tandemn("login", plane.url).err


def test_a_key_from_the_environment(plane, home, tandemn, monkeypatch):
    plane.key = "tdm-1-secret"
    monkeypatch.setenv("TANDEMN_API_KEY", "tdm-1-secret")
    assert tandemn("login", plane.url, "--json").json == {"url": plane.url, "name": "alice", "role": "user"}
    assert kept(home) == SavedLogin(url=plane.url, key="tdm-1-secret")


def test_a_control_plane_that_asks_for_no_key(plane, home, tandemn):
    assert tandemn("login", plane.url).code == 0
    assert kept(home) == SavedLogin(url=plane.url, key=None)


def test_no_key_goes_to_another_server(home, monkeypatch):
    saved_login.write(home, SavedLogin(url="https://one.example", key="tdm-1-secret"))
    elsewhere = connection._elsewhere
    assert elsewhere(load()) == ("https://one.example", "tdm-1-secret")
    monkeypatch.setenv("TANDEMN_SERVER_URL", "https://two.example")
    assert elsewhere(load()) == ("https://two.example", None)
    monkeypatch.setenv("TANDEMN_SERVER_URL", "https://one.example/")
    assert elsewhere(load()) == ("https://one.example/", "tdm-1-secret")
    monkeypatch.setenv("TANDEMN_API_KEY", "tdm-2-given")
    assert elsewhere(load()) == ("https://one.example/", "tdm-2-given")


@pytest.mark.parametrize("url", ["ftp://x", "https://", "https://user:pass@host", "https://host/?x=1", ""])
def test_an_address_that_is_none(home, tandemn, url):
    result = tandemn("login", url)
    assert (result.code, "[invalid_server_url]" in result.err) == (2, True)


def test_a_damaged_login_is_named(home, tandemn):
    home.mkdir()
    (home / "login.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"login\.json"):
        saved_login.read(home)
    assert "[login_unreadable]" in tandemn("list").err
    assert tandemn("logout").code == 0
    assert not (home / "login.json").exists()


def test_another_version_is_told(plane, home, tandemn):
    plane.version = "0.1.99"
    result = tandemn("list")
    assert result.code == 0
    assert result.err == f"note: the control plane is version 0.1.99, this is {__version__}\n"


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("0.1.0", "0.1.9", True),
        ("0.1.0", "0.2.0", False),
        ("1.2.0", "1.9.3", True),
        ("1.2.0", "2.0.0", False),
        ("0.1.0", "nonsense", False),
    ],
)
def test_which_versions_go_together(one, other, together):
    assert go_together(one, other) is together
    assert go_together(other, one) is together
