"""Triton kernels of one AR sampling step: five or seven launches per block, where PyTorch has 16.

At a position a block's dense layers read all their weights for few rows, so a step is bound by
memory and by launches. Norms, biases, GELU and residuals are computed where a result is read or
written anyway (attention is in `attending`). Where the card can, a kernel starts while the one
before it ends, and has its weights on their way by then.

A step of 24 blocks of width 768 at position 127 in bfloat16 on one H200, microseconds, by
`python -m bench.kernels`; the second row and the last are the same code for 16 and 64 rows, so that
their difference is the noise. For more rows the library takes PyTorch's dense layers.

  rows                                                       1      16     64     256    512
  PyTorch's dense layers, with `attend` and `add_norm`       696    844    965    1,546  2,331
  `linear` for all rows                                      503    588    803
  the library's choice without early starts                  461    688    833
  the library's choice                                       360    558    782

Asking for weights before the kernel before has ended: five tiles of 64 rows took 2 to 12 % less
with it (827 to 787 us with the one below), in a trial whose script was not kept.
"""

# mypy: allow-untyped-defs

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

Norm = tuple[Tensor, Tensor, float]  # weight, bias and eps of a LayerNorm

_LINE: tl.constexpr = tl.constexpr(64)  # numbers of half precision in a line of the cache
_FETCH = True  # weights are asked for while the kernel before is still at work
_WEIGHTS = 4096  # of a dense layer that a program of `few_rows` holds, 32 for each of its threads
_EARLY = hasattr(tl.extra.cuda, "gdc_wait")  # whether Triton knows of early starts


@functools.cache
def launch(device: torch.device) -> dict[str, Any]:
    """How kernels are launched here: with early starts on cards that know them (Hopper on)."""
    early = _EARLY and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@triton.jit
def wait(EARLY: tl.constexpr):
    """Until all before has ended; the next kernel may start now, and will wait in its turn."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _fetch(places):
    """Into the cache; nothing waits for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [places.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _normal(row, inside, gain, shift, width, eps):
    """LayerNorm of a row that is held whole; zero outside `inside`."""
    away = tl.where(inside, row - tl.sum(row, 0) / width, 0.0)
    return away / tl.sqrt(tl.sum(away * away, 0) / width + eps) * gain + shift


@triton.jit
def _few_rows(
    x, gain, shift, weight, bias, residual, out, N, K, eps,
    NORM: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr,
    PADDED: tl.constexpr, BLOCK_N: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (ROWS, N) = act(norm(x) @ weight.T + bias) + residual, for BLOCK_N of the columns."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, PADDED)
    in_k, in_n = lane < K, columns < N
    place = columns[:, None] * K + lane[None, :]
    w = tl.load(weight + place, mask=in_n[:, None] & in_k[None, :], other=0)
    b = tl.load(bias + columns, mask=in_n, other=0).to(tl.float32)
    if NORM:
        g = tl.load(gain + lane, mask=in_k, other=0).to(tl.float32)
        s = tl.load(shift + lane, mask=in_k, other=0).to(tl.float32)
    wait(EARLY)
    for row in tl.static_range(ROWS):
        v = tl.load(x + row * K + lane, mask=in_k, other=0).to(tl.float32)
        if NORM:
            v = _normal(v, in_k, g, s, K, eps)
        total = tl.sum(w.to(tl.float32) * v[None, :], 1) + b
        if GELU:
            total = _gelu(total)
        if ADD:
            total += tl.load(residual + row * N + columns, mask=in_n, other=0).to(tl.float32)
        tl.store(out + row * N + columns, total.to(out.dtype.element_ty), mask=in_n)


def few_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: Norm | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """act(norm(x) @ weight.T + bias) + residual: x (M, K), weight (N, K), result (M, N).

    For two rows or so: every program computes all of their norms. Rounded once, when written.
    """
    (num, width), wide = x.shape, len(weight)
    out = x.new_empty(num, wide)
    gain, shift, eps = norm or (x, x, 0.0)
    padded = triton.next_power_of_2(width)
    columns = max(1, _WEIGHTS // padded)
    with torch.cuda.device_of(x):
        _few_rows[(triton.cdiv(wide, columns),)](
            x, gain, shift, weight, bias, x if residual is None else residual, out, wide, width,
            eps, NORM=norm is not None, GELU=gelu, ADD=residual is not None, ROWS=num,
            PADDED=padded, BLOCK_N=columns, num_warps=4, **launch(x.device),
        )  # fmt: skip
    return out


@triton.jit
def _linear(
    x, weight, bias, out, M, N, K: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    LINES: tl.constexpr, FETCH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[split] (M, N): act(x @ weight.T + bias), or the part of it over some of K."""
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    lane = split * (STEPS * BLOCK_K) + tl.arange(0, BLOCK_K)
    in_m, in_n = rows < M, columns < N
    if EARLY and FETCH:
        line = tl.minimum(split * (STEPS * BLOCK_K) + tl.arange(0, LINES) * _LINE, K - 1)
        _fetch(weight + tl.minimum(columns, N - 1)[:, None] * K + line[None, :])
    x += rows[:, None] * K + lane[None, :]
    weight += columns[None, :] * K + lane[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    wait(EARLY)
    for i in range(STEPS):
        in_k = lane + i * BLOCK_K < K
        if EVEN:  # nothing to hide, and whole vectors are read
            a = tl.load(x + i * BLOCK_K, mask=in_m[:, None], other=0)
            b = tl.load(weight + i * BLOCK_K, mask=in_n[None, :], other=0)
        else:
            a = tl.load(x + i * BLOCK_K, mask=in_m[:, None] & in_k[None, :], other=0)
            b = tl.load(weight + i * BLOCK_K, mask=in_n[None, :] & in_k[:, None], other=0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if split == 0:
        total += tl.load(bias + columns, mask=in_n, other=0).to(tl.float32)[None, :]
    if GELU:
        total = _gelu(total)
    place = (split * M + rows[:, None]) * N + columns[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False, splits: int = 1
) -> Tensor:
    """act(x @ weight.T + bias): x (M, K), weight (N, K), result (splits, M, N).

    With several splits, that many programs share the sum over K, and what they found is still to
    be added up (`add_norm` does); in fp32 then, and without GELU.
    """
    assert splits == 1 or not gelu
    (num, width), wide, tile = x.shape, len(weight), tile_of(len(x))
    steps = triton.cdiv(width, splits * tile.depth)
    out = x.new_empty(splits, num, wide, dtype=torch.float32 if splits > 1 else x.dtype)
    grid = triton.cdiv(wide, tile.columns), triton.cdiv(num, tile.rows), splits
    lines = triton.next_power_of_2(triton.cdiv(steps * tile.depth, 64))
    with torch.cuda.device_of(x):
        _linear[grid](
            x, weight, bias, out, num, wide, width, STEPS=steps,
            EVEN=width == steps * splits * tile.depth, GELU=gelu, BLOCK_M=tile.rows,
            BLOCK_N=tile.columns, BLOCK_K=tile.depth, LINES=lines, FETCH=_FETCH,
            num_warps=tile.warps, num_stages=tile.stages, **launch(x.device),
        )  # fmt: skip
    return out


class Tile(NamedTuple):
    """What a program of `_linear` makes, and `depth` of the sum at a time."""

    rows: int
    columns: int
    depth: int = 64
    warps: int = 4
    stages: int = 6


def tile_of(num: int) -> Tile:
    """For `num` rows; measured by `python -m bench.kernels tiles`."""
    return Tile(16 if num <= 16 else 64, 32)


@triton.jit
def _add_norm(
    x, parts, gain, shift, added, normed, M, N, eps,
    KEEP: tl.constexpr, SPLITS: tl.constexpr, PADDED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A row's sum with its parts, written if it is to be kept, and the LayerNorm of that."""
    lane = tl.arange(0, PADDED)
    inside = lane < N
    g = tl.load(gain + lane, mask=inside, other=0).to(tl.float32)
    s = tl.load(shift + lane, mask=inside, other=0).to(tl.float32)
    wait(EARLY)
    place = tl.program_id(0).to(tl.int64) * N + lane
    total = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * M * N + place, mask=inside, other=0).to(tl.float32)
    rounded = total.to(added.dtype.element_ty)
    if KEEP:
        tl.store(added + place, rounded, mask=inside)
    found = _normal(rounded.to(tl.float32), inside, g, s, N, eps)
    tl.store(normed + place, found.to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, parts: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """x + parts.sum(0), and the LayerNorm of that: x (M, N), parts (splits, M, N)."""
    added, normed = torch.empty_like(x), torch.empty_like(x)
    _launch_add_norm(x, parts, norm, added, normed, keep=True)
    return added, normed


def norm_of_sum(x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """LayerNorm of x + y, all (M, N)."""
    normed = torch.empty_like(x)
    _launch_add_norm(x, y[None], norm, normed, normed, keep=False)
    return normed


def _launch_add_norm(
    x: Tensor, parts: Tensor, norm: Norm, added: Tensor, normed: Tensor, keep: bool
) -> None:
    (num, wide), (gain, shift, eps) = x.shape, norm
    with torch.cuda.device_of(x):
        _add_norm[(num,)](
            x, parts, gain, shift, added, normed, num, wide, eps, KEEP=keep, SPLITS=len(parts),
            PADDED=triton.next_power_of_2(wide), num_warps=4, **launch(x.device),
        )  # fmt: skip
