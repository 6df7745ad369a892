"""What sampling computes by `decoding`'s and `attending`'s kernels: steps, and sums with norms.

Elsewhere, in training and under autocast the blocks of `blocks` do the same layer by layer; they
are what the tests compare with.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvq.kernels.trial import runs_on

Model = Any  # an ARTransformer; kernels know nothing of models, nor of their parts
Block = Any  # a PreNormBlock
Cache = Any  # a KVCache

# Rows up to which a kernel beats cuBLAS and separate layers; measured, see `kernels.decoding`.
FEW_ROWS, SOME_ROWS = 2, 64


def serve(x: Tensor) -> bool:
    """Whether the kernels take this tensor, where no gradient is asked for."""
    if not x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.dtype == torch.float64 or torch.is_autocast_enabled("cuda"):
        return False
    return runs_on(x.device, "sampling", _try)


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x + y), (B, N, width); in one pass where the kernels serve."""
    if not serve(x):
        return norm(x + y)
    from semvq.kernels import decoding as kernels

    width = x.shape[-1]
    # reshape alone may leave gaps between rows, such as those of a part of wider ones
    rows, others = (t.reshape(-1, width).contiguous() for t in (x, y))
    return kernels.norm_of_sum(rows, others, _parts(norm)).view(x.shape)


def step(model: Model, x: Tensor, cache: Cache) -> Tensor:
    """Logits (B, K) from a position's input (B, width): all blocks and the head.

    Keys and values go into the cache; its position stays where it is.
    """
    blocks = model.blocks
    half = x.dtype in (torch.bfloat16, torch.float16)
    if half and len(x) <= FEW_ROWS:
        for layer, block in enumerate(blocks):
            x = _few_rows(block, x, cache, layer)
        return F.linear(model.norm(x), model.head.weight)
    norms = [b.attention_norm for b in blocks] + [model.norm]
    normed = norms[0](x)
    for layer, (block, next_norm) in enumerate(zip(blocks, norms[1:])):
        x, normed = _rows(block, x, normed, next_norm, cache, layer)
    return F.linear(normed, model.head.weight)


def _few_rows(block: Block, x: Tensor, cache: Cache, layer: int) -> Tensor:
    """A block in five launches, each of which makes its norm itself."""
    from semvq.kernels import decoding as kernels
    from semvq.kernels.attending import attend

    attention, (first, _, second) = block.attention, block.mlp
    norm = _parts(block.attention_norm)
    qkv = kernels.few_rows(x, attention.qkv.weight, attention.qkv.bias, norm=norm)
    mixed = attend(qkv, cache.memory[layer], cache.position)
    x = kernels.few_rows(mixed, attention.proj.weight, attention.proj.bias, residual=x)
    norm = _parts(block.mlp_norm)
    hidden = kernels.few_rows(x, first.weight, first.bias, norm=norm, gelu=True)
    return kernels.few_rows(hidden, second.weight, second.bias, residual=x)


def _rows(
    block: Block,
    x: Tensor,
    normed: Tensor,
    next_norm: nn.LayerNorm,
    cache: Cache,
    layer: int,
) -> tuple[Tensor, Tensor]:
    """A block in seven launches, from its normed input to that of the next."""
    from semvq.kernels import decoding as kernels
    from semvq.kernels.attending import attend

    attention, (first, _, second) = block.attention, block.mlp
    qkv = _linear(normed, attention.qkv)[0]
    mixed = attend(qkv, cache.memory[layer], cache.position)
    x, normed = kernels.add_norm(x, _linear(mixed, attention.proj, 2), _parts(block.mlp_norm))
    hidden = _linear(normed, first, gelu=True)[0]
    return kernels.add_norm(x, _linear(hidden, second, 4), _parts(next_norm))


def _linear(x: Tensor, layer: nn.Linear, splits: int = 1, gelu: bool = False) -> Tensor:
    """The layer's output, whole or in `splits` parts, (1 or splits, M, N)."""
    from semvq.kernels import decoding as kernels

    # for more rows cuBLAS is as quick; and in fp32 it is the one that tensor cores may not round
    if len(x) <= SOME_ROWS and x.dtype != torch.float32:
        return kernels.linear(x, layer.weight, layer.bias, gelu=gelu, splits=splits)
    y = layer(x)
    return (F.gelu(y) if gelu else y)[None]


def _parts(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _try(device: torch.device) -> None:
    """ArithmeticError where a small case is not plain PyTorch's."""
    from semvq.kernels import decoding as kernels
    from semvq.kernels.attending import attend

    width, kind = 64, torch.bfloat16
    numbers = torch.linspace(-900, 900, 5 * width * width).sin().to(device, kind)
    x, weight = numbers[: 2 * width].view(2, width), numbers[-width * width :].view(width, width)
    bias, norm = weight[0], (weight[1], weight[2], 1e-5)
    y = F.linear(F.layer_norm(x, (width,), *norm), weight, bias)
    _check(kernels.few_rows(x, weight, bias, norm=norm), y)
    y = F.linear(x, weight, bias)
    _check(kernels.linear(x, weight, bias)[0], y)
    parts = kernels.linear(x, weight, bias, splits=2)
    _check(kernels.add_norm(x, parts, norm)[1], F.layer_norm(x + y, (width,), *norm))
    qkv, memory = torch.cat([x, x, x], 1), torch.zeros(2, 2, 4, 8, 16, dtype=kind, device=device)
    mixed = attend(qkv, memory, torch.zeros(1, dtype=torch.int64, device=device))
    _check(mixed, x)  # there is nothing else to look at


def _check(found: Tensor, expected: Tensor) -> None:
    away = (found.float() - expected.float()).abs().max()
    if not away <= 2e-2 * expected.float().abs().max():
        raise ArithmeticError(f"results off by {float(away):g}")
