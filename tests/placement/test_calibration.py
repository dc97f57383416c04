import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks import placement as benchmark
from tests.placement.points import write_points

from tandemn.errors import InvalidInput
from tandemn.placement.accuracy import measure
from tandemn.placement.aiconfigurator import AiconfiguratorPredictor
from tandemn.placement.calibration import fit, held_out, read, read_points, write
from tandemn.placement.throughput import RooflinePredictor, shipped_calibration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    path = write_points(tmp_path_factory.mktemp("points") / "points.csv")
    return read_points(path)[0]


@pytest.fixture(scope="module")
def fitted(points):
    return fit(points)


def test_fit_recovers_what_made_the_points(points, fitted):
    rates = fitted.log_rate([p.case for p in points], [p.model for p in points])
    accuracy = measure(points, rates)
    assert accuracy.mape < 0.05
    assert (accuracy.spearman or 0) > 0.99
    assert fitted.spread["seen"] < 0.1


def test_held_out_model_is_predicted_from_the_others(points):
    assert measure(points, held_out(points, "model")).mape < 0.15
    assert measure(points, held_out(points, "layout")).mape < 0.1


def test_constants_survive_the_file(fitted, points, tmp_path):
    write(fitted, tmp_path / "c.json")
    again = read((tmp_path / "c.json").read_text())
    cases, models = [p.case for p in points], [p.model for p in points]
    assert again.log_rate(cases, models) == pytest.approx(fitted.log_rate(cases, models), abs=0.01)


def test_one_strange_source_does_not_bend_the_others(points):
    strange = [p if p.model != "qwen3-32b" else _faster(p, 3.0) for p in points]
    bent = fit(strange)
    others = [p for p in points if p.model != "qwen3-32b"]
    rates = bent.log_rate([p.case for p in others], [p.model for p in others])
    assert measure(others, rates).mape < 0.12
    assert max(bent.models.values()) <= np.log(1.5) + 1e-9


def _faster(point, factor):
    from dataclasses import replace

    return replace(point, output_tokens_s=point.output_tokens_s * factor)


UNUSABLE = {
    "Qwen3-32B,H100,2,1,bf16,,,8,,100": "isl is not stated",
    "NoSuchModel-9B,H100,2,1,bf16,10,10,8,,100": "NoSuchModel-9B",
    "Qwen3-32B,Z80,2,1,bf16,10,10,8,,5": "Z80",
    "Qwen3-32B,H100,2,1,bf16,10,10,8,,0": "output_tok_s is '0'",
    "Qwen3-32B,H100,2,1,bf16,10,10,8,,": "output_tok_s is not stated",
    "Qwen3-32B,H100,2,1,bf16,10,10,8,,nan": "output_tok_s is 'nan'",
    "Qwen3-32B,H100,2,1,bf16,10,inf,8,,5": "osl is 'inf'",
    "Qwen3-32B,H100,2,1,bf16,-5,10,8,,5": "isl is '-5'",
    "Qwen3-32B,H100,0,1,bf16,10,10,8,,5": "tp is '0'",
    "Qwen3-32B,H100,two,1,bf16,10,10,8,,5": "tp is 'two'",
    "Qwen3-32B,H100,2,1,fp7,10,10,8,,5": "fp7",
    "Qwen3-32B,H100,2,1,bf16,10,10,many,,5": "concurrency is 'many'",
    ",H100,2,1,bf16,10,10,8,,5": "model is not stated",
    "Qwen3-32B": "gpu is not stated",
}


def test_rows_that_cannot_be_used_are_named(tmp_path):
    path = write_points(tmp_path / "p.csv")
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in UNUSABLE)
        file.write("Qwen3-32B,H100,2,1,bf16,10,10,8,,5,,,more,than,the,header\n")
    points, skipped = read_points(path)
    assert len(points) == 49
    assert len(skipped) == len(UNUSABLE)
    for number, (told, reason) in enumerate(zip(skipped, UNUSABLE.values(), strict=True), start=50):
        assert told.startswith(f"line {number}: ")
        assert reason in told


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_a_file_with_the_needed_columns_alone(tmp_path):
    """A byte order mark, names in capitals, spaces, CRLF, and nothing that is optional."""
    text = "Model, GPU ,ISL,OSL,output_tok_s\r\nLlama-3.1-8B,NVIDIA A100-SXM4-80GB, 512 ,128,2500\r\n"
    points, skipped = read_points(written(tmp_path / "p.csv", text, "utf-8-sig"))
    assert skipped == []
    case = points[0].case
    assert (case.gpu.name, case.tp, case.pp, case.dp, case.concurrency) == ("A100-80GB", 1, 1, 1, 256)
    assert not points[0].is_saturated


def test_a_rate_in_requests_is_one_in_tokens(tmp_path):
    text = "model,gpu,tp,pp,isl,osl,req_s\nLlama-3.1-8B,L4,,,512,100,2.5\n"
    [point] = read_points(written(tmp_path / "p.csv", text))[0]
    assert point.output_tokens_s == 250


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a,b\n1,2\n", "no column gpu, isl, model, osl, output_tok_s"),
        (b"", "no column"),
        (b"model,gpu,isl,osl,output_tok_s\n", "no usable point"),
        (b"model,gpu,isl,osl,output_tok_s\nQwen3-32B,Z80,1,1,1\n", "Z80"),
        (b"model,gpu,isl,osl,output_tok_s\n\xff\xfe,L4,1,1,1\n", "no CSV text"),
        (b"model,gpu,isl,osl,output_tok_s\n" + b"x" * 200_000 + b"\n", "no CSV text"),
    ],
)
def test_a_file_without_usable_points_is_an_input_error(tmp_path, content, told):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=told):
        read_points(path)


def test_shipped_constants_have_a_provenance():
    shipped = shipped_calibration()
    assert shipped.provenance["sha256"]
    assert set(shipped.spread) == {"seen", "model", "gpu"}


def test_uncertainty_grows_for_what_was_never_measured(points):
    predictor = RooflinePredictor()
    seen = points[0].case
    from dataclasses import replace

    from tandemn.placement.catalog.gpus import gpu_named
    from tandemn.placement.models import shape_of

    known = predictor.predict([seen])[0]
    model = predictor.predict([replace(seen, shape=shape_of("phi-4"))])[0]
    both = predictor.predict([replace(seen, shape=shape_of("phi-4"), gpu=gpu_named("B200"))])[0]
    assert known.log_sd < model.log_sd < both.log_sd
    assert known.slow_requests_per_s(1.28) < known.requests_per_s
    assert predictor.predict([]) == []


def test_embeddings_have_a_rate():
    from tandemn.placement.catalog.gpus import gpu_named
    from tandemn.placement.models import shape_of
    from tandemn.placement.roofline import Case

    case = Case(
        shape=shape_of("bge-large-en-v1.5"),
        gpu=gpu_named("L4"),
        input_tokens=256,
        output_tokens=0,
        concurrency=256,
    )
    prediction = RooflinePredictor().predict([case])[0]
    assert 10 < prediction.requests_per_s < 10_000
    assert prediction.output_tokens_per_s == 0


def test_benchmark_prints_json(tmp_path):
    path = write_points(tmp_path / "p.csv")
    command = [sys.executable, "-m", "benchmarks.placement", "--points", str(path)]
    for extra, key in (([], "without_model"), (["--no-fit"], "shipped")):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, cwd=ROOT, check=True)
        report = json.loads(done.stdout)
        assert report["points"] == 48
        assert {"mape", "spearman", "mean_cost_regret", "by_gpu"} <= set(report[key])


@pytest.mark.parametrize("extra", [[], ["--no-fit"]])
def test_benchmark_of_one_row(tmp_path, extra, capsys, monkeypatch):
    path = written(tmp_path / "p.csv", "model,gpu,isl,osl,output_tok_s\nphi-4,B200,512,128,9000\n")
    monkeypatch.setattr(sys, "argv", ["placement", "--points", str(path), *extra])
    assert benchmark.main() == 0
    report = json.loads(capsys.readouterr().out)
    figures = report["shipped" if extra else "without_model"]
    assert figures["points"] == 1
    assert figures["spearman"] is figures["mean_cost_regret"] is None
    assert 0 < figures["mape"] < 1


def test_benchmark_of_nothing_usable(tmp_path, capsys, monkeypatch):
    for content in ("model,gpu\n", None):
        path = tmp_path / "p.csv"
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        monkeypatch.setattr(sys, "argv", ["placement", "--points", str(path), "--no-fit"])
        assert benchmark.main() == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "p.csv" in err


def test_benchmark_compares_with_another_predictor(points):
    """Twice as fast as was measured, on what it can do; and nothing that it can do."""

    def twice(model, *_, **layout):
        if not model.startswith("Qwen/"):
            raise ValueError("no tables")
        point = next(p for p in points if p.case.tp == layout["tp_size"] and p.model == "qwen3-32b")
        return SimpleNamespace(tokens_per_second=2 * point.output_tokens_s)

    chosen = [next(p for p in points if p.model == "qwen3-32b"), *[p for p in points if "llama" in p.model]]
    found = benchmark.compared(chosen, 1, AiconfiguratorPredictor(twice))
    assert (found["asked"], found["predicted"]) == (len(chosen), 1)
    assert found["aiconfigurator"]["mape"] == 1.0
    assert found["shipped"]["points"] == found["without_model"]["points"] == 1
    assert benchmark.compared(chosen[1:], 2, AiconfiguratorPredictor(twice))["predicted"] == 0
