"""A backup as docs/operate.md takes it, of a job that runs, brought back after the database was lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests import postgres_server
from tests.process import watch
from tests.process.scene import begin

PAGE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text()
REQUESTS = 500


def documented(section: str) -> str:
    """The commands of a section of the page, as they stand there."""
    [text] = re.findall(rf"^#+ {section}\n(.*?)(?=^#|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))


#: For machines without SQLite's own command line.
SQLITE3 = f"""#!{sys.executable}
import sqlite3, sys
sqlite3.connect(sys.argv[1]).execute(sys.argv[2])
"""


def call(house, commands: str) -> None:
    """Run what the page says."""
    programs = house.home / "bin"
    if not postgres_server.IS_WANTED and shutil.which("sqlite3") is None:
        programs.mkdir(exist_ok=True)
        (programs / "sqlite3").write_text(SQLITE3)
        (programs / "sqlite3").chmod(0o755)
    if postgres_server.IS_WANTED:
        programs = postgres_server.programs()
    done = subprocess.run(
        ["bash", "-euc", commands],
        env=house.environment | {"PATH": f"{programs}:{os.environ['PATH']}"},
        cwd=house.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_backup_of_a_running_job_is_brought_back_and_the_job_completes(house):
    kind = "PostgreSQL" if postgres_server.IS_WANTED else "SQLite"
    job = begin(house, REQUESTS, "--replicas", "2", "--chunk-size", "20")
    house.wait_for(lambda: watch.done(house, job) >= 3)
    call(house, documented(f"Back up {kind}"))
    backed_up = watch.done(house, job)
    house.wait_for(lambda: watch.done(house, job) > backed_up + 3)
    lost = {each["replica_id"] for each in watch.replicas(house, job)}
    assert house.run("server", "stop").returncode == 0
    if postgres_server.IS_WANTED:
        house.environment["TANDEMN_DATABASE_URL"] = postgres_server.fresh_database()
    else:
        for path in house.home.glob("state.db*"):
            path.unlink()
    call(house, documented(f"Bring {kind} back"))
    assert not (house.home / "redis").exists()
    assert watch.state(house, job) == "running"
    house.run("server", "start")
    watch.wait(house, job, "completed")
    assert watch.check_output(house, job, [f"r{number}" for number in range(REQUESTS)]) == []
    assert {each["replica_id"] for each in watch.replicas(house, job)} > lost, (
        "the dead ones were not replaced"
    )
    watch.check_nothing_left(house, job)
