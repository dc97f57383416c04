from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.process.house import House

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def house() -> Iterator[House]:
    """A fresh state folder; whatever a test starts in it has ended when it is over."""
    home = Path(tempfile.mkdtemp(prefix="tdm-"))
    house = House(home)
    try:
        yield house
    finally:
        try:
            house.close()
        finally:
            shutil.rmtree(home, ignore_errors=True)
