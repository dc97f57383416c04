"""Spot traces that the tests make themselves: zones that come and go, with long and short stretches."""

import json

import numpy as np

TICK_S = 195


def availability(seed, ticks, up_h, down_h):
    rng = np.random.default_rng(seed)
    values: list[int] = []
    is_up = bool(rng.random() < up_h / (up_h + down_h))
    while len(values) < ticks:
        mean = (up_h if is_up else down_h) * 3600 / TICK_S
        # Heavy-tailed, as recorded stretches are: most are short, a few make up most of the time.
        length = max(1, int(rng.lognormal(np.log(mean) - 0.72, 1.2)))
        values += [int(is_up)] * length
        is_up = not is_up
    return values[:ticks]


def write_traces(folder, zones=((0.7, 3.5), (1.5, 1.7), (6.0, 0.8)), ticks=3000):
    folder.mkdir(exist_ok=True)
    for seed, (up_h, down_h) in enumerate(zones):
        trace = {"metadata": {"gap_seconds": TICK_S}, "data": availability(seed, ticks, up_h, down_h)}
        (folder / f"zone-{seed}.json").write_text(json.dumps(trace))
    return folder
