"""Sizes of models for plans: what this machine knows, and what the hub says of the others; remembered for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput, NotFound, Retryable
from tandemn.placement.model_config import TEXT_LIMITS
from tandemn.placement.models import is_on_hub, shape_of

if TYPE_CHECKING:
    from tandemn.clock import Clock
    from tandemn.hub.client import Hub
    from tandemn.placement.model_shape import ModelShape

#: How long the hub is believed, in seconds: of a model that it has, and of one that it does not have or cannot tell.
KNOWN_S, UNKNOWN_S = 3600.0, 30.0
#: Models that are remembered, at most.
REMEMBERED = 1000


class ModelShapes:
    """Finds shapes, as `placement.models.shape_of` does, and on the hub."""

    def __init__(self, hub: Hub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._said: dict[str, tuple[float, ModelShape | InvalidInput | Retryable]] = {}
        """What the hub said of a model, and until when that is believed."""

    async def of(self, model: str, *, may_be_file: bool) -> ModelShape:
        """Find the shape of `model`.

        Raises:
            NotFound: nobody knows it (`unknown_model`); the message says why the hub does not, either.
            InvalidInput: its config cannot be read.
            Retryable: the hub does not answer (`hub_unavailable`).
        """
        if not await asyncio.to_thread(is_on_hub, model, may_be_file=may_be_file):
            return await asyncio.to_thread(shape_of, model, may_be_file=may_be_file)
        said = await self._asked(model)
        if isinstance(said, (NotFound, Retryable)):
            try:
                # A quantised copy of a model that the table has, by its name.
                return shape_of(model, may_be_file=False)
            except NotFound as unknown:
                raise _told(said, unknown) from None
        if isinstance(said, InvalidInput):
            raise said.with_traceback(None)
        return said

    async def _asked(self, model: str) -> ModelShape | InvalidInput | Retryable:
        until, said = self._said.get(model, (0.0, None))
        if said is not None and self._clock.now() < until:
            return said
        try:
            texts = await self._hub.texts(model, TEXT_LIMITS)
            said = await asyncio.to_thread(shape_of, model, texts=texts, may_be_file=False)
        except (InvalidInput, Retryable) as exc:
            said = exc
        believed_s = UNKNOWN_S if isinstance(said, (InvalidInput, Retryable)) else KNOWN_S
        self._said.pop(model, None)
        self._said[model] = (self._clock.now() + believed_s, said)
        while len(self._said) > REMEMBERED:
            del self._said[next(iter(self._said))]
        return said


def _told(said: NotFound | Retryable, unknown: NotFound) -> NotFound | Retryable:
    """What the hub said; where it has no such model, with the near names of the table."""
    hint = unknown.next_step or ""
    if isinstance(said, Retryable) or not hint.startswith("did you mean"):
        return said.with_traceback(None)
    return NotFound(said.message, code=said.code, next_step=f"{hint} or {said.next_step}", param="model")
