"""Fit the roofline's efficiencies to measured points, and say how well it predicts points it has not seen.

A maximum-a-posteriori fit: log residuals with Huber's loss, a prior on every efficiency, corrections of compute
and bandwidth per architecture and (smaller) per GPU, and a heavy-tailed offset per model, so that one strange
source cannot bend the physics for the others. Run as `make calibrate POINTS=FILE`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tandemn.errors import InvalidInput, TandemnError
from tandemn.placement.catalog.gpus import gpu_named, gpus
from tandemn.placement.models import canonical_name, shape_of, with_precision
from tandemn.placement.roofline import ASYNC_SINCE, PARAMETERS, Case, features, log_requests_per_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tandemn.placement.roofline import Array

#: Spread of one point's log residual; wider than the points' own noise because points of one run err together.
POINT_SD = 0.3
#: Residuals beyond this many spreads count linearly (Huber).
HUBER = 2.0
ARCH_SD, GPU_SD, MODEL_SD = 0.12, 0.07, 0.1
#: A model's own offset is believed up to this factor (log): more than 1.5 is the source's doing, not the model's.
MODEL_LIMIT = float(np.log(1.5))
_ITERATIONS = 40
#: Sequences that vLLM runs together unless it is told otherwise (`max_num_seqs`).
MOST_SEQUENCES = 256.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured throughput."""

    case: Case
    model: str
    precision: str
    output_tokens_s: float
    workload: tuple[str, ...]
    """Nominal input and output lengths: points of one workload differ in layout and load only."""
    is_saturated: bool = False
    """Whether a whole file was offered and the layout ran as much of it at once as it could hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted constants: efficiencies, corrections (log) and the spread that is left (log standard deviations)."""

    efficiencies: Mapping[str, float]
    compute: Mapping[str, float]
    """Log correction by GPU, its architecture's included; by `arch:NAME` for GPUs without points."""
    memory: Mapping[str, float]
    models: Mapping[str, float]
    spread: Mapping[str, float]
    """Of a seen model and GPU (`seen`), of a model without points (`model`), of a GPU without points (`gpu`)."""
    provenance: Mapping[str, str]

    def theta(self) -> Array:
        values: Array = np.log([self.efficiencies[parameter.name] for parameter in PARAMETERS])
        return values

    def correction(self, table: Mapping[str, float], gpu_name: str, arch: str) -> float:
        return table.get(gpu_name, table.get(f"arch:{arch}", 0.0))

    def log_rate(self, cases: Sequence[Case], models: Sequence[str]) -> Array:
        """Log requests per second of each case, the model's own offset included where it has one."""
        compute = np.array([self.correction(self.compute, c.gpu.name, c.gpu.arch) for c in cases])
        memory = np.array([self.correction(self.memory, c.gpu.name, c.gpu.arch) for c in cases])
        offset = np.array([self.models.get(model, 0.0) for model in models])
        result: Array = log_requests_per_s(self.theta(), features(cases), compute, memory) + offset
        return result


def read_points(path: Path) -> tuple[list[Point], list[str]]:
    """Read points from a CSV file; return them and, for each row left out, why.

    Only model, gpu, isl, osl and output_tok_s (or req_s) are needed; an absent or empty tp or pp is 1.

    Raises:
        InvalidInput: it is no CSV text, a needed column is absent, or the file has no usable row.
    """
    points: list[Point] = []
    skipped: list[str] = []
    try:
        # A spreadsheet puts a byte order mark before the first name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            _check_columns(path, names)
            reader.fieldnames = names
            for row in reader:
                try:
                    points.append(_point(row))
                except (ValueError, TandemnError) as exc:
                    skipped.append(f"line {reader.line_num}: {exc}")
    except (csv.Error, UnicodeDecodeError) as exc:
        raise InvalidInput(f"{path} is no CSV text: {exc}", code="bad_points") from exc
    if not points:
        told = f"; {skipped[0]}" if skipped else ""
        raise InvalidInput(f"{path} has no usable point{told}", code="bad_points")
    return points, skipped


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = {"model", "gpu", "isl", "osl"} - set(names)
    if not {"output_tok_s", "req_s"} & set(names):
        missing.add("output_tok_s")
    if missing:
        raise InvalidInput(f"{path} has no column {', '.join(sorted(missing))}", code="bad_points")


def _point(row: Mapping[str, str | None]) -> Point:
    # A row that is longer than the header has a list under None.
    cell = {key: value.strip() for key, value in row.items() if isinstance(value, str)}
    for name in ("model", "gpu"):
        if not cell.get(name):
            raise ValueError(f"{name} is not stated")
    model = canonical_name(cell["model"])
    precision = cell.get("precision", "")
    shape = with_precision(shape_of(cell["model"]), precision)
    input_tokens, output_tokens = _number(cell, "isl"), _number(cell, "osl")
    engine, notes = cell.get("engine", ""), cell.get("notes", "")
    tp, pp = int(_number(cell, "tp", 1)), int(_number(cell, "pp", 1))
    stated = re.search(r"(\d+)\.(\d+)", engine)
    case = Case(
        shape=shape,
        gpu=gpu_named(cell["gpu"]),
        tp=tp,
        pp=pp,
        dp=_attention_replicas(notes, tp) if shape.experts else 1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=_concurrency(cell),
        eager="enforce-eager" in engine,
        utilisation=_utilisation(engine),
        is_async=stated is not None and (int(stated[1]), int(stated[2])) >= ASYNC_SINCE,
    )
    nominal = re.search(r"nominal in/out (\d+)/(\d+)", notes)
    return Point(
        case=case,
        model=model,
        precision=precision,
        output_tokens_s=_output_rate(cell, output_tokens),
        workload=(nominal[1], nominal[2]) if nominal else (cell["isl"], cell["osl"]),
        is_saturated=bool(cell.get("n_requests")),
    )


#: Largest length, load or rate that is taken for a measurement.
_ABSURD = 1e9


def _number(cell: Mapping[str, str], name: str, default: float | None = None) -> float:
    """Read a positive number; an empty cell is `default`, where there is one."""
    text = cell.get(name, "")
    if not text and default is not None:
        return default
    if not text:
        raise ValueError(f"{name} is not stated")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < _ABSURD or (name in {"tp", "pp"} and value < 1):
        raise ValueError(f"{name} is {text!r}")
    return value


def _output_rate(cell: Mapping[str, str], output_tokens: float) -> float:
    if not cell.get("output_tok_s") and cell.get("req_s"):
        return _number(cell, "req_s") * output_tokens
    return _number(cell, "output_tok_s")


def _concurrency(cell: Mapping[str, str]) -> float:
    """Requests in flight; runs without a stated concurrency offer everything at once, and vLLM then runs 256 sequences."""
    if cell.get("concurrency"):
        return _number(cell, "concurrency")
    return min(_number(cell, "n_requests", MOST_SEQUENCES), MOST_SEQUENCES)


def _attention_replicas(notes: str, tp: int) -> int:
    """Attention replicas of a mixture of experts whose experts span more GPUs than one replica has."""
    spread = re.search(r"moe_ep=([\d.]+) moe_tp=([\d.]+)", notes)
    return max(round(float(spread[1]) * float(spread[2]) / tp), 1) if spread else 1


def _utilisation(engine: str) -> float:
    stated = re.search(r"gpu-mem (0?\.\d+)", engine)
    return float(stated[1]) if stated else 0.9


class _Design:
    """Points as arrays, and where each correction stands in the vector that is fitted."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points
        self.x = features([point.case for point in points])
        output = np.array([point.case.output_tokens for point in points])
        self.log_measured: Array = np.log([p.output_tokens_s for p in points]) - np.log(output)
        gpu = [point.case.gpu.name for point in points]
        arch = [point.case.gpu.arch for point in points]
        self.gpus, self.archs = sorted(gpus()), sorted({g.arch for g in gpus().values()})
        self.models = sorted({point.model for point in points})
        count, k = len(PARAMETERS), len(self.gpus)
        self.gpu_at = np.array([self.gpus.index(name) for name in gpu]) + count
        self.arch_at = np.array([self.archs.index(name) for name in arch]) + count + 2 * k
        self.model_start = count + 2 * k + 2 * len(self.archs)
        self.model_at = np.array([self.models.index(p.model) for p in points]) + self.model_start
        self.mean = np.concatenate(
            [np.log([p.mean for p in PARAMETERS]), np.zeros(2 * k + 2 * len(self.archs) + len(self.models))]
        )
        self.sd = np.concatenate(
            [
                [p.log_sd for p in PARAMETERS],
                np.full(2 * k, GPU_SD),
                np.full(2 * len(self.archs), ARCH_SD),
                np.full(len(self.models), MODEL_SD),
            ]
        )

    def predict(self, v: Array, rows: NDArray[np.bool_]) -> Array:
        k, a = len(self.gpus), len(self.archs)
        x = {name: values[rows] for name, values in self.x.items()}
        gpu, arch = self.gpu_at[rows], self.arch_at[rows]
        rate = log_requests_per_s(v[: len(PARAMETERS)], x, v[gpu] + v[arch], v[gpu + k] + v[arch + a])
        result: Array = rate + v[self.model_at[rows]]
        return result

    def jacobian(self, v: Array, rows: NDArray[np.bool_]) -> Array:
        base = self.predict(v, rows)
        columns = np.zeros((len(base), len(v)))
        for j in range(len(v)):
            if j >= self.model_start:
                columns[:, j] = self.model_at[rows] == j
                continue
            moved = v.copy()
            moved[j] += 1e-4
            columns[:, j] = (self.predict(moved, rows) - base) / 1e-4
        return columns

    def cost(self, v: Array, rows: NDArray[np.bool_]) -> float:
        r = np.abs(self.predict(v, rows) - self.log_measured[rows]) / POINT_SD
        z = (v - self.mean) / self.sd
        prior = z * z / 2
        prior[self.model_start :] = 1.5 * np.log1p(z[self.model_start :] ** 2 / 2)
        return float(np.where(r < HUBER, r * r / 2, HUBER * r - HUBER * HUBER / 2).sum() + prior.sum())

    def step(self, v: Array, rows: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Gauss-Newton's matrix and gradient, both losses reweighted at `v`."""
        r = (self.predict(v, rows) - self.log_measured[rows]) / POINT_SD
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(r), 1e-9))
        jacobian = self.jacobian(v, rows) / POINT_SD
        precision = 1 / self.sd**2
        z = (v - self.mean) / self.sd
        precision[self.model_start :] *= 1.5 / (1 + z[self.model_start :] ** 2 / 2)
        matrix = (jacobian * weight[:, None]).T @ jacobian + np.diag(precision)
        return matrix, jacobian.T @ (r * weight) + (v - self.mean) * precision


def _solve(design: _Design, rows: NDArray[np.bool_]) -> Array:
    """Minimise by Levenberg-Marquardt from the priors' means."""
    v, damping = design.mean.copy(), 1e-2
    cost = design.cost(v, rows)
    for _ in range(_ITERATIONS):
        matrix, gradient = design.step(v, rows)
        while damping < 1e8:
            moved = v - np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), gradient)
            new = design.cost(moved, rows)
            if new < cost:
                break
            damping *= 4
        else:
            break
        damping = max(damping / 3, 1e-6)
        gained, v, cost = cost - new, moved, new
        if gained < 1e-5 * cost:
            break
    return v


def fit(points: Sequence[Point], *, provenance: Mapping[str, str] | None = None) -> Calibration:
    """Fit to all points; the spreads are of points predicted without their model, GPU or layout."""
    design = _Design(points)
    everything = np.ones(len(points), dtype=bool)
    fitted = _solve(design, everything)
    held = {name: held_out(points, name, design=design) for name in ("layout", "model", "gpu")}
    spread = {
        name: float(np.quantile(np.abs(held[source] - design.log_measured), 0.68))
        for name, source in (("seen", "layout"), ("model", "model"), ("gpu", "gpu"))
    }
    return replace(_constants(design, fitted), spread=spread, provenance=dict(provenance or {}))


def _constants(design: _Design, v: Array) -> Calibration:
    k, a, start = len(design.gpus), len(design.archs), len(PARAMETERS)
    seen = {point.case.gpu.name for point in design.points}
    compute, memory = {}, {}
    for i, arch in enumerate(design.archs):
        compute[f"arch:{arch}"] = float(v[start + 2 * k + i])
        memory[f"arch:{arch}"] = float(v[start + 2 * k + a + i])
    for i, name in enumerate(design.gpus):
        if name in seen:
            arch = f"arch:{gpu_named(name).arch}"
            compute[name] = float(v[start + i]) + compute[arch]
            memory[name] = float(v[start + k + i]) + memory[arch]
    offsets = np.clip(v[design.model_start :], -MODEL_LIMIT, MODEL_LIMIT)
    return Calibration(
        efficiencies={p.name: float(np.exp(v[i])) for i, p in enumerate(PARAMETERS)},
        compute=compute,
        memory=memory,
        models={name: float(offset) for name, offset in zip(design.models, offsets, strict=True)},
        spread={},
        provenance={},
    )


def held_out(points: Sequence[Point], by: str, *, design: _Design | None = None) -> Array:
    """Predict each point (log requests per second) from a fit without any point of its group.

    Args:
        points: what was measured.
        by: `model`, `gpu`, or `layout` (one TP x PP x DP on one GPU).
        design: the points' arrays, where the caller has them already.
    """
    design = design or _Design(points)
    labels = np.array([_label(point, by) for point in points])
    out = np.zeros(len(points))
    for label in sorted(set(labels)):
        rows = labels == label
        v = design.mean.copy() if rows.all() else _solve(design, ~rows)
        v[design.model_start :] = np.clip(v[design.model_start :], -MODEL_LIMIT, MODEL_LIMIT)
        out[rows] = design.predict(v, rows)
    return out


def _label(point: Point, by: str) -> str:
    case = point.case
    match by:
        case "model":
            return point.model
        case "gpu":
            return case.gpu.name
        case _:
            return f"{case.gpu.name} {case.tp}x{case.pp}x{case.dp}"


def write(calibration: Calibration, path: Path) -> None:
    """Write the constants as JSON, rounded to what the points can tell."""
    rounded = {
        key: {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in table.items()
        }
        for key, table in asdict(calibration).items()
    }
    path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def read(text: str) -> Calibration:
    """Read what `write` wrote."""
    return Calibration(**json.loads(text))


def main(arguments: Sequence[str]) -> int:
    """Fit to the named file and write the package's constants."""
    if len(arguments) != 1:
        sys.stderr.write("usage: make calibrate POINTS=FILE.csv\n")
        return 2
    source = Path(arguments[0])
    points, skipped = read_points(source)
    calibration = fit(
        points,
        provenance={
            "points": f"{len(points)} of {source.name}, {len(skipped)} left out",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "models": ", ".join(sorted({point.model for point in points})),
            "gpus": ", ".join(sorted({point.case.gpu.name for point in points})),
        },
    )
    target = Path(__file__).with_name("calibrated.json")
    write(calibration, target)
    sys.stdout.write(f"{target}: {calibration.provenance['points']}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
