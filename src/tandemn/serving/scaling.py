"""Make a scaling policy of defaults, a YAML file and flags, in that order of precedence. Pure.

Whatever is wrong in the file is an error that names the key and its line.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from tandemn.errors import InvalidInput
from tandemn.protocol.deployments import MIN_ABOVE_MAX, ScalingPolicy, ServerlessScaling, SpotScaling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

#: A policy has eight keys; what is longer than this is some other file.
LONGEST_POLICY_BYTES = 64 << 10
#: `serverless.scaledown_window` under `--no-scale-to-zero`, in seconds.
WARM_WINDOW_S = 300

Path = tuple[str, ...]

_SECTIONS: dict[str, type[BaseModel]] = {"spot": SpotScaling, "serverless": ServerlessScaling}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """What a file says, and where it says it."""

    name: str = "scaling policy"
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)

    def at(self, path: Path, message: str) -> InvalidInput:
        """Make the error for what stands at `path`."""
        line = self.lines.get(path)
        where = f"{self.name}, line {line}" if line is not None else self.name
        key = ".".join(path)
        text = f"{where}: {key}: {message}" if key else f"{where}: {message}"
        return InvalidInput(text, code="invalid_scaling_policy", param=key or None)


def read_policy(content: bytes, name: str = "scaling policy") -> PolicyFile:
    """Read a policy file; an empty one says nothing.

    Raises:
        InvalidInput: `invalid_scaling_policy`: not YAML, an unknown key, a wrong type, an impossible value.
    """
    file = PolicyFile(name=name)
    if len(content) > LONGEST_POLICY_BYTES:
        raise file.at((), f"is longer than {LONGEST_POLICY_BYTES >> 10} KiB: it is not a scaling policy")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        root = loader.get_single_node()
        for section, section_node in _pairs(file, (), root):
            for key, node in _pairs(file, (section,), section_node):
                file.values.setdefault(section, {})[key] = loader.construct_object(node, deep=True)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        file.lines[()] = mark.line + 1 if mark else 1
        raise file.at((), exc.problem or "is not YAML") from exc
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        # ValueError: a date or a number that YAML's grammar allows and Python's does not.
        raise file.at((), f"cannot be read as YAML: {exc}") from exc
    layered(file)
    return file


def layered(
    file: PolicyFile | None = None,
    *,
    over: ScalingPolicy | None = None,
    concurrency: int | None = None,
    no_scale_to_zero: bool = False,
) -> ScalingPolicy:
    """Lay the file over the defaults, or over the policy that holds now, and the flags over both.

    Raises:
        InvalidInput: `invalid_scaling_policy`, naming key and line, or the flag.
    """
    file = file or PolicyFile()
    try:
        policy = ScalingPolicy.model_validate(_over(file.values, over), strict=True)
    except ValidationError as exc:
        raise _explained(file, exc.errors(include_url=False)[0]) from exc
    spot, serverless = policy.spot, policy.serverless
    if concurrency is not None:
        serverless = serverless.model_copy(update={"concurrency": concurrency})
    if no_scale_to_zero:
        spot = spot.model_copy(update={"min_replicas": max(1, spot.min_replicas)})
        serverless = serverless.model_copy(update={"scaledown_window": WARM_WINDOW_S})
    return ScalingPolicy(spot=spot, serverless=_checked(serverless))


def _over(values: dict[str, dict[str, Any]], before: ScalingPolicy | None) -> dict[str, dict[str, Any]]:
    if before is None:
        return values
    return {section: kept | values.get(section, {}) for section, kept in before.model_dump().items()}


def _checked(serverless: ServerlessScaling) -> ServerlessScaling:
    try:
        return ServerlessScaling.model_validate(serverless.model_dump())
    except ValidationError as exc:
        message = exc.errors(include_url=False)[0]["msg"]
        raise InvalidInput(f"--concurrency: {message}", code="wrong_usage", param="concurrency") from exc


def _pairs(file: PolicyFile, path: Path, node: Any) -> Iterator[tuple[str, Any]]:
    """Walk a mapping and note each key's line; nothing at all is an empty one."""
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        file.lines.setdefault(path, node.start_mark.line + 1)
        raise file.at(path, "must be a mapping of keys to values")
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        below = (*path, key)
        is_repeated = below in file.lines
        file.lines[below] = key_node.start_mark.line + 1
        if is_repeated:
            raise file.at(below, "is given twice")
        known = list(_SECTIONS[path[0]].model_fields) if path else list(_SECTIONS)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise file.at(below, f"unknown key; {hint}")
        yield key, value


def _explained(file: PolicyFile, error: ErrorDetails) -> InvalidInput:
    path = tuple(str(part) for part in error["loc"])[:2]
    if error["type"] == MIN_ABOVE_MAX:
        path = ("spot", "min_replicas" if ("spot", "min_replicas") in file.lines else "max_replicas")
    return file.at(path, error["msg"])
