"""Flags of deployments that several commands share; unset means the default that the help says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tandemn.errors import InvalidInput
from tandemn.protocol.deployments import DeploymentSpec
from tandemn.serving.scaling import LONGEST_POLICY_BYTES, PolicyFile, read_policy
from tandemn.serving.spec import spec_from_flags, updated_spec

GpuCount = Annotated[int | None, typer.Option("--gpu-count", help="GPUs of one replica [1].")]
ServerlessProvider = Annotated[
    str | None,
    typer.Option(
        "--serverless-provider", help="modal, runpod, cloudrun or local [the cheapest for the GPU]."
    ),
]
SpotsCloud = Annotated[str | None, typer.Option("--spots-cloud", help="Where spot replicas run [aws].")]
TpSize = Annotated[int | None, typer.Option("--tp-size", help="GPUs a replica splits each layer over [1].")]
MaxModelLen = Annotated[
    int | None, typer.Option("--max-model-len", help="Context of one request, in tokens [4096].")
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", help="Requests in flight that one replica is meant to carry [32]."),
]
WorkersMax = Annotated[int | None, typer.Option("--workers-max", help="Most workers; RunPod only [3].")]
ColdStartMode = Annotated[
    Literal["fast_boot", "no_fast_boot"] | None,
    typer.Option(
        "--cold-start-mode",
        help="fast_boot starts sooner and computes slower (vLLM's eager mode) [fast_boot].",
    ),
]
NoScaleToZero = Annotated[
    bool,
    typer.Option(
        "--no-scale-to-zero", help="Keep a spot replica, and serverless ones for five idle minutes."
    ),
]
Policy = Annotated[
    Path | None,
    typer.Option("--scaling-policy", help="Scaling policy, YAML (docs/deployments.md).", metavar="FILE"),
]
ServiceName = Annotated[
    str | None,
    typer.Option("--service-name", help="Name of the deployment [made of model and GPU].", metavar="S"),
]
Public = Annotated[bool, typer.Option("--public", help="The endpoint asks for no key.")]
GcpProject = Annotated[
    str | None, typer.Option("--gcp-project", help="Cloud Run's project [the credentials' own].")
]
GcpRegion = Annotated[str | None, typer.Option("--gcp-region", help="Cloud Run's region [us-central1].")]
ServerlessOnly = Annotated[bool, typer.Option("--serverless-only", help="No spot replicas.")]
Quantization = Annotated[
    str | None, typer.Option("--quantization", help="vLLM's --quantization: awq, gptq, fp8 …")
]
SpotTtftLimit = Annotated[
    float | None,
    typer.Option(
        "--spot-ttft-limit",
        help="Seconds to the first token beyond which spot's requests go serverless [3 times serverless's, at least 2].",
    ),
]
RouterCloud = Annotated[
    str | None,
    typer.Option(
        "--router-cloud", help="Run the router on a small machine of its own in this cloud [local]."
    ),
]
RouterRegion = Annotated[
    str | None, typer.Option("--router-region", help="Region of that machine [--region, or the cheapest].")
]
RouterName = Annotated[
    str | None,
    typer.Option("--router-name", help="DNS name by which clients reach the router; you point it there."),
]

#: Parameters that are fields of the spec; the policy's four come beside them.
FIELDS = frozenset(DeploymentSpec.model_fields) - {"scaling", "engine_args", "budget_usd"}


def spec_of(
    flags: Mapping[str, Any], engine_args: list[str], *, current: DeploymentSpec | None = None
) -> DeploymentSpec:
    """Make the spec that flags mean; with `current`, what they change of it.

    Args:
        flags: parameters of the command, None or False where a flag was not given.
        engine_args: what stands after `--`.
        current: the spec of the deployment that `--update` changes.

    Raises:
        InvalidInput: a flag or a line of the policy is wrong; the message names it.
    """
    # Not `in (None, False)`: 0 is equal to False, and no value that a flag may leave out.
    fields = {
        name: flags[name] for name in FIELDS if flags.get(name) is not None and flags[name] is not False
    }
    if flags.get("budget") is not None:
        fields["budget_usd"] = flags["budget"]
    if engine_args:
        fields["engine_args"] = tuple(engine_args)
    policy = _policy(flags["scaling_policy"]) if flags.get("scaling_policy") is not None else None
    made = spec_from_flags if current is None else partial(updated_spec, current)
    return made(
        fields,
        policy=policy,
        concurrency=flags.get("concurrency"),
        no_scale_to_zero=bool(flags.get("no_scale_to_zero")),
        cloud=flags.get("cloud"),
    )


def _policy(path: Path) -> PolicyFile:
    try:
        with path.open("rb") as file:
            # One byte more than a policy may have shows that it is longer.
            content = file.read(LONGEST_POLICY_BYTES + 1)
    except OSError as exc:
        raise InvalidInput(
            f"the scaling policy {path} cannot be read: {exc.strerror}",
            code="policy_unreadable",
            param="scaling_policy",
        ) from exc
    return read_policy(content, str(path))
