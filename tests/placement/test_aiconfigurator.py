import importlib.util
from types import SimpleNamespace

import pytest

from tandemn.errors import MissingDependency
from tandemn.placement.aiconfigurator import AiconfiguratorPredictor
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.models import shape_of
from tandemn.placement.roofline import Case


def case(gpu="H100", output=200):
    return Case(
        shape=shape_of("Qwen/Qwen3-32B"),
        gpu=gpu_named(gpu),
        tp=2,
        input_tokens=1000,
        output_tokens=output,
        concurrency=32,
    )


@pytest.mark.skipif(importlib.util.find_spec("aiconfigurator") is not None, reason="it is installed here")
def test_without_it_the_pip_line_is_named():
    with pytest.raises(MissingDependency, match="pip install aiconfigurator"):
        AiconfiguratorPredictor()


def test_what_it_cannot_do_goes_to_the_roofline():
    asked = []

    def estimate(model, system, **options):
        asked.append((model, system, options["tp_size"]))
        if options["osl"] == 300:
            raise ValueError("no tables")
        return SimpleNamespace(tokens_per_second=1000.0)

    found = AiconfiguratorPredictor(estimate).predict([case(), case("T4"), case(output=300), case(output=0)])
    assert [prediction.source for prediction in found] == ["aiconfigurator", *["roofline"] * 3]
    assert found[0].requests_per_s == pytest.approx(5.0)
    assert asked == [("Qwen/Qwen3-32B", "h100_sxm", 2)] * 2
