"""What the router's suites share."""

from __future__ import annotations

from hypothesis import settings

# A busy machine takes its time: nothing here asserts how long anything takes.
settings.register_profile("router", deadline=None)
settings.load_profile("router")
