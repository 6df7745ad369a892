"""How quantizers make codes, for graphs: each rule as a function of the search for nearest codes.

With the search that the quantizers use, a rule gives their codes; `nearest_in_graph` gives a graph
that other runtimes know. `tests/test_export.py` holds the two together.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.rivals.factorized import FactorizedQuantizer
from semvq.rivals.kmeans import KMeansQuantizer
from semvq.rivals.multichannel import MultichannelQuantizer
from semvq.rivals.residual import ResidualQuantizer
from semvq.tokenizer.quantize import Quantizer, VectorQuantizer, flatten

# rows (N, C) and a codebook (K, C) to codes int64 (N,)
Search = Callable[[Tensor, Tensor], Tensor]
# a quantizer, latents (B, C, h, w) and a search to codes int64, (B, h, w) or several grids
Rule = Callable[..., Tensor]


def nearest_in_graph(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the nearest row of `codebook` (K, C) by L2 for each of `rows` (N, C).

    In fp32 about the codes' mean, and not decided again in float64 as `nearest_code` does, for a
    graph has no such branch: where two codes are equally near but for rounding, it may be the
    other one. It holds all (N, K) scores at once.
    """
    centre = codebook.mean(0)
    codes = codebook - centre
    return (codes.square().sum(1) - 2 * (rows - centre) @ codes.t()).argmin(1)


def rule_of(quantizer: Quantizer) -> Rule:
    """The rule of a quantizer. ValueError for a class that none is known of.

    Exactly these classes: another one, derived from them, may have a rule of its own.
    """
    if not quantizer.has_codes:
        raise ValueError("expected a tokenizer with codes, found a plain autoencoder")
    rules: dict[type[Quantizer], Rule] = {
        VectorQuantizer: _plain,
        KMeansQuantizer: _plain,
        MultichannelQuantizer: _multichannel,
        FactorizedQuantizer: _factorized,
        ResidualQuantizer: _residual,
    }
    if type(quantizer) not in rules:
        known = ", ".join(sorted(kind.__name__ for kind in rules))
        raise ValueError(
            f"expected a quantizer whose rule can be written as a graph ({known}), found "
            f"{type(quantizer).__name__}; use it from Python"
        )
    return rules[type(quantizer)]


def _plain(quantizer: VectorQuantizer, latents: Tensor, search: Search) -> Tensor:
    b, _, h, w = latents.shape
    return search(flatten(latents), quantizer.codebook).reshape(b, h, w)


def _multichannel(quantizer: MultichannelQuantizer, latents: Tensor, search: Search) -> Tensor:
    parts = latents.unflatten(1, (quantizer.codes_per_place, -1))
    return _plain(quantizer, parts.transpose(1, 2).flatten(2, 3), search)


def _factorized(quantizer: FactorizedQuantizer, latents: Tensor, search: Search) -> Tensor:
    b, _, h, w = latents.shape
    units = F.normalize(quantizer.down(latents.float()), dim=1)
    return search(flatten(units), F.normalize(quantizer.codebook, dim=1)).reshape(b, h, w)


def _residual(quantizer: ResidualQuantizer, latents: Tensor, search: Search) -> Tensor:
    b, _, h, w = latents.shape
    left, grids = flatten(latents), []
    for _ in range(quantizer.codes_per_place):
        found = search(left, quantizer.codebook)
        left = left - F.embedding(found, quantizer.codebook)
        grids.append(found.reshape(b, h, w))
    return torch.cat(grids, dim=1)
