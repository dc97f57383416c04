"""The process of the engine `llamacpp`: `python -m tandemn.fleet.engines.llamacpp_server --model …`.

It serves until SIGTERM. The key, where there is one, comes in the environment.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import xllamacpp

from tandemn import settings
from tandemn.fleet.engines.demo_model import CONTEXT, ensure_demo_model
from tandemn.fleet.engines.engine import DEMO_MODEL

#: Every kept-alive connection occupies one thread of llama.cpp's HTTP server, busy or not: with fewer
#: threads than connections, requests wait while slots are free.
HTTP_THREADS_PER_SLOT, HTTP_THREADS_LEAST = 4, 64


def main() -> None:
    """Serve as the command line says."""
    arguments = _parser().parse_args()
    # Before any thread exists: the server's threads must inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        _server = xllamacpp.Server(_parameters(arguments))
    except RuntimeError as error:
        sys.exit(f"llama.cpp cannot serve {arguments.model}: {error}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    # Its own way to stop waits for ever where requests are in flight; whoever stops it has drained it.
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--models-folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--ctx", type=int, default=CONTEXT)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--embeddings", action="store_true")
    return parser


def _parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model_alias = [arguments.model]
    parameters.hostnames = [arguments.host]
    parameters.port = arguments.port
    parameters.n_parallel = arguments.slots
    parameters.n_ctx = arguments.slots * arguments.ctx
    parameters.n_threads_http = max(HTTP_THREADS_LEAST, HTTP_THREADS_PER_SLOT * arguments.slots)
    parameters.endpoint_metrics = True
    parameters.ui = False
    parameters.cache_ram_mib = 0  # else up to 8 GiB of former prompts
    # Probing the memory takes longer than loading demo/tiny; a CPU has nothing to fit into.
    parameters.fit_params = False
    threads = arguments.threads
    if arguments.model == DEMO_MODEL:
        parameters.model.path = str(ensure_demo_model(arguments.models_folder))
        # Its steps are too short to share: a second thread costs more than it does.
        threads = threads or 1
        # The fused kernel computes a prompt in another order than single tokens.
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    else:
        parameters.model.path = str(Path(arguments.model).expanduser())
    if threads is not None:
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
    if arguments.embeddings or arguments.model == DEMO_MODEL:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    key = settings.load().engine_api_key
    if key is not None:
        parameters.api_keys = [key.get_secret_value()]
    return parameters


if __name__ == "__main__":
    main()
