"""Benchmarks: speed is asserted here, as ratios within one run."""
