"""Non-autoregressive transformer over codes (Sec. 3.1): MaskGIT's masked prediction.

Post-norm blocks with biases, GELU, a norm after the embeddings (eps 1e-12), learned positions; one
table with rows [codes | mask | classes]; the class is a prefix token. The head (dense, GELU, norm)
is tied to the table with a bias per row: only so does Table 4's MaskGIT row (227M) come out.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semvq.generators.base import Generator, GeneratorConfig, Logs
from semvq.generators.blocks import PostNormBlock, initialize
from semvq.generators.cross_entropy import CrossEntropy
from semvq.generators.guidance import Schedule, led
from semvq.generators.halton import halton_order
from semvq.generators.noise import EVALUATION_MASKS, Noise
from semvq.generators.sampling import draw, ranks
from semvq.generators.sampling_nar import (
    CHOICE_TEMPERATURE,
    Logits,
    NARSampler,
    by_confidence,
    checked,
    cosine,
    in_order,
)

EPS = 1e-12
NUM_EVALUATION_MASKS = 4
ORDERS = ("confidence", "halton")


@dataclass(frozen=True)
class NARConfig(GeneratorConfig):
    """A bidirectional transformer; see `GeneratorConfig`.

    `min_mask_share` is the least share of masked codes in training: smaller draws are raised to
    it (MaskGIT's paper 0, its released configuration 0.5).
    """

    label_smoothing: float = 0.1
    min_mask_share: float = 0.0

    def build(self) -> "NARTransformer":
        """The transformer, freshly initialised from torch's global generator."""
        return NARTransformer(self)


class NARTransformer(Generator):
    """p(code at a masked position | the codes that are not masked, class)."""

    causal = False
    entry = "vocabulary_logits"
    config: NARConfig

    def __init__(self, config: NARConfig) -> None:
        super().__init__(config)
        width = config.width
        self.mask_code = config.num_codes
        num_rows = config.num_codes + 1 + config.num_classes
        self.table = nn.Embedding(num_rows, width)
        self.positions = nn.Embedding(config.length + bool(config.num_classes), width)
        self.embedding_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, config.num_heads, config.dropout, EPS)
            for _ in range(config.num_layers)
        )
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps=EPS)
        self.bias = nn.Parameter(torch.zeros(num_rows))
        self.cross_entropy = CrossEntropy(config.label_smoothing)
        initialize(self, truncate=True)

    def forward(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """Logits (B, N, K) of int64 codes (B, N), N = h * w, that are K where masked.

        classes int64 (B,); None is for an unconditional generator, or one with dropped classes.
        """
        num_codes = self.config.num_codes
        x = self._features(codes, classes)
        return F.linear(x, self.table.weight[:num_codes], self.bias[:num_codes])

    def vocabulary_logits(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """As `forward`, for every row of the table: (B, N, K + 1 + num_classes)."""
        return F.linear(self._features(codes, classes), self.table.weight, self.bias)

    def _features(self, codes: Tensor, classes: Tensor | None) -> Tensor:
        classes = self.resolve_classes(classes, len(codes))
        rows = codes
        if classes is not None:
            # Row mask + 1 + class; a dropped class (-1) falls on the mask token itself.
            rows = torch.cat([(self.mask_code + 1 + classes).unsqueeze(1), codes], dim=1)
        x = self.dropout(self.embedding_norm(self.table(rows) + self.positions.weight))
        for block in self.blocks:
            x = block(x)
        x = self.head_norm(F.gelu(self.head(x)))
        return x if classes is None else x[:, 1:]

    def training_loss(self, codes: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Logs]:
        """Smoothed cross-entropy over the whole vocabulary, at the masked positions alone.

        The mask share is cos(pi/2 u), u uniform; see `Generator.training_loss`.
        """
        codes = self.flat(codes)
        classes = self.drop_classes(self.resolve_classes(classes, len(codes)))
        masked = self._training_mask(codes)
        logits = self.vocabulary_logits(codes.masked_fill(masked, self.mask_code), classes)
        scores = self.cross_entropy(logits, codes)
        return masked_mean(scores.loss, masked), {
            "cross_entropy": masked_mean(scores.nats, masked),
            "top1_accuracy": masked_mean(scores.hits.float(), masked),
            "mask_share": masked.float().mean(),
        }

    def _training_mask(self, codes: Tensor) -> Tensor:
        """Bool (B, N): a random set per image, at least one position and at times all of them."""
        u = torch.rand(len(codes), 1, device=codes.device)
        share = torch.cos(0.5 * math.pi * u).clamp(min=self.config.min_mask_share)
        num_masked = (share * codes.shape[1]).ceil()
        return ranks(torch.rand(codes.shape, device=codes.device)) < num_masked

    def _evaluation_loss(self, codes: Tensor, classes: Tensor | None) -> Tensor:
        losses = []
        masks = evaluation_masks(codes.shape[1], codes.device)
        for mask in masks:
            logits = self(codes.masked_fill(mask, self.mask_code), classes)
            losses.append(self.cross_entropy(logits, codes).nats)
        return masked_mean(torch.stack(losses, dim=1), masks.expand(len(codes), -1, -1))

    def _draw(
        self,
        noise: Noise,
        classes: Tensor | None,
        *,
        order: str = "confidence",
        steps: int = 12,
        choice_temperature: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
        known: Tensor | None = None,
    ) -> Tensor:
        """`order` "confidence" (MaskGIT's; choice_temperature None means 4.5) or "halton".

        `known` int64 (num or 1, h, w): codes to keep, -1 where to draw; None draws everything.
        """
        _check_order(order, choice_temperature)
        num, length, device = len(noise.indices), self.config.length, self.device
        fixed = None if known is None else self.flat(known.to(device))
        fixed, num_masked = checked(fixed, num, length, self.mask_code, device)

        def make() -> NARSampler:
            if order == "halton":
                positions = halton_order(self.config.grid_height, self.config.grid_width)
                sureness = in_order(positions, device)
            else:
                chance = CHOICE_TEMPERATURE if choice_temperature is None else choice_temperature
                sureness = by_confidence(chance, steps)
            logits = self._guided(self.guidance_schedule(guidance_schedule, guidance))
            draws = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
            return NARSampler(logits, self.mask_code, num_masked, draws, sureness, steps=steps)

        kind = (num_masked, order, steps, choice_temperature, temperature, top_k, top_p)
        sampler = self.kept.get(self, (*kind, guidance, guidance_schedule), make)
        return sampler(noise, fixed, classes)

    def _guided(self, schedule: Schedule | None) -> Logits:
        """The logits a sampler asks for."""

        def logits(codes: Tensor, classes: Tensor | None, progress: float) -> Tensor:
            if schedule is None:
                return self(codes, classes)
            pair = self(codes.repeat(2, 1), self.with_unconditional(classes))
            return led(pair, schedule(progress))

        return logits


def _check_order(order: str, choice_temperature: float | None) -> None:
    if order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}; found '{order}'")
    if order == "halton" and choice_temperature is not None:
        raise ValueError(
            f"choice_temperature: expected none with order halton, found {choice_temperature:g}; "
            "nothing is chosen there, leave it out"
        )


def evaluation_masks(length: int, device: torch.device) -> Tensor:
    """The masks (NUM_EVALUATION_MASKS, length) every image is judged by; shares cos(pi/2 u).

    u runs over the middles of equal parts of [0, 1], so that the spread of training is covered.
    """
    indices = torch.arange(NUM_EVALUATION_MASKS, device=device)
    order = ranks(Noise(0, indices).uniform(EVALUATION_MASKS, torch.arange(length, device=device)))
    middles = [(i + 0.5) / NUM_EVALUATION_MASKS for i in range(NUM_EVALUATION_MASKS)]
    num_masked = [math.ceil(length * cosine(u)) for u in middles]
    return order < torch.tensor(num_masked, device=device).unsqueeze(1)


def masked_mean(values: Tensor, masked: Tensor) -> Tensor:
    """Mean of `values` where `masked`, which has the same shape."""
    return (values * masked).sum() / masked.sum()
