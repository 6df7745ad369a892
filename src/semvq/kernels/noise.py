"""Triton kernel of `generators.noise`: Gumbel noise for every code, in one pass.

The tensor arithmetic of `Stream` is some forty launches, each of which moves eight bytes for every
number of noise; here a number is made in registers and written once, as four bytes.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # codes of one place that a program makes


@triton.jit
def _mix(x):
    """`noise._mix` on uint32, which wraps where that one masks."""
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0x735A2D97
    x ^= x >> 15
    return x


@triton.jit
def _gumbel(first, second, out, num_codes, BLOCK: tl.constexpr):
    """Of place `program_id(0)`: its state absorbs each code's number, and gives a number."""
    place = tl.program_id(0).to(tl.int64)
    code = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(first + place).to(tl.uint32)
    b = tl.load(second + place).to(tl.uint32)
    mixed = _mix(code.to(tl.uint32) ^ a)
    bits = _mix(mixed + b + 0x9E3779B9)
    uniform = (bits.to(tl.float64) + 0.5) * (1.0 / 4294967296.0)
    noise = -tl.log(-tl.log(uniform))
    tl.store(out + place * num_codes + code, noise.to(tl.float32), mask=code < num_codes)


def gumbel(first: Tensor, second: Tensor, num_codes: int) -> Tensor:
    """Standard Gumbel noise float32 (*S, num_codes) of states int64 (*S)."""
    out = torch.empty(*first.shape, num_codes, dtype=torch.float32, device=first.device)
    grid = (first.numel(), triton.cdiv(num_codes, _BLOCK))
    if not out.numel():
        return out
    with torch.cuda.device_of(first):
        _gumbel[grid](first.contiguous(), second.contiguous(), out, num_codes, BLOCK=_BLOCK)
    return out


def check(stream: Any) -> None:
    """ArithmeticError where the kernel's noise is not that of `Stream`."""
    num_codes = _BLOCK + 6
    plain = stream.at(torch.arange(num_codes, device=stream.first.device)).gumbel()
    found = gumbel(stream.first, stream.second, num_codes)
    if not torch.allclose(found, plain, rtol=1e-6, atol=1e-6):
        raise ArithmeticError(f"noise off by {float((found - plain).abs().max()):g}")
