"""How PyTorch multiplies matrices of fp32, for a while."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """Inside, products are fp32 ("highest") or may be TF32 ("high"), in the whole process.

    What was set with `torch.set_float32_matmul_precision` holds again afterwards. ValueError where
    a program has used PyTorch's newer setting, which does not go together with this one.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError as error:
        raise ValueError(
            "expected the precision of products to be set with "
            "torch.set_float32_matmul_precision, found torch.backends...fp32_precision set to "
            "something else; leave that one out"
        ) from error
    if before == precision:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
