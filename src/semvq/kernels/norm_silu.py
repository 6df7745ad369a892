"""Triton kernels of `fused_norm`: GroupNorm and, where asked for, SiLU in one, both directions.

Each direction reads its inputs twice: once for sums over each group, once for the result. The
programs of the first pass leave partial sums per channel, which a small kernel merges in a fixed
order: no atomics, the same bits on every run and for every batch size.

Bytes per element of a bf16 map under autocast, with SiLU (counted, not measured):
  forward    here  6: x twice, y once
             eager 32: x to fp32 (6), norm reads twice and writes (12), SiLU (8), y to bf16 (6)
  backward   here 10: x and dy twice, dx once
             eager 44: dy to fp32 (6), SiLU reads two and writes (12), norm reads dy and x for its
             sums and again for dx (20), dx to bf16 (6)
  kept       here  2: x
             eager 8: x and the SiLU's input, both in fp32
Partial sums add 3 % and less on maps of 128 positions and more.
"""

# mypy: allow-untyped-defs
# (Triton reads the annotations of a kernel's arguments; only tl.constexpr may stand there.)

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements of a map that a program holds at once, 16 for each of its threads
_TILES = 8  # tiles that a program goes through, at most
_MERGE = 1024  # partial sums that a merging program holds at once


@triton.jit
def _place(
    C, S, chunks, stride_c, stride_s,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What this program works on: its image, chunk, channels (BLOCK_C,), positions (BLOCK_S,).

    Then the place of its first element, and the offsets (BLOCK_S, BLOCK_C) of a tile from there.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)
    first_channel = (pid % blocks) * BLOCK_C
    chunk = (pid // blocks) % chunks
    first = chunk * (BLOCK_S * TILES)
    image = (pid // (blocks * chunks)).to(tl.int64)
    # 64 bits here: a batch may have over 2**31 elements. Offsets inside a chunk stay below that.
    start = image * C * S + first_channel.to(tl.int64) * stride_c + first.to(tl.int64) * stride_s
    lane, row = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    offsets = row[:, None] * stride_s + lane[None, :] * stride_c
    return image, chunk, first_channel + lane, first + row, start, offsets


@triton.jit
def _of_channels(mean, rstd, weight, bias, image, c, C, groups):
    """Mean, 1 / std, weight and bias (1, BLOCK_C) for the channels c of one image."""
    group = image * groups + c // (C // groups)
    m = tl.load(mean + group, mask=c < C, other=0)
    r = tl.load(rstd + group, mask=c < C, other=0)
    w = tl.load(weight + c, mask=c < C, other=0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0).to(tl.float32)
    return m[None, :], r[None, :], w[None, :], b[None, :]


@triton.jit
def _normal_and_dz(x, grad, mask, m, r, w, b, SILU: tl.constexpr):
    """A tile's normalised values, and the gradient of the norm's output, zero outside `mask`."""
    normal = (tl.load(x, mask=mask, other=0).to(tl.float32) - m) * r
    dz = tl.load(grad, mask=mask, other=0).to(tl.float32)
    if SILU:
        z = normal * w + b
        s = tl.sigmoid(z)
        dz *= s * (1 + z * (1 - s))
    return normal, dz


@triton.jit
def _partial_moments(
    x, partial, C, S, groups, chunks, stride_c, stride_s,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each channel over a chunk: (B, chunks, 2, C)."""
    image, chunk, c, rows, start, offsets = _place(
        C, S, chunks, stride_c, stride_s, BLOCK_C, BLOCK_S, TILES
    )
    count = tl.zeros([BLOCK_S], tl.float32)
    mean = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    spread = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    # Welford's update at each place of the tile, without exchange between threads. Sums of
    # squares would lose all digits where a mean is far larger than the deviations.
    for i in range(TILES):
        inside = rows + i * BLOCK_S < S
        mask = inside[:, None] & (c < C)[None, :]
        here = offsets + i * BLOCK_S * stride_s
        value = tl.load(x + start + here, mask=mask, other=0).to(tl.float32)
        step = value - mean
        mean += tl.where(mask, step * (1.0 / (i + 1)), 0.0)
        spread += tl.where(mask, step * (value - mean), 0.0)
        count += inside.to(tl.float32)
    count = count[:, None]
    centre = tl.sum(mean * count, 0) / tl.sum(count)
    away = mean - centre[None, :]
    spread = tl.sum(spread + count * away * away, 0)
    out = partial + (image * chunks + chunk) * 2 * C + c
    tl.store(out, centre, mask=c < C)
    tl.store(out + C, spread, mask=c < C)


@triton.jit
def _merge_moments(
    partial, mean, rstd, C, S, groups, eps, chunks: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / std of one group of one image from its channels' moments per chunk."""
    image = (tl.program_id(0) // groups).to(tl.int64)
    size = C // groups
    lane = tl.arange(0, BLOCK_G)[None, :]
    part = partial + image * chunks * 2 * C + (tl.program_id(0) % groups) * size + lane
    total = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    for first in range(0, chunks, BLOCK_R):
        chunk = first + tl.arange(0, BLOCK_R)[:, None]
        count = tl.minimum(S - chunk * CHUNK, CHUNK).to(tl.float32)
        mask = (chunk < chunks) & (lane < size)
        total += tl.load(part + chunk * 2 * C, mask=mask, other=0) * count
    elements = size * 1.0 * S
    centre = tl.sum(tl.sum(total, 1), 0) / elements
    total = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    for first in range(0, chunks, BLOCK_R):
        chunk = first + tl.arange(0, BLOCK_R)[:, None]
        count = tl.minimum(S - chunk * CHUNK, CHUNK).to(tl.float32)
        mask = (chunk < chunks) & (lane < size)
        away = tl.load(part + chunk * 2 * C, mask=mask, other=0) - centre
        spread = tl.load(part + chunk * 2 * C + C, mask=mask, other=0)
        total += tl.where(mask, spread + count * away * away, 0.0)
    variance = tl.sum(tl.sum(total, 1), 0) / elements
    tl.store(mean + tl.program_id(0), centre)
    tl.store(rstd + tl.program_id(0), 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _apply(
    x, y, mean, rstd, weight, bias, C, S, groups, chunks, stride_c, stride_s,
    SILU: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """y = silu(z), or z where there is no SiLU: z = (x - mean) * rstd * weight + bias."""
    image, chunk, c, rows, start, offsets = _place(
        C, S, chunks, stride_c, stride_s, BLOCK_C, BLOCK_S, TILES
    )
    m, r, w, b = _of_channels(mean, rstd, weight, bias, image, c, C, groups)
    for i in range(TILES):
        mask = (rows + i * BLOCK_S < S)[:, None] & (c < C)[None, :]
        here = offsets + i * BLOCK_S * stride_s
        value = tl.load(x + start + here, mask=mask, other=0).to(tl.float32)
        z = (value - m) * r * w + b
        if SILU:
            z *= tl.sigmoid(z)
        tl.store(y + start + here, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _partial_sums(
    x, grad, partial, mean, rstd, weight, bias, C, S, groups, chunks, stride_c, stride_s,
    SILU: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Each channel's sums over a chunk of dz and dz * normal: (B, chunks, 2, C).

    z = normal * weight + bias is the norm's output, normal = (x - mean) * rstd.
    """
    image, chunk, c, rows, start, offsets = _place(
        C, S, chunks, stride_c, stride_s, BLOCK_C, BLOCK_S, TILES
    )
    m, r, w, b = _of_channels(mean, rstd, weight, bias, image, c, C, groups)
    plain = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    scaled = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for i in range(TILES):
        mask = (rows + i * BLOCK_S < S)[:, None] & (c < C)[None, :]
        here = offsets + i * BLOCK_S * stride_s
        # Outside the map dz is zero, so nothing is added there.
        normal, dz = _normal_and_dz(x + start + here, grad + start + here, mask, m, r, w, b, SILU)
        plain += dz
        scaled += dz * normal
    out = partial + (image * chunks + chunk) * 2 * C + c
    tl.store(out, tl.sum(plain, 0), mask=c < C)
    tl.store(out + C, tl.sum(scaled, 0), mask=c < C)


@triton.jit
def _merge_sums(
    partial, sums, offset, slope, weight, C, S, groups, chunks: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Sums over the chunks, per image and channel (B, 2, C), and per group the means over it.

    `offset` is the mean of dz * weight, `slope` that of dz * weight * normal.
    """
    image = (tl.program_id(0) // groups).to(tl.int64)
    size = C // groups
    lane = tl.arange(0, BLOCK_G)
    c = (tl.program_id(0) % groups) * size + lane
    plain = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    scaled = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    for first in range(0, chunks, BLOCK_R):
        chunk = first + tl.arange(0, BLOCK_R)
        mask = (chunk < chunks)[:, None] & (lane < size)[None, :]
        part = partial + (image * chunks + chunk[:, None]) * 2 * C + c[None, :]
        plain += tl.load(part, mask=mask, other=0)
        scaled += tl.load(part + C, mask=mask, other=0)
    total = tl.sum(plain, 0)
    total_scaled = tl.sum(scaled, 0)
    tl.store(sums + image * 2 * C + c, total, mask=lane < size)
    tl.store(sums + image * 2 * C + C + c, total_scaled, mask=lane < size)
    w = tl.load(weight + c, mask=lane < size, other=0).to(tl.float32) / (size * 1.0 * S)
    tl.store(offset + tl.program_id(0), tl.sum(total * w, 0))
    tl.store(slope + tl.program_id(0), tl.sum(total_scaled * w, 0))


@triton.jit
def _apply_backward(
    x, grad, dx, mean, rstd, offset, slope, weight, bias, C, S, groups, chunks, stride_c, stride_s,
    SILU: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (dz * weight - offset - normal * slope)."""
    image, chunk, c, rows, start, offsets = _place(
        C, S, chunks, stride_c, stride_s, BLOCK_C, BLOCK_S, TILES
    )
    m, r, w, b = _of_channels(mean, rstd, weight, bias, image, c, C, groups)
    o, k, _, _ = _of_channels(offset, slope, weight, bias, image, c, C, groups)
    for i in range(TILES):
        mask = (rows + i * BLOCK_S < S)[:, None] & (c < C)[None, :]
        here = offsets + i * BLOCK_S * stride_s
        normal, dz = _normal_and_dz(x + start + here, grad + start + here, mask, m, r, w, b, SILU)
        change = r * (dz * w - o - normal * k)
        tl.store(dx + start + here, change.to(dx.dtype.element_ty), mask=mask)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`fused_norm` of a map (B, C, H, W), contiguous or channels_last."""
    images, channels, height, width = x.shape
    shape, merge, programs = _layout(channels, height * width, groups, x.is_contiguous())
    grid, by_group = (images * programs,), (images * groups,)
    y = torch.empty_like(x, dtype=dtype)
    partial = x.new_empty((images, shape["chunks"], 2, channels), dtype=torch.float32)
    mean = x.new_empty((images, groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on the tensors'
        _partial_moments[grid](x, partial, **shape)
        _merge_moments[by_group](partial, mean, rstd, eps=eps, **merge)
        _apply[grid](x, y, mean, rstd, weight, bias, SILU=silu, **shape)
    return y, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `grad` and `x` are of one memory format."""
    images, channels, height, width = x.shape
    groups = mean.shape[1]
    shape, merge, programs = _layout(channels, height * width, groups, x.is_contiguous())
    grid, by_group = (images * programs,), (images * groups,)
    dx = torch.empty_like(x)
    partial = x.new_empty((images, shape["chunks"], 2, channels), dtype=torch.float32)
    sums = x.new_empty((images, 2, channels), dtype=torch.float32)
    offset, slope = torch.empty_like(mean), torch.empty_like(mean)
    with torch.cuda.device_of(x):
        _partial_sums[grid](x, grad, partial, mean, rstd, weight, bias, SILU=silu, **shape)
        _merge_sums[by_group](partial, sums, offset, slope, weight, **merge)
        inputs = x, grad, dx, mean, rstd, offset, slope, weight, bias
        _apply_backward[grid](*inputs, SILU=silu, **shape)
    return dx, sums[:, 1].sum(0).to(weight.dtype), sums[:, 0].sum(0).to(bias.dtype)


@functools.lru_cache(1024)
def _layout(
    channels: int, positions: int, groups: int, contiguous: bool
) -> tuple[dict[str, int], dict[str, int], int]:
    """What the kernels, then the merging ones are told, and how many programs an image takes.

    A tile is long in the direction in which memory runs: positions of few channels where a map is
    contiguous, channels of few positions where it is channels_last. It does not depend on B.
    """
    if contiguous:
        stride_c, stride_s = positions, 1
        block_s = min(_TILE, triton.next_power_of_2(positions))
        block_c = min(_TILE // block_s, triton.next_power_of_2(channels))
    else:
        stride_c, stride_s = 1, channels
        block_c = min(128, triton.next_power_of_2(channels))
        block_s = min(_TILE // block_c, triton.next_power_of_2(positions))
    tiles = min(_TILES, triton.cdiv(positions, block_s))
    chunks = triton.cdiv(positions, block_s * tiles)
    sizes = {"C": channels, "S": positions, "groups": groups, "chunks": chunks}
    shape = {**sizes, "stride_c": stride_c, "stride_s": stride_s}
    shape |= {"BLOCK_C": block_c, "BLOCK_S": block_s, "TILES": tiles}
    block_g = triton.next_power_of_2(channels // groups)
    block_r = min(max(1, _MERGE // block_g), triton.next_power_of_2(chunks))
    merge = {**sizes, "CHUNK": block_s * tiles, "BLOCK_G": block_g, "BLOCK_R": block_r}
    return shape, merge, chunks * triton.cdiv(channels, block_c)
