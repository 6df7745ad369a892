"""Which of CUDA's attention kernels give gradients that are finite.

cuDNN's backward pass makes NaN of scores far below zero (a log-sum-exp of a row under -88.7, where
its exponential overflows) at 64 and 192 positions, and not at 16, 128, 256 and 257, measured at a
width of 32 without a mask: `python -m bench.attention_gradients`; EXPERIMENTS.md, 2026-11-27, the
miniature's sixth try. Taken to hold 128 positions on and for other widths, which was not tried.

Which kernels are allowed is a state of the process: not for two threads at once.
"""

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

FINITE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def finite_kernels(length: int) -> AbstractContextManager[None]:
    """Inside, attention over so many positions does not use cuDNN where that can give NaN."""
    return sdpa_kernel(FINITE) if length % 128 == 64 else nullcontext()
