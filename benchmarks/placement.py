"""How well throughput is predicted on a file of measured points, as JSON.

    python benchmarks/placement.py --points FILE.csv            fit without each model, GPU and layout in turn
    python benchmarks/placement.py --points FILE.csv --no-fit   only predict, with the constants that are shipped
    python benchmarks/placement.py --points FILE.csv --aiconfigurator [--every 4]   NVIDIA's beside ours, on the points that it can do

The file needs the columns model, gpu, isl, osl and output_tok_s (or req_s); tp, pp, precision, concurrency (or n_requests),
engine and notes are read where they are there. A row that cannot be used stands under `left_out` with its reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tandemn.errors import TandemnError
from tandemn.placement.accuracy import Accuracy, measure
from tandemn.placement.aiconfigurator import AiconfiguratorPredictor
from tandemn.placement.calibration import Point, held_out, read_points
from tandemn.placement.throughput import Predictor, shipped_calibration

if TYPE_CHECKING:
    from tandemn.placement.roofline import Array


def figures(points: list[Point], predicted: Array) -> dict[str, Any]:
    """All points together, then per GPU and per model."""

    def part(name: str, of: list[str]) -> dict[str, Any]:
        rows = np.array([value == name for value in of])
        chosen = [point for point, keep in zip(points, rows, strict=True) if keep]
        return rounded(measure(chosen, predicted[rows]))

    gpu = [point.case.gpu.name for point in points]
    model = [point.model for point in points]
    return {
        **rounded(measure(points, predicted)),
        "by_gpu": {name: part(name, gpu) for name in sorted(set(gpu))},
        "by_model": {name: part(name, model) for name in sorted(set(model))},
    }


def compared(points: list[Point], every: int, other: Predictor) -> dict[str, Any]:
    """Another predictor, ours with the shipped constants, and ours fitted without the model, on the points that the other can do."""
    rows = np.arange(0, len(points), every)
    chosen = [points[row] for row in rows]
    predictions = other.predict([point.case for point in chosen])
    could = np.array([prediction.source == other.name for prediction in predictions])
    mine = [point for point, can in zip(chosen, could, strict=True) if can]
    if not mine:
        return {"asked": len(chosen), "predicted": 0}
    rates = [each.requests_per_s for each, can in zip(predictions, could, strict=True) if can]
    shipped = shipped_calibration().log_rate([p.case for p in mine], [p.model for p in mine])
    return {
        "asked": len(chosen),
        "predicted": len(mine),
        other.name: figures(mine, np.log(rates)),
        "shipped": figures(mine, shipped),
        "without_model": figures(mine, held_out(points, "model")[rows[could]]),
    }


def rounded(accuracy: Accuracy) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(accuracy).items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--no-fit", action="store_true", help="predict with the shipped constants")
    parser.add_argument(
        "--aiconfigurator", action="store_true", help="compare with it, where it is installed"
    )
    parser.add_argument(
        "--every", type=int, default=1, help="of the points, for --aiconfigurator: it takes seconds a point"
    )
    arguments = parser.parse_args()
    try:
        points, skipped = read_points(arguments.points)
    except (TandemnError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    report: dict[str, Any] = {"file": arguments.points.name, "points": len(points), "left_out": skipped}
    if arguments.aiconfigurator:
        try:
            report |= compared(points, max(arguments.every, 1), AiconfiguratorPredictor())
        except TandemnError as exc:
            sys.stderr.write(f"{exc}\n")
            return 2
    elif arguments.no_fit:
        cases, models = [p.case for p in points], [p.model for p in points]
        report["shipped"] = figures(points, shipped_calibration().log_rate(cases, models))
    else:
        for by in ("model", "gpu", "layout"):
            report[f"without_{by}"] = figures(points, held_out(points, by))
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
