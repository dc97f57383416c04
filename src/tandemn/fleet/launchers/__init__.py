"""Launchers: who starts and ends replicas."""
