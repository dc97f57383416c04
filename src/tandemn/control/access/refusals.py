"""Who shows wrong keys again and again waits: each wrong one costs a look into the database."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tandemn.control.access.rates import BUCKETS_KEPT, Buckets, Rate
from tandemn.control.tokens import token_hash
from tandemn.errors import NotAllowed, TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

    from tandemn.clock import Clock

#: Wrong keys that one address may show.
WRONG_KEYS = Rate(per_s=1.0, burst=50.0)


class Refusals:
    """Counts them by address. A key that was good before is looked at all the same: its holder is no suspect."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong = Buckets(WRONG_KEYS)
        self._good: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def counted(self, scope: Scope, key: str) -> Iterator[None]:
        """Let one look at a key happen, and remember how it ended.

        Raises:
            TooManyRequests: its address showed too many wrong ones (code `too_many_wrong_keys`).
        """
        address = scope["client"][0] if scope.get("client") else ""
        known = token_hash(key)
        if known not in self._good:
            wait_s = self._wrong.wait(address, self._clock.now())
            if wait_s > 0:
                raise TooManyRequests(
                    "too many wrong keys came from your address",
                    code="too_many_wrong_keys",
                    retry_after_s=wait_s,
                )
        try:
            yield
        except NotAllowed as refusal:
            if refusal.http_status == 401:
                self._good.pop(known, None)
                self._wrong.take(address, self._clock.now())
            raise
        self._good[known] = None
        self._good.move_to_end(known)
        if len(self._good) > BUCKETS_KEPT:
            self._good.popitem(last=False)
