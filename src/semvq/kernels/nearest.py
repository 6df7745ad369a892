"""Triton kernel of the nearest-code search: the three least scores of every row, and two codes.

A program keeps its rows in shared memory and streams all codes past them. Scores live in registers
and are never written; most tiles of codes hold nothing near a row's best so far, and cost one
minimum. Inputs are fp16, which has TF32's eleven bits at twice its rate and half its bytes; what
that rounds off is the caller's to bound.

For N = 65,536 rows, K = 262,144 codes, C = 256 (counted, not measured):
  tensor cores  8.8 TFLOP: 11 ms at 790 TFLOP/s (in TF32: 22 ms)
  L2 reads      codes once per block of 128 rows: 69 GB, 1.5 TB/s if it takes 45 ms
  memory        codes once per wave of blocks (all programs walk in step): 4 x 134 MB
  scores        one subtraction and one minimum each; some 20 % of the tiles pay for an arg min too
                (a row's best changes in tile t with probability 1 / t)
"""

# mypy: allow-untyped-defs

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """Rows and codes of a program's tile; warps; tiles of codes in flight."""

    rows: int
    codes: int
    warps: int
    stages: int

    def shared(self, width: int) -> int:
        """Bytes of shared memory for fp16 vectors of this width."""
        if width <= _WIDEST:
            return 2 * width * (self.rows + self.stages * self.codes)
        return 2 * PIECE * self.stages * (self.rows + self.codes)


# In order of preference: the first that fits in shared memory.
TILES = (Tiles(128, 128, 8, 2), Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 2))
PIECE = 64  # columns at once of vectors too wide to be held whole, which are those over
_WIDEST = 256
_LEAST_TILES = 8  # of codes for a program, however few the rows


@triton.jit
def _insert(hit, value, place, v1, p1, v2, p2, v3):
    """The three least values, in order, after `value` has come where `hit`."""
    first, second = hit & (value < v1), hit & (value < v2)
    v3 = tl.where(hit, tl.minimum(v3, tl.maximum(v2, value)), v3)
    v2 = tl.where(hit, tl.minimum(v2, tl.maximum(v1, value)), v2)
    p2 = tl.where(first, p1, tl.where(second, place, p2))
    v1, p1 = tl.where(first, value, v1), tl.where(first, place, p1)
    return v1, p1, v2, p2, v3


@triton.jit
def _search(
    rows, codes, halves, windows, values, places, tiles, tiles_each,
    WIDTH: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of rows against one part of the codes; see `best_three`."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane, across = tl.arange(0, BLOCK_K), tl.arange(0, PIECE)
    first_tile = tl.program_id(1) * tiles_each
    # 64 bits: there may be more than 2**31 elements
    own = rows + row[:, None].to(tl.int64) * WIDTH + across[None, :]
    start = first_tile.to(tl.int64) * BLOCK_K
    theirs = codes + start * WIDTH + lane[:, None] * WIDTH + across[None, :]
    halves += start + lane
    window = tl.load(windows + row)
    if WIDTH == PIECE:
        held = tl.load(own)
    v1 = tl.full([BLOCK_N], float("inf"), tl.float32)
    v2, v3 = v1, v1
    p1 = tl.zeros([BLOCK_N], tl.int32)
    p2 = p1
    for tile in range(first_tile, tl.minimum(first_tile + tiles_each, tiles)):
        if WIDTH == PIECE:
            product = tl.dot(held, tl.trans(tl.load(theirs)))
        else:
            product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            for c in range(0, WIDTH, PIECE):
                product = tl.dot(tl.load(own + c), tl.trans(tl.load(theirs + c)), product)
        score = tl.load(halves)[None, :] - product
        least = tl.min(score, 1)
        # What is beyond the window can not be nearest, and what is beyond the third changes nothing
        hit = (least < v3) & (least <= v1 + window)
        found = tl.max(hit.to(tl.int32), 0)
        for _ in tl.static_range(3):
            if found > 0:
                at = tl.argmin(score, 1)
                v1, p1, v2, p2, v3 = _insert(hit, least, tile * BLOCK_K + at, v1, p1, v2, p2, v3)
                gone = hit[:, None] & (lane[None, :] == at[:, None])
                score = tl.where(gone, float("inf"), score)
                least = tl.min(score, 1)
                hit = hit & (least < v3) & (least <= v1 + window)
                found = tl.max(hit.to(tl.int32), 0)
        theirs += BLOCK_K * WIDTH
        halves += BLOCK_K
    # each part of the codes has arrays (3, N) and (2, N) of its own
    num = tl.num_programs(0).to(tl.int64) * BLOCK_N
    values += tl.program_id(1) * 3 * num + row
    places += tl.program_id(1) * 2 * num + row
    tl.store(values, v1)
    tl.store(values + num, v2)
    tl.store(values + 2 * num, v3)
    tl.store(places, p1)
    tl.store(places + num, p2)


def best_three(
    rows: Tensor, codes: Tensor, halves: Tensor, windows: Tensor, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """The three least scores of each row, fp32 (3, N), and the codes of two, int64 (2, N).

    The score of code k in row n is halves[k] - rows[n] . codes[k]: rows (N, C), codes (K, C) in
    fp16, finite; halves (K,), windows (N,) in fp32. Scores further than its window above a row's
    least may be missing, and infinity stands for them, with any code.
    """
    num = len(rows)
    width = _padded_width(rows.shape[1])
    piece = width if width <= _WIDEST else PIECE
    blocks, tiles = _layout(rows.device, num, len(codes), width, tiles)
    rows = _pad(rows, tiles.rows, width)
    windows = F.pad(windows, (0, len(rows) - num))
    missing = -len(codes) % tiles.codes
    codes, halves = _pad(codes, tiles.codes, width), F.pad(halves, (0, missing), value=torch.inf)
    of_codes = len(codes) // tiles.codes
    each = triton.cdiv(of_codes, blocks[1])
    parts = triton.cdiv(of_codes, each)
    values = windows.new_empty(parts, 3, len(rows))
    places = windows.new_empty(parts, 2, len(rows), dtype=torch.int32)
    with torch.cuda.device_of(rows):
        _search[(blocks[0], parts)](
            rows, codes, halves, windows, values, places, of_codes, each,
            WIDTH=width, PIECE=piece, BLOCK_N=tiles.rows, BLOCK_K=tiles.codes,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return _merge(values[..., :num], places[..., :num])


def _padded_width(width: int) -> int:
    """What products take: a power of two where vectors are read whole, else some pieces."""
    whole = max(16, triton.next_power_of_2(width))
    return whole if whole <= _WIDEST else triton.cdiv(width, PIECE) * PIECE


def _pad(x: Tensor, multiple: int, width: int) -> Tensor:
    """x (N, C) with zeros up to `width` columns and a multiple of rows, contiguous."""
    return F.pad(x, (0, width - x.shape[1], 0, -len(x) % multiple)).contiguous()


def _layout(
    device: torch.device, num: int, num_codes: int, width: int, tiles: Tiles | None
) -> tuple[tuple[int, int], Tiles]:
    """Grid (blocks of rows, parts of the codes) and tiles: enough programs for the whole device."""
    processors, shared = 4, 2**20
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        processors = facts.multi_processor_count
        # a margin for the reductions; PyTorch before 2.5 does not tell, and every card has 48 KiB
        shared = getattr(facts, "shared_memory_per_block_optin", 48 * 1024) - 4096
    if tiles is None:
        tiles = next((t for t in TILES if t.shared(width) <= shared), TILES[-1])
    blocks = triton.cdiv(num, tiles.rows)
    of_codes = triton.cdiv(num_codes, tiles.codes)
    # Four programs for each processor leave at most a fifth of the last round idle.
    parts = min(4 * processors // blocks, of_codes // _LEAST_TILES)
    return (blocks, max(1, parts)), tiles


def _merge(values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """One (3, N) and (2, N) from those of each part, (P, 3, N) and (P, 2, N)."""
    if len(values) == 1:
        return values[0], places[0].long()
    found = values.flatten(0, 1).topk(3, 0, largest=False).values
    # A part's third is never among the least two unless it ties with its own second.
    two = values[:, :2].flatten(0, 1).topk(2, 0, largest=False).indices
    return found, places.flatten(0, 1).gather(0, two).long()
