"""Whose attention kernels give gradients that are not finite, at which lengths and scores?

`python -m bench.attention_gradients` on a CUDA device: a line for each kernel and length, with the
share of gradients that are not finite where the log-sum-exp of every row is as in the head. Why it
is asked: `tokenizer/regional.py`, and EXPERIMENTS.md, the miniature's fifth and sixth try.
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
LENGTHS = (16, 64, 128, 192, 256, 257)  # of regional attention 16 and 64, of transformers the last
LOG_SUMS = (0.0, -60.0, -85.0, -88.0, -90.0, -100.0, -140.0)  # ln of the largest float is 88.7
WIDTH = 32


def not_finite(kernel: SDPBackend, length: int, log_sum: float) -> float:
    """Share of the gradients of q, k and v of 64 sequences of 4 heads in bf16."""
    torch.manual_seed(0)
    shape = (64, 4, length, WIDTH)
    q, k = (0.1 * torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "qk")
    score = log_sum - math.log(length)  # of every pair, to within the rest's hundredths
    q[..., 0], k[..., 0] = 1.0, score * math.sqrt(WIDTH)
    v = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    parts = [t.requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(kernel):
        mixed = F.scaled_dot_product_attention(*parts)
    found: tuple[Tensor, ...] = torch.autograd.grad(mixed, parts, torch.randn_like(mixed))
    return float(1 - torch.cat([torch.isfinite(g).flatten() for g in found]).float().mean())


def main() -> None:
    """Exit code 1 without a CUDA device."""
    if not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, width {WIDTH}")
    print("kernel length" + "".join(f"{log_sum:>9g}" for log_sum in LOG_SUMS))
    for name, kernel in KERNELS.items():
        for length in LENGTHS:
            shares = [not_finite(kernel, length, log_sum) for log_sum in LOG_SUMS]
            print(f"{name:6} {length:6}" + "".join(f"{share:>9.1%}" for share in shares))


if __name__ == "__main__":
    main()
