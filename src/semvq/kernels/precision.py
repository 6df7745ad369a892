"""How PyTorch multiplies matrices of fp32, for a while."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """Inside, products are fp32 ("highest") or may be TF32 ("high").

    Whatever a program has set with `torch.set_float32_matmul_precision` holds again afterwards.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
