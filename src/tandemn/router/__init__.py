"""PROCESS: the router, in front of one deployment."""
