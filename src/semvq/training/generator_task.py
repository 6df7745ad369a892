"""Training of a transformer on a tokenizer's codes: AR or NAR, from a token cache (Sec. 3.1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semvq.data.images import DataConfig, image_grid, open_train_val
from semvq.data.tokens import TokenCache, TrainTokens, write_tokens
from semvq.downloads import Progress
from semvq.generators.base import GeneratorConfig
from semvq.generators.files import save_generator
from semvq.tokenizer.files import load_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.training.optim import OptimConfig
from semvq.training.task import Player, Setting, Task, TaskConfig, Turn

NUM_PICTURES = 16
EVAL_BATCH = 32


@dataclass(frozen=True)
class GeneratorTaskConfig(TaskConfig):
    """A transformer, its optimiser, and how images become codes when no cache is given.

    `num_views` entries per image are encoded: the centre crop, then flips and crops (see `data`).
    """

    generator: GeneratorConfig
    optim: OptimConfig
    data: DataConfig
    num_views: int = 2

    def open(self, setting: Setting) -> "GeneratorTask":
        """Load the token cache (made now if none is given) and the upstream tokenizer."""
        return GeneratorTask(self, setting)


class GeneratorTask(Task):
    """One transformer learning the codes of one code space."""

    def __init__(self, config: GeneratorTaskConfig, setting: Setting) -> None:
        if setting.upstream is None:
            raise ValueError("expected an upstream tokenizer run, found none; give --upstream RUN")
        self.config, self.device = config, setting.device
        self.tokenizer = load_tokenizer(setting.upstream).to(self.device).eval()
        self.tokenizer.requires_grad_(False)
        self.space = self.tokenizer.code_space_hash()
        cache, self.val = self._caches(setting)
        self._check(cache)
        self.classes = cache.classes
        self.dataset = TrainTokens(cache, setting.seed)
        self.fingerprint = cache.fingerprint
        self.epoch_size, self.num_val = len(cache), len(self.val)
        self.generator = config.generator.build().to(self.device)
        self.players = [Player("transformer", self.generator, config.optim)]

    def _caches(self, setting: Setting) -> tuple[TokenCache, TokenCache]:
        """Training and held-out codes: `--tokens`, or encoded now into the run folder."""
        folder = setting.tokens or setting.folder / "tokens"
        if setting.tokens is None and not _complete(folder):
            if setting.data is None:
                raise ValueError("expected --tokens CACHE or --data PATH, found neither")
            encode_images(
                self.tokenizer, setting.data, setting.val, folder, self.config.data,
                self.config.num_views,
            )  # fmt: skip
        if not _complete(folder):
            raise ValueError(
                f"{folder}: expected a token cache with 'train' and 'val', found none; "
                "make one with: semvq encode RUN --data PATH"
            )
        return (
            TokenCache.open(folder / "train", self.space),
            TokenCache.open(folder / "val", self.space),
        )

    def _check(self, cache: TokenCache) -> None:
        model = self.config.generator
        facts = [
            ("num_codes", model.num_codes, cache.num_codes),
            ("grid_height", model.grid_height, cache.grid[0]),
            ("grid_width", model.grid_width, cache.grid[1]),
        ]
        if model.num_classes:
            facts.append(("num_classes", model.num_classes, len(cache.classes)))
        for name, expected, found in facts:
            if expected != found:
                raise ValueError(
                    f"the recipe has task.generator.{name} {expected}, the token cache has {found};"
                    f" give --set task.generator.{name}={found}"
                )

    def identity(self) -> dict[str, str]:
        """The images that were encoded, and the code space they were encoded in."""
        return {"data": self.fingerprint, "code space": self.space}

    def turns(self, batch: dict[str, Any], images_seen: int) -> Iterator[Turn]:
        """The transformer's only turn: cross-entropy in nats per code."""
        classes = batch["label"] if self.config.generator.num_classes else None
        loss, logs = self.generator.training_loss(batch["codes"], classes)
        yield Turn("transformer", loss, {"loss": loss.detach(), **logs})

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Mean held-out cross-entropy in nats per (masked) code, first view of every image."""
        total = 0.0
        for start in range(0, self.num_val, EVAL_BATCH):
            codes, labels = self.val.read(range(start, min(start + EVAL_BATCH, self.num_val)))
            classes = labels.to(self.device) if self.config.generator.num_classes else None
            loss = self.generator.evaluation_loss(codes.to(self.device), classes)
            total += float(loss) * len(codes)
        yield "cross_entropy", total / self.num_val

    def pictures(self) -> Tensor:
        """Samples, decoded by the upstream tokenizer; classes in turn."""
        num_classes = self.config.generator.num_classes
        classes = (
            torch.arange(NUM_PICTURES, device=self.device) % num_classes if num_classes else None
        )
        codes = self.generator.sample(NUM_PICTURES, classes, seed=0)
        return image_grid(self.tokenizer.decode(codes).float(), columns=8)

    def export(self, folder: Path) -> None:
        """The transformer, with the code space it speaks and the names of its classes."""
        extra = {
            "code_space_hash": self.space,
            "classes": list(self.classes),
            "upstream_resolution": self.tokenizer.config.resolution,
        }
        save_generator(self.generator, folder, extra)


def encode_images(
    tokenizer: Tokenizer,
    data: Path,
    val: Path | None,
    folder: Path,
    config: DataConfig,
    num_views: int,
    progress: Progress | None = None,
) -> None:
    """Write the token caches `folder/train` and `folder/val` (one centred view) of `data`."""
    train_images, val_images = open_train_val(data, val, config)
    device = next(tokenizer.parameters()).device

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return tokenizer.encode(images.to(device)).cpu()

    for name, images, views in (("train", train_images, num_views), ("val", val_images, 1)):
        write_tokens(
            folder / name,
            encode,
            images,
            config,
            num_views=views,
            num_codes=tokenizer.quantizer.num_codes,
            code_space_hash=tokenizer.code_space_hash(),
            progress=progress,
        )


def _complete(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()
