"""The seam of every engine: what it is asked for, and the figures that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

#: The model that every machine has; see demo_model.py.
DEMO_MODEL = "demo/tiny"


class EngineName(StrEnum):
    LLAMACPP = "llamacpp"
    VLLM = "vllm"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine process to be started."""

    engine: EngineName
    model: str
    """As the user named it: `demo/tiny`, a hub id, a folder or a GGUF file."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one, which is chosen when the process is started."""
    api_key: str | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Copies of the model side by side, behind one address."""
    max_model_len: int | None = None
    """Context of one request, in tokens; None: the model's own."""
    extra_args: tuple[str, ...] = ()
    """Passed to the engine unread (what follows `--` on the command line)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """One reading of an engine's own figures; None where it does not tell."""

    running: int
    waiting: int
    kv_cache_use: float | None = None
    """0 to 1."""
    prompt_tokens: int | None = None
    """Since the engine began."""
    generated_tokens: int | None = None
    ttft_s: float | None = None
    """Mean since the engine began."""
    tpot_s: float | None = None


class EngineAdapter(Protocol):
    """What a runner needs to know about a kind of engine. Pure: it starts nothing."""

    @property
    def name(self) -> EngineName: ...

    def check(self, spec: EngineSpec) -> None:
        """Raise InvalidInput or MissingDependency where this machine cannot run `spec`, and say why."""
        ...

    def command(self, spec: EngineSpec) -> list[str]:
        """The command line that serves `spec` in the foreground. Secrets are not in it."""
        ...

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """What the process needs beside the caller's environment, secrets included."""
        ...

    def slots(self, spec: EngineSpec) -> int:
        """How many requests it computes at once at most."""
        ...

    def parse_metrics(self, text: str) -> EngineMetrics:
        """Read its `/metrics` page."""
        ...
