"""What adapters say before anything is started."""

from pathlib import Path

import pytest

from tandemn.errors import InvalidInput, MissingDependency
from tandemn.fleet.engines.adapters import adapters, choose
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.exposition import totals
from tandemn.fleet.engines.llamacpp import LlamaCpp
from tandemn.fleet.engines.simulated import Simulated
from tandemn.fleet.engines.vllm import Vllm
from tandemn.settings import Settings

VLLM_PAGE = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m}1 {"} 3.0
vllm:num_requests_running{engine="1",model_name="m}1 {"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.125
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.375
vllm:kv_cache_usage_perc_of_old{engine="1",model_name="m"} 9.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 46.0
vllm:generation_tokens_total{engine="0",model_name="m"} 15.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.2
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 4.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 0.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 0.0
broken line
vllm:nan{engine="0"} NaN
"""


def spec_of(model: str = "demo/tiny", **fields) -> EngineSpec:
    return EngineSpec(engine=EngineName.LLAMACPP, model=model, port=8000, **fields)


@pytest.mark.parametrize(
    ("model", "requested", "chosen"),
    [
        ("demo/tiny", None, EngineName.LLAMACPP),
        ("/models/some.GGUF", None, EngineName.LLAMACPP),
        ("Qwen/Qwen3-8B", None, EngineName.VLLM),
        ("demo/tiny", EngineName.SIMULATED, EngineName.SIMULATED),
        ("demo/tiny", EngineName.VLLM, EngineName.VLLM),
    ],
)
def test_the_form_of_a_model_chooses_its_engine(model, requested, chosen):
    assert choose(model, requested) is chosen


def test_every_engine_has_an_adapter_of_its_name(tmp_path):
    for name, adapter in adapters(Settings(home=tmp_path)).items():
        assert adapter.name is name


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "/no/such/file.gguf"])
def test_llamacpp_refuses_a_model_that_it_does_not_have(model, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        LlamaCpp(tmp_path).check(spec_of(model))
    assert caught.value.code == "model_not_found"
    assert model in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize(
    "adapter", [LlamaCpp(Path("/models")), Simulated(), Vllm("/bin/true")], ids=lambda adapter: adapter.name
)
def test_no_command_line_has_the_key(adapter):
    spec = spec_of(api_key="very-secret")
    assert "very-secret" not in " ".join(adapter.command(spec))
    assert "very-secret" in adapter.environment(spec).values()
    assert adapter.environment(spec_of()) == {}


@pytest.mark.parametrize(
    ("adapter", "wrong"),
    [
        (LlamaCpp(Path("/models")), ("--slots", "0")),
        (LlamaCpp(Path("/models")), ("--slots",)),
        (LlamaCpp(Path("/models")), ("--enforce-eager",)),
        (Simulated(), ("--decode-step-s", "-1")),
        (Simulated(), ("--decode-step-s", "nan")),
        (Simulated(), ("--slo", "4")),
        (Vllm("/bin/true"), ("--max-num-seqs", "many")),
        (Vllm("/bin/true"), ("--max-num-seqs",)),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_the_engine(adapter, wrong):
    with pytest.raises(InvalidInput, match=f"engine {adapter.name}") as caught:
        adapter.check(spec_of(extra_args=wrong))
    assert caught.value.code == "bad_engine_argument"


def test_slots_are_what_the_arguments_say(tmp_path):
    assert LlamaCpp(tmp_path).slots(spec_of()) == 16
    assert LlamaCpp(tmp_path).slots(spec_of(extra_args=("--slots", "3"))) == 3
    assert Simulated().slots(spec_of(extra_args=("--slots=5",))) == 5
    assert Vllm().slots(spec_of(extra_args=("--max-num-seqs=7", "--max-num-seqs", "9"))) == 9


def test_the_context_of_a_request_reaches_llamacpp(tmp_path):
    assert "--ctx" not in LlamaCpp(tmp_path).command(spec_of())
    command = LlamaCpp(tmp_path).command(spec_of(max_model_len=512))
    assert command[command.index("--ctx") + 1] == "512"


def test_vllm_is_told_layout_context_and_name():
    command = Vllm("/opt/vllm").command(
        spec_of("Qwen/Qwen3-8B", tp=4, pp=2, max_model_len=4096, extra_args=("--enforce-eager",))
    )
    assert command[:3] == ["/opt/vllm", "serve", "Qwen/Qwen3-8B"]
    assert " ".join(command[3:]) == (
        "--host 127.0.0.1 --port 8000 --served-model-name Qwen/Qwen3-8B --tensor-parallel-size 4"
        " --pipeline-parallel-size 2 --max-model-len 4096 --enforce-eager"
    )


def test_a_job_s_vllm_takes_the_longest_context_that_fits():
    """A plan's memory is that of the job's own requests; the model's whole context may need far more."""
    command = Vllm().command(spec_of("meta-llama/Llama-3.1-8B-Instruct"))
    assert command[-2:] == ["--max-model-len", "auto"]
    said = Vllm().command(spec_of("x/y", extra_args=("--max-model-len", "9000")))
    assert said[-4:] == ["--max-model-len", "auto", "--max-model-len", "9000"], "the last one counts"


def test_a_missing_vllm_is_an_error_with_the_next_step():
    with pytest.raises(MissingDependency) as caught:
        Vllm("/no/such/vllm").check(spec_of("Qwen/Qwen3-8B"))
    assert "/no/such/vllm" in caught.value.message
    assert "TANDEMN_VLLM_COMMAND" in (caught.value.next_step or "")


def test_vllms_metrics_are_summed_over_its_engines():
    metrics = Vllm().parse_metrics(VLLM_PAGE)
    assert (metrics.running, metrics.waiting, metrics.kv_cache_use) == (5, 4, 0.25)
    assert (metrics.prompt_tokens, metrics.generated_tokens) == (46, 15)
    assert metrics.ttft_s == pytest.approx(0.05)
    assert metrics.tpot_s is None


def test_a_page_of_something_else_has_no_figures(tmp_path):
    for adapter in (LlamaCpp(tmp_path), Vllm()):
        metrics = adapter.parse_metrics("<html>not metrics</html>\n\x00{} x\n")
        assert (metrics.running, metrics.generated_tokens) == (0, None)


def test_lines_that_are_no_figures_are_passed_over():
    assert "vllm:nan" not in totals(VLLM_PAGE)
    assert "broken" not in totals(VLLM_PAGE)
