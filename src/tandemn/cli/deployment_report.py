"""What a deployment's plan and status say to a person (PURE)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from decimal import Decimal

from tandemn.cli import text
from tandemn.protocol.deployments import (
    BackendPlanView,
    BackendView,
    DeploymentPlan,
    DeploymentStatus,
    DeploymentSummary,
    EndpointKey,
)

SUMMARY_HEADS = ("deployment", "state", "model", "gpu", "backends", "age", "endpoint")
#: Providers that were not taken, and why, that a person is shown; `--json` has all.
SHOWN_LEFT_OUT = 5


def plan_lines(plan: DeploymentPlan) -> list[str]:
    """Say what would be made, and what it costs while it runs."""
    spec = plan.spec
    hardware = "this machine" if spec.gpu == "cpu" else f"{spec.gpu_count} x {spec.gpu}"
    lines = [f"deployment {plan.service_name}: {spec.model} on {hardware}, {spec.max_model_len} tokens"]
    rows = [_plan_row(each) for each in plan.backends]
    router = plan.router
    rows.append(("router", router.host, "", _price(router.price_usd_per_hour), router.price_source or ""))
    lines += text.table(("part", "at", "replicas", "each while it runs", "price of"), rows)
    lines += [
        f"{each.name}: {each.provider}, because {each.reason}"
        for each in plan.backends
        if each.reason is not None and plan.left_out
    ]
    lines += [f"not {reason}" for reason in plan.left_out[:SHOWN_LEFT_OUT]]
    lines += [f"warning: {text.printable(warning)}" for warning in plan.warnings]
    if plan.changed:
        lines.append(f"changes: {', '.join(plan.changed)}")
    return lines


def _plan_row(backend: BackendPlanView) -> tuple[str, ...]:
    most = "any number" if backend.most_replicas is None else str(backend.most_replicas)
    return (
        backend.name,
        f"{backend.provider} as {backend.remote_name}",
        f"{backend.least_replicas} to {most}",
        _price(backend.price_usd_per_hour),
        backend.price_source or "",
    )


def question(plan: DeploymentPlan) -> str:
    """Ask whether money may be spent; the sum is that of everything running at a time."""
    most = Decimal(0)
    for each in plan.backends:
        if each.price_usd_per_hour is None or each.most_replicas is None:
            return "Prices are not all known. Deploy it?"
        most += each.price_usd_per_hour * each.most_replicas
    if plan.router.price_usd_per_hour is None:
        return "Prices are not all known. Deploy it?"
    return f"Up to ${most + plan.router.price_usd_per_hour:.2f} an hour with all replicas. Deploy it?"


def step_lines(before: DeploymentStatus | None, now: DeploymentStatus) -> list[str]:
    """Say what has changed since the last look, a line for each part."""
    known = _steps(before) if before is not None else {}
    return [f"{part}: {line}" for part, line in _steps(now).items() if known.get(part) != line]


def _steps(status: DeploymentStatus) -> dict[str, str]:
    steps = {each.name: _step(each.state, each.reason, each.code, each.provider) for each in status.backends}
    if status.router is not None:
        router = status.router
        where = f" at {router.url}" if router.url else ""
        steps["router"] = _step(router.state, router.reason, router.code, f"{router.host}{where}")
    return steps


def _step(state: str, reason: str | None, code: str | None, where: str) -> str:
    why = f": {text.printable(reason)}" if reason else ""
    return f"{state} ({where}){why}{f' [{code}]' if code else ''}"


def status_lines(status: DeploymentStatus, now: float) -> list[str]:
    """Say everything that `tandemn status --service-name` shows."""
    why = f": {text.printable(status.reason)}" if status.reason else ""
    lines = [
        f"deployment {status.service_name}",
        f"state      {status.state}{why}{f' [{status.code}]' if status.code else ''}",
        f"model      {text.printable(status.spec.model)} on {status.spec.gpu_count} x {status.spec.gpu}",
        f"endpoint   {status.endpoint or 'none yet'}",
        f"age        {text.duration(max(0.0, now - status.created_at))}",
    ]
    heads = ("backend", "state", "at", "ready", "each while it runs", "")
    lines += text.table(heads, [_backend_row(each) for each in status.backends])
    if status.router is not None:
        router = status.router
        pid = f", pid {router.pid}" if router.pid else ""
        lines.append(f"router     {_step(router.state, router.reason, router.code, router.host + pid)}")
    for backend in status.backends:
        lines += [
            f"  {backend.name} {each.replica_id} {each.state}{f', pid {each.pid}' if each.pid else ''}"
            for each in backend.replicas
        ]
    if status.old_key_until is not None and status.old_key_until > now:
        lines.append(
            f"the key before the last rotation is taken for {text.duration(status.old_key_until - now)}"
        )
    lines += [f"warning: {text.printable(warning)}" for warning in status.warnings]
    return lines


def _backend_row(backend: BackendView) -> tuple[str, ...]:
    ready = "not told" if backend.ready_replicas is None else str(backend.ready_replicas)
    return (
        backend.name,
        backend.state,
        f"{backend.provider} as {backend.remote_name}",
        ready,
        _price(backend.price_usd_per_hour),
        backend.reason or "",
    )


def summary_rows(found: Sequence[DeploymentSummary], now: float) -> list[tuple[str, ...]]:
    """Lay out the deployments of `tandemn list`."""
    return [
        (
            each.service_name,
            each.state,
            each.model,
            each.gpu,
            ", ".join(f"{name} {state}" for name, state in each.backends.items()),
            text.duration(max(0.0, now - each.created_at)),
            each.endpoint or "",
        )
        for each in found
    ]


def endpoint_lines(key: EndpointKey, model: str) -> list[str]:
    """Say how the endpoint is called: by curl, and by the openai client."""
    assert key.endpoint is not None, "only an endpoint that answers is shown"
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    curl = ["curl", f"{key.endpoint}/v1/chat/completions", "-H", "Content-Type: application/json"]
    if key.api_key is not None:
        curl += ["-H", f"Authorization: Bearer {key.api_key}"]
    curl += ["-d", json.dumps(body)]
    base_url, shown = json.dumps(f"{key.endpoint}/v1"), json.dumps(key.api_key or "none needed")
    messages = 'messages=[{"role": "user", "content": "Hello"}]'
    return [
        f"endpoint  {key.endpoint}",
        f"key       {key.api_key or 'none: the endpoint is public'}",
        "",
        shlex.join(curl),
        "",
        "from openai import OpenAI",
        f"client = OpenAI(base_url={base_url}, api_key={shown})",
        f"answer = client.chat.completions.create(model={json.dumps(model)}, {messages})",
        "print(answer.choices[0].message.content)",
    ]


def _price(usd_per_hour: Decimal | None) -> str:
    if usd_per_hour is None:
        return "not known"
    return f"${usd_per_hour.normalize():f}/h" if usd_per_hour else "nothing"
