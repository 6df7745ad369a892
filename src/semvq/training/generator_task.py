"""Training of a transformer on a tokenizer's codes: AR or NAR, from a token cache (Sec. 3.1)."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semvq.data.images import DataConfig, ImageSet, image_grid, open_train_val
from semvq.data.token_parts import join_caches
from semvq.data.tokens import TokenCache, TrainTokens, write_tokens
from semvq.downloads import Progress
from semvq.generators.base import GeneratorConfig
from semvq.generators.files import save_generator
from semvq.tokenizer.files import load_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.training.distributed import World
from semvq.training.identity import SPACE, Fact, cache_facts, check_facts, image_facts
from semvq.training.journal import say_progress
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
        self.config, self.device, self.world = config, setting.device, setting.world
        self.tokenizer = load_tokenizer(setting.upstream).to(self.device).eval()
        self.tokenizer.requires_grad_(False)
        self.space = self.tokenizer.code_space_hash()
        self.facts = {SPACE: Fact(self.space, f"of {setting.upstream.absolute()}")}
        num_codes, grid = self.tokenizer.num_codes, self.tokenizer.grid
        if config.data.resolution != self.tokenizer.config.resolution:
            raise ValueError(
                f"{setting.upstream}: expected a tokenizer of {config.data.resolution} px, found "
                f"one of {self.tokenizer.config.resolution}; give "
                f"--set task.data.resolution={self.tokenizer.config.resolution}"
            )
        self._check("the upstream tokenizer", num_codes=num_codes, grid=grid)
        cache, self.val = self._caches(setting)
        self._check(str(cache.path), num_codes=cache.num_codes, grid=cache.grid)
        self._check(str(cache.path), num_classes=len(cache.classes))
        self.classes, self.unreadable = cache.classes, cache.bad + self.val.bad
        self.dataset = TrainTokens(cache, setting.seed)
        self.epoch_size, self.num_val = len(cache), len(self.val)
        # here, because encoding draws random numbers and may have been done by an earlier start
        torch.manual_seed(setting.seed)
        self.generator = config.generator.build().to(self.device)
        player = Player("transformer", self.generator, config.optim)
        player.parts, player.entry = tuple(self.generator.blocks), self.generator.entry
        self.players = [player]

    def _caches(self, setting: Setting) -> tuple[TokenCache, TokenCache]:
        """Training and held-out codes: `--tokens`, or encoded now into the run folder."""
        folder = setting.tokens or setting.folder / "tokens"
        images = None
        if setting.data is not None:
            images = open_train_val(setting.data, setting.val, self.config.data)
            self._check(str(setting.data), num_classes=len(images[0].classes))
        here = torch.tensor(float(folder.exists()), device=self.device)
        # every process must see the same, before the first of them makes the folder
        if setting.tokens is None and not self.world.total(here):
            if images is None:
                raise ValueError("expected --tokens CACHE or --data PATH, found neither")
            how = self.config.data, self.config.num_views, say_progress, self.world
            encode_images(self.tokenizer, images, folder, *how)
        if not (folder / "train").is_dir() or not (folder / "val").is_dir():
            raise ValueError(
                f"{folder}: expected a token cache with 'train' and 'val', found none; "
                "make one with: semvq encode RUN --data PATH --out CACHE"
            )
        found = cache_facts(folder)
        self.facts = found | (image_facts(*images) if images else {}) | self.facts
        lead = f"{folder}: expected codes of this run's images and code space, found those of"
        check_facts(found, self.facts.items(), lead, "give the original one, or encode anew")
        train, val = (TokenCache.open(folder / part, self.space) for part in ("train", "val"))
        return train, val

    def _check(self, source: str, **found: Any) -> None:
        """ValueError, with the option that mends it, where the model does not fit the codes."""
        model = self.config.generator
        if "grid" in found:
            found["grid_height"], found["grid_width"] = found.pop("grid")
        for name, value in found.items():
            expected = getattr(model, name)
            if name == "num_classes" and not expected:
                continue  # an unconditional model may learn from labelled images
            if expected != value:
                option = f"--set task.generator.{name}={value}"
                if name == "num_classes" and not value:
                    option += " --set task.generator.conditioning_dropout=0"
                raise ValueError(
                    f"the recipe has task.generator.{name} {expected}, {source} has {value}; "
                    f"give {option}"
                )

    def identity(self) -> dict[str, Fact]:
        """The images that were encoded, and the code space they were encoded in."""
        return self.facts

    def turns(self, batch: dict[str, Any], images_seen: int) -> Iterator[Turn]:
        """The transformer's only turn: cross-entropy in nats per code."""
        classes = batch["label"] if self.config.generator.num_classes else None
        loss, logs = self.generator.training_loss(batch["codes"], classes)
        yield Turn("transformer", loss, {"loss": loss.detach(), **logs})

    def to_compile(self) -> Iterable[nn.Module]:
        """The blocks, which are alike, and the loss, which is then one kernel each way."""
        return (*self.generator.blocks, self.generator.cross_entropy)

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Mean held-out cross-entropy in nats per (masked) code, first view of every image."""
        total = torch.zeros((), dtype=torch.float64)
        part = self.world.share(self.num_val)
        for start in range(part.start, part.stop, EVAL_BATCH):
            codes, labels = self.val.read(range(start, min(start + EVAL_BATCH, part.stop)))
            classes = labels.to(self.device) if self.config.generator.num_classes else None
            loss = self.generator.evaluation_loss(codes.to(self.device), classes)
            total += float(loss) * len(codes)
        yield "cross_entropy", float(self.world.total(total.to(self.device))) / self.num_val

    def pictures(self) -> Tensor:
        """Samples, decoded by the upstream tokenizer; classes in turn."""
        count = self.config.generator.num_classes
        classes = torch.arange(NUM_PICTURES, device=self.device) % count if count else None
        codes = self.generator.sample(NUM_PICTURES, classes, seed=0)
        return image_grid(self.tokenizer.decode(codes).float(), columns=8)

    def export(self, folder: Path) -> None:
        """The transformer, with the code space it speaks and the names of its classes."""
        extra = {"code_space_hash": self.space, "classes": list(self.classes)}
        save_generator(self.generator, folder, extra)


def encode_images(
    tokenizer: Tokenizer,
    images: tuple[ImageSet, ImageSet],
    folder: Path,
    config: DataConfig,
    num_views: int,
    progress: Progress | None = None,
    world: World | None = None,
) -> None:
    """Write the token caches `folder/train` and `folder/val` of (training, held-out) images.

    Both appear together or not at all; a held-out image has its centred view alone. Each process
    of `world` encodes its part of the images, and the writing one joins them. ValueError where
    `folder` exists.
    """
    world = world or World()
    world.wait()  # until all have asked whether the folder is there
    if folder.exists():
        raise ValueError(f"{folder}: expected a new folder for the token cache, found one there")
    device = next(tokenizer.parameters()).device

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return tokenizer.encode(pixels.to(device)).cpu()

    temporary = folder.with_name(f".{folder.name}-parts")
    if world.is_writer:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        folder.parent.mkdir(parents=True, exist_ok=True)
    world.wait()
    for name, image_set, views in zip(("train", "val"), images, (num_views, 1)):
        part = world.share(len(image_set))
        if len(part):
            write_tokens(
                temporary / name / f"{world.rank:06d}",
                encode,
                image_set,
                config,
                num_views=views,
                num_codes=tokenizer.num_codes,
                code_space_hash=tokenizer.code_space_hash(),
                progress=progress if world.is_writer else None,
                part=part,
            )
    world.wait()
    if world.is_writer:
        for name in ("train", "val"):
            join_caches(temporary / name)
        os.replace(temporary, folder)
    world.wait()
