"""Training of the tokenizer, both phases (Sec. 3.4): an autoencoder and a discriminator.

Phase 2 is the same task with other fields: it starts from a phase-1 run, its code space is frozen,
its decoder has attention, and alpha is 0.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvq.config import Config, duration_in_images
from semvq.data.images import (
    DataConfig,
    TrainImages,
    eval_batches,
    image_grid,
    open_train_val,
    to_float,
)
from semvq.files import replace_atomically
from semvq.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    with_gradient,
)
from semvq.losses.discriminators import DiscriminatorConfig
from semvq.losses.perceptual import PerceptualConfig
from semvq.metrics import psnr
from semvq.tokenizer.files import load_tokenizer, save_tokenizer
from semvq.tokenizer.model import (
    Tokenizer,
    TokenizerConfig,
    upgrade_decoder,
    with_quantizer,
)
from semvq.tokenizer.usage import UsageCounter
from semvq.training.optim import OptimConfig
from semvq.training.task import Player, Setting, Task, TaskConfig, Turn

DISCRIMINATOR_FILE = "discriminator.safetensors"
CODES_PER_CODE = 8  # latents gathered per codebook entry for its initialisation
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class AdversarialConfig(Config):
    """The GAN term (D7, D8, D14).

    The discriminator trains from `start` on; the autoencoder feels it `warmup` later, at a weight
    that rises over `ramp`. `adaptive` scales by the gradient ratio at the decoder's last layer.
    """

    discriminator: DiscriminatorConfig
    optim: OptimConfig
    objective: Literal["hinge", "logistic"] = "logistic"
    weight: float = 0.1
    adaptive: bool = False
    start: str = "0 steps"
    warmup: str = "0 steps"
    ramp: str = "0 steps"
    r1_weight: float = 0.0
    r1_every: int = 16  # steps between two lazy R1 penalties


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
        self.config, self.device = config, setting.device
        assert setting.data is not None
        train, self.val = open_train_val(setting.data, setting.val, config.data)
        self.dataset: TrainImages = TrainImages(train, config.data, setting.seed)
        self.epoch_size = len(train)

        torch.manual_seed(setting.seed)
        self.codes_are_new = True
        self.tokenizer = self._tokenizer(setting.upstream).to(self.device)
        if config.freeze_code_space:
            self.tokenizer.freeze_code_space()
        self.perceptual = config.perceptual.load().to(self.device)
        quantizer = self.tokenizer.quantizer
        self.usage = UsageCounter(quantizer.num_codes, self.device)
        self.players = [Player("autoencoder", self.tokenizer, config.optim)]
        self.discriminator = None
        if config.adversarial:
            gan = config.adversarial
            self.discriminator = gan.discriminator.build(config.tokenizer.resolution)
            self.discriminator.to(self.device)
            player = Player("discriminator", self.discriminator, gan.optim, averaged=False)
            self.players.append(player)

            total = duration_in_images(setting.duration, setting.batch_size, self.epoch_size)

            def images(text: str) -> int:
                return duration_in_images(text, setting.batch_size, self.epoch_size, total)

            self.start_at = images(gan.start)
            self.felt_at = self.start_at + images(gan.warmup)
            self.ramp = images(gan.ramp)
            self.r1_period = gan.r1_every * setting.batch_size
            self._load_discriminator(setting.upstream)

    def _tokenizer(self, upstream: Path | None) -> Tokenizer:
        if upstream is None:
            return self.config.tokenizer.build()
        # D13: the exported weights of the upstream run are its averaged ones
        tokenizer = load_tokenizer(upstream)
        self.codes_are_new = not tokenizer.quantizer.has_codes
        if self.codes_are_new:
            if self.config.freeze_code_space:
                raise ValueError(
                    f"{upstream}: expected a tokenizer whose codes can be frozen, found a plain "
                    "autoencoder; train a phase 1 on it first"
                )
            tokenizer = with_quantizer(tokenizer, self.config.tokenizer.quantizer)
        return upgrade_decoder(tokenizer, self.config.tokenizer)

    def _load_discriminator(self, upstream: Path | None) -> None:
        """D13: phase 2 goes on with phase 1's discriminator, when the two have the same shape."""
        gan = self.config.adversarial
        if upstream is None or gan is None or self.discriminator is None:
            return
        file = upstream / DISCRIMINATOR_FILE
        weights = load_file(file) if file.exists() else {}
        own = self.discriminator.state_dict()
        if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}:
            self.discriminator.load_state_dict(weights)
        elif self.felt_at == self.start_at:
            raise ValueError(
                f"{file}: expected the upstream run's discriminator, found "
                f"{'another one' if weights else 'none'}; an untrained one must warm up before it "
                "acts: give --set 'task.adversarial.warmup=2k steps'"
            )

    def identity(self) -> dict[str, str]:
        """The images, and in phase 2 the frozen code space."""
        frozen = self.config.freeze_code_space
        space = self.tokenizer.code_space_hash() if frozen else "in training"
        return {"data": self.dataset.image_set.fingerprint, "code space": space}

    def start(self, batches: Iterator[dict[str, Any]]) -> None:
        """Balance the perceptual layers (D5); start a new codebook from encoder outputs."""
        if self.config.perceptual.form == "balanced":
            for batch in itertools.islice(batches, CALIBRATION_BATCHES):
                self.perceptual.calibrate(to_float(batch["image"]))
        if not self.codes_are_new:
            return
        latents: list[Tensor] = []
        needed = CODES_PER_CODE * self.tokenizer.quantizer.num_codes
        with torch.no_grad():
            while sum(x.shape[0] * x.shape[2] * x.shape[3] for x in latents) < needed:
                latents.append(self.tokenizer.latents(to_float(next(batches)["image"])).float())
        self.tokenizer.quantizer.initialize(torch.cat(latents))

    def turns(self, batch: dict[str, Any], images_seen: int) -> Iterator[Turn]:
        """The autoencoder's turn, then the discriminator's on the same reconstruction."""
        images = to_float(batch["image"])
        reconstruction, quantized = self.tokenizer(images)
        self.usage.update(quantized.codes)
        code_loss = self.tokenizer.quantizer.total(quantized.losses)
        image_loss, logs = self._image_loss(reconstruction, images)
        logs |= {f"loss/{k}": v.detach() for k, v in quantized.losses.items()}

        gan_weight = self._gan_weight(images_seen)
        if gan_weight > 0:
            loss, gan_logs = self._with_gan(reconstruction, image_loss, gan_weight)
            logs |= gan_logs
        else:
            loss = image_loss
        yield Turn("autoencoder", loss + code_loss, logs)

        # the detached reconstruction passes on: the autoencoder runs forward once per step
        if self.discriminator is not None and images_seen >= self.start_at:
            yield self._discriminator_turn(images, reconstruction.detach(), images_seen)

    def _image_loss(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict]:
        l1 = F.l1_loss(reconstruction.float(), images)
        perceptual, terms = self.perceptual(reconstruction, images)
        logs = {f"loss/{k}": v for k, v in terms.items()}
        logs["loss/l1"] = l1.detach()
        with torch.no_grad():
            logs["psnr"] = psnr(reconstruction, images).mean()
        return self.config.l1_weight * l1 + perceptual, logs

    def _gan_weight(self, images_seen: int) -> float:
        if self.config.adversarial is None or images_seen < self.felt_at:
            return 0.0
        share = (images_seen - self.felt_at + 1) / max(1, self.ramp)
        return self.config.adversarial.weight * min(1.0, share)

    def _with_gan(
        self, reconstruction: Tensor, image_loss: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Image loss plus the GAN term, whose scale is adaptive when the recipe says so."""
        gan = self.config.adversarial
        assert gan is not None and self.discriminator is not None
        self.discriminator.requires_grad_(False)
        gan_loss = generator_loss(gan.objective, self.discriminator(reconstruction))
        self.discriminator.requires_grad_(True)
        logs = {"loss/gan": gan_loss.detach()}
        if not gan.adaptive:
            return image_loss + weight * gan_loss, logs
        balanced = adaptive_weight(
            image_loss, gan_loss, reconstruction, self.tokenizer.last_layer, scale=weight
        )
        logs["adaptive_weight"] = balanced.weight
        value = image_loss.detach() + balanced.weight * gan_loss.detach()
        return with_gradient(value, reconstruction, balanced.gradient), logs

    def _discriminator_turn(self, images: Tensor, fakes: Tensor, images_seen: int) -> Turn:
        gan = self.config.adversarial
        assert gan is not None and self.discriminator is not None
        real, fake = self.discriminator(torch.cat([images, fakes])).chunk(2)
        loss = discriminator_loss(gan.objective, real, fake)
        logs = {
            "loss/discriminator": loss.detach(),
            "gan/real": real.detach().float().mean(),
            "gan/fake": fake.detach().float().mean(),
        }
        if gan.r1_weight > 0 and images_seen % self.r1_period == 0:
            penalty = r1_penalty(self.discriminator, images)
            # lazy: applied every r1_every steps, hence that much stronger
            loss = loss + gan.r1_every * gan.r1_weight / 2 * penalty
            logs["loss/r1"] = penalty.detach()
        return Turn("discriminator", loss, logs)

    def gauges(self) -> dict[str, float]:
        """Usage and perplexity of the codebook since the last log line."""
        if not self.tokenizer.quantizer.has_codes:
            return {}
        values = {"usage": self.usage.usage(), "perplexity": self.usage.perplexity()}
        self.usage.reset()
        return values

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """PSNR, perceptual distance, usage and perplexity on the held-out images."""
        counter = UsageCounter(self.tokenizer.quantizer.num_codes, self.device)
        ratios, distances = [], []
        self.tokenizer.eval()
        for batch in eval_batches(self.val, self.config.data, batch_size=32):
            images = to_float(batch["image"].to(self.device))
            reconstruction, quantized = self.tokenizer(images)
            counter.update(quantized.codes)
            ratios.append(psnr(reconstruction, images))
            distances.append(self.perceptual(reconstruction, images)[0] * len(images))
        self.tokenizer.train()
        found = torch.cat(ratios)
        yield "psnr", float(found.mean())
        yield "perceptual", float(torch.stack(distances).sum()) / len(found)
        if self.tokenizer.quantizer.has_codes:
            yield "usage", counter.usage()
            yield "perplexity", counter.perplexity()

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
        if self.discriminator is not None:
            weights = {k: v.contiguous() for k, v in self.discriminator.state_dict().items()}
            replace_atomically(folder / DISCRIMINATOR_FILE, lambda path: save_file(weights, path))

    def state(self) -> dict[str, Tensor]:
        """Scales of the perceptual layers and the window of code counts."""
        tensors = {f"perceptual.{k}": v for k, v in self.perceptual.named_buffers(recurse=False)}
        return tensors | {f"usage.{k}": v for k, v in self.usage.state().items()}
