"""The time that the simulated engine takes, and the figures that it counts.

As engines with continuous batching do: up to `slots` requests run at once and the others wait in order;
prompts are read one after the other; then every running request gets a token per decode step.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tandemn.fleet.engines.simulated import Simulation

_HOLD_LOOK_S = 0.05


@dataclass(slots=True)
class Counts:
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    ttft_sum_s: float = 0.0
    ttft_count: int = 0
    itl_sum_s: float = 0.0
    itl_count: int = 0

    def page(self, model: str, slots: int) -> str:
        """Return the metrics page, with vLLM's names."""
        label = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        figures = {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": self.running / slots,
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generated_tokens,
            "time_to_first_token_seconds_sum": self.ttft_sum_s,
            "time_to_first_token_seconds_count": self.ttft_count,
            "inter_token_latency_seconds_sum": self.itl_sum_s,
            "inter_token_latency_seconds_count": self.itl_count,
        }
        return "# simulated\n" + "".join(
            f'vllm:{name}{{engine="0",model_name="{label}"}} {value}\n' for name, value in figures.items()
        )


@dataclass(slots=True)
class Clockwork:
    """Makes requests wait as long as the simulated engine would compute."""

    simulation: Simulation
    counts: Counts = field(default_factory=Counts)
    _slots: asyncio.Semaphore = field(init=False)
    _prefill_free_at: float = 0.0

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.simulation.slots)

    @contextlib.asynccontextmanager
    async def slot(self, prompt_tokens: int) -> AsyncIterator[None]:
        """Hold a slot; on entry the prompt has been read and the first token is due."""
        arrived = time.monotonic()
        self.counts.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.counts.waiting -= 1
        self.counts.running += 1
        try:
            await self._prefill(prompt_tokens)
            self.counts.prompt_tokens += prompt_tokens
            self.counts.ttft_sum_s += time.monotonic() - arrived
            self.counts.ttft_count += 1
            yield
        finally:
            self.counts.running -= 1
            self._slots.release()

    async def _prefill(self, prompt_tokens: int) -> None:
        if self.simulation.prefill_tokens_per_s:
            now = time.monotonic()
            self._prefill_free_at = max(now, self._prefill_free_at)
            self._prefill_free_at += prompt_tokens / self.simulation.prefill_tokens_per_s
            await asyncio.sleep(self._prefill_free_at - now)

    async def decode(self, tokens: int) -> None:
        """Take the time of `tokens` steps."""
        while self._is_held():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(_HOLD_LOOK_S)
        self.counts.generated_tokens += tokens
        self.counts.itl_count += tokens
        if self.simulation.decode_step_s:
            self.counts.itl_sum_s += tokens * self.simulation.decode_step_s
            await asyncio.sleep(tokens * self.simulation.decode_step_s)

    def _is_held(self) -> bool:
        return self.simulation.hold is not None and Path(self.simulation.hold).exists()
