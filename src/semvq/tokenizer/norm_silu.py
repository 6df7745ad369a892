"""The tokenizer's norms: GroupNorm with SiLU before every convolution, alone before attention.

On CUDA they run the Triton kernels in `kernels`, which read and write a fraction of what plain
layers move one after the other; elsewhere they are the plain torch expression.
"""

import functools
import math
import warnings
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.kernels.layout import memory_format

EPS = 1e-6


def norm_groups(channels: int) -> int:
    """Groups of a norm over this many channels: 32, fewer where a group would have under 4.

    At the paper's widths (128 and more) that is 32. Narrower groups would come close to instance
    normalisation, which wipes out mean colour in the small recipes.
    """
    return math.gcd(channels, min(32, max(1, channels // 4)))


class Norm(nn.GroupNorm):
    """group_norm(x), grouped as all the tokenizer's norms are.

    (B, C, H, W) to the same shape and memory format. The output has autocast's dtype under
    autocast, which is the dtype the next product reads, and the input's otherwise.
    """

    silu: ClassVar[bool] = False  # whether SiLU follows, in the same kernel

    def __init__(self, channels: int) -> None:
        super().__init__(norm_groups(channels), channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        dtype = _output_dtype(x)
        if kernels_serve(x):
            parameters = self.weight, self.bias, self.num_groups, self.eps
            return fused_norm(x, *parameters, dtype, self.silu)[0]
        y = super().forward(x)
        return (F.silu(y) if self.silu else y).to(dtype)


class NormSiLU(Norm):
    """silu(group_norm(x)), with the parameters of the GroupNorm that it is; else as `Norm`."""

    silu = True


def _output_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    # Tensors without data ("meta") have no autocast, and asking for its state there fails. (So does
    # asking whether a device has one, inside torch.compile.)
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def kernels_serve(x: Tensor) -> bool:
    """Whether the kernels take this tensor; they compute in fp32, so float64 is not for them."""
    if not x.is_cuda or x.dtype == torch.float64:
        return False
    # Inside torch.compile nothing can be tried, and its own code for CUDA is Triton's anyway.
    return torch.compiler.is_compiling() or _kernels_run(x.device)


@functools.cache
def _kernels_run(device: torch.device) -> bool:
    # Triton may be missing, find no C compiler, not know the card, or compute something else on
    # one nobody has tried: only a trial tells.
    try:
        for layout in (torch.contiguous_format, torch.channels_last):
            for silu in (True, False):
                _try(device, layout, silu)
    except Exception as error:
        warnings.warn(
            f"expected Triton to run on {device}, for the tokenizer's fused GroupNorm and SiLU; "
            f"found {type(error).__name__}: {error}; plain PyTorch does the same more slowly; "
            "install triton>=3.2 and a C compiler for the fused one",
            stacklevel=2,
        )
        return False
    return True


def _try(device: torch.device, layout: torch.memory_format, silu: bool) -> None:
    """ArithmeticError where a small map's result or gradients are not plain PyTorch's."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(-3, 5, 840, dtype=torch.float32, device=device).reshape(2, 12, 7, 5)
        x = x.contiguous(memory_format=layout).requires_grad_()
        pair = torch.linspace(-1, 2, 24, dtype=torch.float32, device=device).reshape(2, 12)
        weight, bias = (t.clone().requires_grad_() for t in pair)
        y = F.group_norm(x, 3, weight, bias, EPS)
        y = F.silu(y) if silu else y
        expected = (y, *torch.autograd.grad(y, (x, weight, bias), x.detach()))
    with torch.no_grad():
        found, mean, rstd = fused_norm(x, weight, bias, 3, EPS, torch.float32, silu)
        gradients = fused_norm_backward(x, x, weight, bias, mean, rstd, silu)
        for a, b in zip((found, *gradients), expected, strict=True):
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-3):
                raise ArithmeticError(f"results off by {float((a - b).abs().max()):g}")


# Operators, not plain calls of the kernels: torch.compile and autograd look no further than these
# signatures, and Triton is imported when the first of them runs.


@torch.library.custom_op("semvq::fused_norm", mutates_args=())
def fused_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """group_norm(x) in `dtype`, after SiLU if `silu`; mean and 1 / std (B, groups) in fp32.

    `x` is (B, C, H, W), `weight` and `bias` are (C,). Only the first result has gradients, and
    these have none themselves.
    """
    from semvq.kernels import norm_silu as kernels

    return kernels.forward(_dense(x), weight, bias, groups, eps, dtype, silu)


@fused_norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    return torch.empty_like(_dense(x), dtype=dtype), mean, torch.empty_like(mean)


@torch.library.custom_op("semvq::fused_norm_backward", mutates_args=())
def fused_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from that of `fused_norm`'s first result."""
    from semvq.kernels import norm_silu as kernels

    x = _dense(x)
    grad = grad.contiguous(memory_format=memory_format(x))
    return kernels.backward(grad, x, weight, bias, mean, rstd, silu)


@fused_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(_dense(x)), torch.empty_like(weight), torch.empty_like(bias)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=memory_format(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *_, ctx.silu = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    # All that is kept: the normalised values and the SiLU's input are computed again.
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *fused_norm_backward(grad, *ctx.saved_tensors, ctx.silu), None, None, None, None


fused_norm.register_autograd(_backward, setup_context=_setup_context)
