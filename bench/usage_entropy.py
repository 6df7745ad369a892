"""Which sign and which scale make the usage entropy of Sec. 3.4 work (decisions D1 and D2)?

Trains a small tokenizer (32 px, f = 4, K = 512) a few hundred steps with each variant of the term
and prints the share of codes in use on held-out images, their perplexity and the PSNR. About ten
seconds per variant and seed on one core: `python bench/usage_entropy.py [--data PATH] [--seeds 3]`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.data.folders import ImageSet, split
from semvq.data.images import DataConfig, eval_batches
from semvq.data.pixels import to_float
from semvq.photos import fruit
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.model import Tokenizer
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.tokenizer.usage import UsageCounter

NUM_CODES = 512

PAPER: dict[str, Any] = {
    "entropy_distance": "l2",
    "entropy_scale": "none",
    "entropy_temperature": 1.0,
}
SQUARED = PAPER | {"entropy_distance": "l2_squared"}

VARIANTS: dict[str, dict[str, Any]] = {
    "no term": {"entropy_weight": 0.0},
    "as printed: +0.01 H, l2, T 1": {"entropy_weight": -0.01, **PAPER},
    "printed sign, data scale": {"entropy_weight": -0.01},
    "-0.01 H, l2, T 1": {"entropy_weight": 0.01, **PAPER},
    "-0.1 H, l2, T 1": {"entropy_weight": 0.1, **PAPER},
    "-0.01 H, squared, T 1": {"entropy_weight": 0.01, **SQUARED},
    "-0.01 H, squared, data 1": {"entropy_weight": 0.01, "entropy_temperature": 1.0},
    "-0.01 H, squared, data 0.1": {"entropy_weight": 0.01, "entropy_temperature": 0.1},
    "-0.01 H, squared, data 0.03 (default)": {},
    "-0.01 H, squared, data 0.01": {"entropy_weight": 0.01, "entropy_temperature": 0.01},
    "-0.01 H, l2, data 0.03": {"entropy_weight": 0.01, "entropy_distance": "l2"},
    "-0.03 H, squared, data 0.03": {"entropy_weight": 0.03},
    "-0.1 H, squared, data 0.03": {"entropy_weight": 0.1},
}


def measure(settings: dict[str, Any], train: Tensor, val: Tensor, steps: int, seed: int) -> dict:
    """Train one variant; usage, perplexity and PSNR in dB on `val` (N, 3, 32, 32)."""
    torch.manual_seed(seed)
    quantizer = VectorQuantizerConfig(num_codes=NUM_CODES, code_dim=32, **settings)
    tokenizer = ConvTokenizerConfig(
        resolution=32,
        channels=16,
        multipliers=(1, 2, 2),
        blocks_per_level=1,
        middle_blocks=1,
        quantizer=quantizer,
    ).build()
    with torch.no_grad():
        tokenizer.quantizer.initialize(tokenizer.latents(train[torch.randperm(len(train))[:64]]))
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-3, betas=(0.9, 0.99))
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 30))
    for _ in range(steps):
        images = train[torch.randint(len(train), (16,))]
        reconstruction, quantized = tokenizer(images)
        loss = F.l1_loss(reconstruction, images) + tokenizer.quantizer.total(quantized.losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
    return evaluate(tokenizer, val)


@torch.no_grad()
def evaluate(tokenizer: Tokenizer, val: Tensor) -> dict[str, float]:
    """Usage, perplexity and mean PSNR over held-out images."""
    counter = UsageCounter(tokenizer.num_codes)
    errors = []
    for images in val.split(64):
        reconstruction, quantized = tokenizer(images)
        counter.update(quantized.codes)
        errors.append(F.mse_loss(reconstruction.clamp(-1, 1), images, reduction="none"))
    psnr = -10 * (torch.cat(errors).mean((1, 2, 3)) / 4).log10().mean().item()
    return {"usage": counter.usage(), "perplexity": counter.perplexity(), "psnr": psnr}


def load(image_set: ImageSet) -> Tensor:
    """All images at 32 px, (N, 3, 32, 32) in [-1, 1]."""
    batches = eval_batches(image_set, DataConfig(resolution=32), 256)
    return torch.cat([to_float(batch["image"]) for batch in batches])


def main() -> None:
    """Print the table; with --json, write every run's figures too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="images; the packaged photos if left out")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    if args.data is None:
        sets = [ImageSet.open(path) for path in fruit()]
    else:
        sets = list(split(ImageSet.open(args.data), 0.1))
    train, val = (load(image_set) for image_set in sets)
    print(f"{len(train)} images, {len(val)} held out, {args.steps} steps, {args.seeds} seed(s)")
    print(f"{'variant':40} {'usage':>7} {'perplexity':>11} {'PSNR':>6}")
    figures = {}
    for name, settings in VARIANTS.items():
        runs = [measure(settings, train, val, args.steps, seed) for seed in range(args.seeds)]
        figures[name] = runs
        usage, perplexity, psnr = (statistics.mean(r[k] for r in runs) for k in runs[0])
        print(f"{name:40} {usage:7.1%} {perplexity:11.0f} {psnr:6.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
