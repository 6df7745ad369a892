"""AR and NAR transformers as functions of weights by name; `sampling` draws from them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.plain.tokenizer import Weights, count
from semvq.generators.ar import ARConfig
from semvq.generators.nar import NARConfig

NAR_EPS = 1e-12


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """Dense layer."""
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(w: Weights, name: str, x: Tensor, heads: int, causal: bool, drop: float) -> Tensor:
    """Self-attention of (B, N, width) with its scores (B, heads, N, N) written out."""
    batch, length, width = x.shape
    qkv = linear(w, f"{name}.qkv", x).view(batch, length, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(width // heads)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    shares = F.dropout(scores.softmax(-1), drop, training=drop > 0).to(v.dtype)
    return linear(w, f"{name}.proj", (shares @ v).transpose(1, 2).reshape(batch, length, width))


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    """Linear, GELU, Linear."""
    return linear(w, f"{name}.2", F.gelu(linear(w, f"{name}.0", x)))


def ar_features(
    w: Weights, config: ARConfig, codes: Tensor, classes: Tensor, drop: float = 0.0
) -> Tensor:
    """(B, N, width) before the head, of codes (B, N); those at i see the codes before i alone."""
    known = (classes >= 0)[:, None]
    start = w["classes.weight"][classes.clamp_min(0)] * known
    x = torch.cat([start[:, None], w["codes.weight"][codes[:, :-1]]], 1)
    x = F.dropout(x + w["positions.weight"][: codes.shape[1]], drop, training=drop > 0)
    for i in range(count(w, "blocks.{}.attention.qkv.weight")):
        name, h = f"blocks.{i}", layer_norm(w, f"blocks.{i}.attention_norm", x)
        h = attention(w, f"{name}.attention", h, config.num_heads, True, drop)
        x = x + F.dropout(h, drop, training=drop > 0)
        h = mlp(w, f"{name}.mlp", layer_norm(w, f"{name}.mlp_norm", x))
        x = x + F.dropout(h, drop, training=drop > 0)
    return layer_norm(w, "norm", x)


def ar_logits(
    w: Weights, config: ARConfig, codes: Tensor, classes: Tensor, drop: float = 0.0
) -> Tensor:
    """Logits (B, N, K)."""
    return linear(w, "head", ar_features(w, config, codes, classes, drop))


def ar_last(w: Weights, config: ARConfig, codes: Tensor, classes: Tensor) -> Tensor:
    """Logits (B, 1, K) of the last position alone: all that sampling asks for."""
    return linear(w, "head", ar_features(w, config, codes, classes)[:, -1:])


def ar_loss(
    w: Weights, config: ARConfig, codes: Tensor, classes: Tensor, drop: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats of codes (B, h, w)."""
    flat = codes.flatten(1)
    logits = ar_logits(w, config, flat, classes, drop).float()
    return F.cross_entropy(logits.flatten(0, 1), flat.flatten())


def nar_logits(
    w: Weights, config: NARConfig, codes: Tensor, classes: Tensor, drop: float = 0.0
) -> Tensor:
    """Logits (B, N, K + 1 + classes) of codes (B, N) that are K where masked."""
    prefix = config.num_codes + 1 + classes  # a dropped class, -1, falls on the mask token
    rows = torch.cat([prefix[:, None], codes], 1)
    x = w["table.weight"][rows] + w["positions.weight"]
    x = F.dropout(layer_norm(w, "embedding_norm", x, NAR_EPS), drop, training=drop > 0)
    for i in range(count(w, "blocks.{}.attention.qkv.weight")):
        name = f"blocks.{i}"
        h = attention(w, f"{name}.attention", x, config.num_heads, False, drop)
        h = x + F.dropout(h, drop, training=drop > 0)
        x = layer_norm(w, f"{name}.attention_norm", h, NAR_EPS)
        h = x + F.dropout(mlp(w, f"{name}.mlp", x), drop, training=drop > 0)
        x = layer_norm(w, f"{name}.mlp_norm", h, NAR_EPS)
    x = layer_norm(w, "head_norm", F.gelu(linear(w, "head", x)), NAR_EPS)
    return F.linear(x[:, 1:], w["table.weight"], w["bias"])


def nar_loss(
    w: Weights, config: NARConfig, codes: Tensor, classes: Tensor, drop: float = 0.0
) -> Tensor:
    """Smoothed cross-entropy at random masked positions; draws as the library does."""
    flat = codes.flatten(1)
    u = torch.rand(len(flat), 1, device=flat.device)
    share = torch.cos(0.5 * math.pi * u).clamp(min=config.min_mask_share)
    order = torch.rand(flat.shape, device=flat.device).argsort(dim=1, stable=True).argsort(1)
    masked = order < (share * flat.shape[1]).ceil()
    logits = nar_logits(w, config, flat.masked_fill(masked, config.num_codes), classes, drop)
    return F.cross_entropy(
        logits.float()[masked], flat[masked], label_smoothing=config.label_smoothing
    )
