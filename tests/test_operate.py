"""docs/operate.md and deploy/ say what is there: commands, flags, settings, permissions, limits."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.test_docs import OF_ALL, flags_there_are

from tandemn.control import election
from tandemn.control.store import engines
from tandemn.events import EventKind
from tandemn.settings import Settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operate.md").read_text()
UNIT = (ROOT / "deploy" / "tandemn.service").read_text()


def commands(text: str) -> list[list[str]]:
    """Every `tandemn …` in it, from the command's name on; what follows a pipe or a semicolon is another's."""
    lines = re.findall(r"^    (.*)$", text, flags=re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    lines += re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    called = (re.search(r"(?:^|/| )tandemn ((?:[a-z]+)(?: .*)?)$", line) for line in lines)
    return [shlex.split(each[1]) for each in called if each]


@pytest.mark.parametrize("text", [PAGE, UNIT], ids=["operate.md", "tandemn.service"])
def test_every_command_and_flag_is_there(text):
    known = flags_there_are()
    found = [each for each in commands(text) if not (each[0] == "tandemn" or "=" in each[0])]
    assert found
    for words in found:
        name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
        assert name is not None, words
        assert {word for word in words if word.startswith("-")} <= known[name] | OF_ALL, words


def test_what_is_run_by_the_page_is_seen():
    assert ["server", "start", "--standby"] in commands(PAGE)
    [unit] = commands(UNIT)
    assert unit[:3] == ["server", "start", "--foreground"]


@pytest.mark.parametrize("text", [PAGE, UNIT], ids=["operate.md", "tandemn.service"])
def test_every_setting_is_one(text):
    there = {f"TANDEMN_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"TANDEMN_[A-Z_]+", text)) <= there


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_takes_the_unit(tmp_path):
    here = tmp_path / "tandemn.service"
    # What it runs is not installed here.
    here.write_text(
        UNIT.replace("/opt/tandemn/bin/tandemn server", f"{sys.executable} -m tandemn.cli server")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", here], capture_output=True, text=True, timeout=60, check=False
    )
    about = [line for line in done.stderr.splitlines() if "tandemn.service" in line]
    assert (done.returncode, about) == (0, []), done.stderr


@pytest.mark.parametrize(
    ("policy", "section"), [("objects-policy.json", "S3"), ("skypilot-policy.json", "GPUs on AWS")]
)
def test_every_permission_is_explained_and_no_other(policy, section):
    document = json.loads((ROOT / "deploy" / "aws" / policy).read_text())
    allowed = [
        action
        for each in document["Statement"]
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    ]
    assert len(allowed) == len(set(allowed))
    [text] = re.findall(rf"^## {section}\n(.*?)^## ", PAGE, flags=re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`[a-z0-9]+:.*?) \|", text, flags=re.MULTILINE)
    assert sorted(re.findall(r"`([^`]+)`", "".join(rows))) == sorted(allowed)


def test_limits_are_as_they_are_said():
    assert f"at most {engines.POOL_SIZE} connections" in PAGE
    assert f"noticed within {2 * engines.SILENCE_S} s" in PAGE
    assert f"`TANDEMN_LEADER_LEASE_S` ({election.LEASE_S:g})" in PAGE
    assert EventKind.LEADER_ELECTED.value in PAGE
