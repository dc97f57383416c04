"""The fleet process of a deployment on this machine: one for both of its backends."""
