"""Placement: which GPUs, where, how many."""
