"""Half-widths of intervals: drawn in bounded memory."""

import tracemalloc

import torch

from semvq.evaluation.intervals import mean_interval


def test_draws_are_made_one_at_a_time():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    try:
        mean_interval(values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * values.numel() * 8, "all 1,000 draws at once are 1,000 times the numbers"
