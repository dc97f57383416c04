"""Tandemn: batch jobs and online endpoints for LLMs, on spot and serverless GPUs."""

from importlib.metadata import version

__version__ = version("tandemn")
