"""What every transformer over codes shares: its configuration, losses, classes and `sample`.

Sec. 3.1: a generator models the codes (B, h, w) of a frozen tokenizer, with or without a class.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from semvq.config import Config
from semvq.generators.cross_entropy import CrossEntropy
from semvq.generators.guidance import Schedule, named_schedule
from semvq.generators.noise import Noise
from semvq.kernels.capture import Kept, submodules

Logs = dict[str, Tensor]
NO_CLASS = -1  # stands for a class that was dropped, inside a classes tensor
MAX_LAYERS = 256  # a damaged config must not build modules for hours


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """Size of a transformer over `grid_height` x `grid_width` codes out of `num_codes`.

    `num_classes` 0 means unconditional. `conditioning_dropout` is the share of training samples
    whose class is dropped; sampling without a class, and guidance, need it above 0. Raises
    ValueError for sizes that cannot be built.
    """

    num_layers: int
    width: int
    num_heads: int
    num_codes: int
    grid_height: int
    grid_width: int
    num_classes: int = 0
    dropout: float = 0.1
    conditioning_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "num_codes", "grid_height", "grid_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.num_layers > MAX_LAYERS:
            raise ValueError(f"num_layers: expected at most {MAX_LAYERS}, found {self.num_layers}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes: expected 0 or more, found {self.num_classes}")
        if self.width % self.num_heads:
            raise ValueError(
                f"width: expected a multiple of num_heads ({self.num_heads}), found {self.width}"
            )
        for name in (f.name for f in fields(self) if f.type is float):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], found {getattr(self, name)}")
        if self.conditioning_dropout and not self.num_classes:
            raise ValueError(
                "conditioning_dropout: expected 0 where num_classes is 0, found "
                f"{self.conditioning_dropout:g}; give --set task.generator.conditioning_dropout=0"
            )

    @property
    def length(self) -> int:
        """Number of codes of one image."""
        return self.grid_height * self.grid_width

    def build(self) -> "Generator":
        """The transformer, freshly initialised from torch's global generator."""
        raise ValueError(
            f"expected ARConfig, NARConfig or another configuration with a model of its own, found "
            f"{type(self).__name__}"
        )


class Generator(nn.Module):
    """Base of the transformers over codes.

    A subclass sets `causal`, `blocks` and `cross_entropy`, and defines `forward`, `training_loss`,
    `_evaluation_loss` and `_draw`. `extra` holds what was saved beside the weights (code-space
    hash, names of classes).
    """

    causal: ClassVar[bool]  # whether the logits at i depend on the codes before i alone
    entry: ClassVar[str] = "forward"  # the method that `training_loss` calls
    blocks: nn.ModuleList  # all alike: compiled once for all of them
    cross_entropy: CrossEntropy
    # (noise, resolved classes, **options) -> (B, length); the keyword options are `sample`'s.
    _draw: Callable[..., Tensor]

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.extra: dict[str, Any] = {}
        self.kept = Kept()  # the sampler used last

    def training_loss(self, codes: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Logs]:
        """Scalar loss to minimise, and detached scalars to log.

        codes int64 (B, h, w); classes int64 (B,), None for an unconditional generator. What is
        random is drawn from torch's global generator.
        """
        raise NotImplementedError

    @torch.no_grad()
    def evaluation_loss(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """Cross-entropy in nats per predicted code, the mean over images: a scalar.

        No dropout, no smoothing and no chance: an image's share does not depend on its batch.
        codes int64 (B, h, w); classes int64 (B,), None for an unconditional generator.
        """
        with evaluating(self):
            return self._evaluation_loss(self.flat(codes), classes)

    def _evaluation_loss(self, codes: Tensor, classes: Tensor | None) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        num: int,
        classes: Tensor | None = None,
        seed: int = 0,
        first_index: int = 0,
        **options: Any,
    ) -> Tensor:
        """Draw the codes int64 (num, h, w) of samples first_index, first_index + 1, ... of `seed`.

        Sample i depends on the seed, i and its class, not on the batch it is drawn in (but for
        rounding, where a half-precision model wavers between two codes). classes
        int64 (num,); None is for an unconditional generator, or one with dropped classes.
        `options`: see `sampling_options` and the functions of `sampling`; D9's by default. Raises
        ValueError for an unknown option, or classes that do not fit.
        """
        if num < 1:
            raise ValueError(f"expected at least 1 sample, found {num}")
        for name in options:
            if name not in self.sampling_options:
                known = ", ".join(self.sampling_options)
                raise ValueError(f"expected a sampling option among {known}; found '{name}'")
        noise = Noise.consecutive(seed, first_index, num, self.device)
        resolved = self.resolve_classes(classes, num)
        if classes is not None:
            self._check_range(classes)
        with evaluating(self):
            codes = self._draw(noise, resolved, **options)
        return codes.view(num, self.config.grid_height, self.config.grid_width)

    @property
    def sampling_options(self) -> tuple[str, ...]:
        """Names of the options that `sample` takes."""
        parameters = inspect.signature(self._draw).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def flat(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) as (B, N) in raster order; ValueError for another grid."""
        grid = (self.config.grid_height, self.config.grid_width)
        if codes.ndim != 3 or tuple(codes.shape[1:]) != grid:
            raise ValueError(f"expected codes (B, {grid[0]}, {grid[1]}), found {(*codes.shape,)}")
        return codes.flatten(1)

    def resolve_classes(self, classes: Tensor | None, num: int) -> Tensor | None:
        """Classes as the layers take them: None if unconditional, else (num,) with NO_CLASS.

        Raises ValueError where classes are given to an unconditional generator, or missing for
        one that never saw a dropped class.
        """
        if not self.config.num_classes:
            if classes is not None:
                raise ValueError("expected no classes for an unconditional generator, found some")
            return None
        if classes is None:
            if not self.config.conditioning_dropout:
                raise ValueError(
                    f"expected classes (numbers below {self.config.num_classes}), found none; only "
                    "a generator trained with conditioning_dropout above 0 can do without"
                )
            return torch.full((num,), NO_CLASS, device=self.device)
        if tuple(classes.shape) != (num,):
            raise ValueError(f"expected {num} classes, found a tensor {(*classes.shape,)}")
        return classes.to(self.device)

    def drop_classes(self, classes: Tensor | None) -> Tensor | None:
        """Replace a `conditioning_dropout` share of the classes by NO_CLASS, at random."""
        if classes is None or not self.config.conditioning_dropout:
            return classes
        dropped = torch.rand(classes.shape, device=classes.device)
        return classes.masked_fill(dropped < self.config.conditioning_dropout, NO_CLASS)

    def guidance_schedule(self, name: str, guidance: float) -> Schedule | None:
        """How the scale runs; None for guidance 1, which needs no other half.

        ValueError where the model has no other half to lead away from, or for an unknown name.
        """
        schedule = named_schedule(name, guidance)
        if guidance == 1.0:
            return None
        if not self.config.conditioning_dropout:
            raise ValueError(
                f"expected guidance 1, found {guidance:g}: guidance needs a generator that was "
                "trained with classes and conditioning_dropout above 0"
            )
        return schedule

    def with_unconditional(self, classes: Tensor | None) -> Tensor:
        """Resolved classes (num,) and those of guidance's other half behind them, (2 * num,)."""
        assert classes is not None, "guidance needs a generator with classes"
        return torch.cat([classes, torch.full_like(classes, NO_CLASS)])

    def _check_range(self, classes: Tensor) -> None:
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= self.config.num_classes:
            raise ValueError(
                f"expected classes from 0 to {self.config.num_classes - 1}, found {low} to {high}"
            )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, `module` is in eval mode; afterwards each part of it as before."""
    # `eval()` and `train()` set every part, whatever it was: a NAR sample on one H200 took 18.4 ms
    # with them and 16.0 without
    training = [part for part in submodules(module) if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
