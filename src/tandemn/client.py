"""Typed HTTP client of the control plane, used by the command line and the runner."""
