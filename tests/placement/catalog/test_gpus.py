from dataclasses import fields

import pytest

from tandemn.errors import NotFound
from tandemn.placement.catalog.gpus import gpu_named, gpus


def test_every_gpu_says_where_its_figures_are_from():
    for gpu in gpus().values():
        assert gpu.source
        assert gpu.checked
        assert set(gpu.unconfirmed) <= {field.name for field in fields(gpu)}
        assert gpu.memory_gib < gpu.memory_gb * 1.0
        assert gpu.bandwidth_gb_s > 0


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("h100", "H100"),
        ("H100-80GB-SXM", "H100"),
        ("NVIDIA L40S", "L40S"),
        ("A100-40GB", "A100"),
        ("a100_80gb", "A100-80GB"),
        ("4090", "RTX4090"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100-SXM4-40GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("Tesla T4", "T4"),
        ("T4-16GB", "T4"),
        ("A100 80G", "A100-80GB"),
    ],
)
def test_names_that_people_use(name, known):
    assert gpu_named(name).name == known


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("H10O", "H100"),
        ("L40Z", "L40"),
        ("A100-80", "A100-80GB"),
        ("H100 PCIe", "H100"),
        ("H100-94GB-NVL", "H100"),
        ("L4-48GB", "L4"),
    ],
)
def test_unknown_names_get_suggestions(name, near):
    with pytest.raises(NotFound, match=near):
        gpu_named(name)


def test_nothing_near():
    with pytest.raises(NotFound, match="show-gpus"):
        gpu_named("?")
