"""Replicas: what state they are in, what should be done about it, who launches them, what they run."""
