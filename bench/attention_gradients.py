"""Whose attention kernels give gradients that are not finite, at which lengths and scores?

`python -m bench.attention_gradients` on a CUDA device: a line for each kernel and length, with the
share of gradients that are not finite where the log-sum-exp of every row is as in the head, to
within half. "-" where a kernel does not take it. What follows: `kernels/finite_attention.py`.
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# of the decoder's blocks (width 32) and of transformers (64), which hide later positions in AR
SHAPES = [(32, False, n) for n in (16, 64, 128, 192, 256, 257, 1024)]
SHAPES += [(64, causal, n) for causal in (False, True) for n in (64, 65, 256, 257)]
LOG_SUMS = (0.0, -60.0, -85.0, -88.0, -90.0, -100.0, -140.0)  # ln of the largest float is 88.7


def not_finite(kernel: SDPBackend, width: int, causal: bool, length: int, log_sum: float) -> float:
    """Share of the gradients of q, k and v of 64 sequences of 4 heads in bf16.

    RuntimeError where the kernel does not take it.
    """
    torch.manual_seed(0)
    shape = (64, 4, length, width)
    q, k = (0.1 * torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "qk")
    score = log_sum - math.log(length)  # of every pair; of a causal mask's first rows, too much
    q[..., 0], k[..., 0] = 1.0, score * math.sqrt(width)
    v = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    parts = [t.requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(kernel):
        mixed = F.scaled_dot_product_attention(*parts, is_causal=causal)
    found: tuple[Tensor, ...] = torch.autograd.grad(mixed, parts, torch.randn_like(mixed))
    return float(1 - torch.cat([torch.isfinite(g).flatten() for g in found]).float().mean())


def text(kernel: SDPBackend, width: int, causal: bool, length: int, log_sum: float) -> str:
    """The share, as it is printed."""
    try:
        return f"{not_finite(kernel, width, causal, length, log_sum):.1%}"
    except RuntimeError:
        return "-"


def main() -> None:
    """Exit code 1 without a CUDA device."""
    if not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16")
    print("kernel    width mask   length" + "".join(f"{log_sum:>9g}" for log_sum in LOG_SUMS))
    for name, kernel in KERNELS.items():
        for width, causal, length in SHAPES:
            shares = [text(kernel, width, causal, length, log_sum) for log_sum in LOG_SUMS]
            mask = "causal" if causal else "none"
            print(f"{name:9} {width:5} {mask:6} {length:6}" + "".join(f"{s:>9}" for s in shares))


if __name__ == "__main__":
    main()
