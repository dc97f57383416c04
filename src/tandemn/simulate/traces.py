"""Recorded spot availability: one file a zone, one value a tick."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tandemn.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: Largest file that is read, in bytes.
_LIMIT = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Availability of several zones on one clock."""

    zones: tuple[str, ...]
    tick_s: float
    available: NDArray[np.bool_]
    """Zones x ticks."""

    @property
    def ticks(self) -> int:
        return int(self.available.shape[1])

    def only(self, zone: str) -> Traces:
        """The same traces of one zone."""
        row = self.zones.index(zone)
        return Traces(zones=(zone,), tick_s=self.tick_s, available=self.available[row : row + 1])


def read_traces(folder: Path) -> Traces:
    """Read every `*.json` of a folder: `{"metadata": {"gap_seconds": s}, "data": [instances per tick]}`.

    Raises:
        NotFound: no such folder, or no trace in it.
        InvalidInput: a file is no trace, or their ticks differ.
    """
    if not folder.is_dir():
        raise NotFound(f"no folder {folder}", param="trace")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise NotFound(f"no *.json traces in {folder}", param="trace")
    read = [_read(file) for file in files]
    ticks = {tick for tick, _ in read}
    if len(ticks) > 1:
        raise InvalidInput(f"the traces in {folder} have different ticks", code="bad_trace", param="trace")
    length = min(len(values) for _, values in read)
    return Traces(
        zones=tuple(file.stem for file in files),
        tick_s=ticks.pop(),
        available=np.array([values[:length] for _, values in read], dtype=bool),
    )


def _read(file: Path) -> tuple[float, list[bool]]:
    wrong = InvalidInput(f"{file} is not a spot trace", code="bad_trace", param="trace")
    if file.stat().st_size > _LIMIT:
        raise wrong
    try:
        trace = json.loads(file.read_text("utf-8"))
        tick = float(trace["metadata"]["gap_seconds"])
        values = [float(value) > 0 for value in trace["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise wrong from exc
    if not tick > 0 or not values:
        raise wrong
    return tick, values
