"""Triton kernel of attention in an AR sampling step: a new position looks at all before it."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from semvq.kernels import decoding  # not its `launch`, which `bench.kernels` replaces
from semvq.kernels.decoding import wait


@triton.jit
def _attend(
    qkv, keys, values, out, position, length, heads, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one sample: store its new key and value, look at all up to them.

    Every place of a tile has a softmax of its own, and they are joined at the end: inside the loop
    threads exchange nothing but the sum of a score. TILE positions are read at once, and the next
    ones are on their way meanwhile.
    """
    sample, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    lane, row = tl.arange(0, PADDED), tl.arange(0, TILE)
    inside = lane < WIDTH
    wait(EARLY)
    here = tl.load(position)
    new = qkv + (sample * 3 * heads + head).to(tl.int64) * WIDTH + lane
    q = tl.load(new, mask=inside, other=0).to(tl.float32) * scale
    k = tl.load(new + heads * WIDTH, mask=inside, other=0)
    v = tl.load(new + 2 * heads * WIDTH, mask=inside, other=0)
    start = tl.program_id(0).to(tl.int64) * length * WIDTH
    tl.store(keys + start + here * WIDTH + lane, k, mask=inside)
    tl.store(values + start + here * WIDTH + lane, v, mask=inside)
    most = tl.full([TILE], -1e30, tl.float32)
    mass = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, PADDED], tl.float32)
    place = start + row[:, None] * WIDTH + lane[None, :]
    mask = (row < here)[:, None] & inside[None, :]
    k_tile = tl.load(keys + place, mask=mask, other=0)
    v_tile = tl.load(values + place, mask=mask, other=0)
    for first in range(0, here, TILE):
        place += TILE * WIDTH
        mask = (first + TILE + row < here)[:, None] & inside[None, :]
        k_next = tl.load(keys + place, mask=mask, other=0)
        v_next = tl.load(values + place, mask=mask, other=0)
        score = tl.sum(k_tile.to(tl.float32) * q[None, :], 1)
        score = tl.where(first + row < here, score, -float("inf"))
        higher = tl.maximum(most, score)
        share, fade = tl.exp(score - higher), tl.exp(most - higher)
        mass = mass * fade + share
        mixed = mixed * fade[:, None] + share[:, None] * v_tile.to(tl.float32)
        most, k_tile, v_tile = higher, k_next, v_next
    # the newest position comes from registers: what was stored above may not be there yet
    own = tl.sum(q * k.to(tl.float32), 0)
    highest = tl.maximum(tl.max(most, 0), own)
    fade, share = tl.exp(most - highest), tl.exp(own - highest)
    total = tl.sum(mass * fade, 0) + share
    found = (tl.sum(mixed * fade[:, None], 0) + share * v.to(tl.float32)) / total
    to = out + tl.program_id(0).to(tl.int64) * WIDTH + lane
    tl.store(to, found.to(out.dtype.element_ty), mask=inside)


def attend(qkv: Tensor, memory: Tensor, position: Tensor) -> Tensor:
    """Attention of a new position, (B, width) from `qkv` (B, 3 * width).

    `memory` (2, B, heads, length, d) holds keys and values; those of this position, int64 (1,),
    are stored there.
    """
    _, num, heads, length, width = memory.shape
    out = qkv.new_empty(num, heads * width)
    # one program has to be quick where there are few; many of them had better be small
    tile, warps = (128, 8) if num <= 2 else (32, 2) if num <= 64 else (16, 1)
    with torch.cuda.device_of(qkv):
        _attend[(num * heads,)](
            qkv, memory[0], memory[1], out, position, length, heads, width**-0.5, WIDTH=width,
            PADDED=triton.next_power_of_2(width), TILE=tile, num_warps=warps,
            **decoding.launch(qkv.device),
        )  # fmt: skip
    return out
