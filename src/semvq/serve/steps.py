"""A NAR transformer's way from masked codes to a picture, pass by pass (Sec. 3.1, MaskGIT).

The sampler is left as it is: a hook on the transformer sees the codes that each pass is given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from semvq.generators.base import Generator
from semvq.kernels.capture import unrecorded
from semvq.tokenizer.model import Tokenizer


class Step(NamedTuple):
    """Samples (B, ...) after a step: decoded in [-1, 1], and bool (B, h, w) where still open."""

    images: Tensor
    open: Tensor


@contextmanager
def watched(generator: Generator) -> Iterator[list[Tensor]]:
    """Inside, every pass of the transformer adds the codes (rows, N) that it was given."""
    seen: list[Tensor] = []
    hook = generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    try:
        with unrecorded():
            yield seen
    finally:
        hook.remove()


@torch.no_grad()
def decoded_steps(tokenizer: Tokenizer, passes: list[Tensor], codes: Tensor) -> list[Step]:
    """The state before the first step and after each, of what `watched` saw of drawing `codes`.

    codes int64 (B, D * h, w) are the final ones.
    """
    # the first pass may be one row for all; guidance puts its other half behind the samples
    before = [p[: len(codes)] if i else p[:1].expand(len(codes), -1) for i, p in enumerate(passes)]
    return [decode_partly(tokenizer, c.view_as(codes)) for c in [*before, codes]]


def decode_partly(tokenizer: Tokenizer, codes: Tensor) -> Step:
    """Codes (B, D * h, w), K or more where open, as pictures: open places have no embedding."""
    masked = codes >= tokenizer.num_codes
    depth, columns = tokenizer.quantizer.codes_per_place, codes.shape[2]
    places = masked.view(len(codes), depth, -1, columns).any(1)
    if not places.any():
        return Step(tokenizer.decode(codes).clamp(-1, 1), places)  # bitwise as everywhere else
    embeddings = tokenizer.quantizer.lookup(codes.masked_fill(masked, 0))
    images = tokenizer.decoder(embeddings.masked_fill(places.unsqueeze(1), 0))
    return Step(images.float().clamp(-1, 1), places)
