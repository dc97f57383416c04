"""Read the text that engines answer at `/metrics` (the Prometheus exposition format)."""

from __future__ import annotations

import math


def totals(text: str) -> dict[str, float]:
    """Return each metric's value, summed over its labels; lines that are none are passed over.

    An engine served by several processes or ranks reports one line per each; the sum is the engine's.
    """
    values: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name = line.partition("{")[0] if "{" in line else line.partition(" ")[0]
        after_labels = line.rpartition("}")[2] if "{" in line else line[len(name) :]
        number = after_labels.split()
        try:
            value = float(number[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            values[name] = values.get(name, 0.0) + value
    return values


def average(text: str, name: str) -> float | None:
    """Return a metric's mean over its labels: of a share, the sum over ranks would mean nothing."""
    told = [totals(line).get(name) for line in text.splitlines() if line.startswith(name)]
    known = [each for each in told if each is not None]
    return sum(known) / len(known) if known else None


def whole(values: dict[str, float], name: str) -> int | None:
    """Return a count; None where the engine does not tell."""
    return int(values[name]) if name in values else None


def mean(values: dict[str, float], total: str, count: str) -> float | None:
    """Return total over count; None where either is not told or nothing was counted."""
    if total not in values or not values.get(count):
        return None
    return values[total] / values[count]
