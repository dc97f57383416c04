"""The object store: inputs, parts and outputs, in a folder or a bucket."""

from tandemn.objects.store import ObjectStore

__all__ = ["ObjectStore"]
