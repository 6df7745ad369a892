"""What evaluation costs, as ratios to plain versions in the same run (needs the `test` extra).

    python -m bench.evaluation --width 2048 --rows 512 --images 64

Prints JSON: seconds to add rows to `Moments` against one outer product per image; one Fréchet
distance against SciPy's `sqrtm`, and against itself where images are fewer than features; images
per second of the Inception pass, exact and fast; and what the accumulators keep in memory.
Medians of `--repeats` with their spread; two cores show ratios only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from bench.streaming import memory
from semvq.evaluation.feature_sets import KEPT
from semvq.evaluation.features import load_network
from semvq.evaluation.frechet import Gaussian, Moments, fit, frechet_distance


def main() -> None:
    """See the head of this file."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--width", type=int, default=2048, help="features (%(default)s)")
    p.add_argument("--rows", type=int, default=512, help="images accumulated (%(default)s)")
    p.add_argument("--images", type=int, default=64, help="through Inception (%(default)s)")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--device", default="cpu")
    o = p.parse_args()
    facts = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "accumulate": accumulation(o.rows, o.width, o.repeats),
        "frechet": frechet(o.width, o.repeats),
        "inception": inception(o.images, torch.device(o.device), o.repeats),
        "memory_mb": accumulator_memory(o.width),
    }
    print(json.dumps(facts, indent=1))


def accumulation(rows: int, width: int, repeats: int) -> dict:
    """Rows in pieces of 64 against a loop over single rows; both float64."""
    features = torch.rand(rows, width, generator=torch.Generator().manual_seed(0))

    def ours() -> Gaussian:
        moments = Moments(width)
        for part in features.split(64):
            moments.add(part)
        return moments.gaussian()

    def plain() -> np.ndarray:
        total, outer = np.zeros(width), np.zeros((width, width))
        for row in features.double().numpy():
            total += row
            outer += np.outer(row, row)
        mean = total / rows
        return (outer - rows * np.outer(mean, mean)) / (rows - 1)

    error = float(np.abs(ours().covariance.numpy() - plain()).max())
    return compared(ours, plain, repeats) | {"largest_difference": error}


def frechet(width: int, repeats: int) -> dict:
    """Full rank against `sqrtm`; half as many images as features, with and without a thin root."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2 * width, width, generator=generator) for _ in range(2))
    a, b = fit(x), fit(1.1 * y + 0.1)

    def plain() -> float:
        root = sqrtm(a.covariance.numpy() @ b.covariance.numpy())
        between = float((a.mean - b.mean).square().sum())
        return between + float(a.covariance.trace() + b.covariance.trace() - 2 * root.real.trace())

    thin = fit(x[: width // 2]), fit(y[: width // 2])
    full = tuple(Gaussian(g.mean, g.covariance, g.num) for g in thin)
    exact = compared(lambda: frechet_distance(a, b), plain, repeats)
    few = compared(lambda: frechet_distance(*thin), lambda: frechet_distance(*full), repeats)
    ours, theirs = frechet_distance(a, b), plain()
    return {
        "full_rank_against_sqrtm": exact | {"relative_difference": abs(ours / theirs - 1)},
        "few_images_against_full": few,
    }


def inception(num: int, device: torch.device, repeats: int) -> dict:
    """Images per second, and how far fast features are off."""
    net = load_network("inception", device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 3, 256, 256), generator=generator, dtype=torch.uint8)
    found = compared(lambda: net(images), lambda: net.fast(images), repeats)
    exact, fast = net(images), net.fast(images)
    return {
        "exact_images_per_second": num / found["seconds"],
        "fast_images_per_second": num / found["plain_seconds"],
        "fast_relative_difference": float((fast - exact).norm() / exact.norm()),
    }


def accumulator_memory(width: int) -> dict:
    """Resident MB that a pass over 4,096 rows leaves behind, and what keeping rows would take."""
    before = memory()
    moments = Moments(width)
    for _ in range(64):
        moments.add(torch.rand(64, width))
    return {
        "moments_grown": round(memory() - before, 1),
        "kept_rows": round(KEPT * width * 4 / 1e6, 1),
        "all_rows_of_50k": round(50_000 * width * 4 / 1e6, 1),
    }


def compared(
    ours: Callable[[], Tensor | object], plain: Callable[[], object], repeats: int
) -> dict:
    """Median seconds of both, alternating after a warm-up each, with their spread."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(repeats + 1):
        for name, call in (("ours", ours), ("plain", plain)):
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    fast, slow = (times[name][1:] for name in ("ours", "plain"))
    return {
        "seconds": statistics.median(fast),
        "plain_seconds": statistics.median(slow),
        "times_faster": statistics.median(slow) / statistics.median(fast),
        "spread": [max(t) / min(t) for t in (fast, slow)],
    }


if __name__ == "__main__":
    main()
