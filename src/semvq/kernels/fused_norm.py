"""The operators behind `tokenizer.norm_silu`: GroupNorm with or without SiLU, fused, for CUDA."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.kernels.layout import memory_format
from semvq.kernels.trial import runs_on


def serve(x: Tensor) -> bool:
    """Whether the kernels take this tensor; they compute in fp32, so float64 is not for them."""
    if not x.is_cuda or x.dtype == torch.float64:
        return False
    # Inside torch.compile nothing can be tried, and its own code for CUDA is Triton's anyway.
    return torch.compiler.is_compiling() or runs_on(x.device, "the tokenizer's norms", _try)


def _try(device: torch.device) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        for silu in (True, False):
            _try_one(device, layout, silu)


def _try_one(device: torch.device, layout: torch.memory_format, silu: bool) -> None:
    """ArithmeticError where a small map's result or gradients are not plain PyTorch's."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(-3, 5, 840, dtype=torch.float32, device=device).reshape(2, 12, 7, 5)
        x = x.contiguous(memory_format=layout).requires_grad_()
        pair = torch.linspace(-1, 2, 24, dtype=torch.float32, device=device).reshape(2, 12)
        weight, bias = (t.clone().requires_grad_() for t in pair)
        y = F.group_norm(x, 3, weight, bias, 1e-6)
        y = F.silu(y) if silu else y
        expected = (y, *torch.autograd.grad(y, (x, weight, bias), x.detach()))
    with torch.no_grad():
        found, mean, rstd = fused_norm(x, weight, bias, 3, 1e-6, torch.float32, silu)
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
