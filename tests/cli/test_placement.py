import json

import pytest
import typer
from tests.simulate.traces import write_traces
from typer.testing import CliRunner

from tandemn.cli import show_gpus, simulate
from tandemn.errors import NotFound


def invoke(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_show_gpus(tmp_path):
    table = invoke(show_gpus.app, "--catalogs", str(tmp_path))
    assert "H100" in table
    assert "unknown" in table
    assert " 0.0000" not in table


def test_show_gpus_json(tmp_path):
    found = json.loads(
        invoke(show_gpus.app, "--gpu", "L40S", "--spot", "--json", "--catalogs", str(tmp_path))
    )
    assert {row["market"] for row in found["gpus"]} == {"spot"}
    assert all(row["as_of"] for row in found["gpus"] if row["usd_per_hour"] is not None)


def test_show_gpus_of_an_unknown_name(tmp_path):
    with pytest.raises(NotFound, match="L40"):
        invoke(show_gpus.app, "--gpu", "L40Z", "--catalogs", str(tmp_path))


def test_simulate(tmp_path):
    write_traces(tmp_path, zones=((1.5, 1.7),), ticks=400)
    flags = ["--trace", str(tmp_path), "--job-hours", "2", "--deadline-factor", "1.5", "--starts", "2"]
    table = invoke(simulate.app, *flags)
    assert "zone-0" in table
    assert "missed deadlines: 0" in table
    found = json.loads(invoke(simulate.app, *flags, "--json"))
    assert found["summary"]["rows"] == 1
    assert found["rows"][0]["tandemn_missed"] == 0
