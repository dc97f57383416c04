"""What a `user` of a shared control plane may not ask for, because it would reach into the server itself (PURE).

An admin, and whoever is on the server's own machine, can do these things anyway. A user's request must not make
the server read its own files, run with any argument on its own machine, or read with its own credentials from
buckets that are not the user's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tandemn.errors import Forbidden, InvalidInput
from tandemn.protocol.jobs import Priority
from tandemn.protocol.keys import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A model on a hub: `owner/name`, or a name alone. Everything else may be a path of the server's.
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
#: Engine arguments that name no file, no address and no code.
_HARMLESS = frozenset(
    {
        "--crash-on",
        "--ctx",
        "--decode-step-s",
        "--embeddings",
        "--enforce-eager",
        "--fail-load",
        "--load-s",
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--prefill-tokens-per-s",
        "--refuse",
        "--seed",
        "--slots",
        "--threads",
    }
)
#: An object without anything that a store might read in another way than it is written here.
_PLAIN_URL = re.compile(r"(s3|gs|az)://[a-z0-9][a-z0-9._-]*(/[\w!.*'()=+@,:&$ -]+)+", re.ASCII)


def check_model(model: str, role: Role) -> None:
    """Refuse what an engine would take for an argument, and a user's what might be a file of the server's.

    Raises:
        InvalidInput: `invalid_model`.
        Forbidden: `model_not_allowed`.
    """
    if model.startswith("-"):
        raise InvalidInput(
            f"a model's name does not begin with a dash: {model[:100]!r}", code="invalid_model", param="model"
        )
    if role is not Role.USER:
        return
    if not _HUB_ID.fullmatch(model) or ".." in model or model.lower().endswith(".gguf"):
        raise Forbidden(
            f"{model[:100]!r} is no model on a hub, and a user may not name files of the control plane's machine",
            code="model_not_allowed",
            next_step="name a model as owner/name, or ask an administrator to submit it",
            param="model",
        )


def check_priority(priority: Priority, role: Role) -> None:
    """Raise Forbidden where a user asks for more than an equal share (code `priority_not_allowed`)."""
    if role is Role.USER and priority is Priority.HIGH:
        raise Forbidden(
            "a user may not give a job high priority: it would take from everyone else",
            code="priority_not_allowed",
            next_step="leave --priority out, or ask an administrator to submit the job",
            param="priority",
        )


def check_engine_args(arguments: Sequence[str], role: Role, *, runs_here: bool) -> None:
    """Raise Forbidden where an engine on the server's own machine is given an argument that may do anything there
    (code `engine_argument_not_allowed`).
    """
    if role is not Role.USER or not runs_here:
        return
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("-") and name not in _HARMLESS:
            raise Forbidden(
                f"a user may not give {name[:60]!r} to an engine on the control plane's own machine",
                code="engine_argument_not_allowed",
                next_step=f"these may be given: {', '.join(sorted(_HARMLESS))}",
                param="engine_args",
            )


def check_input_url(url: str, role: Role, *, allowed: Sequence[str], store_url: str) -> None:
    """Raise Forbidden where the server's credentials would read what may be another's (`input_url_not_allowed`).

    Args:
        url: the input.
        role: of who asks.
        allowed: prefixes that users may read.
        store_url: where the server keeps everyone's files: none of them is read by its URL.
    """
    if role is not Role.USER:
        return
    parts = url.split("/")
    is_plain = _PLAIN_URL.fullmatch(url) is not None and not {".", ".."} & set(parts)
    if is_plain and not _is_below(url, store_url) and any(_is_below(url, each) for each in allowed):
        return
    raise Forbidden(
        "the control plane may not read this URL for users: it would do so with its own credentials",
        code="input_url_not_allowed",
        next_step="upload the file, or ask an administrator to add its place to TANDEMN_INPUT_URLS",
        param="input_url",
    )


def _is_below(url: str, prefix: str) -> bool:
    return url.startswith(prefix.rstrip("/") + "/")
