"""Faults that a fake of a provider commits at a remote call, and the record of the calls that it got."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    BROKEN = "broken"
    SILENT = "silent"
    """No answer, and nothing done."""
    LOST = "lost"
    """Done, and no answer."""
    CREDENTIALS = "credentials"
    PERMISSION = "permission"
    QUOTA = "quota"
    CAPACITY = "capacity"
    CONFLICT = "conflict"
    NOT_FOUND = "not_found"
    REFUSED = "refused"


@dataclass
class Faults:
    """Armed for one call by its name, for the n-th by its place in the record, or for all."""

    calls: list[str] = field(default_factory=list)
    fault: Fault | None = None
    call: str | None = None
    place: int | None = None
    struck: int = 0

    def arm(self, fault: Fault, *, call: str | None = None, place: int | None = None) -> None:
        self.fault, self.call, self.place, self.struck = fault, call, place, 0
        self.calls.clear()

    def disarm(self) -> None:
        self.fault = None
        self.calls.clear()

    async def meet(self, call: str) -> Fault | None:
        """Note the call; return the fault that it suffers. A silent one does not return at all."""
        fault = self.strike(call)
        if fault is Fault.SILENT:
            await forever()
        return fault

    def strike(self, call: str) -> Fault | None:
        """Note the call; return the fault that it suffers."""
        self.calls.append(call)
        here = self.fault is not None
        if self.call is not None:
            here = here and call == self.call
        if self.place is not None:
            here = here and len(self.calls) - 1 >= self.place and call == self.calls[self.place]
        if not here:
            return None
        self.struck += 1
        return self.fault


async def forever() -> None:
    """Wait until whoever called has hung up."""
    await asyncio.Event().wait()
