"""Transformer blocks shared by AR and NAR (Sec. 3.1): attention, MLP, and the KV cache.

AR normalises before each part (GPT of VQGAN), NAR after it (MaskGIT); both have 4x wide GELU MLPs,
biases everywhere, and dropout on attention and on each part's output.
"""

from torch import Tensor, nn
from torch.nn import functional as F

MLP_RATIO = 4
INIT_STD = 0.02


class KVCache:
    """Keys and values of the positions of `num` samples seen so far, for step-by-step sampling.

    Memory is allocated at a layer's first step, once for all `length` positions.
    """

    def __init__(self, num_layers: int, num: int, length: int) -> None:
        self.num, self.length = num, length
        self.position = 0  # of the step under way; the model moves it on after its last layer
        self._memory: list[Tensor | None] = [None] * num_layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's (B, heads, 1, d); return all up to now as (B, heads, position+1, d)."""
        memory = self._memory[layer]
        if memory is None:
            batch, heads, _, width = keys.shape
            memory = keys.new_empty(2, batch, heads, self.length, width)
            self._memory[layer] = memory
        memory[0, :, :, self.position] = keys[:, :, 0]
        memory[1, :, :, self.position] = values[:, :, 0]
        seen = memory[:, :, :, : self.position + 1]
        return seen[0], seen[1]


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, width) to the same; `causal` hides later positions."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """With a cache, N is 1: the newest position, which attends to every stored one."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and cache is None,
        )
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


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

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """(B, N, width) to the same; see `Attention.forward` for the cache."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


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
        x = self.attention_norm(x + self.dropout(self.attention(x)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


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
