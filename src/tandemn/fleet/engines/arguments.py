"""Parse an engine's extra arguments (what follows `--`) with errors that name the engine."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tandemn.errors import InvalidInput


class StrictParser(argparse.ArgumentParser):
    """A parser that raises InvalidInput instead of printing and ending the process."""

    def __init__(self, engine: str) -> None:
        super().__init__(prog=engine, add_help=False, allow_abbrev=False)
        self._engine = engine

    def error(self, message: str) -> NoReturn:
        """Raise InvalidInput with what this engine takes."""
        takes = ", ".join(action.option_strings[0] for action in self._actions)
        raise InvalidInput(
            f"engine {self._engine}: {message}",
            code="bad_engine_argument",
            next_step=f"it takes {takes}",
            param="extra_args",
        )


def positive(text: str) -> int:
    """Parse a whole number above zero; ValueError where it is not one."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def not_negative(text: str) -> float:
    """Parse a finite number of at least zero; ValueError where it is not one."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number
