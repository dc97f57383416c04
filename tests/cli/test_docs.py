"""docs/cli.md names every command and every flag that there is, and no other."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_group

from tandemn.cli import app as module

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
#: Every command has these; the page says so once.
OF_ALL = {"-v", "--verbose", "--help"}


def flags_there_are() -> dict[str, set[str]]:
    group: Any = get_group(module.app)
    found = {}
    for name in module.COMMANDS:
        command = group.get_command(None, name)
        below = getattr(command, "commands", None)
        for words, one in (
            {f"{name} {word}": one for word, one in below.items()}.items() if below else [(name, command)]
        ):
            found[words] = {
                flag for param in one.params if param.param_type_name == "option" for flag in param.opts
            }
    return found


def flags_in_page() -> dict[str, set[str]]:
    found = {}
    for section in PAGE.split("\n### tandemn ")[1:]:
        heading, _, body = section.partition("\n")
        words = " ".join(word for word in heading.split() if word.islower())
        cells = re.findall(r"^\| `(-[^`]*)` \|", body, flags=re.MULTILINE)
        found[words] = {flag for cell in cells for flag in cell.split(", ")}
    return found


def test_every_command_and_no_other():
    assert list(flags_in_page()) == list(flags_there_are())


@pytest.mark.parametrize("words", list(flags_there_are()))
def test_every_flag_and_no_other(words):
    assert flags_in_page()[words] == flags_there_are()[words] - OF_ALL


def test_what_all_have_is_said_once():
    assert "`-v, --verbose`" in PAGE
    for flags in flags_there_are().values():
        assert {"-v", "--verbose"} <= flags


def test_exit_codes():
    assert [line.split("|")[1].strip() for line in PAGE.splitlines() if re.match(r"\| \d", line)] == [
        "0",
        "1",
        "2",
        "3",
        "130",
    ]
