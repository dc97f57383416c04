"""SkyPilot's own list of errors against ours: none that could reach us is left to chance; `make test-skypilot`."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests.skypilot.slurm import PYTHON

from tandemn.skypilot.faults import translated

pytestmark = pytest.mark.skypilot

#: Of functions that we do not call: managed jobs, pools, recipes, volumes, git, and what its server keeps to itself.
NOT_OURS = {
    "ClientError",
    "GitError",
    "InvalidRecipeNameError",
    "ManagedJobReachedMaxRetriesError",
    "ManagedJobStatusError",
    "ManagedJobUserCancelledError",
    "PoolDoesNotExistError",
    "PortDoesNotExistError",
    "RecipeAlreadyExistsError",
    "RequestAlreadyExistsError",
    "ServeUserTerminatedError",
    "SkyPilotExcludeArgsBaseException",
    "SkyletMethodNotImplementedError",
    "VolumeNotFoundError",
    "VolumeNotReadyError",
    "VolumeTopologyConflictError",
}
LIST = """
import inspect, json
from sky import exceptions
own = [each for _, each in inspect.getmembers(exceptions, inspect.isclass)
       if issubclass(each, Exception) and each.__module__ == exceptions.__name__]
print(json.dumps({each.__name__: [one.__name__ for one in each.__mro__] for each in own}))
"""


def test_every_error_that_may_reach_us_has_a_meaning():
    done = subprocess.run([str(PYTHON), "-c", LIST], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 60
    by_chance = {
        name
        for name, kinds in found.items()
        if translated({"type": name, "kinds": kinds, "message": "so it is"}).code == "skypilot_failed"
    }
    assert by_chance == NOT_OURS
