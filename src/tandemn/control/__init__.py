"""PROCESS: the control plane."""
