"""Make a deployment's spec of the flags of `tandemn deploy --model`. Pure: no provider is asked anything."""

from __future__ import annotations

import difflib
import hashlib
import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tandemn.errors import InvalidInput
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.protocol.deployments import DeploymentSpec
from tandemn.serving.scaling import PolicyFile, layered
from tandemn.skypilot.clouds import CLOUDS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Longest name that is made of a model's and a GPU's; longer ones are cut and told apart by a hash.
LONGEST_AUTO_NAME = 40
#: What `--gpu` calls this machine's processor.
CPU = "cpu"
LOCAL = "local"
#: What `--gpu` calls the cheapest one that the model fits.
AUTO = "auto"


def spec_from_flags(
    flags: Mapping[str, Any],
    *,
    policy: PolicyFile | None = None,
    concurrency: int | None = None,
    no_scale_to_zero: bool = False,
    cloud: str | None = None,
) -> DeploymentSpec:
    """Check the flags against each other and fill in what they leave out.

    Args:
        flags: by field of `DeploymentSpec`; None is a flag that was not given.
        policy: the file of `--scaling-policy`.
        concurrency: `--concurrency`, above what the file says.
        no_scale_to_zero: `--no-scale-to-zero`.
        cloud: `--cloud`; `local` puts both backends on this machine.

    Raises:
        InvalidInput: a flag has a value that it cannot take, or two contradict each other.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    _require(given)
    given = _placed(given, cloud)
    _agree(given)
    given.setdefault("service_name", auto_name(given["model"], given["gpu"]))
    scaling = layered(policy, concurrency=concurrency, no_scale_to_zero=no_scale_to_zero)
    try:
        return DeploymentSpec(**given, scaling=scaling)
    except ValidationError as exc:
        raise _explained(exc) from exc


def updated_spec(
    current: DeploymentSpec,
    flags: Mapping[str, Any],
    *,
    policy: PolicyFile | None = None,
    concurrency: int | None = None,
    no_scale_to_zero: bool = False,
    cloud: str | None = None,
) -> DeploymentSpec:
    """Change what the flags name of a deployment's spec; the rest stays as it is.

    Args:
        current: what the deployment is now.
        flags: as for `spec_from_flags`.
        policy: the file of `--scaling-policy`: its keys are changed, the others stay.
        concurrency: `--concurrency`.
        no_scale_to_zero: `--no-scale-to-zero`.
        cloud: `--cloud`: where spot runs.

    Raises:
        InvalidInput: a flag has a value that it cannot take, or two contradict each other.
    """
    given = {name: value for name, value in {"spots_cloud": cloud, **flags}.items() if value is not None}
    scaling = layered(
        policy, over=current.scaling, concurrency=concurrency, no_scale_to_zero=no_scale_to_zero
    )
    fields = {name: getattr(current, name) for name in DeploymentSpec.model_fields} | given
    fields["gpu"] = _gpu(str(fields["gpu"]))
    _agree({name: value for name, value in fields.items() if value is not None})
    try:
        return DeploymentSpec(**{**fields, "scaling": scaling})
    except ValidationError as exc:
        raise _explained(exc) from exc


def auto_name(model: str, gpu: str) -> str:
    """Name a deployment after its model and GPU: the same flags again mean the same deployment."""
    whole = f"{model.rstrip('/').rpartition('/')[2]}-{gpu}".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", whole).strip("-")
    if not slug[:1].isalpha():
        slug = f"m-{slug}".rstrip("-")
    if len(slug) <= LONGEST_AUTO_NAME:
        return slug
    digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return f"{slug[: LONGEST_AUTO_NAME - 7].rstrip('-')}-{digest}"


def _require(given: Mapping[str, Any]) -> None:
    for name in ("model", "gpu"):
        if not str(given.get(name, "")).strip():
            raise InvalidInput(
                f"--{name} is missing",
                code="wrong_usage",
                next_step="tandemn deploy --model MODEL --gpu L4; a job has INPUT: "
                "tandemn deploy MODEL INPUT.jsonl --slo 4h",
                param=name,
            )


def _placed(given: dict[str, Any], cloud: str | None) -> dict[str, Any]:
    """Put everything on this machine where `--cloud local` or `--gpu cpu` says so."""
    given = {**given, "gpu": _gpu(str(given["gpu"]))}
    is_cpu = given["gpu"] == CPU
    if cloud != LOCAL and not is_cpu:
        return given if cloud is None else {"spots_cloud": cloud, **given}
    if not is_cpu:
        _refuse(
            "gpu", f"--gpu {given['gpu']} is not on this machine", "--cloud local runs on the cpu: --gpu cpu"
        )
    if cloud not in (None, LOCAL):
        _refuse("gpu", f"--gpu cpu is this machine's, not {cloud}'s", "name a GPU, or --cloud local")
    for name in ("serverless_provider", "spots_cloud"):
        if given.get(name, LOCAL) != LOCAL:
            _refuse(name, f"{_flag(name)} {given[name]} has no cpu replicas", "name a GPU, or leave it out")
    return {**given, "gpu": CPU, "serverless_provider": LOCAL, "spots_cloud": LOCAL}


def _gpu(name: str) -> str:
    """Two of the names are words, not GPUs."""
    return name.lower() if name.lower() in {CPU, AUTO} else name


def _agree(given: Mapping[str, Any]) -> None:
    gpu = str(given["gpu"])
    if gpu not in {CPU, AUTO}:
        gpu_named(gpu)
    provider = given.get("serverless_provider")
    tp, count = given.get("tp_size", 1), given.get("gpu_count", 1)
    if tp > count:
        _refuse("tp_size", f"--tp-size {tp} is above --gpu-count {count}", f"--gpu-count {tp} gives it room")
    if given.get("workers_max") is not None and provider != "runpod":
        _refuse("workers_max", "--workers-max is RunPod's alone", "add --serverless-provider runpod")
    for name in ("gcp_project", "gcp_region"):
        if name in given and provider not in (None, "cloudrun"):
            _refuse(
                name,
                f"{_flag(name)} is Cloud Run's alone, not {provider}'s",
                "--serverless-provider cloudrun",
            )
    _agree_on_router(given)


def _agree_on_router(given: Mapping[str, Any]) -> None:
    cloud = given.get("router_cloud", LOCAL)
    if cloud not in {LOCAL, *CLOUDS}:
        near = difflib.get_close_matches(str(cloud), CLOUDS, n=1)
        next_step = f"did you mean {near[0]}?" if near else f"known are {LOCAL}, {', '.join(CLOUDS)}"
        _refuse("router_cloud", f"--router-cloud: SkyPilot knows of no cloud {cloud}", next_step)
    if cloud == LOCAL:
        for name in ("router_region", "router_name"):
            if given.get(name) is not None:
                _refuse(name, f"{_flag(name)} is of a router in a cloud", "add --router-cloud aws")
    elif LOCAL in {given.get("serverless_provider"), given.get("spots_cloud")}:
        _refuse(
            "router_cloud",
            f"a router on {cloud} cannot reach backends on this machine",
            "leave --router-cloud out, or the backends of this machine",
        )


def _refuse(param: str, message: str, next_step: str) -> None:
    raise InvalidInput(message, code="wrong_usage", next_step=next_step, param=param)


def _explained(exc: ValidationError) -> InvalidInput:
    first = exc.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if name == "service_name":
        return InvalidInput(
            "--service-name takes lower-case letters, digits and hyphens, begins with a letter, does not end "
            "with a hyphen and has at most 40 characters",
            code="wrong_usage",
            param=name,
        )
    return InvalidInput(f"{_flag(name)}: {first['msg']}", code="wrong_usage", param=name)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
