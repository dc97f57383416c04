"""Keys while no control plane serves: the first one, and what was done is in the log."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tandemn.cli.offline_keys import OfflineKeys
from tandemn.control.store import events, keys
from tandemn.control.store.database import open_database
from tandemn.errors import Broken, InvalidInput
from tandemn.protocol.keys import CreateKey, Role
from tandemn.settings import Settings


@pytest.fixture
def offline(tmp_path):
    return OfflineKeys(Settings(home=tmp_path / "home"))


async def test_the_first_key(offline, tmp_path):
    with pytest.raises(InvalidInput) as refused:
        await offline.create_key(CreateKey(name="alice", role=Role.USER))
    assert refused.value.code == "first_key_not_admin"
    made = await offline.create_key(CreateKey(name="ops", role=Role.ADMIN))
    replaced = await offline.replace_key("ops")
    assert replaced.key != made.key
    revoked = await offline.revoke_key("ops")
    assert revoked.revoked_at is not None
    assert [each.name for each in (await offline.list_keys()).keys] == ["ops"]
    database = open_database(Settings(home=tmp_path / "home"))
    try:
        logged = database.run_sync(events.page, after=0, limit=10)
        assert [(each.kind, each.actor) for each in logged] == [
            ("api_key_created", "local"),
            ("api_key_rotated", "local"),
            ("api_key_revoked", "local"),
        ]
        assert database.run_sync(keys.has_any)
        assert not database.run_sync(keys.is_one_live)
    finally:
        database.close()


async def test_a_state_that_cannot_be_opened(tmp_path):
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(Broken, match="cannot be reached"):
        await OfflineKeys(Settings(home=tmp_path / "home")).list_keys()


def test_what_it_says_is_json(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tandemn.control.offline", "revoke", "nobody"],
        env={"TANDEMN_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "key_not_found"
