"""Autoregressive transformer over codes (Sec. 3.1): the GPT of VQGAN, in raster order.

Pre-norm blocks with biases, GELU, learned positions, a final norm and an untied head. The first
position takes the class (nothing when unconditional or dropped), so there is no start token.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from semvq.generators.base import Generator, GeneratorConfig, Logs
from semvq.generators.blocks import KVCache, PreNormBlock, initialize
from semvq.generators.cross_entropy import CrossEntropy
from semvq.generators.noise import AR_CODES, Noise
from semvq.generators.sampling import draw
from semvq.generators.sampling_ar import ARSampler
from semvq.kernels import sampling as kernels


@dataclass(frozen=True)
class ARConfig(GeneratorConfig):
    """A causal transformer; see `GeneratorConfig`."""

    def build(self) -> "ARTransformer":
        """The transformer, freshly initialised from torch's global generator."""
        return ARTransformer(self)


class ARTransformer(Generator):
    """p(codes) as a product over raster positions, each given the codes before it."""

    causal = True

    def __init__(self, config: ARConfig) -> None:
        super().__init__(config)
        width = config.width
        self.codes = nn.Embedding(config.num_codes, width)
        self.classes = nn.Embedding(config.num_classes, width) if config.num_classes else None
        self.positions = nn.Embedding(config.length, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(width, config.num_heads, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.num_codes, bias=False)
        self.cross_entropy = CrossEntropy()
        initialize(self, truncate=False)

    def forward(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """Logits (B, N, K) of int64 codes (B, N): those at i depend on the codes before i alone.

        N may be anything up to h * w. classes int64 (B,); None is for an unconditional generator,
        or one with dropped classes.
        """
        classes = self.resolve_classes(classes, len(codes))
        x = torch.cat([self._start(classes, len(codes)), self.codes(codes[:, :-1])], dim=1)
        x = self.dropout(x + self.positions.weight[: codes.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def _start(self, classes: Tensor | None, num: int) -> Tensor:
        """Input (num, 1, width) of the first position, before its position is added."""
        if self.classes is None or classes is None:
            return self.positions.weight.new_zeros(num, 1, self.config.width)
        known = (classes >= 0).unsqueeze(1)
        return (self.classes(classes.clamp(min=0)) * known).unsqueeze(1)

    def training_loss(self, codes: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Logs]:
        """Mean cross-entropy in nats per code; see `Generator.training_loss`."""
        codes = self.flat(codes)
        classes = self.drop_classes(self.resolve_classes(classes, len(codes)))
        scores = self.cross_entropy(self(codes, classes), codes)
        loss = scores.loss.mean()
        top1 = scores.hits.float().mean()
        return loss, {"cross_entropy": loss.detach(), "top1_accuracy": top1}

    def _evaluation_loss(self, codes: Tensor, classes: Tensor | None) -> Tensor:
        return self.cross_entropy(self(codes, classes), codes).nats.mean()

    def new_cache(self, num: int) -> KVCache:
        """An empty cache for `step` on `num` samples, in the precision that layers work in."""
        config, device = self.config, self.device
        dtype = self.head.weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        heads, width = config.num_heads, config.width // config.num_heads
        shape = config.num_layers, 2, num, heads, config.length, width
        return KVCache(torch.zeros(shape, dtype=dtype, device=device))

    def step(
        self, previous: Tensor | None, cache: KVCache, classes: Tensor | None = None
    ) -> Tensor:
        """Logits (B, K) of the next position, from the one before and the cache; moves it on.

        At position 0 `previous` is None and `classes` (B,) count, as `resolve_classes` gives
        them; later `previous` holds int64 codes (B,). Equals `forward` at that position.
        """
        if previous is None:
            x = self._start(classes, cache.num)
        else:
            x = self.codes(previous).unsqueeze(1)
        x = x + self.positions(cache.position)
        if kernels.serve(x):
            logits = kernels.step(self, x.squeeze(1), cache)
        else:
            for layer, block in enumerate(self.blocks):
                assert isinstance(block, PreNormBlock)
                x = block.step(x, cache, layer)
            logits = self.head(self.norm(x)).squeeze(1)
        cache.position += 1
        return logits

    def _draw(
        self,
        noise: Noise,
        classes: Tensor | None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
    ) -> Tensor:
        num = len(noise.indices)
        schedule = self.guidance_schedule(guidance_schedule, guidance)
        draws = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
        sampler = self.kept.get(
            self,
            (num, temperature, top_k, top_p, guidance, guidance_schedule),
            lambda: ARSampler(self, num, draws, schedule),
        )
        if schedule is not None:
            classes = self.with_unconditional(classes)
        return sampler(noise.stream(AR_CODES), classes)
