"""Which workload a command line means, and what to say where flags of both are mixed (PURE)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tandemn.errors import InvalidInput

#: Flags that only a job has, by parameter, and what a deployment has in its stead.
JOB_FLAGS: dict[str, str | None] = {
    "slo": None,
    "max_output_tokens": None,
    "tp": "--tp-size",
    "pp": "--tp-size: a replica of a deployment is one machine",
    "replicas": "spot.min_replicas and spot.max_replicas of --scaling-policy",
    "on_demand": "--serverless-only does without spot",
    "chunk_size": None,
    "engine": None,
    "priority": None,
    "advisor": None,
    "persist": "spot.min_replicas of --scaling-policy, or --no-scale-to-zero",
    "skip_invalid": None,
    "stop_at_deadline": None,
    "output": None,
    "wait": "deploy waits for the first answer anyway",
}
#: Flags that only a deployment has, and what a job has in its stead.
ONLINE_FLAGS: dict[str, str | None] = {
    "gpu_count": "--tp and --pp",
    "serverless_provider": "--cloud",
    "spots_cloud": "--cloud",
    "tp_size": "--tp",
    "max_model_len": "a flag of the engine: -- --max-model-len N",
    "concurrency": None,
    "workers_max": "--replicas",
    "cold_start_mode": None,
    "no_scale_to_zero": "--persist",
    "scaling_policy": "--replicas",
    "service_name": None,
    "public": None,
    "gcp_project": None,
    "gcp_region": "--region",
    "serverless_only": None,
    "quantization": "a flag of the engine: -- --quantization Q",
    "spot_ttft_limit": None,
    "router_cloud": None,
    "router_region": None,
    "router_name": None,
    "update": "tandemn add, kill and swap change a running job",
}
_JOB_EXAMPLE = "tandemn deploy MODEL INPUT.jsonl --slo 4h"


def flag(name: str) -> str:
    """Spell a parameter as its flag."""
    return f"--{name.replace('_', '-')}"


def split_names(names: Sequence[str], model: str | None) -> tuple[str | None, str | None]:
    """Tell MODEL and INPUT apart; with `--model`, INPUT stands alone. INPUT is what makes it a job.

    Raises:
        InvalidInput: there are more.
    """
    words = [*([model] if model else []), *names]
    match words:
        case []:
            return None, None
        case [name]:
            return name, None
        case [name, source]:
            return name, source
        case _:
            raise InvalidInput(
                f"unexpected arguments: {' '.join(words[2:])}",
                code="wrong_usage",
                next_step="flags of the engine follow `--`",
            )


def refuse_mixture(given: Collection[str], *, is_job: bool) -> None:
    """Refuse flags of the other workload.

    Args:
        given: parameters of the flags that stand on the command line.
        is_job: whether INPUT was given.

    Raises:
        InvalidInput: the message says what the other workload's flag is here.
    """
    wrong = ONLINE_FLAGS if is_job else JOB_FLAGS
    for name in wrong:
        if name not in given:
            continue
        instead = wrong[name]
        if is_job:
            message = f"{flag(name)} is a flag of deployments, and INPUT makes this a job"
            next_step = (
                f"instead: {instead}" if instead else "leave it out; or leave INPUT out for a deployment"
            )
        else:
            message = f"{flag(name)} is a flag of jobs, but INPUT is missing, which would make this one"
            next_step = f"a job: {_JOB_EXAMPLE}"
            next_step += f"; a deployment has {instead}" if instead else "; a deployment goes without"
        raise InvalidInput(message, code="wrong_usage", next_step=next_step, param=name)
