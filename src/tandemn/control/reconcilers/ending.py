"""A sealed job: assemble its output, leave nothing behind, end."""

from __future__ import annotations
