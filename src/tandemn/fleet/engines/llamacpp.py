"""The engine `llamacpp`: llama.cpp's server out of the `xllamacpp` wheel, for GGUF models on a CPU.

Extra arguments: `--slots N` (requests at once, 16), `--ctx N` (tokens of context of one request),
`--threads N` (1 for demo/tiny, else one per core), `--embeddings` (serve `/v1/embeddings`, mean-pooled, beside
the others; demo/tiny always does).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput, MissingDependency
from tandemn.fleet.engines.arguments import StrictParser, positive
from tandemn.fleet.engines.engine import DEMO_MODEL, EngineMetrics, EngineName, EngineSpec
from tandemn.fleet.engines.exposition import mean, totals, whole
from tandemn.settings import python_executable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

#: Requests that are computed at once where no argument says otherwise.
DEFAULT_SLOTS = 16
#: Of which environment variable the server takes its key: command lines can be read by everyone.
API_KEY_VARIABLE = "TANDEMN_ENGINE_API_KEY"


class LlamaCpp:
    """Adapter of llama.cpp's server.

    Args:
        models_folder: where demo/tiny is written to on first use.
    """

    name = EngineName.LLAMACPP

    def __init__(self, models_folder: Path) -> None:
        self._models_folder = models_folder

    def check(self, spec: EngineSpec) -> None:
        """Raise where the model is not there, an argument is wrong, or the wheel is missing."""
        _arguments(spec.extra_args)
        if spec.model != DEMO_MODEL:
            _check_file(spec.model)
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingDependency(
                "the engine llamacpp needs the package xllamacpp",
                next_step="run `pip install xllamacpp` (Linux on x86-64, macOS)",
            )

    def command(self, spec: EngineSpec) -> list[str]:
        arguments = _arguments(spec.extra_args)
        command = [python_executable(), "-m", "tandemn.fleet.engines.llamacpp_server"]
        command += ["--model", spec.model, "--models-folder", str(self._models_folder)]
        command += ["--host", spec.host, "--port", str(spec.port), "--slots", str(arguments.slots)]
        context = arguments.ctx or spec.max_model_len
        if context is not None:
            command += ["--ctx", str(context)]
        if arguments.threads is not None:
            command += ["--threads", str(arguments.threads)]
        if arguments.embeddings:
            command += ["--embeddings"]
        return command

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return {API_KEY_VARIABLE: spec.api_key} if spec.api_key else {}

    def slots(self, spec: EngineSpec) -> int:
        slots: int = _arguments(spec.extra_args).slots
        return slots

    def parse_metrics(self, text: str) -> EngineMetrics:
        """Read the page; it tells nothing about the cache and the time to the first token."""
        values = totals(text)
        return EngineMetrics(
            running=whole(values, "llamacpp:requests_processing") or 0,
            waiting=whole(values, "llamacpp:requests_deferred") or 0,
            prompt_tokens=whole(values, "llamacpp:prompt_tokens_total"),
            generated_tokens=whole(values, "llamacpp:tokens_predicted_total"),
            tpot_s=mean(values, "llamacpp:tokens_predicted_seconds_total", "llamacpp:tokens_predicted_total"),
        )


def _arguments(extra_args: Sequence[str]) -> argparse.Namespace:
    parser = StrictParser("llamacpp")
    parser.add_argument("--slots", type=positive, default=DEFAULT_SLOTS)
    parser.add_argument("--ctx", type=positive)
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--embeddings", action="store_true")
    return parser.parse_args(list(extra_args))


def _check_file(model: str) -> None:
    path = Path(model).expanduser()
    if path.suffix != ".gguf":
        raise InvalidInput(
            f"the engine llamacpp has no model {model}: it is neither {DEMO_MODEL} nor a .gguf file",
            code="model_not_found",
            next_step=f"name {DEMO_MODEL} or the path of a GGUF file, or take the engine vllm",
            param="model",
        )
    if not path.is_file():
        raise InvalidInput(
            f"there is no model file {path.absolute()}",
            code="model_not_found",
            next_step=f"name a GGUF file that exists, or {DEMO_MODEL}",
            param="model",
        )
