"""AR and NAR transformers as functions of weights by name, and sampling without any cache.

AR runs the whole prefix through the model for every position; NAR takes two separate passes for
guidance and looks at every position in every step. The noise is the library's: it is part of what
a sample is defined by.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.plain.tokenizer import Weights, count
from semvq.generators.ar import ARConfig
from semvq.generators.base import NO_CLASS
from semvq.generators.nar import NARConfig
from semvq.generators.noise import AR_CODES, NAR_CHOICES, NAR_CODES, Noise

NAR_EPS = 1e-12
CHOICE_TEMPERATURE = 4.5


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


def ar_loss(
    w: Weights, config: ARConfig, codes: Tensor, classes: Tensor, drop: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats of codes (B, h, w)."""
    flat = codes.flatten(1)
    logits = ar_logits(w, config, flat, classes, drop).float()
    return F.cross_entropy(logits.flatten(0, 1), flat.flatten())


@torch.no_grad()
def sample_ar(
    w: Weights, config: ARConfig, num: int, classes: Tensor, seed: int, guidance: float = 1.0
) -> Tensor:
    """Codes (num, h, w): a whole forward pass for every position, two of them with guidance."""
    noise = Noise.consecutive(seed, 0, num, classes.device)
    every_code = torch.arange(config.num_codes, device=classes.device)
    codes = torch.zeros(num, config.length, dtype=torch.int64, device=classes.device)
    for position in range(config.length):
        prefix = codes[:, : position + 1]
        logits = linear(w, "head", ar_features(w, config, prefix, classes)[:, -1]).float()
        if guidance != 1.0:
            dropped = torch.full_like(classes, NO_CLASS)
            other = linear(w, "head", ar_features(w, config, prefix, dropped)[:, -1]).float()
            logits = other + guidance * (logits - other)
        gumbel = noise.gumbel(AR_CODES, position, every_code)
        codes[:, position] = (logits + gumbel).argmax(-1)
    return codes.view(num, config.grid_height, config.grid_width)


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


@torch.no_grad()
def sample_nar(
    w: Weights,
    config: NARConfig,
    num: int,
    classes: Tensor,
    seed: int,
    guidance: float = 1.0,
    steps: int = 12,
) -> Tensor:
    """Codes (num, h, w): MaskGIT's refinement, every position drawn anew in every step."""
    device, mask = classes.device, config.num_codes
    noise = Noise.consecutive(seed, 0, num, device)
    every_position = torch.arange(config.length, device=device)
    every_code = torch.arange(mask, device=device)
    codes = torch.full((num, config.length), mask, device=device)
    left = config.length
    for step in range(1, steps + 1):
        planned = math.floor(config.length * math.cos(0.5 * math.pi * step / steps) + 1e-9)
        left = 0 if step == steps else max(0, min(left - 1, max(steps - step, planned)))
        scores = nar_logits(w, config, codes, classes)[..., :mask].float()
        if guidance != 1.0:
            dropped = torch.full_like(classes, NO_CLASS)
            other = nar_logits(w, config, codes, dropped)[..., :mask].float()
            scores = other + guidance * (scores - other)
        places = every_position[:, None], every_code[None]
        drawn = (scores + noise.gumbel(NAR_CODES, step, *places)).argmax(-1)
        log_p = scores.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        chance = noise.gumbel(NAR_CHOICES, step, every_position)
        sure = log_p + CHOICE_TEMPERATURE * (1 - step / steps) * chance
        is_open = codes == mask
        sure = sure.masked_fill(~is_open, torch.inf)
        stays = sure.argsort(dim=1, stable=True).argsort(1) < left
        codes = torch.where(is_open & ~stays, drawn, codes)
        if not left:
            break
    return codes.view(num, config.grid_height, config.grid_width)
