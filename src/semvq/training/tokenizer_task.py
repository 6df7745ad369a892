"""Training of the tokenizer, both phases (Sec. 3.4): an autoencoder and a discriminator.

Phase 2 is the same task with other fields: it starts from a phase-1 run, its code space is frozen,
its decoder has attention, and alpha is 0.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.config import duration_in_images
from semvq.data.images import (
    DataConfig,
    TrainImages,
    Views,
    eval_batches,
    image_grid,
    open_train_val,
    pieces,
    to_float,
)
from semvq.data.order import batches as read_batches
from semvq.losses.perceptual import PerceptualConfig
from semvq.metrics import psnr
from semvq.tokenizer.files import load_tokenizer, save_tokenizer
from semvq.tokenizer.model import Tokenizer, TokenizerConfig
from semvq.tokenizer.phases import upgrade_decoder, with_quantizer
from semvq.tokenizer.usage import UsageCounter
from semvq.training.adversary import AdversarialConfig, Adversary
from semvq.training.identity import SPACE, UPSTREAM, Fact, image_facts, upstream_facts
from semvq.training.optim import OptimConfig
from semvq.training.task import Player, Setting, Task, TaskConfig, Turn, check_names

CODES_PER_CODE = 8  # latents gathered per codebook entry for its initialisation
CALIBRATION_BATCHES = 8
EVAL_BATCH = 32


@dataclass(frozen=True)
class TokenizerTaskConfig(TaskConfig):
    """One phase of tokenizer training; Eq. 2 with the weights of D4 and D14."""

    tokenizer: TokenizerConfig
    data: DataConfig
    optim: OptimConfig
    perceptual: PerceptualConfig
    adversarial: AdversarialConfig | None = None
    l1_weight: float = 1.0
    freeze_code_space: bool = False

    def open(self, setting: Setting) -> "TokenizerTask":
        """Load data, upstream tokenizer and the frozen networks of the losses."""
        if setting.data is None:
            raise ValueError("expected --data PATH with images, found none")
        return TokenizerTask(self, setting)


class TokenizerTask(Task):
    """Autoencoder and discriminator; see `TokenizerTaskConfig` for what a phase is."""

    def __init__(self, config: TokenizerTaskConfig, setting: Setting) -> None:
        self.config, self.device, self.world = config, setting.device, setting.world
        assert setting.data is not None
        if config.data.resolution != config.tokenizer.resolution:
            raise ValueError(
                f"expected images of {config.tokenizer.resolution} px as the tokenizer's, found "
                f"{config.data.resolution}; give task.data.resolution and "
                "task.tokenizer.resolution the same value"
            )
        train, self.val = open_train_val(setting.data, setting.val, config.data)
        self.dataset: TrainImages = TrainImages(train, config.data, setting.seed)
        self.epoch_size = len(train)
        self.facts = image_facts(train, self.val)

        torch.manual_seed(setting.seed)
        self.codes_are_new = True
        # a tokenizer that was loaded comes in evaluation mode, where quantizers give no losses
        self.tokenizer = self._tokenizer(setting).to(self.device).train()
        if config.freeze_code_space:
            self.tokenizer.freeze_code_space()
        self.perceptual = config.perceptual.load().to(self.device)
        quantizer = self.tokenizer.quantizer
        quantizer.all_mean = self.world.mean
        self.usage = UsageCounter(quantizer.num_codes, self.device)
        self.players = [Player("autoencoder", self.tokenizer, config.optim)]
        self.adversary: Adversary | None = None
        if config.adversarial:
            self.adversary = self._adversary(config.adversarial, setting)
            self.players.append(self.adversary.player)

    def _adversary(self, config: AdversarialConfig, setting: Setting) -> Adversary:
        size, epoch = setting.batch_size, self.epoch_size
        total = duration_in_images(setting.duration, size, epoch)

        def images(text: str) -> int:
            return duration_in_images(text, size, epoch, total)

        side = self.config.tokenizer.resolution
        adversary = Adversary(config, side, size, images, self.device, self.world)
        if setting.upstream is not None:
            adversary.take_over(setting.upstream)
        return adversary

    def _tokenizer(self, setting: Setting) -> Tokenizer:
        upstream = setting.upstream
        if upstream is None:
            return self.config.tokenizer.build()
        # D13: the exported weights of the upstream run are its averaged ones
        tokenizer = load_tokenizer(upstream)
        facts = upstream_facts(upstream)
        self.facts |= {n: facts[n] for n in (UPSTREAM, SPACE)[: 1 + self.config.freeze_code_space]}
        self.codes_are_new = not tokenizer.quantizer.has_codes
        if self.codes_are_new:
            if self.config.freeze_code_space:
                raise ValueError(
                    f"{upstream}: expected a tokenizer whose codes can be frozen, found a plain "
                    "autoencoder; train a phase 1 on it first"
                )
            tokenizer = with_quantizer(tokenizer, self.config.tokenizer.quantizer)
        try:
            return upgrade_decoder(tokenizer, self.config.tokenizer)
        except ValueError as error:
            wanted = f"this recipe starts from a run of {setting.upstream_recipe}"
            raise ValueError(f"{upstream}: {error}; {wanted}") from error

    def identity(self) -> dict[str, Fact]:
        """The images, the run it started from, and in phase 2 the frozen code space."""
        return self.facts

    def start(self, batches: Iterator[dict[str, Any]]) -> None:
        """Balance the perceptual layers (D5); start a new codebook from encoder outputs."""
        images = (to_float(self.world.gather(batch["image"])) for batch in batches)
        if self.config.perceptual.form == "balanced":
            for whole in itertools.islice(images, CALIBRATION_BATCHES):
                self.perceptual.calibrate(whole)
        if not self.codes_are_new:
            return
        latents: list[Tensor] = []
        needed = CODES_PER_CODE * self.tokenizer.quantizer.num_codes
        with torch.no_grad():
            while sum(x.shape[0] * x.shape[2] * x.shape[3] for x in latents) < needed:
                latents.append(self.tokenizer.latents(next(images)).float())
        self.tokenizer.quantizer.initialize(torch.cat(latents))

    def turns(self, batch: dict[str, Any], images_seen: int) -> Iterator[Turn]:
        """The autoencoder's turn, then the discriminator's on the same reconstruction."""
        images = to_float(batch["image"])
        reconstruction, quantized = self.tokenizer(images)
        self.usage.update(quantized.codes)
        code_loss = self.tokenizer.quantizer.total(quantized.losses)
        image_loss, logs = self._image_loss(reconstruction, images)
        logs |= {f"loss/{k}": v.detach() for k, v in quantized.losses.items()}

        weight = self.adversary.weight(images_seen) if self.adversary else 0.0
        loss = image_loss
        if self.adversary and weight > 0:
            loss, gan_logs = self.adversary.added_to(
                image_loss, reconstruction, self.tokenizer.last_layer, weight
            )
            logs |= gan_logs
        yield Turn("autoencoder", loss + code_loss, logs)

        # the detached reconstruction passes on: the autoencoder runs forward once per step
        if self.adversary and images_seen >= self.adversary.start_at:
            yield self.adversary.turn(images, reconstruction.detach(), images_seen)

    def _image_loss(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict]:
        l1 = F.l1_loss(reconstruction.float(), images)
        perceptual, terms = self.perceptual(reconstruction, images)
        logs = {f"loss/{k}": v for k, v in terms.items()} | {"loss/l1": l1.detach()}
        with torch.no_grad():
            logs["psnr"] = psnr(reconstruction, images).mean()
        return self.config.l1_weight * l1 + perceptual, logs

    def gauges(self) -> dict[str, float]:
        """Usage and perplexity of the codebook since the last log line."""
        if not self.tokenizer.quantizer.has_codes:
            return {}
        whole = self.usage.summed(self.world.total)
        self.usage.reset()
        return {"usage": whole.usage(), "perplexity": whole.perplexity()}

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """PSNR, perceptual distance, usage and perplexity on the held-out images."""
        counter = UsageCounter(self.tokenizer.quantizer.num_codes, self.device)
        ratios: list[Tensor] = []
        distances: list[Tensor] = []
        numbers = pieces(self.world.share(len(self.val)), EVAL_BATCH)
        self.unreadable = ()
        self.tokenizer.eval()
        for batch in read_batches(Views(self.val, self.config.data), numbers):
            self.unreadable += batch["bad"]
            if "image" not in batch:
                continue
            images = to_float(batch["image"][:, 0].to(self.device))
            reconstruction, quantized = self.tokenizer(images)
            counter.update(quantized.codes)
            ratios.append(psnr(reconstruction, images))
            distances.append(self.perceptual(reconstruction, images)[0] * len(images))
        self.tokenizer.train()
        none = [torch.zeros(1, device=self.device)]  # a process may have no held-out image
        sums = [torch.cat(ratios or none).sum(), torch.stack(distances or none).sum()]
        sums += [torch.tensor(float(sum(map(len, ratios))), device=self.device)]
        ratio, distance, num_all = self.world.total(torch.stack(sums)).tolist()
        if not num_all:
            raise ValueError(f"{self.val.root}: expected held-out images, found none to be read")
        yield "psnr", ratio / num_all
        yield "perceptual", distance / num_all
        if self.tokenizer.quantizer.has_codes:
            whole = counter.summed(self.world.total)
            yield "usage", whole.usage()
            yield "perplexity", whole.perplexity()

    def pictures(self) -> Tensor:
        """Held-out images above their reconstructions."""
        batch = next(iter(eval_batches(self.val, self.config.data, batch_size=8)))
        images = to_float(batch["image"].to(self.device))
        self.tokenizer.eval()
        reconstruction, _ = self.tokenizer(images)
        self.tokenizer.train()
        return image_grid(torch.cat([images, reconstruction.float()]), columns=len(images))

    def export(self, folder: Path) -> None:
        """Tokenizer for inference, and the discriminator for a later phase."""
        save_tokenizer(self.tokenizer, folder, {"classes": list(self.val.classes)})
        if self.adversary:
            self.adversary.export(folder)

    def state(self) -> dict[str, Tensor]:
        """Scales of the perceptual layers, all processes' quantizer state by rank, code counts."""
        scales = {f"perceptual.{k}": v for k, v in self.perceptual.named_buffers(recurse=False)}
        quantizer = self.tokenizer.quantizer.state()
        kept = {f"quantizer.{k}": self.world.gather(v) for k, v in quantizer.items()}
        counts = self.usage.summed(self.world.total).state()
        return scales | kept | {f"usage.{k}": v for k, v in counts.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The counts of all processes go to the writing one: their sum is what matters."""
        check_names(self.state(), state)
        for name, scale in self.perceptual.named_buffers(recurse=False):
            scale.copy_(state[f"perceptual.{name}"])
        for name, tensor in self.tokenizer.quantizer.state().items():
            tensor.copy_(state[f"quantizer.{name}"].chunk(self.world.count)[self.world.rank])
        for name, counts in self.usage.state().items():
            counts.copy_(state[f"usage.{name}"] if self.world.is_writer else 0 * counts)
