"""Measured points that the tests make themselves: the roofline with other constants, and noise."""

import csv

import numpy as np

from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.models import shape_of
from tandemn.placement.roofline import INDEX, PARAMETERS, Case, features, log_requests_per_s

COLUMNS = [
    *("model", "gpu", "tp", "pp", "precision", "isl", "osl"),
    *("concurrency", "n_requests", "output_tok_s", "engine", "notes"),
]
GRID = [
    (model, gpu, tp, pp, isl, osl, concurrency)
    for model, gpu, layouts in (
        ("Qwen3-32B", "H100-80GB-SXM", ((2, 1), (4, 1))),
        ("Llama-3.1-8B", "A100-80GB-SXM", ((1, 1), (2, 1))),
        ("Qwen2.5-14B", "L40S-48GB", ((2, 1), (2, 2))),
        ("Llama-3.1-8B", "L4-24GB", ((1, 1), (2, 1))),
    )
    for tp, pp in layouts
    for isl, osl in ((512, 128), (1024, 512))
    for concurrency in (8, 32, 128)
]


def true_theta():
    theta = np.log([parameter.mean for parameter in PARAMETERS])
    theta[INDEX["compute"]] += 0.15
    theta[INDEX["memory"]] -= 0.1
    theta[INDEX["pcie_bytes_s"]] += 0.3
    return theta


def write_points(path, *, seed=1, noise=0.03):
    rng = np.random.default_rng(seed)
    cases = [
        Case(
            shape=shape_of(model),
            gpu=gpu_named(gpu),
            tp=tp,
            pp=pp,
            input_tokens=isl,
            output_tokens=osl,
            concurrency=concurrency,
        )
        for model, gpu, tp, pp, isl, osl, concurrency in GRID
    ]
    zero = np.zeros(len(cases))
    rates = np.exp(
        log_requests_per_s(true_theta(), features(cases), zero, zero) + rng.normal(0, noise, len(cases))
    )
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (model, gpu, tp, pp, isl, osl, concurrency), rate in zip(GRID, rates, strict=True):
            row = [model, gpu, tp, pp, "bf16", isl, osl, concurrency, "", rate * osl, "vllm 0.18.0", ""]
            writer.writerow(row)
    return path
