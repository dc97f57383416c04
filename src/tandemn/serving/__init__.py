"""Deployments: what is asked for, how it scales, and who serves it."""
