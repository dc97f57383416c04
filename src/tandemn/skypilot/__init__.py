"""SkyPilot, in a Python environment of its own: the worker inside it, and the seam that calls it."""
