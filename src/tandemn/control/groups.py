"""A job's groups of replicas, as its record keeps them: one configuration each, how many, and what to fall back to. Pure.

A group is `{"config", "wanted"}`; one that was planned also has `fallbacks`, the plan's next choices in order, each
`{"config", "wanted"}` for the whole group; once it fell back, `since` when, and `tried`, what could not be had.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tandemn.protocol.jobs import ReplicaConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.placement.plan import Option, Part, Plan

#: Choices that a group keeps behind its first: after so many that could not be had, another day is the better plan.
MAX_FALLBACKS = 8


def planned_groups(plan: Plan, *, region: str | None) -> list[dict[str, Any]]:
    """Make the groups that do what a plan says."""
    return [_planned(part, plan, region) for part in plan.best.parts]


def fallen_back(group: Mapping[str, Any], *, alive: int, now: float, reason: str) -> dict[str, Any]:
    """Return the group with its next fallback for what is missing of it."""
    first, *rest = group["fallbacks"]
    missing = max(group["wanted"] - alive, 1)
    share = missing / max(group["wanted"], 1)
    return {
        **group,
        "config": first["config"],
        "wanted": alive + math.ceil(first["wanted"] * share),
        "fallbacks": rest,
        "since": now,
        "tried": [*group.get("tried", []), f"{describe(group['config'])}: {reason}"],
    }


def describe(config: Mapping[str, Any]) -> str:
    """Name a configuration as people do: `L4 TP1 spot`."""
    pp = f" PP{config['pp']}" if config["pp"] > 1 else ""
    dp = f" x{config['dp']}" if config.get("dp", 1) > 1 else ""
    return f"{config['gpu']} TP{config['tp']}{pp}{dp} {config['market']}"


def _planned(part: Part, plan: Plan, region: str | None) -> dict[str, Any]:
    """A part of the best option, with the places of every option of the same kind, and the other kinds as fallbacks."""
    share = part.requests / max(plan.workload.requests, 1)
    choices: dict[tuple[Any, ...], dict[str, Any]] = {}
    for option in (None, *plan.fallbacks):
        each = part if option is None else _only_part(option)
        if each is None:
            continue
        found = choices.setdefault(_kind(each), {"part": each, "regions": [], "is_first": option is None})
        if each.candidate.offer.region not in found["regions"]:
            found["regions"].append(each.candidate.offer.region)
    first, *others = [_choice(each, share, region) for each in choices.values()]
    return {**first, "fallbacks": others[:MAX_FALLBACKS]}


def _choice(found: Mapping[str, Any], share: float, region: str | None) -> dict[str, Any]:
    part: Part = found["part"]
    wanted = part.units if found["is_first"] else math.ceil(part.units * share)
    config = config_of(part, region=region, regions=found["regions"])
    return {"config": config.model_dump(mode="json"), "wanted": wanted}


def config_of(part: Part, *, region: str | None, regions: Sequence[str]) -> ReplicaConfig:
    """The configuration of one unit: a machine of several replicas' GPUs runs them as one, side by side."""
    candidate = part.candidate
    return ReplicaConfig(
        gpu=candidate.offer.gpu,
        tp=candidate.tp,
        pp=candidate.pp,
        dp=candidate.replicas,
        nodes=candidate.instances,
        market=candidate.offer.market,
        region=region,
        regions=tuple(each for each in regions if each),
    )


def _kind(part: Part) -> tuple[Any, ...]:
    candidate = part.candidate
    return (
        candidate.offer.gpu,
        candidate.tp,
        candidate.pp,
        candidate.replicas,
        candidate.instances,
        candidate.offer.market,
    )


def _only_part(option: Option) -> Part | None:
    return option.parts[0] if len(option.parts) == 1 else None
