import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from tandemn.errors import InvalidInput
from tandemn.settings import Settings, child_environment, load

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()


def test_every_setting_is_documented_with_its_default_and_no_other():
    documented = dict(re.findall(r"^\| `((?:TANDEMN|KOI)_\w+)` \| (.*?) \|", PAGE, flags=re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is PydanticUndefined:
            written = "`~/.tandemn`"
        elif default is None:
            written = "unset"
        else:
            written = (
                f"`{str(default).lower().removesuffix('.0') if not isinstance(default, str) else default}`"
            )
        expected[field.validation_alias or f"TANDEMN_{name.upper()}"] = written
    assert documented == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEMN_LEASE_S", "-1"),
        ("TANDEMN_LOCAL_SLOTS", "many"),
        ("KOI_SERVICE_URL", "koi:8090"),
        ("KOI_SERVICE_URL", "file:///etc/passwd"),
        ("KOI_SERVICE_URL", "http://user:secret@koi:8090"),
        ("KOI_SERVICE_URL", "http://koi:8090/?key=secret"),
    ],
)
def test_wrong_value_is_refused_by_name(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=name) as caught:
        load()
    assert caught.value.code == "invalid_setting"
    assert "secret" not in str(caught.value)


def test_koi_is_not_there_where_its_url_is_empty(monkeypatch):
    monkeypatch.setenv("KOI_SERVICE_URL", "")
    assert load().koi_service_url is None
    monkeypatch.setenv("KOI_SERVICE_URL", "http://koi:8090/")
    assert load().koi_service_url == "http://koi:8090"


def test_secret_is_not_shown(monkeypatch):
    monkeypatch.setenv("TANDEMN_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(load())


def test_child_process_in_another_folder_finds_the_same_state(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEMN_HOME", "state")
    assert child_environment(load())["TANDEMN_HOME"] == str(tmp_path / "state")
