"""Transformer blocks shared by AR and NAR (Sec. 3.1): attention, MLP, and the KV cache.

AR normalises before each part (GPT of VQGAN), NAR after it (MaskGIT); both have 4x wide GELU MLPs,
biases everywhere, and dropout on attention and on each part's output.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semvq.kernels.finite_attention import finite_kernels
from semvq.kernels.sampling import add_norm

MLP_RATIO = 4
INIT_STD = 0.02


class KVCache:
    """Keys and values of the positions seen so far, for step-by-step sampling.

    `memory` (layers, 2, B, heads, length, d) is allocated once, for all positions. The position
    under way is a tensor, int64 (1,), so that a captured step reads it anew at every replay. The
    model moves it on after its last layer.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.num, self.length = memory.shape[2], memory.shape[4]
        self.position = torch.zeros(1, dtype=torch.int64, device=memory.device)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's (B, heads, 1, d); return all up to it, (B, heads, position + 1, d)."""
        known = self.memory[layer, :, :, :, : int(self.position) + 1]
        known[:, :, :, -1:] = torch.stack([keys, values])
        return known[0], known[1]


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, width) to the same; `causal` hides later positions."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        q, k, v = self._heads(x)
        rate = self.dropout if self.training else 0.0
        with finite_kernels(x.shape[1]):
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=self.causal)
        return self._joined(mixed)

    def step(self, x: Tensor, cache: KVCache, layer: int) -> Tensor:
        """(B, 1, width) to the same: the newest position looks at itself and those before it."""
        queries, keys, values = self._heads(x)
        keys, values = cache.extend(layer, keys, values)
        return self._joined(F.scaled_dot_product_attention(queries, keys, values))

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, heads, N, d)."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        return heads.permute(2, 0, 3, 1, 4).unbind()

    def _joined(self, mixed: Tensor) -> Tensor:
        return self.proj(mixed.transpose(1, 2).flatten(2))


def mlp(width: int) -> nn.Sequential:
    """Linear, GELU, Linear over the last dimension."""
    return nn.Sequential(
        nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
    )


class PreNormBlock(nn.Module):
    """Causal block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, dropout, causal=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(self, x: Tensor, cache: KVCache, layer: int) -> Tensor:
        """`forward` of the newest position alone, (B, 1, width) to the same; without dropout."""
        x = x + self.attention.step(self.attention_norm(x), cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class PostNormBlock(nn.Module):
    """Bidirectional block: norm(x + attention(x)), then norm(x + MLP(x))."""

    def __init__(self, width: int, num_heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, dropout, causal=False)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp(width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        x = add_norm(x, self.dropout(self.attention(x)), self.attention_norm)
        return add_norm(x, self.dropout(self.mlp(x)), self.mlp_norm)


def initialize(module: nn.Module, *, truncate: bool) -> None:
    """Weights of linear layers and tables from a normal of deviation 0.02, biases zero.

    `truncate` cuts the normal at two standard deviations (MaskGIT); taming's GPT does not.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            if truncate:
                nn.init.trunc_normal_(part.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            else:
                nn.init.normal_(part.weight, std=INIT_STD)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
