"""PROCESS: the runner, on a replica."""
